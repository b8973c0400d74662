//! The binary `worker`; everything is in its library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    stockade_worker::main()
}
