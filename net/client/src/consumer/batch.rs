//! From the bytes of a fetch answer to batches whose records can be read.
//!
//! Owns what a consumer must drop: batches and records before the wanted offset, a last batch that is cut short, control
//! batches, and records of aborted transactions. Checks checksums and bounds what decompression may give.

use std::collections::BTreeSet;
use std::rc::Rc;

use heddle_io::Lease;
use heddle_record::{
    BatchHeader, Batches, Compression, Headers, Offset, PartitionIndex, ProducerId, RecordBatch, RecordIter, Timestamp,
    TimestampType, decompress,
};

use crate::config::{ConsumerConfig, Isolation};
use crate::error::{Error, Result};

/// A batch of records that was fetched. Holds the fetched bytes; records borrow from it.
#[derive(Debug, Clone)]
pub struct FetchedBatch {
    topic: Rc<str>,
    partition: PartitionIndex,
    header: BatchHeader,
    /// The records, decompressed; empty in a batch that has nothing for its reader.
    body: Lease,
    record_count: i32,
    wanted: Offset,
    high_watermark: Offset,
}

/// A record, borrowed from its [`FetchedBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerRecord<'a> {
    /// Its place in the partition.
    pub offset: Offset,
    /// Its timestamp; [`Timestamp::NONE`] if it has none.
    pub timestamp: Timestamp,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; none is a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: Headers<'a>,
}

impl FetchedBatch {
    /// The topic.
    pub fn topic(&self) -> &Rc<str> {
        &self.topic
    }

    /// The partition.
    pub fn partition(&self) -> PartitionIndex {
        self.partition
    }

    /// The offset behind the batch: where reading goes on.
    pub fn next_offset(&self) -> Offset {
        self.header.next_offset()
    }

    /// The partition's high watermark when the batch was fetched.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Who set the records' timestamps.
    pub fn timestamp_type(&self) -> TimestampType {
        self.header.attributes.timestamp_type()
    }

    /// Whether there is nothing for the reader in it: a marker, or records of an aborted transaction.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Bytes that the batch keeps in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + size_of::<Self>()
    }

    /// The records from the wanted offset on, in order.
    ///
    /// # Errors
    /// [`Error::Malformed`], as the last item, where the bytes are no records although their checksum fits.
    pub fn records(&self) -> impl Iterator<Item = Result<ConsumerRecord<'_>>> {
        let records = RecordIter::new(&self.body, self.record_count);
        records.filter_map(|record| match record {
            Ok(record) => {
                let offset = self.header.offset_of(&record);
                let timestamp = self.header.timestamp_of(&record);
                let wanted = offset >= self.wanted;
                wanted.then_some(Ok(ConsumerRecord {
                    offset,
                    timestamp,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                }))
            }
            Err(error) => Some(Err(malformed(&self.topic, self.partition, self.header.base_offset, &error))),
        })
    }
}

/// What a fetch answered about one partition.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Concatenated batches; the last may be cut short.
    pub(crate) records: Lease,
    pub(crate) high_watermark: Offset,
    /// Producer and first offset of each aborted transaction in these records, in the order of the offsets.
    pub(crate) aborted: Vec<(ProducerId, Offset)>,
}

/// The batches in `fetched` that reach `wanted` or beyond, in order.
///
/// # Errors
/// [`Error::Malformed`]: a checksum that does not fit, an unknown codec, too much when decompressed.
pub(crate) fn batches(
    topic: &Rc<str>,
    partition: PartitionIndex,
    wanted: Offset,
    fetched: &Fetched,
    config: &ConsumerConfig,
) -> Result<Vec<FetchedBatch>> {
    let mut transactions = Aborted::new(fetched, config.isolation);
    let mut found = Vec::new();
    for batch in Batches::new(&fetched.records) {
        let batch = batch.map_err(|error| malformed(topic, partition, wanted, &error))?;
        if batch.last_offset() < wanted {
            continue;
        }
        check(&batch, config).map_err(|error| malformed(topic, partition, batch.base_offset(), &error))?;
        let visible = transactions.shows(&batch);
        let body = if visible { body(&batch, fetched, config) } else { Ok(Lease::empty()) };
        let body = body.map_err(|error| malformed(topic, partition, batch.base_offset(), &error))?;
        found.push(FetchedBatch {
            topic: Rc::clone(topic),
            partition,
            header: *batch.header(),
            body,
            record_count: if visible { batch.record_count() } else { 0 },
            wanted,
            high_watermark: fetched.high_watermark,
        });
    }
    Ok(found)
}

