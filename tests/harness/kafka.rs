//! An Apache Kafka of its own for a test, where a JDK and Kafka's jars are present.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder with Kafka's jars in `libs/` and a `run.sh` that starts and stops brokers.
const FOLDER: &str = "HEDDLE_KAFKA_PEER";

/// A running Kafka broker. Dropping it stops it.
pub struct Kafka {
    folder: PathBuf,
    data: PathBuf,
    port: u16,
    /// Where it listens, as `127.0.0.1:port`.
    pub address: String,
}

impl Kafka {
    /// Starts a broker with its data in `data`, which tells clients to connect to `advertised`, or to
    /// where it listens.
    ///
    /// # Errors
    /// Why there can be none on this machine.
    ///
    /// # Panics
    /// When there should be one and it does not start.
    pub fn start(data: &Path, advertised: Option<&str>) -> Result<Self, String> {
        Self::start_with(data, advertised, &[])
    }

    /// The same, with settings of its own.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    ///
    /// # Panics
    /// As [`Kafka::start`].
    pub fn start_with(data: &Path, advertised: Option<&str>, settings: &[String]) -> Result<Self, String> {
        let folder = folder()?;
        let port = two_free_ports();
        let advertised = advertised.map_or_else(|| format!("127.0.0.1:{port}"), str::to_owned);
        let extra = format!("advertised.listeners=PLAINTEXT://{advertised}\n{}", settings.join("\n"));
        let kafka = Self { folder, data: data.to_owned(), port, address: format!("127.0.0.1:{port}") };
        let started = kafka.run("start").arg("1").env("KAFKA_PEER_EXTRA", extra).output().expect("bash runs");
        let said = String::from_utf8_lossy(&started.stdout).into_owned() + &String::from_utf8_lossy(&started.stderr);
        assert!(said.contains("broker 1: "), "Kafka did not start; it said:\n{said}");
        Ok(kafka)
    }

    fn run(&self, what: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(self.folder.join("run.sh")).arg(what).stdin(Stdio::null());
        command.env("KAFKA_PEER_DIR", &self.data).env("KAFKA_PEER_PORT", self.port.to_string());
        command.env("KAFKA_HEAP_OPTS", "-Xmx512m");
        command
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        drop(self.run("stop").output());
    }
}

fn folder() -> Result<PathBuf, String> {
    let folder = std::env::var_os(FOLDER).map(PathBuf::from).ok_or_else(|| format!("{FOLDER} is not set"))?;
    if !folder.join("libs").is_dir() {
        return Err(format!("{FOLDER} names {}, which has no jars in libs/ (fetch.sh gets them)", folder.display()));
    }
    let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !java.is_ok_and(|status| status.success()) {
        return Err("there is no java".to_owned());
    }
    Ok(folder)
}

/// A port that is free, and so is the one 100 above it, which the controller takes.
fn two_free_ports() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).and_then(|it| it.local_addr()).map(|it| it.port());
    (0..1_000)
        .filter_map(|_| free(0).ok())
        .find(|port| port.checked_add(100).is_some_and(|above| free(above).is_ok()))
        .expect("two free ports")
}
