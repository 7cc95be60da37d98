//! Record batches: walk, validate, decompress under a cap, read every record, rewrite.
#![no_main]

use heddle_record::{
    BatchBuilder, Batches, Compression, HEADER_LEN, LOG_OVERHEAD, Origin, RawHeader, RecordBatch, Timestamp, validate,
};
use libfuzzer_sys::fuzz_target;

/// What a batch may decompress to here.
const OUTPUT_MAX: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    for batch in Batches::new(data).map_while(Result::ok) {
        let _ = validate(batch.bytes(), Origin::Producer);
        let _ = validate(batch.bytes(), Origin::Log);
        read(&batch);
    }
    // A random checksum never fits, so the same bytes are tried again as one batch that is right so far.
    if let Some(sealed) = seal(data) {
        if let Ok(batch) = validate(&sealed, Origin::Log) {
            patch(&batch);
            read(&batch);
        }
    }
});

/// The bytes as one batch: magic, length and checksum made to fit.
fn seal(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let length = i32::try_from(bytes.len().checked_sub(LOG_OVERHEAD)?).ok()?;
    bytes.get_mut(8..12)?.copy_from_slice(&length.to_be_bytes());
    *bytes.get_mut(16)? = 2;
    let crc = RecordBatch::peek(&bytes).ok()?.computed_crc();
    bytes.get_mut(17..21)?.copy_from_slice(&crc.to_be_bytes());
    Some(bytes)
}

/// Reads the records, decompressed if need be, and writes those of a good batch again.
fn read(batch: &RecordBatch<'_>) {
    let mut scratch = Vec::new();
    let body = batch.uncompressed_body(OUTPUT_MAX, &mut scratch);
    let capacity = match body {
        Ok(body) if batch.check_records(body, Origin::Log).is_ok() => {
            rewrite(batch, body);
            body.len()
        }
        Ok(body) => {
            for record in batch.records_in(body).map_while(Result::ok) {
                assert_eq!(record.headers.iter().count(), record.headers.len());
            }
            body.len()
        }
        Err(_) => 0,
    };
    assert!(capacity <= OUTPUT_MAX.max(batch.len()));
    assert!(scratch.capacity() <= OUTPUT_MAX, "{} bytes of memory", scratch.capacity());
}

/// What is rewritten reads as what was read, whatever the codec.
fn rewrite(batch: &RecordBatch<'_>, body: &[u8]) {
    for codec in [Compression::None, Compression::Lz4] {
        let mut builder = BatchBuilder::rewrite(batch.header(), codec, None);
        for record in batch.records_in(body) {
            builder.retain(&record.expect("the records were checked")).expect("a batch of 1 MiB is not too large");
        }
        let mut out = Vec::new();
        builder.finish(&mut out).expect("there is memory");
        let again = RecordBatch::peek(&out).expect("what is built is a batch");
        assert_eq!(again.computed_crc(), again.crc());
        let mut scratch = Vec::new();
        let unpacked = again.uncompressed_body(OUTPUT_MAX, &mut scratch).expect("what is packed can be unpacked");
        let both = batch.records_in(body).zip(again.records_in(unpacked));
        assert_eq!(
            both.filter(|(before, after)| before == after && after.is_ok()).count(),
            again.record_count() as usize
        );
    }
}

/// The checksum follows every change of the header.
fn patch(batch: &RecordBatch<'_>) {
    let mut header = RawHeader::copy_of(batch);
    header.set_log_append_time(Timestamp::new(1));
    header.set_max_timestamp(Timestamp::new(i64::MAX));
    let patched = [header.bytes(), &batch.bytes()[HEADER_LEN..]].concat();
    assert!(validate(&patched, Origin::Log).is_ok());
}
