//! Checksum, validation, iteration and the codecs of a record batch.
//!
//! `cargo bench -p heddle-bench --bench record`
#![forbid(unsafe_code)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use heddle_bench::batch;
use heddle_record::{Compression, Origin, RawHeader, RecordBatch, Timestamp, compress, decompress, validate};

const SIZES: [usize; 4] = [1 << 10, 16 << 10, 64 << 10, 1 << 20];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    checksum(&mut criterion);
    batches(&mut criterion);
    codecs(&mut criterion);
    criterion.final_summary();
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32c");
    for size in SIZES {
        let bytes = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("crc32c", size), |bench| {
            bench.iter(|| crc32c::crc32c(black_box(&bytes)));
        });
        group.bench_function(BenchmarkId::new("crc-fast", size), |bench| {
            bench.iter(|| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, black_box(&bytes)));
        });
    }
    group.finish();
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch");
    for size in [16 << 10, 1 << 20] {
        let bytes = batch(size, Compression::None);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("peek", size), |bench| {
            bench.iter(|| RecordBatch::peek(black_box(&bytes)).expect("the sample is good").next_offset());
        });
        group.bench_function(BenchmarkId::new("validate", size), |bench| {
            bench.iter(|| validate(black_box(&bytes), Origin::Producer).expect("the sample is good").next_offset());
        });
        let batch = RecordBatch::peek(&bytes).expect("the sample is good");
        group.bench_function(BenchmarkId::new("check records", size), |bench| {
            bench.iter(|| batch.check_records(black_box(batch.body()), Origin::Producer));
        });
        group.bench_function(BenchmarkId::new("set log append time", size), |bench| {
            bench.iter(|| {
                let mut header = RawHeader::copy_of(black_box(&batch));
                header.set_log_append_time(Timestamp::new(1));
                header
            });
        });
    }
    group.finish();
}

fn codecs(criterion: &mut Criterion) {
    let sample = batch(64 << 10, Compression::None);
    let body = RecordBatch::peek(&sample).expect("the sample is good").body();
    for (way, name) in [(Way::Compress, "compress"), (Way::Decompress, "decompress")] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(body.len() as u64));
        for codec in Compression::ALL {
            let mut packed = Vec::new();
            compress(codec, None, body, &mut packed).expect("there is memory");
            let mut out = Vec::new();
            group.bench_function(codec.name(), |bench| {
                bench.iter(|| {
                    out.clear();
                    match way {
                        Way::Compress => compress(codec, None, black_box(body), &mut out),
                        Way::Decompress => decompress(codec, black_box(&packed), body.len(), &mut out),
                    }
                    .expect("the sample is good");
                });
            });
        }
        group.finish();
    }
}

#[derive(Clone, Copy)]
enum Way {
    Compress,
    Decompress,
}
