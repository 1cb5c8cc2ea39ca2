//! `keel completions` and `keel man`: what shells and manuals want to know of the command line, made from the one description
//! that it has.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::print_line;
use keel_base::error::{Error, Result};
use keel_base::units::counted;

/// Options of `keel completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Options of `keel man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder for the pages, made where there is none: one page a command, keel.1 first.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completion script of a shell.
pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|problem| Error::io("standard output", "write", problem))
}

/// Writes a manual page for each command.
pub(super) fn man(args: &ManArgs, command: Command) -> Result<()> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder)
        .map_err(|problem| Error::io(folder, "create the folder", problem))?;
    let pages = pages(&command);
    clap_mangen::generate_to(command, folder)
        .map_err(|problem| Error::io(folder, "write the manual pages", problem))?;
    print_line(format!(
        "{} in {}; read one with man {}",
        counted(pages, "page"),
        folder.display(),
        folder.join("keel.1").display()
    ))
}

/// A page for the command itself and for each below it.
fn pages(command: &Command) -> u64 {
    1 + command.get_subcommands().map(pages).sum::<u64>()
}
