//! Which records of a batch stay. Pure: decides, and changes nothing.
//!
//! These are Kafka's rules (KIP-534 for tombstones): of each key the last record stays; a tombstone stays until the time
//! that the first pass over it set; the last batch of a producer stays, without records if need be, so that its sequence is
//! known; so does the last batch of a pass, so that every offset has a batch at or behind it. The marker that ends a transaction
//! stays as long as any data of it does, and then until the time that the next pass sets, so that a reader who has seen the
//! data meets its end (case 51).

use std::collections::BTreeMap;

use heddle_record::{BatchHeader, Offset, Timestamp};

use super::survivors::Survivors;

/// What a pass goes by.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) survivors: Survivors,
    /// From here on was mapped.
    pub(crate) first_dirty: Offset,
    /// Up to here; what comes after is not looked at.
    pub(crate) end: Offset,
    /// Wall clock at the beginning of the pass.
    pub(crate) now: Timestamp,
    /// How long a tombstone stays after the first pass over it, in ms.
    pub(crate) delete_retention: i64,
    /// The last offset of each producer that the log remembers.
    pub(crate) producers: BTreeMap<i64, Offset>,
}

/// What becomes of a batch without a look at its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whole {
    /// It stays as it is.
    Stays,
    /// None of its records stays.
    Goes,
}

/// What becomes of the marker that ends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    /// It stays as it is.
    Stays,
    /// It stays, and may go from then on.
    GoesAfter(Timestamp),
    /// It goes.
    Goes,
}

impl Rules {
    /// What becomes of a batch as far as that is known without its records: `None` if it is not. Nothing of the batch is
    /// looked at but its header.
    pub(crate) fn whole(&self, header: &BatchHeader) -> Option<Whole> {
        if header.base_offset >= self.end {
            return Some(Whole::Stays);
        }
        let (first, last) = (header.base_offset, header.last_offset());
        if first < self.first_dirty || last >= self.end || header.record_count == 0 {
            return None;
        }
        let count = self.survivors.last_between(first, last);
        let is_complete = i32::try_from(count).is_ok_and(|count| count == header.record_count);
        match count {
            0 => Some(Whole::Goes),
            _ if is_complete && !self.survivors.tombstones_between(first, last) => Some(Whole::Stays),
            _ => None,
        }
    }

    /// Whether the bits alone tell of each record of a batch whether it stays: all of them were looked at, their offsets have
    /// no gaps, and none is a tombstone, which time decides on as well.
    pub(crate) fn bits_tell(&self, header: &BatchHeader) -> bool {
        let (first, last) = (header.base_offset, header.last_offset());
        first >= self.first_dirty
            && last < self.end
            && i64::from(header.record_count) == i64::from(header.last_offset_delta) + 1
            && !self.survivors.tombstones_between(first, last)
    }

    /// Whether a record stays that is known to be the last of its key, or beyond what was looked at.
    pub(crate) fn keeps_last(&self, header: &BatchHeader, offset: Offset, is_tombstone: bool) -> bool {
        offset >= self.end || !is_tombstone || header.delete_horizon().is_none_or(|horizon| self.now < horizon)
    }

    /// What becomes of a marker, `is_alone` if nothing is left of its transaction.
    pub(crate) fn marker(&self, header: &BatchHeader, is_alone: bool) -> Marker {
        match header.delete_horizon() {
            _ if header.base_offset >= self.end || header.record_count == 0 && self.keeps_empty(header) => {
                Marker::Stays
            }
            // It was set when nothing was left of the transaction, and nothing comes to one that has ended.
            Some(horizon) if self.now < horizon => Marker::Stays,
            Some(_) => Marker::Goes,
            None if header.record_count == 0 => Marker::Goes,
            None if is_alone => Marker::GoesAfter(self.new_horizon()),
            None => Marker::Stays,
        }
    }

    fn new_horizon(&self) -> Timestamp {
        Timestamp::new(self.now.get().saturating_add(self.delete_retention))
    }

    /// Whether a batch stays although none of its records does.
    pub(crate) fn keeps_empty(&self, header: &BatchHeader) -> bool {
        let is_last_of_producer =
            header.has_producer() && self.producers.get(&header.producer_id.get()) == Some(&header.last_offset());
        is_last_of_producer || header.next_offset() == self.end
    }

    /// From when on the tombstones of a batch may go, of which `has_tombstone` tells whether any is kept.
    pub(crate) fn horizon(&self, header: &BatchHeader, has_tombstone: bool) -> Option<Timestamp> {
        header.delete_horizon().or(has_tombstone.then(|| self.new_horizon()))
    }
}
