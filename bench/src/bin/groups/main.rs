//! Consumer groups of a broker as its clients meet them: durable commits, a rebalance of a large group, idle groups, a start
//! with many committed offsets.
//!
//! Owns the rows and what is asked on the command line. A broker is a process of its own, `heddle serve` on one core, or
//! whatever listens at `--bootstrap`, Apache Kafka say; the load is one thread with a ring of its own, as thin as it can be.
//! What a machine's clock says depends on what else it does: CPU time and flushes per commit are printed beside it.
//!
//! ```text
//! groups commits [groups=64] [members=64] [depth=1] [seconds=5]     durable commits a second
//! groups settle  [members=1000] [beat=100]                          from a join until every member has its assignment
//! groups idle    [groups=10000] [offsets=4] [members=1]             memory of a group that nobody uses
//! groups load    [offsets=1000000] [batch=100]                      a start with so many committed offsets (heddle only)
//!
//! bootstrap=127.0.0.1:9092 pid=4711      another broker, and the process whose CPU time and memory count
//! HEDDLE_BINARY=path                     the binary; else the one beside this program
//! ```
#![expect(clippy::print_stdout, reason = "what it finds is for reading")]

mod commits;
mod idle;
mod load;
mod member;
mod server;
mod settle;

use std::collections::BTreeMap;
use std::process::ExitCode;

use heddle_io::{Executor, Io, IoConfig};
use server::Server;

/// What was asked, by name.
struct Asked(BTreeMap<String, String>);

impl Asked {
    fn number(&self, name: &str, default: usize) -> usize {
        self.0.get(name).map_or(default, |value| value.parse().expect("a number"))
    }

    /// The broker to be measured; one of our own with these settings where none was named.
    fn server(&self, settings: &[&str]) -> Server {
        match self.0.get("bootstrap") {
            Some(address) => Server::at(address, self.0.get("pid").map(|pid| pid.parse().expect("a process id"))),
            None => Server::start(settings),
        }
    }
}

/// Runs the load's side.
fn run<F: Future>(story: impl FnOnce(Io) -> F) -> F::Output {
    let executor = Executor::new(IoConfig::default()).expect("an executor");
    executor.run(story(executor.io()))
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let row = words.next().unwrap_or_default();
    let asked = words.map(|word| {
        let (name, value) = word.split_once('=').expect("name=value");
        (name.to_owned(), value.to_owned())
    });
    let asked = Asked(asked.collect());
    match row.as_str() {
        "commits" => commits::measure(&asked),
        "settle" => settle::measure(&asked),
        "idle" => idle::measure(&asked),
        "load" => load::measure(&asked),
        _ => {
            println!("groups commits|settle|idle|load [name=value ...]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
