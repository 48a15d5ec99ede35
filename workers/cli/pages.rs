//! What shells and manuals know of the command line: made from it, so that it is never behind.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, CommandFactory as _};
use clap_complete::Shell;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::output::Out;

/// Print the completions for a shell
///
/// bash: `paceline completions bash > ~/.local/share/bash-completion/completions/paceline`.
/// zsh: into a file `_paceline` in a folder of $fpath. fish: into ~/.config/fish/completions/paceline.fish.
#[derive(Debug, ClapArgs)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write one for each command
///
/// `paceline man | man -l -` reads it; `paceline man --out ~/.local/share/man/man1` installs them all.
#[derive(Debug, ClapArgs)]
pub struct Man {
    /// The folder for a page of each command, such as paceline-enqueue.1
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Prints the completions.
pub fn completions(args: &Completions, out: &Out) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "paceline", &mut text);
    out.bytes(&text)?;
    Ok(Exit::Done)
}

/// Prints the manual page, or writes them all.
pub fn man(args: &Man, out: &Out) -> Result<Exit, Failure> {
    let command = super::Cli::command();
    let Some(folder) = &args.out else {
        out.bytes(&page(command)?)?;
        return Ok(Exit::Done);
    };
    let mut written = Vec::new();
    std::fs::create_dir_all(folder).map_err(|e| cannot_write(folder, &e))?;
    write_all(command, "paceline", folder, &mut written)?;
    match out.is_json() {
        true => out.json(&json!({ "written": written }))?,
        false => out.line(format!("{} pages written to {}", written.len(), folder.display()))?,
    }
    Ok(Exit::Done)
}

/// A command's page and those of its commands, whose names are put together as manuals do.
fn write_all(command: clap::Command, name: &str, folder: &Path, written: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let below: Vec<clap::Command> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    let path = folder.join(format!("{name}.1"));
    // clap wants a name that lives as long as the program: there are few of them, and the program ends.
    let title: &'static str = name.to_owned().leak();
    std::fs::write(&path, page(command.name(title).display_name(title))?).map_err(|e| cannot_write(&path, &e))?;
    written.push(path);
    for command in below {
        let name = format!("{name}-{}", command.get_name());
        write_all(command, &name, folder, written)?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    Ok(text)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
}
