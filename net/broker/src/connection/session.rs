//! What is known of one connection while it lives, and how it ended.
//!
//! Owns the times that decide when a slow, silent or idle peer is cut; the core's sweep asks for the verdict. Never
//! reads or writes the socket, but shuts it down.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_io::sync::{Notified, Notify};
use heddle_io::{Monotonic, Socket};

use crate::api::Refusal;
use crate::config::BrokerConfig;
use crate::core::Core;
use crate::listener::Listening;
use crate::sessions::Farewell;

/// One connection, for its handlers and for the core's sweep.
pub(crate) struct Session {
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// This end: the address that the peer connected to.
    pub(crate) local: SocketAddr,
    /// The listener it came through.
    pub(crate) listener: Arc<Listening>,
    /// The core's number for it.
    pub(crate) number: u64,
    socket: Socket,
    last_active: Cell<Monotonic>,
    frame_started: Cell<Option<Monotonic>>,
    write_started: Cell<Option<Monotonic>>,
    /// Requests taken and not answered.
    open_requests: Cell<usize>,
    cut: RefCell<Option<String>>,
    leaving: Cell<bool>,
    left: Notify,
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The peer closed it between two requests, or the broker is stopping.
    Finished,
    /// The peer closed it within a frame.
    Truncated { arrived: usize },
    /// What came is not the Kafka protocol.
    Foreign(&'static str),
    /// A frame's length is negative or over the limit.
    FrameLength { length: i32, limit: usize },
    /// A request that gets no answer.
    Refused(Refusal),
    /// The socket failed.
    Socket(heddle_io::Error),
    /// Our fault, kept from reaching anybody else.
    Panicked(String),
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => formatter.write_str("finished"),
            Self::Truncated { arrived } => write!(formatter, "the peer left after {arrived} bytes of a frame"),
            Self::Foreign(what) => write!(formatter, "{what}; this port speaks the Kafka protocol, without TLS"),
            Self::FrameLength { length, limit } => {
                write!(formatter, "a frame of {length} bytes; socket.request.max.bytes is {limit}")
            }
            Self::Refused(refusal) => refusal.fmt(formatter),
            Self::Socket(error) => error.fmt(formatter),
            Self::Panicked(message) => write!(formatter, "a handler panicked: {message}"),
        }
    }
}

impl Session {
    pub(crate) fn new(core: &Core, number: u64, socket: &Socket, listener: Arc<Listening>) -> Self {
        Self {
            peer: socket.peer_addr(),
            local: socket.local_addr(),
            listener,
            number,
            socket: socket.clone(),
            last_active: Cell::new(core.io().now()),
            frame_started: Cell::new(None),
            write_started: Cell::new(None),
            open_requests: Cell::new(0),
            cut: RefCell::new(None),
            leaving: Cell::new(false),
            left: Notify::new(),
        }
    }

    /// Notes the first bytes of a frame.
    pub(super) fn frame_started(&self, now: Monotonic) {
        if self.frame_started.get().is_none() {
            self.frame_started.set(Some(now));
        }
    }

    /// Notes that a frame is whole.
    pub(super) fn frame_ended(&self, now: Monotonic) {
        self.frame_started.set(None);
        self.last_active.set(now);
    }

    pub(super) fn request_taken(&self) {
        self.open_requests.set(self.open_requests.get() + 1);
    }

    pub(super) fn request_answered(&self) {
        self.open_requests.set(self.open_requests.get() - 1);
    }

    pub(super) fn write_started(&self, now: Monotonic) {
        self.write_started.set(Some(now));
        self.last_active.set(now);
    }

    pub(super) fn write_ended(&self) {
        self.write_started.set(None);
    }

    /// Cuts the connection if its peer is too slow or has been silent for too long.
    pub(crate) fn sweep(&self, now: Monotonic, config: &BrokerConfig) {
        let over = |since: Option<Monotonic>, limit: Duration| since.is_some_and(|since| now.since(since) > limit);
        if over(self.write_started.get(), config.send_stall_max) {
            self.cut("the peer takes no bytes (send.stall.timeout.ms)");
        } else if over(self.frame_started.get(), config.frame_time_max) {
            self.cut("a request did not arrive in time (frame.receive.timeout.ms)");
        } else if self.open_requests.get() == 0 && over(Some(self.last_active.get()), config.connection_idle_max) {
            self.cut("idle (connections.max.idle.ms)");
        }
    }

    /// Ends the connection at once.
    pub(crate) fn cut(&self, reason: &str) {
        self.cut.borrow_mut().get_or_insert_with(|| reason.to_owned());
        self.socket.shutdown();
    }

    /// No more requests are taken: the peer has closed its side, or the broker is stopping. What was taken is
    /// answered, long polls with what they have.
    pub(crate) fn leave(&self) {
        self.leaving.set(true);
        self.left.notify_all();
    }

    /// Whether [`Session::leave`] was called.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Tells of a [`Session::leave`] that comes after this call.
    pub(super) fn notice(&self) -> Notified {
        self.left.wait()
    }

    /// Waits for [`Session::leave`].
    pub(crate) async fn left(&self) {
        while !self.leaving.get() {
            self.left.wait().await;
        }
    }

    fn farewell(&self, ending: &Ending) -> Farewell {
        match ending {
            _ if self.cut.borrow().is_some() => Farewell::Cut,
            Ending::Finished => Farewell::Finished,
            Ending::Socket(error) if is_departure(error) => Farewell::Finished,
            Ending::Panicked(_) => Farewell::Panicked,
            _ => Farewell::Fault,
        }
    }

    /// Logs the end, if a person could want to act on it.
    pub(super) fn ended(&self, core: &Core, ending: &Ending) {
        core.sessions().count_farewell(self.farewell(ending));
        if let Some(reason) = self.cut.borrow().as_deref() {
            core.peer_log().closed(self.peer, reason);
            return;
        }
        match ending {
            Ending::Finished => tracing::debug!(peer = %self.peer, "connection closed"),
            Ending::Socket(error) if is_departure(error) => {
                tracing::debug!(peer = %self.peer, "connection closed: {error}");
            }
            Ending::Panicked(_) => tracing::error!(peer = %self.peer, "connection closed: {ending}"),
            fault => core.peer_log().closed(self.peer, &fault.to_string()),
        }
    }
}

/// Whether the error only says that the peer has gone.
fn is_departure(error: &heddle_io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted | ErrorKind::NotConnected
    )
}
