//! A data directory in a temporary place, an executor, and batches to put into logs.
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_engine::{
    AppendError, AppendOrigin, Appended, DataDir, Engine, EngineConfig, Error, FirstBatch, Log, LogConfig, LogName,
    Piece, ReadLimit, ReadOut, WantedIdentity,
};
use heddle_io::sim::{FaultModel, Host, Simulator};
use heddle_io::{Backend, Executor, Io, IoConfig, Lease};
use heddle_record::{
    BatchBuilder, BatchOptions, Batches, Compression, LeaderEpoch, LogId, Offset, PartitionIndex, ProducerEpoch,
    ProducerId, RecordBatch, Sequence, Timestamp, TopicId,
};

/// Runs `test` on the backend that needs nothing of the kernel, and on the foreign runtimes that this build has
/// (`--features heddle-io/tokio-uring,heddle-io/glommio`), where the kernel offers io_uring.
pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn(Io) -> F) {
    let backends = [Backend::Blocking, Backend::TokioUring, Backend::Glommio];
    for backend in backends.into_iter().filter(|backend| backend.is_built()) {
        if backend != Backend::Blocking && !has_ring() {
            continue;
        }
        let config = IoConfig { backend, ..IoConfig::default() };
        let executor = Executor::new(config).expect("the backend is there if the build has it");
        let io = executor.io();
        executor.run(test(io));
    }
}

/// The errno of a disk that fails, and of one that is full.
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;
/// How soon everybody is answered whom a fault does not hold up.
pub(crate) const SOON: Duration = Duration::from_secs(1);

pub(crate) async fn soon<T>(io: &Io, future: impl Future<Output = T>) -> T {
    io.timeout(SOON, future).await.expect("an answer within a second")
}

/// Runs a story on a simulated host.
pub(crate) fn simulate<F: Future<Output = ()> + 'static>(seed: u64, story: impl FnOnce(Io, Host) -> F) {
    simulate_on(FaultModel::default(), seed, story);
}

/// The same on a disk that keeps what this says.
pub(crate) fn simulate_on<F: Future<Output = ()> + 'static>(
    model: FaultModel,
    seed: u64,
    story: impl FnOnce(Io, Host) -> F,
) {
    let simulator = Simulator::new(seed);
    let host = simulator.host("broker");
    host.set_fault_model(model);
    let io = host.start_core();
    simulator.run(&io, story(io.clone(), host.clone())).unwrap();
}

/// One life on a simulated host, ended by a power cut; the next begins with what that left.
pub(crate) fn live<F: Future + 'static>(host: &Host, life: impl FnOnce(Io) -> F) -> F::Output
where
    F::Output: 'static,
{
    let io = host.start_core();
    let outcome = host.simulator().run(&io, life(io.clone())).unwrap();
    host.power_cut();
    host.restart();
    outcome
}

fn has_ring() -> bool {
    Executor::new(IoConfig::default()).expect("a backend").backend_name() == "uring"
}

/// Waits until the tasks of dropped engines have ended, which hold the directory's lock.
pub(crate) async fn settle(io: &Io) {
    // In the simulator the test itself is a task.
    let own = usize::from(io.backend_name() == "sim");
    while io.tasks() > own {
        io.yield_now().await;
    }
}

/// A place on the file system of the checkout: `/tmp` is often one that takes no O_DIRECT.
pub(crate) fn home() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The length of the batches in a segment's file, without what was prepared for more.
pub(crate) fn batches_len(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let whole = Batches::new(&bytes).map_while(Result::ok);
    whole.take_while(|batch| batch.computed_crc() == batch.crc()).map(|batch| batch.len() as u64).sum()
}

/// Opens the data directory and one engine on it.
pub(crate) async fn open_engine(io: &Io, path: &Path, config: EngineConfig) -> Engine {
    settle(io).await;
    let config = EngineConfig { device: crate::DEVICE, ..config };
    let dir = DataDir::open(io, path, &WantedIdentity::default()).await.unwrap();
    Engine::open(io, dir, config).await.unwrap()
}

/// A log's name; the id is made from the topic's name.
pub(crate) fn name(topic: &str, partition: i32) -> LogName {
    let mut id = [0; 16];
    for (place, byte) in topic.bytes().enumerate() {
        id[place % 16] ^= byte;
    }
    LogName { topic: topic.into(), id: LogId { topic: TopicId::new(id), partition: PartitionIndex::new(partition) } }
}

pub(crate) fn offset(offset: i64) -> Offset {
    Offset::new(offset)
}

