//! One log line for each fault of a peer, and no flood of them.
//!
//! Owns the budget of lines that peers can cause: a peer that misbehaves in a loop must not fill the disk with
//! complaints about itself. Never decides what happens to the connection.

use std::cell::Cell;
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
        if let Some(suppressed) = self.admit() {
            tracing::warn!(%peer, suppressed, "connection closed: {reason}");
        }
    }

    /// Logs that a connection was turned away before its first byte was read.
    pub(crate) fn refused(&self, peer: SocketAddr, reason: &str) {
        if let Some(suppressed) = self.admit() {
            tracing::warn!(%peer, suppressed, "connection refused: {reason}");
        }
    }

    /// Logs that accepting pauses because of `error`; it goes on by itself.
    pub(crate) fn paused(&self, error: &heddle_io::Error) {
        if let Some(suppressed) = self.admit() {
            tracing::warn!(suppressed, "no new connections for a moment: {error}");
        }
    }

    /// Takes one line from the budget: the number of faults that went unlogged since the last line, or nothing when
    /// this one goes unlogged too.
    fn admit(&self) -> Option<u64> {
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
        Some(self.suppressed.replace(0))
    }
}
