//! The binary `heddle`: parses the command line and hands it to the file named after the subcommand.
//!
//! Owns no logic: [`args`] is the command line, [`failure`] the exit codes, and every other module one subcommand.
#![forbid(unsafe_code)]

mod args;
mod cluster;
mod completion;
mod config;
mod consume;
mod decode;
mod failure;
mod group;
mod log;
mod output;
mod produce;
mod serve;
mod session;
mod text;
mod time;
mod topic;

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
        Command::Config(command) => config::run(command),
        Command::Topic(command) => topic::run(command),
        Command::Produce(args) => produce::run(args),
        Command::Consume(args) => consume::run(args),
        Command::Group(command) => group::run(command),
        Command::Cluster(command) => cluster::run(command),
    })
}
