//! Which leader epoch wrote which offsets (KIP-101): for each epoch the offset at which it starts.
//!
//! Owns the answers to "where does epoch N end here", by which replicas find what they have in common. It never does
//! IO: the checkpoint stores it, and recovery rebuilds the rest from the batches.

use heddle_record::{LeaderEpoch, LogEndOffset, Offset};

/// One leader epoch and the first offset it wrote, or would have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// Its first offset.
    pub start_offset: Offset,
}

/// The answer to "where does this epoch end": the largest epoch not above the one asked for, and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    /// The epoch that the end belongs to.
    pub epoch: LeaderEpoch,
    /// The offset after the epoch's last record (exclusive).
    pub end_offset: Offset,
}

/// The epochs of one log, ascending in epoch and in start offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochCache {
    starts: Vec<EpochStart>,
}

impl EpochCache {
    /// The cache with these entries; entries that do not ascend in both numbers, or negative ones, are left out.
    pub fn from_entries(entries: impl IntoIterator<Item = EpochStart>) -> EpochCache {
        let mut cache = EpochCache::default();
        for entry in entries {
            let fits = cache
                .starts
                .last()
                .is_none_or(|last| last.epoch < entry.epoch && last.start_offset <= entry.start_offset);
            if fits && entry.epoch.get() >= 0 && entry.start_offset >= Offset::ZERO {
                cache.starts.push(entry);
            }
        }
        cache.starts.shrink_to_fit();
        cache
    }

    /// The entries, ascending.
    pub fn entries(&self) -> &[EpochStart] {
        &self.starts
    }

