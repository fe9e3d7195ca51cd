//! The `redirect` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    redirect::commands::run()
}
