//! Writes to the page cache without the ring, while they are short.
//!
//! Owns the decision for each write. Never writes inline what may wait for a disk or for somebody else: O_DIRECT files, file
//! systems that another process or machine answers for, large writes, writes while the file system is behind.
//!
//! On ext4 the ring hands every buffered write to a kernel thread, which costs more than the copy itself. A copy to the
//! page cache takes microseconds, unless the kernel throttles the writer because too much is dirty, or the page or the journal
//! waits for a disk that hangs. So three signs send writes to the ring, where only a kernel thread waits:
//!
//! - an inline write took longer than [`SLOW`]: for [`PAUSE_FACTOR`] times as long as it took;
//! - a sync of this core takes much longer than the last ones did ([`Syncs::limit`]);
//! - a write that was given to the ring has not come back within [`OVERDUE_MAX`].
//!
//! File systems whose writes can refuse to wait (RWF_NOWAIT: XFS, btrfs) need none of this: the ring does their writes at
//! once. The first write of a file finds out which kind it is. See docs/decisions/0003-inline-writes.md.

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

/// What takes longer says that the disk is behind.
const OVERDUE_MAX: Duration = Duration::from_millis(100);

/// A sync is never overdue before.
const OVERDUE_MIN: Duration = Duration::from_millis(5);

/// A sync that takes so many times as long as they do on the average is overdue.
const OVERDUE_FACTOR: u32 = 8;

pub(crate) struct InlineWrites {
    /// Larger writes are for the ring.
    bytes_max: usize,
    /// Nothing inline before this point.
    paused_until: Cell<Monotonic>,
    syncs: RefCell<Syncs>,
    /// Writes on the ring and since when, in the order in which they began.
    ring_writes: RefCell<Vec<(OpKey, Monotonic)>>,
}

/// Syncs in flight and since when, in the order in which they began; how long they take on the average.
#[derive(Default)]
struct Syncs {
    in_flight: Vec<(OpKey, Monotonic)>,
    average: Option<Duration>,
}

impl Syncs {
    /// A sync that is in flight for longer is overdue.
    fn limit(&self) -> Duration {
        self.average.map_or(OVERDUE_MAX, |average| (average * OVERDUE_FACTOR).clamp(OVERDUE_MIN, OVERDUE_MAX))
    }

    fn ended(&mut self, key: OpKey, now: Monotonic) {
        let Some(index) = self.in_flight.iter().position(|(other, _)| *other == key) else { return };
        let took = now.since(self.in_flight.remove(index).1);
        self.average = Some(self.average.map_or(took, |average| (average * 7 + took) / 8));
    }
}

/// The rest of a write that is for the ring: where it begins, and what it is.
pub(crate) type ForTheRing = (u64, Vectored);

impl InlineWrites {
    pub(crate) fn new(bytes_max: usize) -> InlineWrites {
        InlineWrites {
            bytes_max,
            paused_until: Cell::default(),
            syncs: RefCell::default(),
            ring_writes: RefCell::default(),
        }
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
        if pieces.left() > self.bytes_max || !file.is_cached_here() || file.does_ring_write_inline() {
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
        self.syncs.borrow_mut().in_flight.push((key, os::monotonic()));
    }

    pub(crate) fn sync_ended(&self, key: OpKey) {
        self.syncs.borrow_mut().ended(key, os::monotonic());
    }

    /// A write to the page cache goes to the ring.
    pub(crate) fn ring_write_started(&self, key: OpKey) {
        self.ring_writes.borrow_mut().push((key, os::monotonic()));
    }

    pub(crate) fn ring_write_ended(&self, key: OpKey) {
        self.ring_writes.borrow_mut().retain(|(other, _)| *other != key);
    }

    fn is_paused(&self, now: Monotonic) -> bool {
        let syncs = self.syncs.borrow();
        let older =
            |oldest: Option<&(OpKey, Monotonic)>, limit| oldest.is_some_and(|(_, began)| now.since(*began) > limit);
        older(syncs.in_flight.first(), syncs.limit())
            || older(self.ring_writes.borrow().first(), OVERDUE_MAX)
            || now < self.paused_until.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: OpKey = OpKey::from_bits(7);
    const START: Monotonic = Monotonic::from_nanos(1_000_000_000);

    fn gate(set_up: impl FnOnce(&InlineWrites)) -> impl Fn(u64) -> bool {
        let gate = InlineWrites::new(1 << 20);
        set_up(&gate);
        move |millis| gate.is_paused(START + Duration::from_millis(millis))
    }

    #[test]
    fn a_sync_is_overdue_by_what_the_last_ones_took() {
        let first = gate(|gate| gate.syncs.borrow_mut().in_flight.push((KEY, START)));
        assert_eq!([99, 101].map(&first), [false, true], "nothing is known of this disk yet");
        let fast = gate(|gate| {
            let mut syncs = gate.syncs.borrow_mut();
            syncs.in_flight.push((KEY, START));
            syncs.ended(KEY, START + Duration::from_micros(800));
            assert!(syncs.in_flight.is_empty());
            syncs.in_flight.push((KEY, START));
        });
        assert_eq!([6, 7].map(&fast), [false, true], "eight times 0.8 ms");
        let slow = gate(|gate| {
            let mut syncs = gate.syncs.borrow_mut();
            syncs.average = Some(Duration::from_millis(80));
            syncs.in_flight.push((KEY, START));
        });
        assert_eq!([99, 101].map(&slow), [false, true]);
    }

    #[test]
    fn a_write_that_does_not_come_back_from_the_ring_is_a_sign_too() {
        let hanging = gate(|gate| gate.ring_writes.borrow_mut().push((KEY, START)));
        assert_eq!([99, 101].map(hanging), [false, true]);
        let back = gate(|gate| {
            gate.ring_writes.borrow_mut().push((KEY, START));
            gate.ring_write_ended(KEY);
        });
        assert!(!back(101));
    }

    #[test]
    fn a_slow_write_pauses_for_ten_times_as_long() {
        let paused = gate(|gate| gate.paused_until.set(START + Duration::from_millis(3) * PAUSE_FACTOR));
        assert_eq!([0, 29, 30].map(paused), [true, true, false]);
    }
}
