//! What idempotent producers have written to one log: for each its epoch and its last five batches.
//!
//! Decides whether a batch is new, a duplicate or out of order, by Kafka's rules (KIP-98, KIP-360). Checking never changes
//! anything; [`ProducerTable::note`] is called when the batch has got its offsets, so a batch in flight is known (its
//! duplicate gets the same offsets and waits like it). Does no IO: the checkpoint stores the table, recovery replays the
//! rest through the same `note`.

use std::collections::BTreeMap;

use heddle_record::{BatchHeader, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, TimestampType};

use crate::error::AppendError;

/// Batches of each producer by which duplicates are known; clients keep at most this many in flight.
pub const BATCHES_PER_PRODUCER: usize = 5;
/// Batches kept of each producer. While as many as a client keeps in flight are not flushed, a checkpoint still finds as
/// many below them.
const BATCHES_KEPT: usize = 2 * BATCHES_PER_PRODUCER;

/// Who wrote a batch and which numbers it gave its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The producer.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// The sequence of the first record.
    pub base_sequence: Sequence,
    /// The sequence of the last record.
    pub last_sequence: Sequence,
}

impl Claim {
    /// The claim of a batch that has passed validation and has a producer.
    pub fn of(header: &BatchHeader) -> Claim {
        Claim {
            producer_id: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
        }
    }
}

/// A batch that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendedBatch {
    /// The sequence of its first record.
    pub base_sequence: Sequence,
    /// The sequence of its last record.
    pub last_sequence: Sequence,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset of its last record.
    pub last_offset: Offset,
    /// The time the log gave it, or -1.
    pub log_append_time: Timestamp,
}

impl AppendedBatch {
    /// The batch with this header, completed by the log.
    pub fn of(header: &BatchHeader) -> AppendedBatch {
        AppendedBatch {
            base_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            log_append_time: match header.attributes.timestamp_type() {
                TimestampType::LogAppendTime => header.max_timestamp,
                TimestampType::CreateTime => Timestamp::NONE,
            },
        }
    }
}

/// A producer as the checkpoint stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    /// The newest epoch that wrote.
    pub epoch: ProducerEpoch,
    /// Wall clock of its last append, in ms; it is forgotten when this is too long ago.
    pub active_at: Timestamp,
    /// Its last batches under this epoch, oldest first. Never empty.
    pub batches: Vec<AppendedBatch>,
}

/// What a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    New,
    /// It was appended before; answer with this.
    Duplicate(AppendedBatch),
}

/// The producers of one log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerTable {
    producers: BTreeMap<i64, Producer>,
}

impl ProducerTable {
    /// Whether a batch with this claim is to be appended.
    ///
    /// An id that is not known (never seen, or idle for too long) may start at any sequence. A newer epoch starts at 0.
    ///
    /// # Errors
    /// [`AppendError::InvalidProducerEpoch`] for an older epoch, [`AppendError::OutOfOrderSequence`] where the sequence
    /// neither continues nor repeats one of the last five batches.
    pub fn check(&self, claim: &Claim) -> Result<Verdict, AppendError> {
        let Some(producer) = self.producers.get(&claim.producer_id.get()) else { return Ok(Verdict::New) };
        if claim.epoch < producer.epoch {
            return Err(AppendError::InvalidProducerEpoch { current: producer.epoch.get(), found: claim.epoch.get() });
        }
        let expected = if claim.epoch > producer.epoch {
            Sequence::new(0)
        } else {
            let same = |batch: &&AppendedBatch| {
                batch.base_sequence == claim.base_sequence && batch.last_sequence == claim.last_sequence
            };
            if let Some(batch) = producer.batches.iter().rev().take(BATCHES_PER_PRODUCER).find(same) {
                return Ok(Verdict::Duplicate(*batch));
            }
            producer.last_sequence().next(1)
        };
        if claim.base_sequence != expected {
            return Err(AppendError::OutOfOrderSequence { expected: expected.get(), found: claim.base_sequence.get() });
        }
        Ok(Verdict::New)
    }

