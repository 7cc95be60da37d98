//! How fast compaction goes: a slice of time after which others have their turn, and a limit on bytes.
//!
//! Owns no data. A slice is half a millisecond; where somebody else had work meanwhile, the next one waits for twice as
//! long, so that traffic never has less than two thirds of the core.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::{Io, Monotonic};

/// How long compaction has the core without a pause.
const SLICE: Duration = Duration::from_micros(500);
/// A turn of the others that took longer than this was not idle.
const BUSY: Duration = Duration::from_micros(100);
/// How far the limit on bytes may be overdrawn before the next pause, in time.
const OVERDRAFT: Duration = Duration::from_millis(10);
/// The longest sleep: a broker that stops does not wait for a slow cleaner.
const NAP: Duration = Duration::from_millis(50);

/// One pass' pace.
#[derive(Debug)]
pub(crate) struct Pace {
    io: Io,
    slice_ends: Cell<Monotonic>,
    bytes_per_second: Option<u64>,
    /// When all bytes so far are paid for.
    paid_at: Cell<Monotonic>,
    /// Nothing is waited for any more.
    is_stopped: Rc<Cell<bool>>,
}

impl Pace {
    /// A pace of at most `bytes_per_second`, from now on, until it is stopped.
    pub(crate) fn new(io: &Io, bytes_per_second: Option<u64>, is_stopped: Rc<Cell<bool>>) -> Pace {
        let (slice_ends, paid_at) = (Cell::new(io.now() + SLICE), Cell::new(io.now()));
        Pace { io: io.clone(), slice_ends, bytes_per_second, paid_at, is_stopped }
    }

    /// Lets others run if the slice is over. Whoever computes calls this often.
    pub(crate) async fn breathe(&self) {
        let now = self.io.now();
        if now < self.slice_ends.get() {
            return;
        }
        self.io.yield_now().await;
        if self.io.now().since(now) > BUSY {
            self.io.sleep(2 * SLICE).await;
        }
        self.slice_ends.set(self.io.now() + SLICE);
    }

    /// Accounts for `bytes` that were read or written, and waits until they may have been.
    pub(crate) async fn spend(&self, bytes: u64) {
        self.breathe().await;
        let Some(rate) = self.bytes_per_second else { return };
        let now = self.io.now();
        let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1));
        let paid_at = self.paid_at.get().max(now) + cost;
        self.paid_at.set(paid_at);
        while paid_at.since(self.io.now()) > OVERDRAFT && !self.is_stopped.get() {
            self.io.sleep(paid_at.since(self.io.now()).min(NAP)).await;
        }
    }
}
