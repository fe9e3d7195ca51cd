//! Writes what packages hold beside the program: man pages and completions, from the
//! command line's own definition, and the policy's schema.
//!
//! ```text
//! cargo run --example manual -- DIRECTORY
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use redirect::cli::Cli;
use redirect::policy;
use redirect::render::json::pretty;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        let _ = writeln!(
            io::stderr(),
            "usage: cargo run --example manual -- DIRECTORY"
        );
        return ExitCode::from(64);
    };
    match write_all(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "manual: cannot write there: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "redirect", directory)?;
    }
    // `redirect help` has no page.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    man_pages(&command, directory)?;
    write(directory, "policy.schema.json", &pretty(&policy::schema()))
}

/// One page a command: `redirect.8`, `redirect-apply.8`, …
fn man_pages(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let mut page = Vec::new();
    Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        .manual("redirect")
        // Nothing that differs from one build to the next.
        .date("")
        .render(&mut page)?;
    write(
        directory,
        &format!("{name}.8"),
        &String::from_utf8_lossy(&page),
    )?;
    for subcommand in command.get_subcommands() {
        if !subcommand.is_hide_set() {
            man_pages(subcommand, directory)?;
        }
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "it runs at build time, on no router"
)]
fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    fs::write(directory.join(name), text)
}
