//! One log line for each fault of a peer, and no flood of them.
//!
//! Owns the budget of lines that peers can cause: a peer that misbehaves in a loop must not fill the disk with
//! complaints about itself. Never decides what happens to the connection.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use heddle_io::{Io, Monotonic};

/// Lines that one core writes about its peers in one [`WINDOW`].
const LINES_MAX: u32 = 20;
/// The length of time for which [`LINES_MAX`] lines are granted.
const WINDOW: Duration = Duration::from_secs(10);

/// The budget of one core. Faults over the budget are counted, and the count is told with the next line.
pub(crate) struct PeerLog {
    io: Io,
    window_start: Cell<Monotonic>,
    lines: Cell<u32>,
    suppressed: Cell<u64>,
}

impl PeerLog {
    /// A full budget, counted from now.
    pub(crate) fn new(io: Io) -> Self {
        let now = io.now();
        Self { io, window_start: Cell::new(now), lines: Cell::new(0), suppressed: Cell::new(0) }
    }

    /// Logs that a connection was closed for something that the peer did.
    pub(crate) fn closed(&self, peer: SocketAddr, reason: &str) {
        if let Some(unlogged) = self.admit() {
            tracing::warn!(%peer, "connection closed: {reason}{unlogged}");
        }
    }

    /// Logs that a connection was turned away before its first byte was read.
    pub(crate) fn refused(&self, peer: SocketAddr, reason: &str) {
        if let Some(unlogged) = self.admit() {
            tracing::warn!(%peer, "connection refused: {reason}{unlogged}");
        }
    }

    /// Logs that accepting pauses because of `error`; it goes on by itself.
    pub(crate) fn paused(&self, error: &heddle_io::Error) {
        if let Some(unlogged) = self.admit() {
            tracing::warn!("no new connections for a moment: {error}{unlogged}");
        }
    }

    /// Takes one line from the budget: how many went unlogged since the last, or nothing when this one does, too.
    fn admit(&self) -> Option<Unlogged> {
        let now = self.io.now();
        if now.since(self.window_start.get()) >= WINDOW {
            self.window_start.set(now);
            self.lines.set(0);
        }
        if self.lines.get() == LINES_MAX {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.lines.set(self.lines.get() + 1);
        Some(Unlogged(self.suppressed.replace(0)))
    }
}

/// How many lines went unlogged; says nothing when there are none.
struct Unlogged(u64);

impl fmt::Display for Unlogged {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(formatter, " ({} more lines like this were left out)", self.0) }
    }
}
