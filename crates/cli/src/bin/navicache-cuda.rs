//! The same command linked with CUDA's libraries; `navicache` starts it when a GPU is asked for.

use navicache_engine::models::HugePages;

#[global_allocator]
static MEMORY: HugePages = HugePages;

fn main() -> std::process::ExitCode {
    navicache::main()
}
