//! What was decided and is not in the log yet: the records of some steps as batches, and the answers that wait for them.
//!
//! Owns where one batch ends and the next begins. Never appends.

use heddle_cluster::group::{GroupRecord, Outcome, Response, Ticket};
use heddle_protocol::Writer;
use heddle_record::{BatchBuilder, BatchOptions, Timestamp};

/// Bytes of a batch to which no other step is added.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// Steps on their way to the log.
pub(super) struct Gathered {
    /// Bytes of records in a batch, at most.
    batch_bytes_max: usize,
    batches: Vec<Vec<u8>>,
    open: BatchBuilder,
    /// Bytes of the records of the open batch, at most.
    open_bytes: usize,
    answers: Vec<(Ticket, Response)>,
    key: Writer,
    value: Writer,
}

impl Gathered {
    /// Nothing yet. A batch takes `batch_bytes_max` bytes of records at most, or one record.
    pub(super) fn new(batch_bytes_max: usize) -> Self {
        Self {
            batch_bytes_max,
            batches: Vec::new(),
            open: BatchBuilder::new(BatchOptions::default()),
            open_bytes: 0,
            answers: Vec::new(),
            key: Writer::new(),
            value: Writer::new(),
        }
    }

    /// Adds what a step came to at `now`. Its records are in one batch, if one can hold them (case 58).
    pub(super) fn add(&mut self, outcome: Outcome, now: Timestamp) {
        let step_bytes: usize = outcome.records.iter().map(GroupRecord::size).sum();
        if self.open_bytes + step_bytes > self.batch_bytes_max.min(GATHERED_BYTES_MAX) {
            self.seal();
        }
        for record in &outcome.records {
            self.push(record, now);
        }
        self.answers.extend(outcome.answers);
    }

    fn push(&mut self, record: &GroupRecord, now: Timestamp) {
        let bytes = record.size();
        if self.open_bytes + bytes > self.batch_bytes_max {
            self.seal();
        }
        self.key.clear();
        self.value.clear();
        let is_tombstone = record.encode_into(&mut self.key, &mut self.value);
        let value = (!is_tombstone).then(|| self.value.bytes());
        let pushed = self.open.push(now, Some(self.key.bytes()), value, &[]);
        pushed.expect("a batch is far below the limit of its length");
        self.open_bytes += bytes;
    }

    /// Ends the open batch.
    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let open = std::mem::replace(&mut self.open, BatchBuilder::new(BatchOptions::default()));
        let mut batch = Vec::with_capacity(open.size_uncompressed());
        open.finish(&mut batch).expect("a batch without compression is always built");
        self.batches.push(batch);
        self.open_bytes = 0;
    }

    /// The batches, in order, and the answers.
    pub(super) fn finish(mut self) -> (Vec<Vec<u8>>, Vec<(Ticket, Response)>) {
        self.seal();
        (self.batches, self.answers)
    }
}

#[cfg(test)]
mod tests {
    use heddle_cluster::group::CommittedOffset;
    use heddle_record::{Batches, LeaderEpoch, TopicId};

    use super::*;

    fn step(partitions: std::ops::Range<i32>, metadata: usize) -> Outcome {
        let records = partitions.map(|partition| GroupRecord::Offset {
            group: "weavers".into(),
            topic: "loom".into(),
            partition,
            committed: Some(CommittedOffset {
                offset: 1,
                leader_epoch: LeaderEpoch::new(0),
                metadata: "m".repeat(metadata).into(),
                committed_at: Timestamp::new(7),
                expires_at: Timestamp::NONE,
                topic_id: TopicId::ZERO,
            }),
        });
        Outcome { records: records.collect(), answers: Vec::new() }
    }

    /// The partitions of each batch.
    fn partitions(gathered: Gathered) -> Vec<Vec<i32>> {
        let (batches, _) = gathered.finish();
        let batches = batches.iter().map(|bytes| {
            let batch = Batches::new(bytes).next().expect("a batch").expect("a sound batch");
            let mut room = Vec::new();
            let body = batch.uncompressed_body(1 << 20, &mut room).expect("no codec");
            let records = batch.records_in(body).map(|record| {
                let record = record.expect("a record");
                match GroupRecord::decode(record.key.expect("a key"), record.value).expect("a record of a group") {
                    GroupRecord::Offset { partition, .. } => partition,
                    GroupRecord::Group { .. } => panic!("only offsets were committed"),
                }
            });
            records.collect()
        });
        batches.collect()
    }

    #[test]
    fn small_steps_share_a_batch() {
        let mut gathered = Gathered::new(1 << 20);
        for partition in 0..100 {
            gathered.add(step(partition..partition + 1, 10), Timestamp::new(1_000 + i64::from(partition)));
        }
        assert_eq!(partitions(gathered), [(0..100).collect::<Vec<i32>>()]);
        assert_eq!(partitions(Gathered::new(1 << 20)), Vec::<Vec<i32>>::new());
    }

    #[test]
    fn case_58_a_step_is_in_one_batch_if_one_can_hold_it() {
        let mut gathered = Gathered::new(1 << 20);
        gathered.add(step(0..10, 1_000), Timestamp::new(1));
        gathered.add(step(10..110, 1_000), Timestamp::new(2));
        gathered.add(step(110..111, 1_000), Timestamp::new(3));
        let batches = partitions(gathered);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [10, 100, 1], "the large one is alone");
        let mut gathered = Gathered::new(4_096);
        gathered.add(step(0..10, 1_000), Timestamp::new(1));
        let batches = partitions(gathered);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1], "none is above the limit");
        assert_eq!(batches.concat(), (0..10).collect::<Vec<i32>>());
    }
}