    /// Notes that the batch with this claim got its offsets.
    pub fn note(&mut self, claim: &Claim, batch: AppendedBatch, now: Timestamp) {
        assert!(batch.base_offset <= batch.last_offset, "a batch has at least one offset");
        let producer = self.producers.entry(claim.producer_id.get()).or_insert_with(|| Producer {
            epoch: claim.epoch,
            active_at: now,
            batches: Vec::with_capacity(1),
        });
        // Batches between may be gone where a compacted log is read again: those before say nothing any more.
        let continues = |last: &AppendedBatch| last.last_sequence.next(1) == claim.base_sequence;
        if producer.epoch != claim.epoch || !producer.batches.last().is_none_or(continues) {
            producer.epoch = claim.epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == BATCHES_KEPT {
            producer.batches.remove(0);
        }
        producer.batches.push(batch);
        producer.active_at = producer.active_at.max(now);
    }

    /// Notes a stored batch, read from the log again at `now`; of control batches and those without a producer nothing is
    /// kept.
    pub fn replay(&mut self, header: &BatchHeader, now: Timestamp) {
        if header.has_producer() && !header.attributes.is_control() {
            self.note(&Claim::of(header), AppendedBatch::of(header), now);
        }
    }

    /// Puts a producer back that a checkpoint has stored; one without batches, or with too many, is left out.
    pub fn restore(&mut self, id: ProducerId, producer: Producer) {
        if (1..=BATCHES_KEPT).contains(&producer.batches.len()) && id.get() >= 0 {
            self.producers.insert(id.get(), producer);
        }
    }

    /// The producers, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &Producer)> {
        self.producers.iter().map(|(id, producer)| (ProducerId::new(*id), producer))
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Forgets those that were last active before `limit`. Returns how many.
    pub fn expire(&mut self, limit: Timestamp) -> usize {
        let before = self.len();
        self.producers.retain(|_, producer| producer.active_at >= limit);
        before - self.len()
    }

    /// Forgets a part of the longest idle producers, at least one, to make room (case 56). Returns how many.
    ///
    /// A sixteenth at a time, so that a flood of new producers costs each of them a constant share of one pass.
    pub fn evict_idle(&mut self) -> usize {
        let mut idle: Vec<(Timestamp, i64)> =
            self.producers.iter().map(|(id, producer)| (producer.active_at, *id)).collect();
        let share = (idle.len() / 16).max(1).min(idle.len());
        if share == 0 {
            return 0;
        }
        idle.select_nth_unstable(share - 1);
        for (_, id) in &idle[..share] {
            self.producers.remove(id);
        }
        share
    }

    /// Forgets batches at or after `end_offset`, which the log was cut to.
    ///
    /// Returns whether a producer lost all the batches that were known of it: what it wrote before must then be read
    /// from the log again.
    pub fn truncate_from_end(&mut self, end_offset: Offset) -> bool {
        let before = self.len();
        self.producers.retain(|_, producer| {
            producer.batches.retain(|batch| batch.last_offset < end_offset);
            !producer.batches.is_empty()
        });
        self.len() < before
    }

    /// # Panics
    /// If a producer has no batch or too many, or its sequences or offsets do not follow each other.
    pub fn check_invariants(&self, end_offset: Offset) {
        for producer in self.producers.values() {
            assert!((1..=BATCHES_KEPT).contains(&producer.batches.len()), "a few batches are known");
            for pair in producer.batches.windows(2) {
                assert!(pair[0].last_offset < pair[1].base_offset, "offsets of a producer ascend");
                assert_eq!(
                    pair[0].last_sequence.next(1),
                    pair[1].base_sequence,
                    "sequences of a producer are contiguous"
                );
            }
            assert!(
                producer.batches.iter().all(|batch| batch.last_offset < end_offset),
                "batches lie below the log's end"
            );
        }
    }
}

impl Producer {
    fn last_sequence(&self) -> Sequence {
        self.batches.last().expect("a producer is known by at least one batch").last_sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(epoch: i16, base: i32, count: u32) -> Claim {
        let base_sequence = Sequence::new(base);
        let last_sequence = base_sequence.next(count - 1);
        Claim { producer_id: ProducerId::new(9), epoch: ProducerEpoch::new(epoch), base_sequence, last_sequence }
    }

    /// Checks a claim and, if it is new, appends it at `offset`.
    fn append(table: &mut ProducerTable, claim: Claim, offset: i64) -> Result<Verdict, AppendError> {
        let verdict = table.check(&claim)?;
        if verdict == Verdict::New {
            let last = offset
                + i64::from(claim.last_sequence.get().wrapping_sub(claim.base_sequence.get()).rem_euclid(i32::MAX));
            let batch = AppendedBatch {
                base_sequence: claim.base_sequence,
                last_sequence: claim.last_sequence,
                base_offset: Offset::new(offset),
                last_offset: Offset::new(last),
                log_append_time: Timestamp::NONE,
            };
            table.note(&claim, batch, Timestamp::new(1000));
        }
        Ok(verdict)
    }

    fn base_of(verdict: Verdict) -> i64 {
        match verdict {
            Verdict::Duplicate(batch) => batch.base_offset.get(),
            Verdict::New => panic!("not a duplicate"),
        }
    }

    #[test]
    fn the_last_five_batches_are_known_again() {
        let mut table = ProducerTable::default();
        for batch in 0..7 {
            assert_eq!(append(&mut table, claim(0, batch * 10, 10), i64::from(batch) * 100).unwrap(), Verdict::New);
        }
        for batch in 2..7 {
            assert_eq!(base_of(append(&mut table, claim(0, batch * 10, 10), 9999).unwrap()), i64::from(batch) * 100);
        }
        assert!(matches!(
            append(&mut table, claim(0, 10, 10), 0),
            Err(AppendError::OutOfOrderSequence { expected: 70, found: 10 })
        ));
        // The same start with another length is no duplicate.
        assert!(append(&mut table, claim(0, 60, 5), 0).is_err());
        table.check_invariants(Offset::new(1000));
    }

    #[test]
    fn gaps_are_out_of_order_and_change_nothing() {
        let mut table = ProducerTable::default();
        append(&mut table, claim(0, 0, 1), 0).unwrap();
        let before = table.clone();
        assert!(matches!(
            append(&mut table, claim(0, 2, 1), 1),
            Err(AppendError::OutOfOrderSequence { expected: 1, found: 2 })
        ));
        assert_eq!(table, before, "case 30");
        append(&mut table, claim(0, 1, 1), 1).unwrap();
    }

    #[test]
    fn an_unknown_producer_starts_anywhere() {
        // Case 54.
        let mut table = ProducerTable::default();
        append(&mut table, claim(3, 4711, 2), 0).unwrap();
        append(&mut table, claim(3, 4713, 2), 2).unwrap();
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old() {
        let mut table = ProducerTable::default();
        append(&mut table, claim(1, 0, 5), 0).unwrap();
        assert!(matches!(
            append(&mut table, claim(2, 5, 1), 5),
            Err(AppendError::OutOfOrderSequence { expected: 0, .. })
        ));
        append(&mut table, claim(2, 0, 1), 5).unwrap();
        assert!(matches!(
            append(&mut table, claim(1, 5, 1), 6),
            Err(AppendError::InvalidProducerEpoch { current: 2, found: 1 })
        ));
        assert!(append(&mut table, claim(1, 0, 5), 6).is_err(), "duplicates of an old epoch are fenced too");
    }

    #[test]
    fn sequences_wrap_inside_and_between_batches() {
        let mut table = ProducerTable::default();
        append(&mut table, claim(0, i32::MAX - 1, 4), 0).unwrap();
        assert_eq!(table.check(&claim(0, 2, 1)).unwrap(), Verdict::New);
        assert_eq!(base_of(table.check(&claim(0, i32::MAX - 1, 4)).unwrap()), 0);
        let mut table = ProducerTable::default();
        append(&mut table, claim(0, i32::MAX, 1), 0).unwrap();
        assert_eq!(append(&mut table, claim(0, 0, 1), 1).unwrap(), Verdict::New);
    }

    #[test]
    fn idle_producers_expire_and_may_come_back() {
        // Case 55.
        let mut table = ProducerTable::default();
        append(&mut table, claim(0, 0, 1), 0).unwrap();
        assert_eq!(table.expire(Timestamp::new(1000)), 0);
        assert_eq!(table.expire(Timestamp::new(1001)), 1);
        assert_eq!(append(&mut table, claim(0, 1, 1), 1).unwrap(), Verdict::New);
    }

    #[test]
    fn the_longest_idle_make_room() {
        // Case 56.
        let mut table = ProducerTable::default();
        for id in 0..64 {
            let claim = Claim { producer_id: ProducerId::new(id), ..claim(0, 0, 1) };
            let batch = AppendedBatch {
                base_sequence: Sequence::new(0),
                last_sequence: Sequence::new(0),
                base_offset: Offset::new(id),
                last_offset: Offset::new(id),
                log_append_time: Timestamp::NONE,
            };
            table.note(&claim, batch, Timestamp::new(1000 - id));
        }
        assert_eq!(table.evict_idle(), 4);
        assert!(table.iter().all(|(id, _)| id.get() < 60));
        assert_eq!(ProducerTable::default().evict_idle(), 0);
    }

    #[test]
    fn a_cut_forgets_what_it_cuts() {
        let mut table = ProducerTable::default();
        append(&mut table, claim(0, 0, 5), 0).unwrap();
        append(&mut table, claim(0, 5, 5), 5).unwrap();
        assert!(!table.truncate_from_end(Offset::new(5)));
        assert_eq!(table.check(&claim(0, 5, 5)).unwrap(), Verdict::New);
        assert!(table.truncate_from_end(Offset::new(3)), "nothing is known of the producer any more");
        assert!(table.is_empty());
    }
}