fn check(batch: &RecordBatch<'_>, config: &ConsumerConfig) -> std::result::Result<(), String> {
    let computed = if config.check_crc { batch.computed_crc() } else { batch.crc() };
    if computed != batch.crc() {
        return Err(format!("checksum {:#010x}, its bytes give {computed:#010x}", batch.crc()));
    }
    if batch.record_count() < 0 || batch.last_offset_delta() < 0 {
        return Err("negative counts".to_owned());
    }
    Ok(())
}

/// The records of a batch as bytes that are not compressed.
fn body(batch: &RecordBatch<'_>, fetched: &Fetched, config: &ConsumerConfig) -> std::result::Result<Lease, String> {
    match batch.compression() {
        None => Err(format!("unknown compression codec {}", batch.attributes().codec_id())),
        Some(Compression::None) => Ok(part_of(&fetched.records, batch.body())),
        // What compaction leaves of an empty batch has nothing to decompress.
        Some(_) if batch.record_count() == 0 => Ok(Lease::empty()),
        Some(codec) => {
            let mut bytes = Vec::new();
            decompress(codec, batch.body(), config.decompressed_bytes_max, &mut bytes).map_err(|it| it.to_string())?;
            Ok(Lease::from_vec(bytes))
        }
    }
}

/// The lease of `part`, which lies inside `whole`.
pub(crate) fn part_of(whole: &Lease, part: &[u8]) -> Lease {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    whole.slice(start..start + part.len())
}

fn malformed(topic: &str, partition: PartitionIndex, offset: Offset, error: &dyn std::fmt::Display) -> Error {
    let from = format!("the leader of {topic}-{partition}");
    Error::Malformed { from, what: format!("the batch at offset {offset}: {error}") }
}

/// Which transactions' records are hidden, as reading goes on.
struct Aborted<'a> {
    isolation: Isolation,
    /// Not yet reached.
    ahead: &'a [(ProducerId, Offset)],
    /// Producers whose records are of an aborted transaction, until its marker.
    open: BTreeSet<ProducerId>,
}

impl<'a> Aborted<'a> {
    fn new(fetched: &'a Fetched, isolation: Isolation) -> Self {
        Self { isolation, ahead: &fetched.aborted, open: BTreeSet::new() }
    }

    /// Whether the reader sees this batch, the next in order.
    fn shows(&mut self, batch: &RecordBatch<'_>) -> bool {
        while let Some(((producer, first_offset), rest)) = self.ahead.split_first()
            && *first_offset <= batch.last_offset()
        {
            self.open.insert(*producer);
            self.ahead = rest;
        }
        if batch.is_control() {
            if is_abort_marker(batch) {
                self.open.remove(&batch.producer_id());
            }
            return false;
        }
        let aborted = batch.is_transactional() && self.open.contains(&batch.producer_id());
        self.isolation == Isolation::ReadUncommitted || !aborted
    }
}

/// The key of a marker: int16 version, int16 type, of which 0 is abort.
fn is_abort_marker(batch: &RecordBatch<'_>) -> bool {
    const ABORT: &[u8] = &[0, 0];
    batch.compression() == Some(Compression::None)
        && batch
            .records()
            .next()
            .is_some_and(|it| it.is_ok_and(|it| it.key.and_then(|key| key.get(2..4)) == Some(ABORT)))
}

#[cfg(test)]
mod tests {
    use heddle_record::{BatchBuilder, BatchOptions, ProducerEpoch, Sequence};

    use super::*;

