//! `polylock`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(polylock_cli::command_line(std::env::args_os()))
}
