//! The command, for any machine.

fn main() -> std::process::ExitCode {
    navicache::main()
}
