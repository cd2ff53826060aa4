//! The redbouncer program. Everything it does is in the library, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    redbouncer::cli::main()
}