    fn built(base: i64, values: &[&str], options: BatchOptions) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions { base_offset: Offset::new(base), ..options });
        for value in values {
            builder.push(Timestamp::new(5), None, Some(value.as_bytes()), &[]).unwrap();
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        bytes
    }

    fn fetched(records: Vec<u8>, aborted: Vec<(ProducerId, Offset)>) -> Fetched {
        Fetched { records: Lease::from_vec(records), high_watermark: Offset::new(100), aborted }
    }

    fn read(wanted: i64, fetched: &Fetched, config: &ConsumerConfig) -> Result<Vec<(i64, String)>> {
        let batches = batches(&Rc::from("t"), PartitionIndex::new(0), Offset::new(wanted), fetched, config)?;
        let mut read = Vec::new();
        for batch in &batches {
            for record in batch.records() {
                let record = record?;
                read.push((record.offset.get(), String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
            }
        }
        Ok(read)
    }

    #[test]
    fn the_prefix_below_the_wanted_offset_is_dropped() {
        let mut bytes = built(0, &["a", "b"], BatchOptions::default());
        bytes.extend(built(2, &["c", "d", "e"], BatchOptions::default()));
        let fetched = fetched(bytes, vec![]);
        let config = ConsumerConfig::default();
        assert_eq!(read(3, &fetched, &config).unwrap(), [(3, "d".to_owned()), (4, "e".to_owned())]);
        assert_eq!(read(5, &fetched, &config).unwrap(), []);
    }

    #[test]
    fn a_last_batch_that_is_cut_short_is_left_for_the_next_fetch() {
        for cut in [1, 30, 60] {
            let mut bytes = built(0, &["a"], BatchOptions::default());
            let second = built(1, &["b"], BatchOptions::default());
            bytes.extend(&second[..second.len() - cut]);
            let read = read(0, &fetched(bytes, vec![]), &ConsumerConfig::default()).unwrap();
            assert_eq!(read, [(0, "a".to_owned())], "cut by {cut}");
        }
    }

    #[test]
    fn every_codec_is_read_and_bounded() {
        for compression in
            [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
        {
            let long = "x".repeat(10_000);
            let bytes = built(7, &[&long], BatchOptions { compression, ..BatchOptions::default() });
            let fetched = fetched(bytes, vec![]);
            assert_eq!(read(7, &fetched, &ConsumerConfig::default()).unwrap(), [(7, long)]);
            let tight = ConsumerConfig { decompressed_bytes_max: 1_000, ..ConsumerConfig::default() };
            assert_eq!(read(7, &fetched, &tight).is_err(), compression != Compression::None, "{compression:?}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        let mut bytes = built(0, &["abc"], BatchOptions::default());
        *bytes.last_mut().unwrap() ^= 1;
        let error = read(0, &fetched(bytes, vec![]), &ConsumerConfig::default()).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    #[test]
    fn what_was_aborted_is_hidden_from_those_who_read_committed() {
        let producer = |id| BatchOptions {
            producer_id: ProducerId::new(id),
            producer_epoch: ProducerEpoch::new(0),
            base_sequence: Sequence::new(0),
            transactional: true,
            ..BatchOptions::default()
        };
        let mut marker = BatchBuilder::new(BatchOptions { base_offset: Offset::new(2), control: true, ..producer(1) });
        marker.push(Timestamp::new(5), Some(&[0, 0, 0, 0]), Some(&[0, 0, 0, 0, 0, 0]), &[]).unwrap();
        let mut bytes = built(0, &["aborted"], producer(1));
        bytes.extend(built(1, &["of another"], producer(2)));
        marker.finish(&mut bytes).unwrap();
        bytes.extend(built(3, &["committed later"], producer(1)));
        let fetched = fetched(bytes, vec![(ProducerId::new(1), Offset::new(0))]);
        let offsets = |isolation| {
            let config = ConsumerConfig { isolation, ..ConsumerConfig::default() };
            read(0, &fetched, &config).unwrap().into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(Isolation::ReadCommitted), [1, 3]);
        assert_eq!(offsets(Isolation::ReadUncommitted), [0, 1, 3], "a marker is never seen");
    }
}
