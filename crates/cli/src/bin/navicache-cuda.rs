//! The same command linked with CUDA's libraries; `navicache` starts it when a GPU is asked for.

fn main() -> std::process::ExitCode {
    navicache::main()
}
