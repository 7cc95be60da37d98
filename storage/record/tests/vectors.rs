//! Record batches made by Kafka's own classes, both ways: read to every field, written back to the same bytes.
//!
//! `testdata/record_batches.jsonl` holds one batch a line: its fields as JSON and its bytes as hex. Compressed ones are
//! only read, because no other compressor gives the same bytes; ours are read back instead.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it by panicking")]

use heddle_record::{
    BatchBuilder, BatchOptions, Batches, Compression, Header, LeaderEpoch, Offset, Origin, ProducerEpoch, ProducerId,
    RecordBatch, Sequence, Timestamp, TimestampType, decompress, validate,
};
use serde_json::Value;

const OUTPUT_MAX: usize = 1 << 20;

struct Vector {
    variant: String,
    fields: Value,
    bytes: Vec<u8>,
}

fn vectors() -> Vec<Vector> {
    let lines = include_str!("../testdata/record_batches.jsonl").lines();
    let vectors: Vec<Vector> = lines
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            Vector {
                variant: line["variant"].as_str().unwrap().to_owned(),
                bytes: unhex(line["hex"].as_str().unwrap()),
                fields: line["json"].take(),
            }
        })
        .collect();
    assert_eq!(vectors.len(), 73, "the file is whole");
    vectors
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn number(fields: &Value, name: &str) -> i64 {
    fields[name].as_i64().unwrap_or_else(|| panic!("{name} is a number"))
}

fn optional_bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_str().map(unhex)
}

/// One record as the vectors tell it.
#[derive(Debug, PartialEq)]
struct PlainRecord {
    offset_delta: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn expected_records(fields: &Value) -> Vec<PlainRecord> {
    let header =
        |header: &Value| (header["key"].as_str().unwrap().as_bytes().to_vec(), optional_bytes(&header["value"]));
    let record = |record: &Value| PlainRecord {
        offset_delta: number(record, "offset_delta"),
        timestamp: number(record, "timestamp"),
        key: optional_bytes(&record["key"]),
        value: optional_bytes(&record["value"]),
        headers: record["headers"].as_array().unwrap().iter().map(header).collect(),
    };
    fields["records"].as_array().unwrap().iter().map(record).collect()
}

fn read_records(batch: &RecordBatch<'_>) -> Vec<PlainRecord> {
    let mut scratch = Vec::new();
    let body = batch.uncompressed_body(OUTPUT_MAX, &mut scratch).unwrap();
    batch.check_records(body, Origin::Log).unwrap();
    let plain = |record: heddle_record::Record<'_>| PlainRecord {
        offset_delta: i64::from(record.offset_delta),
        timestamp: batch.header().timestamp_of(&record).get(),
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: record.headers.iter().map(|h| (h.key.to_vec(), h.value.map(<[u8]>::to_vec))).collect(),
    };
    batch.records_in(body).map(|record| plain(record.unwrap())).collect()
}

/// The same batch with other compression, through the builder that keeps a header.
fn rewrite(batch: &RecordBatch<'_>, compression: Compression) -> Vec<u8> {
    let mut scratch = Vec::new();
    let body = batch.uncompressed_body(OUTPUT_MAX, &mut scratch).unwrap();
    let mut builder = BatchBuilder::rewrite(batch.header(), compression, None);
    for record in batch.records_in(body) {
        builder.retain(&record.unwrap()).unwrap();
    }
    let mut out = Vec::new();
    builder.finish(&mut out).unwrap();
    out
}

/// The same batch made anew from its records.
fn build(batch: &RecordBatch<'_>, records: &[PlainRecord]) -> Vec<u8> {
    let header = batch.header();
    let append_time = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
    let mut builder = BatchBuilder::new(BatchOptions {
        base_offset: header.base_offset,
        partition_leader_epoch: header.partition_leader_epoch,
        log_append_time: append_time.then_some(header.max_timestamp),
        producer_id: header.producer_id,
        producer_epoch: header.producer_epoch,
        base_sequence: header.base_sequence,
        transactional: header.attributes.is_transactional(),
        control: header.attributes.is_control(),
        ..BatchOptions::default()
    });
    let raw: Vec<_> = batch.records().map(Result::unwrap).collect();
    for (record, raw) in records.iter().zip(raw) {
        // Under log append time the producer's timestamps are still in the deltas.
        let timestamp = Timestamp(header.base_timestamp.get().wrapping_add(raw.timestamp_delta));
        let headers: Vec<_> =
            record.headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
        builder.push(timestamp, record.key.as_deref(), record.value.as_deref(), &headers).unwrap();
    }
    let mut out = Vec::new();
    builder.finish(&mut out).unwrap();
    out
}

