//! The binary. All of it is in the library, so that this stays a line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sconce_server::main()
}
