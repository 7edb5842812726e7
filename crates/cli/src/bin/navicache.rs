//! The command, for any machine.

use navicache_engine::models::HugePages;

#[global_allocator]
static MEMORY: HugePages = HugePages;

fn main() -> std::process::ExitCode {
    navicache::main()
}
