//! Blocks for the direct device: which of a segment's blocks an append may write in place.
//!
//! Owns the growth of the segment that is being written. A block that was written before, durably, is *settled*: another
//! write to it leaves no metadata behind, so the device's own flush makes it durable, whoever asks for it. A block that
//! was only reserved, or lies beyond the file's length, needs the file's own fdatasync.
//!
//! ```text
//! 0 ────────────── settled ─────────── touched ─────────── allocated
//!   written in place   written, waits     reserved, reads
//!                      for its own flush  as zeros
//! ```
//!
//! Small appends fill the blocks that follow them with zeros in the same write, in steps that double, so that the commits
//! after it are settled. Large ones only reserve space ahead: writing everything twice would cost more than the metadata.

use heddle_record::Offset;

use crate::tail::BLOCK;

/// An append below this size pays for zeros behind it.
const SMALL_BYTES: u64 = 64 << 10;
/// The zeros of the first step, and of the largest.
const STEP_BYTES: std::ops::RangeInclusive<u64> = (16 << 10)..=(1 << 20);
/// What large appends reserve ahead, at least and at most.
const AHEAD_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 20);

/// The blocks of one segment, all limits at block boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) segment: Offset,
    settled: u64,
    touched: u64,
    allocated: u64,
    /// Where this run of appends began: the steps of zeros grow with it.
    begun: u64,
}

/// What a write needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Reserve the file up to here first, from where it is reserved now.
    pub(crate) allocate: Option<(u64, u64)>,
    /// Zeros behind the write's last block, in bytes.
    pub(crate) zeros: u64,
    /// The blocks are settled: nothing but the device's flush is needed.
    pub(crate) in_place: bool,
}

impl Space {
    /// A segment of which `size` bytes are durable in a file of `len` bytes.
    pub(crate) fn of_file(segment: Offset, size: u64, len: u64) -> Space {
        let settled = size - size % BLOCK;
        Space { segment, settled, touched: settled, allocated: (len - len % BLOCK).max(settled), begun: settled }
    }

    /// What a write of `bytes` that ends with the block at `to` (exclusive) needs in a segment of `limit` bytes at most.
    pub(crate) fn growth(&self, bytes: u64, to: u64, limit: u64) -> Growth {
        if to <= self.settled {
            return Growth { allocate: None, zeros: 0, in_place: true };
        }
        let limit = limit.next_multiple_of(BLOCK).max(to);
        let zeros = if bytes < SMALL_BYTES && to > self.touched {
            let step = (to - self.begun).next_power_of_two().clamp(*STEP_BYTES.start(), *STEP_BYTES.end());
            (to + step).min(limit) - to
        } else {
            0
        };
        let ahead = if bytes < SMALL_BYTES { 0 } else { to.clamp(*AHEAD_BYTES.start(), *AHEAD_BYTES.end()) };
        let end = (to + zeros.max(ahead)).min(limit);
        let allocate = (to + zeros > self.allocated).then_some((self.allocated, end));
        Growth { allocate, zeros, in_place: false }
    }

    /// Whether the file is longer than the blocks of `size` bytes.
    pub(crate) fn is_ahead_of(&self, size: u64) -> bool {
        self.allocated > size
    }

    /// The file is reserved up to `end`.
    pub(crate) fn allocated(&mut self, end: u64) {
        self.allocated = self.allocated.max(end);
    }

    /// Blocks up to `end` are being written.
    pub(crate) fn touch(&mut self, end: u64) {
        self.touched = self.touched.max(end);
    }

    /// How far a flush of the file settles it that is issued now.
    pub(crate) fn touched_end(&self) -> u64 {
        self.touched
    }

    /// The file was flushed when its blocks up to `end` were written.
    pub(crate) fn settle(&mut self, end: u64) {
        self.settled = self.settled.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 30;

    fn space() -> Space {
        Space::of_file(Offset::ZERO, 0, 0)
    }

    #[test]
    fn small_appends_step_ahead_and_then_write_in_place() {
        let mut space = space();
        let first = space.growth(1000, 4096, LIMIT);
        assert_eq!(first, Growth { allocate: Some((0, 20_480)), zeros: 16_384, in_place: false });
        space.allocated(20_480);
        space.touch(20_480);
        assert!(!space.growth(1000, 4096, LIMIT).in_place, "not before the file was flushed");
        space.settle(space.touched_end());
        assert!(space.growth(1000, 4096, LIMIT).in_place);
        assert!(space.growth(1000, 20_480, LIMIT).in_place);
        let next = space.growth(1000, 24_576, LIMIT);
        assert_eq!(next, Growth { allocate: Some((20_480, 24_576 + 32_768)), zeros: 32_768, in_place: false });
    }

    #[test]
    fn a_step_is_taken_once_even_where_nobody_flushes() {
        let mut space = space();
        space.allocated(20_480);
        space.touch(20_480);
        assert_eq!(space.growth(1000, 8192, LIMIT), Growth { allocate: None, zeros: 0, in_place: false });
    }

    #[test]
    fn steps_double_up_to_their_bound_and_stop_at_the_segment() {
        let mut space = space();
        space.settle(512 << 20);
        space.allocated(512 << 20);
        assert_eq!(space.growth(1, (512 << 20) + BLOCK, LIMIT).zeros, 1 << 20);
        assert_eq!(space.growth(1, LIMIT - BLOCK, LIMIT).zeros, BLOCK);
        assert_eq!(space.growth(1, LIMIT, LIMIT - 1).zeros, 0);
        assert_eq!(space.growth(1, LIMIT, 1000).zeros, 0, "a batch larger than the segment goes in all the same");
    }

    #[test]
    fn large_appends_reserve_ahead_and_write_no_zeros() {
        let mut space = space();
        let growth = space.growth(1 << 20, 1 << 20, LIMIT);
        assert_eq!(growth, Growth { allocate: Some((0, 2 << 20)), zeros: 0, in_place: false });
        space.allocated(2 << 20);
        space.touch(1 << 20);
        assert_eq!(space.growth(1 << 20, 2 << 20, LIMIT).allocate, None);
        space.settle(1 << 20);
        assert!(!space.growth(1 << 20, 2 << 20, LIMIT).in_place, "reserved is not written");
    }

    #[test]
    fn after_a_start_only_whole_flushed_blocks_are_settled() {
        let space = Space::of_file(Offset::ZERO, 5000, 65_536);
        assert!(space.growth(10, 4096, LIMIT).in_place);
        let growth = space.growth(10, 8192, LIMIT);
        assert_eq!((growth.allocate, growth.zeros), (None, 16_384));
    }
}
