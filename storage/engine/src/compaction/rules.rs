//! Which records of a batch stay. Pure: decides, and changes nothing.
//!
//! These are Kafka's rules (KIP-534 for tombstones): of each key the last record stays; a tombstone stays until the time
//! that the first pass over it set; the last batch of a producer stays, without records if need be, so that its sequence is
//! known; so does the last batch of a pass, so that every offset has a batch at or behind it. Control batches stay as they
//! are: as long as there are no transactions, nothing tells when the last data of one is gone (case 51).

use std::collections::BTreeMap;

use heddle_record::{BatchHeader, Offset, Record, Timestamp};

use super::offset_map::OffsetMap;

/// What a pass goes by.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) map: OffsetMap,
    /// Everything below was mapped; what comes after is not looked at.
    pub(crate) end: Offset,
    /// Wall clock at the beginning of the pass.
    pub(crate) now: Timestamp,
    /// How long a tombstone stays after the first pass over it, in ms.
    pub(crate) delete_retention: i64,
    /// The last offset of each producer that the log remembers.
    pub(crate) producers: BTreeMap<i64, Offset>,
}

impl Rules {
    /// Whether nothing of a batch can go, whatever is in it.
    pub(crate) fn keeps_whole(&self, header: &BatchHeader) -> bool {
        header.base_offset >= self.end || header.attributes.is_control()
    }

    /// Whether a record stays.
    pub(crate) fn keeps(&self, header: &BatchHeader, record: &Record<'_>) -> bool {
        let offset = header.offset_of(record);
        if offset >= self.end {
            return true;
        }
        // A compacted topic takes no record without a key; one from before it was compacted says nothing that could last.
        let Some(key) = record.key else { return false };
        let is_last = self.map.last(key).is_none_or(|last| offset >= last);
        is_last && (record.value.is_some() || header.delete_horizon().is_none_or(|horizon| self.now < horizon))
    }

    /// Whether a batch stays although none of its records does.
    pub(crate) fn keeps_empty(&self, header: &BatchHeader) -> bool {
        let is_last_of_producer =
            header.has_producer() && self.producers.get(&header.producer_id.get()) == Some(&header.last_offset());
        is_last_of_producer || header.next_offset() == self.end
    }

    /// From when on the tombstones of a batch may go, of which `has_tombstone` tells whether any is kept.
    pub(crate) fn horizon(&self, header: &BatchHeader, has_tombstone: bool) -> Option<Timestamp> {
        let new = Timestamp::new(self.now.get().saturating_add(self.delete_retention));
        header.delete_horizon().or(has_tombstone.then_some(new))
    }
}
