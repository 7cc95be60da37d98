//! Writes to the page cache without the ring, while they are short.
//!
//! Owns the decision for each write. Never writes inline what may wait for a disk: O_DIRECT files, large writes, writes
//! while the file system is behind.
//!
//! On ext4 the ring hands every buffered write to a kernel thread, which costs more than the copy itself. A copy to the
//! page cache takes microseconds, unless the kernel throttles the writer because too much is dirty. So the last inline
//! write decides: after one that took longer than [`SLOW`] the next go through the ring for [`PAUSE_FACTOR`] times as long;
//! and so they do while a sync is overdue. File systems that can refuse to block (RWF_NOWAIT: XFS, btrfs) are asked to.
//! See docs/decisions/0003-inline-writes.md.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use crate::buffer::Lease;
use crate::file::File;
use crate::op::OpKey;
use crate::os::{self, Vectored};
use crate::timer::Monotonic;

/// An inline write that takes longer was held up by the file system.
const SLOW: Duration = Duration::from_millis(1);

/// How long nothing is written inline after that, as a multiple of what it took: the core is held up for a tenth of the
/// time at most.
const PAUSE_FACTOR: u32 = 10;

/// A sync that takes longer says that the disk is behind.
const SYNC_OVERDUE: Duration = Duration::from_millis(100);

pub(crate) struct InlineWrites {
    /// Larger writes are for the ring.
    bytes_max: usize,
    /// Nothing inline before this point.
    paused_until: Cell<Monotonic>,
    /// Syncs in flight and since when, in the order in which they began.
    syncs: RefCell<Vec<(OpKey, Monotonic)>>,
}

/// The rest of a write that is for the ring: where it begins, and what it is.
pub(crate) type ForTheRing = (u64, Vectored);

impl InlineWrites {
    pub(crate) fn new(bytes_max: usize) -> InlineWrites {
        InlineWrites { bytes_max, paused_until: Cell::default(), syncs: RefCell::default() }
    }

    /// Writes everything now, or gives back what is for the ring.
    pub(crate) fn try_write(
        &self,
        file: &File,
        position: u64,
        pieces: Vec<Lease>,
    ) -> Result<io::Result<()>, ForTheRing> {
        let mut pieces = Vectored::new(pieces);
        if pieces.left() == 0 {
            return Ok(Ok(()));
        }
        if pieces.left() > self.bytes_max || file.is_direct() {
            return Err((position, pieces));
        }
        let began = os::monotonic();
        if self.is_paused(began) {
            return Err((position, pieces));
        }
        let mut at = position;
        let result = loop {
            match os::write_inline(file, at, &mut pieces) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => at += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err((at, pieces)),
                Err(error) => break Err(error),
            }
            if pieces.left() == 0 {
                break Ok(());
            }
        };
        let ended = os::monotonic();
        let took = ended.since(began);
        if took > SLOW {
            self.paused_until.set(ended + took * PAUSE_FACTOR);
        }
        Ok(result)
    }

    pub(crate) fn sync_started(&self, key: OpKey) {
        self.syncs.borrow_mut().push((key, os::monotonic()));
    }

    pub(crate) fn sync_ended(&self, key: OpKey) {
        self.syncs.borrow_mut().retain(|(other, _)| *other != key);
    }

    fn is_paused(&self, now: Monotonic) -> bool {
        let overdue = self.syncs.borrow().first().is_some_and(|(_, began)| now.since(*began) > SYNC_OVERDUE);
        overdue || now < self.paused_until.get()
    }
}
