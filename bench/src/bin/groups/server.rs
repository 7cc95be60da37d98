//! The broker that is measured: its process, and what the kernel says of it.
//!
//! Owns the process if it started it. Never speaks to it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use heddle_bench::resident_bytes;
use tempfile::TempDir;

/// Ticks of a second in `/proc`, as on every Linux of today.
const TICKS: f64 = 100.0;

/// A broker, ours or another.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pid: Option<u32>,
    own: Option<Own>,
}

/// A process of ours.
struct Own {
    child: Child,
    data: TempDir,
    settings: Vec<String>,
}

/// What was used up to some moment.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// CPU time of the broker's process, its kernel threads for the ring included.
    pub(crate) cpu: Duration,
    /// Flushes of all disks.
    pub(crate) flushes: u64,
}

impl Server {
    /// The broker at an address, and the process that is looked at.
    pub(crate) fn at(address: &str, pid: Option<u32>) -> Self {
        Self { address: address.parse().expect("an address"), pid, own: None }
    }

    /// Starts `heddle serve` on one core, its data in a new folder.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        Self::start_on(data, settings.iter().map(|setting| (*setting).to_owned()).collect())
    }

    fn start_on(data: TempDir, settings: Vec<String>) -> Self {
        let mut command = Command::new(binary());
        command.arg("serve").arg("--data-dir").arg(data.path());
        command.args(["--listen", "127.0.0.1:0", "--cores", "1"]);
        for setting in &settings {
            command.args(["--set", setting]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("heddle starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
        let address = lines.find_map(|line| address_in(&line.expect("a line"))).expect("heddle says where it listens");
        // Whatever it says from now on, somebody has to take it.
        let mut rest = lines;
        drop(std::thread::Builder::new().spawn(move || while rest.next().is_some() {}).expect("a thread"));
        Self { address, pid: Some(child.id()), own: Some(Own { child, data, settings }) }
    }

    /// `kill -9`, and a start on the same data.
    pub(crate) fn restart(mut self) -> Self {
        let mut own = self.own.take().expect("only a broker of ours is killed");
        own.child.kill().expect("the process is ours");
        own.child.wait().expect("the process is ours");
        Self::start_on(own.data, own.settings)
    }

    /// What was used up to now; nothing of a process that is not known.
    pub(crate) fn usage(&self) -> Usage {
        let stat = self.pid.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs"));
        let ticks = stat.map_or(0.0, |stat| {
            let behind_name = stat.rsplit_once(')').expect("a name").1;
            let field = |index: usize| behind_name.split_whitespace().nth(index).expect("a field").parse::<f64>();
            field(11).expect("a number") + field(12).expect("a number")
        });
        Usage { cpu: Duration::from_secs_f64(ticks / TICKS), flushes: flushes() }
    }

    /// Its resident memory, bytes.
    pub(crate) fn resident(&self) -> u64 {
        resident_bytes(self.pid.expect("the process is known"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            let _ = own.child.kill();
            let _ = own.child.wait();
        }
    }
}

fn binary() -> PathBuf {
    let beside = || std::env::current_exe().expect("a program knows its path").with_file_name("heddle");
    std::env::var_os("HEDDLE_BINARY").map_or_else(beside, PathBuf::from)
}

/// The first `127.0.0.1:port` in a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let start = line.find("127.0.0.1:")?;
    let address: String = line[start..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    address.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

/// Flushes that the disks have done, of all processes.
fn flushes() -> u64 {
    let stats = std::fs::read_to_string("/proc/diskstats").unwrap_or_default();
    stats.lines().filter_map(|line| line.split_whitespace().nth(18)?.parse::<u64>().ok()).sum()
}