    /// The newest epoch, if any is known. Epoch 0 is one like any other (case 34).
    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.starts.last().map(|last| last.epoch)
    }

    /// Notes that `epoch` starts at `start_offset` if it is newer than all known: as the leader does before its first
    /// append, and whoever stores a batch of a new epoch. An epoch that wrote nothing keeps its entry (case 5).
    pub fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) {
        assert!(start_offset >= Offset::ZERO, "offsets of a log are not negative");
        if epoch.get() < 0 || self.latest().is_some_and(|latest| latest >= epoch) {
            return;
        }
        // After a truncation that was only noted in the log, entries may lie beyond the new start.
        self.truncate_from_end(start_offset.next());
        self.starts.push(EpochStart { epoch, start_offset });
        self.check_invariants();
    }

    /// Where `epoch` ends in a log that ends at `log_end`, by the rules of KIP-101 and KIP-279; `None` if it is unknown
    /// and newer than every known one.
    pub fn end_offset(&self, epoch: LeaderEpoch, log_end: LogEndOffset) -> Option<EpochEnd> {
        let above = self.starts.partition_point(|start| start.epoch <= epoch);
        let floor = above.checked_sub(1).and_then(|index| self.starts.get(index));
        if epoch.get() < 0 {
            return None;
        }
        match (floor, self.starts.get(above)) {
            (Some(last), None) if last.epoch == epoch => Some(EpochEnd { epoch, end_offset: log_end.offset() }),
            (_, None) => None,
            (Some(floor), Some(next)) => Some(EpochEnd { epoch: floor.epoch, end_offset: next.start_offset }),
            // Older than all that is known: all of it was written before the first known epoch.
            (None, Some(next)) => Some(EpochEnd { epoch, end_offset: next.start_offset }),
        }
    }

    /// The epoch of the record at `offset`, if it is known.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let above = self.starts.partition_point(|start| start.start_offset <= offset);
        above.checked_sub(1).and_then(|index| self.starts.get(index)).map(|start| start.epoch)
    }

    /// Forgets epochs that start at or after `end_offset`, which the log was cut to. Called even when the cut removes no
    /// record: an epoch without records would otherwise be truncated to for ever (case 6).
    pub fn truncate_from_end(&mut self, end_offset: Offset) {
        let keep = self.starts.partition_point(|start| start.start_offset < end_offset);
        self.starts.truncate(keep);
    }

    /// Forgets epochs that ended before `start_offset`, where the log starts now; the one that contains it starts there.
    pub fn truncate_from_start(&mut self, start_offset: Offset) {
        let after = self.starts.partition_point(|start| start.start_offset <= start_offset);
        if let Some(containing) = after.checked_sub(1) {
            self.starts.drain(..containing);
            if let Some(first) = self.starts.first_mut() {
                first.start_offset = start_offset;
            }
        }
        self.check_invariants();
    }

    /// # Panics
    /// If the entries do not ascend.
    pub fn check_invariants(&self) {
        for pair in self.starts.windows(2) {
            assert!(pair[0].epoch < pair[1].epoch, "epochs ascend");
            assert!(pair[0].start_offset <= pair[1].start_offset, "starts of epochs ascend");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(i32, i64)]) -> EpochCache {
        let mut cache = EpochCache::default();
        for &(epoch, start) in entries {
            cache.assign(LeaderEpoch::new(epoch), Offset::new(start));
        }
        cache
    }

    fn entries(cache: &EpochCache) -> Vec<(i32, i64)> {
        cache.entries().iter().map(|start| (start.epoch.get(), start.start_offset.get())).collect()
    }

    fn end(cache: &EpochCache, epoch: i32) -> Option<(i32, i64)> {
        let end = cache.end_offset(LeaderEpoch::new(epoch), LogEndOffset::at(Offset::new(100)));
        end.map(|end| (end.epoch.get(), end.end_offset.get()))
    }

    #[test]
    fn ends_follow_kip_101() {
        let cache = cache(&[(2, 10), (4, 30), (7, 60)]);
        assert_eq!(end(&cache, 7), Some((7, 100)), "the newest ends with the log");
        assert_eq!(end(&cache, 4), Some((4, 60)));
        assert_eq!(end(&cache, 5), Some((4, 60)), "an unknown one: the largest below it (case 2)");
        assert_eq!(end(&cache, 3), Some((2, 30)));
        assert_eq!(end(&cache, 1), Some((1, 10)), "older than all");
        assert_eq!(end(&cache, 8), None, "newer than all");
        assert_eq!(end(&cache, -1), None);
        assert_eq!(end(&EpochCache::default(), 0), None);
    }

    #[test]
    fn an_epoch_without_records_has_an_end() {
        // Case 5: elected, nothing written yet.
        let cache = cache(&[(0, 0), (1, 100)]);
        assert_eq!(end(&cache, 1), Some((1, 100)));
        assert_eq!(end(&cache, 0), Some((0, 100)));
    }

    #[test]
    fn epoch_zero_counts() {
        // Case 34.
        let cache = cache(&[(0, 0)]);
        assert_eq!(cache.latest(), Some(LeaderEpoch::new(0)));
        assert_eq!(end(&cache, 0), Some((0, 100)));
    }

    #[test]
    fn old_epochs_are_not_assigned_again() {
        let mut cache = cache(&[(3, 5)]);
        cache.assign(LeaderEpoch::new(3), Offset::new(9));
        cache.assign(LeaderEpoch::new(2), Offset::new(9));
        cache.assign(LeaderEpoch::NONE, Offset::new(9));
        assert_eq!(entries(&cache), [(3, 5)]);
    }

    #[test]
    fn truncation_to_the_end_still_cleans_the_cache() {
        // Case 6: consecutive elections without records.
        let mut cache = cache(&[(1, 0), (2, 100), (3, 100)]);
        cache.truncate_from_end(Offset::new(100));
        assert_eq!(entries(&cache), [(1, 0)]);
    }

    #[test]
    fn a_new_start_keeps_the_epoch_that_contains_it() {
        let mut cache = cache(&[(1, 0), (2, 20), (3, 40)]);
        cache.truncate_from_start(Offset::new(25));
        assert_eq!(entries(&cache), [(2, 25), (3, 40)]);
        assert_eq!(cache.epoch_at(Offset::new(39)), Some(LeaderEpoch::new(2)));
        assert_eq!(cache.epoch_at(Offset::new(24)), None);
        cache.truncate_from_start(Offset::new(500));
        assert_eq!(entries(&cache), [(3, 500)]);
    }

    #[test]
    fn unordered_entries_from_disk_are_left_out() {
        let start = |epoch, offset| EpochStart { epoch: LeaderEpoch::new(epoch), start_offset: Offset::new(offset) };
        let cache = EpochCache::from_entries([start(1, 5), start(1, 9), start(2, 4), start(3, 9), start(-1, 20)]);
        assert_eq!(entries(&cache), [(1, 5), (3, 9)]);
    }
}
