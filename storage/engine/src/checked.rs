//! Which stored bytes of a segment were held against their checksums since they came from the disk.
//!
//! Owns the ranges, in memory only: after a start nothing is checked yet. What was checked and has left the page cache comes
//! from the disk again, so every look at a file tells first what it finds there ([`CheckedRanges::note`]).

use std::ops::Range;

/// Ranges that are remembered of one segment; readers go through it in order, so that one or two are usual.
const RANGES_MAX: usize = 64;

/// Ranges of bytes of a segment that were checked.
#[derive(Debug, Default)]
pub(crate) struct CheckedRanges {
    /// Ascending, none touches another.
    ranges: Vec<Range<u64>>,
}

impl CheckedRanges {
    /// Whether all bytes of `range` were checked.
    pub(crate) fn contain(&self, range: &Range<u64>) -> bool {
        let next = self.ranges.partition_point(|known| known.end < range.end);
        self.ranges.get(next).is_some_and(|known| known.start <= range.start)
    }

    /// Whether any byte of `range` was checked.
    fn overlap(&self, range: &Range<u64>) -> bool {
        let next = self.ranges.partition_point(|known| known.end <= range.start);
        self.ranges.get(next).is_some_and(|known| known.start < range.end)
    }

    /// Adds a range. Of too many it is the only one that is kept: the others are checked again.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        let first = self.ranges.partition_point(|known| known.end < range.start);
        let behind = self.ranges.partition_point(|known| known.start <= range.end);
        let touched = &self.ranges[first..behind];
        let start = touched.first().map_or(range.start, |known| known.start.min(range.start));
        let end = touched.last().map_or(range.end, |known| known.end.max(range.end));
        self.ranges.splice(first..behind, std::iter::once(start..end));
        if self.ranges.len() > RANGES_MAX {
            self.ranges.clear();
            self.ranges.push(start..end);
        }
    }

    /// Somebody is about to read `range`, which is in memory as a whole or not. If the page cache has given up what was
    /// checked of it, then perhaps more: all of it is to be checked again. So is what lies behind it: the kernel reads ahead, and
    /// may bring back what it has given up there.
    pub(crate) fn note(&mut self, range: &Range<u64>, is_resident: bool) {
        if is_resident {
            return;
        }
        let before = self.ranges.partition_point(|known| known.end <= range.start);
        self.ranges.truncate(if self.overlap(range) { 0 } else { before });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_together_and_answer_for_their_bytes_only() {
        let mut checked = CheckedRanges::default();
        assert!(!checked.contain(&(0..1)) && !checked.overlap(&(0..u64::MAX)));
        checked.insert(10..20);
        checked.insert(30..40);
        for (range, contained, overlapped) in [
            (10..20, true, true),
            (12..13, true, true),
            (9..20, false, true),
            (10..21, false, true),
            (20..30, false, false),
            (0..10, false, false),
            (40..50, false, false),
            (15..35, false, true),
        ] {
            assert_eq!((checked.contain(&range), checked.overlap(&range)), (contained, overlapped), "{range:?}");
        }
        checked.insert(20..30);
        assert!(checked.contain(&(10..40)) && checked.ranges.len() == 1, "they touch");
        checked.insert(0..5);
        checked.insert(3..100);
        assert!(checked.contain(&(0..100)) && checked.ranges.len() == 1);
        checked.insert(300..400);
        checked.note(&(100..200), false);
        assert!(!checked.overlap(&(300..400)), "the kernel may have read ahead");
        checked.note(&(0..100), true);
        assert!(checked.contain(&(0..100)));
        checked.note(&(99..200), false);
        assert!(!checked.overlap(&(0..100)), "some of it has left memory");
    }

    #[test]
    fn no_more_than_a_bounded_number_of_ranges_is_kept() {
        let mut checked = CheckedRanges::default();
        for start in (0..RANGES_MAX as u64).rev() {
            checked.insert(10 * start..10 * start + 5);
        }
        assert_eq!(checked.ranges.len(), RANGES_MAX);
        checked.insert(7..8);
        assert!(checked.contain(&(7..8)) && checked.ranges.len() == 1);
    }
}
