//! The `koios` program: reads its command line and runs one [`koios::Node`], or one `ctl` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    koios::cli::main()
}
