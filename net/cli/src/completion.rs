//! `heddle completion`: a script that teaches a shell the flags of `heddle`.

use std::io::Write as _;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, CompletionArgs};

/// Prints the script for the shell that was asked for.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn run(args: &CompletionArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "heddle", &mut script);
    std::io::stdout().lock().write_all(&script).context("standard output")
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_names_the_commands() {
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "heddle", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in ["serve", "topic", "produce", "consume", "cluster", "decode"] {
                assert!(script.contains(command), "{shell}: {command}");
            }
        }
    }
}