#[test]
fn every_header_field_is_read() {
    for Vector { variant, fields, bytes } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(batch.base_offset(), Offset::new(number(&fields, "base_offset")), "{variant}");
        assert_eq!(i64::from(batch.last_offset_delta()), number(&fields, "last_offset_delta"), "{variant}");
        let epoch = LeaderEpoch(number(&fields, "partition_leader_epoch") as i32);
        assert_eq!(batch.partition_leader_epoch(), epoch, "{variant}");
        assert_eq!(i64::from(batch.attributes().0), number(&fields, "attributes"), "{variant}");
        assert_eq!(i64::from(batch.crc()), number(&fields, "crc"), "{variant}");
        assert_eq!(batch.base_timestamp(), Timestamp(number(&fields, "base_timestamp")), "{variant}");
        assert_eq!(batch.max_timestamp(), Timestamp(number(&fields, "max_timestamp")), "{variant}");
        assert_eq!(batch.producer_id(), ProducerId(number(&fields, "producer_id")), "{variant}");
        assert_eq!(batch.producer_epoch(), ProducerEpoch(number(&fields, "producer_epoch") as i16), "{variant}");
        assert_eq!(batch.base_sequence(), Sequence(number(&fields, "base_sequence") as i32), "{variant}");
        assert_eq!(batch.last_sequence(), Sequence(number(&fields, "last_sequence") as i32), "{variant}");
        assert_eq!(batch.len(), bytes.len(), "{variant}");
        assert_eq!(batch.header().encode(), *batch.header_bytes(), "{variant}");
    }
}

#[test]
fn every_record_is_read_whatever_the_codec() {
    let mut codecs = Vec::new();
    for Vector { variant, fields, bytes } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap();
        assert_eq!(read_records(&batch), expected_records(&fields), "{variant}");
        codecs.push(batch.compression().unwrap());
    }
    for codec in Compression::ALL {
        assert!(codecs.contains(&codec), "no vector for {codec}");
    }
}

#[test]
fn uncompressed_batches_are_written_to_the_same_bytes() {
    let (mut rewritten, mut built) = (0, 0);
    for Vector { variant, fields, bytes } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap();
        if batch.compression() != Some(Compression::None) {
            continue;
        }
        assert_eq!(rewrite(&batch, Compression::None), bytes, "{variant}");
        rewritten += 1;
        // What only compaction makes cannot be made from records alone.
        let records = expected_records(&fields);
        if batch.attributes().has_delete_horizon() || records.len() as i32 != batch.last_offset_delta() + 1 {
            continue;
        }
        assert_eq!(build(&batch, &records), bytes, "{variant}");
        built += 1;
    }
    assert!(rewritten >= 30 && built >= 20, "{rewritten} rewritten, {built} built");
}

#[test]
fn what_our_compressors_write_reads_back() {
    for Vector { variant, fields, bytes } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap();
        for codec in Compression::ALL {
            let packed = rewrite(&batch, codec);
            let packed = validate(&packed, Origin::Log).unwrap_or_else(|error| panic!("{variant} {codec}: {error}"));
            assert_eq!(packed.compression(), Some(codec), "{variant}");
            assert_eq!(read_records(&packed), expected_records(&fields), "{variant} {codec}");
        }
    }
}

#[test]
fn what_a_producer_may_send_is_accepted_from_one() {
    for Vector { variant, bytes, .. } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap();
        let compacted =
            batch.record_count() != batch.last_offset_delta() + 1 || batch.attributes().has_delete_horizon();
        let placed = batch.base_offset() != Offset::ZERO;
        let sent_by_a_broker = batch.is_control() || placed || compacted;
        assert_eq!(validate(&bytes, Origin::Producer).is_ok(), !sent_by_a_broker, "{variant}");
    }
}

#[test]
fn a_concatenation_is_walked_up_to_a_cut_last_batch() {
    let vectors = vectors();
    let mut all = Vec::new();
    let ends: Vec<usize> = vectors
        .iter()
        .map(|vector| {
            all.extend_from_slice(&vector.bytes);
            all.len()
        })
        .collect();
    for end in [all.len(), all.len() - 1, ends[40] + 5, ends[10] + 61, ends[3], 17, 3, 0] {
        let mut batches = Batches::new(&all[..end]);
        let walked: Vec<_> = batches.by_ref().map(|batch| batch.unwrap().bytes().to_vec()).collect();
        let whole = ends.iter().filter(|batch_end| **batch_end <= end).count();
        assert_eq!(walked.len(), whole);
        assert!(walked.iter().zip(&vectors).all(|(walked, vector)| *walked == vector.bytes));
        assert_eq!(batches.rest().len(), end - whole.checked_sub(1).map_or(0, |last| ends[last]));
        assert!(batches.next().is_none());
    }
}

#[test]
fn compressed_bodies_cut_short_or_over_the_cap_are_refused() {
    for Vector { variant, bytes, .. } in vectors() {
        let batch = validate(&bytes, Origin::Log).unwrap();
        let codec = batch.compression().unwrap();
        if codec == Compression::None || batch.body().is_empty() {
            continue;
        }
        let mut whole = Vec::new();
        decompress(codec, batch.body(), OUTPUT_MAX, &mut whole).unwrap();
        let mut out = Vec::new();
        decompress(codec, batch.body(), whole.len(), &mut out).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(out, whole, "{variant}: the cap is inclusive");
        assert!(decompress(codec, batch.body(), whole.len() - 1, &mut out).is_err(), "{variant}: one below");
        for cut in 0..batch.body().len() {
            out.clear();
            let done = decompress(codec, &batch.body()[..cut], OUTPUT_MAX, &mut out);
            // Xerial framing has no end mark: a stream cut between two blocks is whole as far as it goes.
            assert!(done.is_err() || codec == Compression::Snappy && whole.starts_with(&out), "{variant} cut at {cut}");
            assert!(done.is_ok() || out.is_empty(), "{variant}: a failed call leaves nothing");
        }
    }
}