pub(crate) const EPOCH: LeaderEpoch = LeaderEpoch::new(0);

/// A batch of records with these timestamps; keys and values tell them apart.
pub(crate) fn batch_at(timestamps: &[i64], compression: Compression) -> Lease {
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
    for (index, timestamp) in timestamps.iter().enumerate() {
        let value = format!("value {index} of {}", timestamps.len());
        builder.push(Timestamp::new(*timestamp), Some(b"key"), Some(value.as_bytes()), &[]).unwrap();
    }
    finish(builder)
}

/// A batch of `count` records of about `size` bytes.
pub(crate) fn batch(count: usize, size: usize) -> Lease {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let value = vec![b'v'; size];
    for index in 0..count {
        builder.push(Timestamp::new(1000 + index as i64), Some(b"key"), Some(&value), &[]).unwrap();
    }
    finish(builder)
}

/// A batch of an idempotent producer.
pub(crate) fn idempotent(producer: i64, epoch: i16, sequence: i32, count: usize) -> Lease {
    let options = BatchOptions {
        producer_id: ProducerId::new(producer),
        producer_epoch: ProducerEpoch::new(epoch),
        base_sequence: Sequence::new(sequence),
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::new(options);
    for index in 0..count {
        builder.push(Timestamp::new(1000 + index as i64), None, Some(b"value"), &[]).unwrap();
    }
    finish(builder)
}

pub(crate) fn finish(builder: BatchBuilder) -> Lease {
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).unwrap();
    Lease::from_vec(bytes)
}

/// Appends as a client in epoch 0.
pub(crate) async fn append(log: &Log, batch: Lease) -> Result<Appended, AppendError> {
    log.append(batch, AppendOrigin::Client, EPOCH).await
}

/// Appends, waits until it is flushed, and commits it.
pub(crate) async fn commit(log: &Log, batch: Lease) -> Appended {
    let appended = append(log, batch).await.unwrap();
    log.flushed(appended.last_offset).await.unwrap();
    log.set_high_watermark(appended.last_offset.next());
    log.check_invariants();
    appended
}

pub(crate) fn limit(end: i64, bytes_max: usize) -> ReadLimit {
    ReadLimit { end: offset(end), bytes_max, first_batch: FirstBatch::AtLeastOne }
}

pub(crate) const EVERYTHING: ReadLimit =
    ReadLimit { end: Offset::MAX, bytes_max: usize::MAX, first_batch: FirstBatch::AtLeastOne };

/// The bytes of a read.
pub(crate) async fn bytes_of(io: &Io, out: &ReadOut) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in &out.pieces {
        match piece {
            Piece::File { file, position, len } => {
                let lease = io.read_lease(file, *position, *len).await.unwrap();
                assert_eq!(lease.len(), *len, "every piece is there");
                bytes.extend_from_slice(&lease);
            }
            Piece::Memory(lease) => bytes.extend_from_slice(lease),
        }
    }
    assert_eq!(bytes.len(), out.bytes);
    bytes
}

/// Base and last offsets of the batches of a read, each of them sound.
pub(crate) async fn offsets_of(io: &Io, out: &ReadOut) -> Vec<(i64, i64)> {
    let bytes = bytes_of(io, out).await;
    let mut batches = Batches::new(&bytes);
    let found: Vec<(i64, i64)> = batches
        .by_ref()
        .map(|batch| {
            let batch: RecordBatch<'_> = batch.unwrap();
            assert_eq!(batch.computed_crc(), batch.crc(), "the checksum of a stored batch");
            (batch.base_offset().get(), batch.last_offset().get())
        })
        .collect();
    assert!(batches.rest().is_empty(), "whole batches only");
    found
}

/// Everything in a log.
pub(crate) async fn read_all(io: &Io, log: &Log) -> Vec<(i64, i64)> {
    let mut all = Vec::new();
    let mut from = log.offsets().log_start.offset();
    loop {
        let out = log.read(from, EVERYTHING).await.unwrap();
        if out.bytes == 0 {
            return all;
        }
        all.extend(offsets_of(io, &out).await);
        from = out.next_offset;
    }
}

/// The files in a log's directory with this ending, by name.
pub(crate) fn files(path: &Path, name: &LogName, suffix: &str) -> Vec<PathBuf> {
    let directory = path.join(name.directory().unwrap());
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    found.sort();
    found
}

/// Whether the error says that flushed bytes are gone.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. })
}

pub(crate) fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 2048, index_interval_bytes: 256, ..LogConfig::default() }
}
