//! Why a broker does not start, or stops: one line each, that says what to do.
//!
//! Owns the words. Never the decision to retry: nothing here is.

use std::fmt;
use std::net::SocketAddr;

/// Why a broker ended otherwise than by being told to.
#[derive(Debug)]
pub enum BrokerError {
    /// It did not start.
    Start(StartError),
    /// It did not stop cleanly.
    Stop(StopError),
}

/// Why a broker did not stop cleanly, in words. What was acknowledged is safe; the next start recovers.
#[derive(Debug)]
pub struct StopError(pub String);

impl fmt::Display for BrokerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => error.fmt(formatter),
            Self::Stop(error) => write!(formatter, "the broker did not stop cleanly: {}", error.0),
        }
    }
}

impl std::error::Error for BrokerError {}

impl From<StartError> for BrokerError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl From<StopError> for BrokerError {
    fn from(error: StopError) -> Self {
        Self::Stop(error)
    }
}

/// Why a broker did not start.
#[derive(Debug)]
pub enum StartError {
    /// No socket could be bound.
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: heddle_io::Error,
    },
    /// The host of a listener is no address and no known name.
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// The port for metrics and health could not be bound.
    Metrics {
        /// Where: the host as it was given.
        host: String,
        /// And the port.
        port: u16,
        /// What the system said.
        error: std::io::Error,
    },
    /// None of the listeners could be bound.
    NoListener,
    /// The data directory, or a log in it, could not be opened.
    Storage(heddle_engine::Error),
    /// A thread or its backend could not be started.
    Core(heddle_io::Error),
    /// Another core failed, in its words.
    Elsewhere(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, error } => bind_failed(formatter, *address, error),
            Self::Resolve { host, reason } => {
                write!(formatter, "cannot listen on {host}: {reason}; give --listen an address of this machine")
            }
            Self::Metrics { host, port, error } => metrics_failed(formatter, host, *port, error),
            Self::NoListener => formatter.write_str("nothing to listen on; give --listen an address of this machine"),
            Self::Storage(error) => error.fmt(formatter),
            Self::Core(error) => error.fmt(formatter),
            Self::Elsewhere(words) => formatter.write_str(words),
        }
    }
}

fn bind_failed(formatter: &mut fmt::Formatter<'_>, address: SocketAddr, error: &heddle_io::Error) -> fmt::Result {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "another process uses this port; stop it, or give --listen another port",
        ErrorKind::AddrNotAvailable => "this machine has no such address; give --listen one that it has",
        ErrorKind::PermissionDenied => "ports below 1024 need a privilege; give --listen a higher port",
        _ => "give --listen another address",
    };
    write!(formatter, "cannot listen on {address}: {error}: {advice}")
}

fn metrics_failed(formatter: &mut fmt::Formatter<'_>, host: &str, port: u16, error: &std::io::Error) -> fmt::Result {
    use std::io::ErrorKind;
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "another process uses this port; stop it, or give --metrics another port",
        ErrorKind::AddrNotAvailable => "this machine has no such address; give --metrics one that it has",
        ErrorKind::PermissionDenied => "ports below 1024 need a privilege; give --metrics a higher port",
        _ => "give --metrics another address",
    };
    write!(formatter, "cannot serve metrics on {host}:{port}: {error}: {advice}")
}

impl std::error::Error for StartError {}

impl From<heddle_engine::Error> for StartError {
    fn from(error: heddle_engine::Error) -> Self {
        Self::Storage(error)
    }
}
