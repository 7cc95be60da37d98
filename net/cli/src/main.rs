//! The binary `heddle`: parses the command line and hands it to the file named after the subcommand.
//!
//! Owns no logic: [`args`] is the command line, [`failure`] the exit codes, and every other module one subcommand.
#![forbid(unsafe_code)]

mod args;
mod completion;
mod decode;
mod failure;
mod log;
mod serve;
mod time;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    failure::conclude(match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Log(command) => log::run(command),
        Command::Decode(args) => decode::run(args),
        Command::Completion(args) => completion::run(args),
        _ => Err(failure::Failure::new(failure::Exit::Failed, "this build of heddle has no client").into()),
    })
}
