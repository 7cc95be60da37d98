//! Writes to the page cache without the ring, while they are short.
//!
//! Owns the decision for each write. Never writes inline what may wait for a disk: O_DIRECT files, large writes, writes
//! while the file system is behind.
//!
//! On ext4 the ring hands every buffered write to a kernel thread, which costs more than the copy itself. A copy to the
//! page cache takes microseconds, unless the kernel throttles the writer because too much is dirty. So the last inline
//! write decides: one that took longer than [`SLOW`] sends those that follow through the ring for [`PAUSE`]; and so does a
//! sync that is overdue. File systems that can refuse to block (RWF_NOWAIT: XFS, btrfs) are asked to.
//! See docs/decisions/0003-inline-writes.md.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use crate::buffer::Lease;
use crate::file::File;
use crate::op::OpKey;
use crate::os::{self, Vectored};
use crate::timer::Monotonic;

/// Bytes that are written inline, at most: about 100 µs of copying.
const INLINE_BYTES_MAX: usize = 256 << 10;

/// An inline write that takes longer was held up by the file system.
const SLOW: Duration = Duration::from_millis(1);

/// How long nothing is written inline after that.
const PAUSE: Duration = Duration::from_millis(100);

/// A sync that takes longer says that the disk is behind.
const SYNC_OVERDUE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct InlineWrites {
    /// Nothing inline before this point.
    paused_until: Cell<Monotonic>,
    /// Syncs in flight and since when, in the order in which they began.
    syncs: RefCell<Vec<(OpKey, Monotonic)>>,
}

/// The rest of a write that is for the ring: where it begins, and what it is.
pub(crate) type ForTheRing = (u64, Vectored);

impl InlineWrites {
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
        if pieces.left() > INLINE_BYTES_MAX || file.is_direct() {
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
        if ended.since(began) > SLOW {
            self.paused_until.set(ended + PAUSE);
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
