//! Cuts a batch that is too large for the broker in two.

use heddle_record::{BatchBuilder, BatchOptions, Compression, RecordBatch, RecordHeader, decompress};

/// A part of a batch, as a batch of its own.
pub(crate) struct Half {
    /// The batch, without a producer.
    pub(crate) bytes: Vec<u8>,
    pub(crate) record_count: u32,
}

/// Both halves of a batch that this producer built, which has more than one record.
///
/// # Panics
/// If it is no such batch.
pub(crate) fn halves(bytes: &[u8], options: BatchOptions) -> [Half; 2] {
    const OURS: &str = "the batch was built here";
    let batch = RecordBatch::peek(bytes).expect(OURS);
    let total = u32::try_from(batch.record_count()).expect(OURS);
    assert!(total > 1, "one record cannot be cut in two");
    let mut records = Vec::new();
    let body = match batch.compression().expect(OURS) {
        Compression::None => batch.body(),
        codec => {
            decompress(codec, batch.body(), i32::MAX as usize, &mut records).expect(OURS);
            &records
        }
    };
    let mut records = batch.records_in(body).map(|record| record.expect(OURS));
    [total.div_ceil(2), total / 2].map(|record_count| {
        let mut builder = BatchBuilder::new(options);
        for record in records.by_ref().take(record_count as usize) {
            let timestamp = batch.header().timestamp_of(&record);
            let headers: Vec<RecordHeader<'_>> = record.headers.iter().collect();
            builder.push(timestamp, record.key, record.value, &headers).expect("a part is no larger than the whole");
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).expect("its records were compressed before");
        Half { bytes, record_count }
    })
}
