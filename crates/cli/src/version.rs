//! What `navicache --version` says.

use std::sync::LazyLock;

use navicache_engine::models::Level;

/// The commit that it was built from, where the build knew it.
pub const COMMIT: &str = env!("BUILT_FROM");

/// Number, commit, features, instruction sets.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let levels: Vec<&str> = Level::available().iter().map(|level| level.name()).collect();
        format!(
            "{}\ncommit: {COMMIT}\nfeatures: {}\ninstruction sets of this machine: {}\nbuilt for: {}-{}",
            env!("CARGO_PKG_VERSION"),
            features(),
            levels.join(", "),
            std::env::consts::ARCH,
            std::env::consts::OS,
        )
    });
    &TEXT
}

fn features() -> String {
    let all = [("cuda", cfg!(feature = "cuda"))];
    let on: Vec<&str> = all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    if on.is_empty() { "none".to_string() } else { on.join(", ") }
}
