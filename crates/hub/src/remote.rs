//! A file of a repository: its name, its size and what its content has to be.

/// A file of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub name: String,
    pub size: u64,
    pub hash: Hash,
}

/// What a file's content has to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Hash {
    /// SHA-256 of the content.
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content, as Git has it.
    Git(String),
}

impl Hash {
    pub fn of(tag: &str) -> Option<Self> {
        let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hex = tag.bytes().all(|b| b.is_ascii_hexdigit());
        match tag.len() {
            64 if hex => Some(Hash::Sha256(tag)),
            40 if hex => Some(Hash::Git(tag)),
            _ => None,
        }
    }

    pub fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::Git(hex) => hex,
        }
    }
}

/// Whether a file of a repository is of use: not the pages, pictures and scripts beside a model.
pub(crate) fn is_of_a_model(name: &str, only: &[String]) -> bool {
    if !only.is_empty() {
        return only.iter().any(|part| name.contains(part.as_str()));
    }
    const ENDINGS: [&str; 9] = ["safetensors", "gguf", "pth", "pt", "bin", "json", "model", "txt", "spm"];
    const BESIDE: [&str; 3] = ["assets/", "examples/", "xlm-roberta-large/"];
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ENDINGS.contains(&ending) && !BESIDE.iter().any(|folder| name.starts_with(folder))
}

/// Whether a name stays inside of the folder it is put in.
pub(crate) fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':']);
    name.split('/').all(plain)
}

/// A path as part of an address.
pub(crate) fn escaped(name: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes().map(|b| if keep(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for good in ["config.json", "google/umt5-xxl/spiece.model"] {
            assert!(is_inside(good));
        }
        for bad in ["", "../x", "/etc/passwd", "a/../../b", "a//b", "a\\b", "C:/x", "."] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn what_belongs_to_a_model() {
        assert!(is_of_a_model("Wan2.1_VAE.pth", &[]) && is_of_a_model("google/umt5-xxl/spiece.model", &[]));
        assert!(!is_of_a_model("assets/logo.png", &[]) && !is_of_a_model("README.md", &[]));
        let only = ["Q4_K".to_string()];
        assert!(is_of_a_model("wan-Q4_K_M.gguf", &only) && !is_of_a_model("wan-Q8_0.gguf", &only));
        assert_eq!(escaped("a b/ä.json"), "a%20b/%C3%A4.json");
    }

    #[test]
    fn hashes() {
        let sha = "a".repeat(64);
        assert_eq!(Hash::of(&format!("\"{sha}\"")), Some(Hash::Sha256(sha)));
        assert_eq!(Hash::of(&"B".repeat(40)), Some(Hash::Git("b".repeat(40))));
        assert_eq!(Hash::of("W/\"abc\""), None);
    }
}
