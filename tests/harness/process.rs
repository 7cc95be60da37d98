//! `heddle serve` as a process of its own: started, killed, asked to stop. Never looks inside it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long a broker may take to say where it listens. Generous: a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The binary that `HEDDLE_BINARY` names, else that of this build, built if it is not there or stale.
///
/// # Panics
/// When it cannot be built.
pub fn heddle() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("HEDDLE_BINARY").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let mut folder = std::env::current_exe().expect("a test knows its own path");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "heddle-cli", "--manifest-path"]);
    build.arg(crate::repository::root().join("Cargo.toml"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let built = build.status().expect("cargo runs");
    assert!(built.success(), "heddle could not be built");
    folder.join("heddle")
}

/// A running broker. Dropping it kills it.
pub struct Broker {
    child: Child,
    lines: Receiver<String>,
    /// What it has said so far, line by line.
    pub said: Vec<String>,
    /// Where it listens, as `127.0.0.1:port`.
    pub address: String,
}

impl Broker {
    /// Starts `heddle serve` on a free port of 127.0.0.1 with its data in `data`.
    ///
    /// # Panics
    /// When it does not say within 30 s where it listens.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::start_under(&[], data, arguments)
    }

    /// The same, run by another program: its name and the words before the command that it runs.
    ///
    /// # Panics
    /// As [`Broker::start`].
    pub fn start_under(wrapper: &[String], data: &Path, arguments: &[&str]) -> Self {
        Self::start_copy_under(wrapper, heddle(), data, arguments)
    }

    /// The same, with a copy of the binary.
    ///
    /// # Panics
    /// As [`Broker::start`].
    pub fn start_copy_under(wrapper: &[String], binary: &Path, data: &Path, arguments: &[&str]) -> Self {
        let mut child = serve(wrapper, binary, data, arguments).spawn().expect("heddle starts");
        let (sender, lines) = channel();
        forward(child.stderr.take().expect("stderr is a pipe"), sender.clone());
        forward(child.stdout.take().expect("stdout is a pipe"), sender);
        let mut broker = Self { child, lines, said: Vec::new(), address: String::new() };
        broker.address = broker.wait_for(address_in);
        broker
    }

    /// Waits for a line in which `find` finds something.
    ///
    /// # Panics
    /// When the broker ends, or says nothing of the kind within 30 s.
    pub fn wait_for<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> T {
        loop {
            match self.lines.recv_timeout(START_LIMIT) {
                Ok(line) => {
                    let found = find(&line);
                    self.said.push(line);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("heddle did not say it; it said:\n{}", self.said.join("\n")),
                Err(RecvTimeoutError::Disconnected) => panic!("heddle ended; it said:\n{}", self.said.join("\n")),
            }
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory of the process in KiB, as `field` of `/proc/PID/status` counts it: `VmRSS` what it has, `VmHWM` the most that it had.
    ///
    /// # Panics
    /// If the process is gone, or Linux counts no such thing.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process is there");
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, amount) = lines.find(|(name, _)| *name == field).expect("Linux counts it");
        amount.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    /// Sends a signal by its name, as `kill -NAME` does.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        assert!(sent.expect("kill runs").success(), "the signal could not be sent");
    }

    /// Waits for the end; gives the status and everything it said.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("the process is ours");
        self.said.extend(self.lines.iter());
        (status, self.said.join("\n"))
    }

    /// SIGTERM, and the end of it.
    ///
    /// # Panics
    /// When it does not exit with status 0.
    pub fn stop(self) -> String {
        self.signal("TERM");
        let (status, said) = self.wait();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "a clean stop; it said:\n{said}");
        said
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already gone is fine: the test ended it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `heddle serve` where it must refuse to start, and gives what it said.
///
/// # Panics
/// When it is still running after 30 s.
pub fn refused(data: &Path, arguments: &[&str]) -> Output {
    refused_under(&[], data, arguments)
}

/// The same, run by another program: its name and the words before the command that it runs.
///
/// # Panics
/// As [`refused`].
pub fn refused_under(wrapper: &[String], data: &Path, arguments: &[&str]) -> Output {
    let mut child = serve(wrapper, heddle(), data, arguments).spawn().expect("heddle starts");
    let (sender, ended) = channel::<()>();
    let id = child.id().to_string();
    let watch = crate::thread(move || {
        if ended.recv_timeout(START_LIMIT) == Err(RecvTimeoutError::Timeout) {
            drop(Command::new("kill").args(["-9", &id]).status());
        }
    });
    let status = child.wait().expect("the process is ours");
    drop(sender);
    watch.join().expect("the watch does not panic");
    let read = |pipe: &mut dyn Read| {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).expect("a pipe is readable");
        text
    };
    let stdout = read(&mut child.stdout.take().expect("stdout is a pipe"));
    let stderr = read(&mut child.stderr.take().expect("stderr is a pipe"));
    assert_eq!(
        status.signal(),
        None,
        "heddle was expected to refuse; it ran on:\n{}",
        String::from_utf8_lossy(&stderr)
    );
    Output { status, stdout, stderr }
}

fn serve(wrapper: &[String], binary: &Path, data: &Path, arguments: &[&str]) -> Command {
    let mut command = match wrapper {
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(binary);
            command
        }
        [] => Command::new(binary),
    };
    command.arg("serve").arg("--data-dir").arg(data);
    if !arguments.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn forward(pipe: impl Read + Send + 'static, lines: Sender<String>) {
    crate::thread(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// The first `127.0.0.1:port` in a line.
fn address_in(line: &str) -> Option<String> {
    let start = line.find("127.0.0.1:")?;
    let port: String = line[start + 10..].chars().take_while(char::is_ascii_digit).collect();
    (!port.is_empty() && port != "0").then(|| format!("127.0.0.1:{port}"))
}
