//! The `amdanet` program.

fn main() -> std::process::ExitCode {
    amdanet::cli::main()
}
