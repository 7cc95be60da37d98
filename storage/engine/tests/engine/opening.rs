//! Batches that take long to open: they keep their place among the appends to their log, and hold up nobody else.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::harness::*;
use heddle_engine::{AppendError, CleanupPolicy, EngineConfig, LogConfig, StoredCompression};
use heddle_io::Lease;
use heddle_record::{BatchBuilder, BatchOptions, Compression, RecordBatch, Timestamp};

/// One record with a key; its value is zeros.
fn zeros(codec: Compression, len: usize) -> Lease {
    let mut builder = BatchBuilder::new(BatchOptions { compression: codec, ..BatchOptions::default() });
    builder.push(Timestamp::new(1000), Some(b"key"), Some(&vec![0; len]), &[]).unwrap();
    finish(builder)
}

async fn is_ready<F: Future>(future: &mut Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

fn keyed() -> LogConfig {
    LogConfig { cleanup_policy: CleanupPolicy::Compact, ..LogConfig::default() }
}

fn recoded() -> LogConfig {
    let compression = StoredCompression::Codec { codec: Compression::Zstd, level: None };
    LogConfig { compression, ..LogConfig::default() }
}

#[test]
fn a_batch_that_takes_long_to_open_keeps_its_turn_and_holds_up_no_other_log() {
    for (config, codec) in [(keyed(), Compression::Zstd), (recoded(), Compression::Lz4), (recoded(), Compression::None)]
    {
        let config = &config;
        run(|io| async move {
            let home = home();
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("opened", 0), config.clone()).await.unwrap();
            let other = engine.open_log(name("other", 0), LogConfig::default()).await.unwrap();
            let (mut long, mut next) =
                (pin!(append(&log, zeros(codec, 512 << 10))), pin!(append(&log, zeros(Compression::None, 10))));
            assert!(!is_ready(&mut long).await, "a helper thread opens it");
            assert!(!is_ready(&mut next).await, "it came later");
            assert_eq!(commit(&other, batch(1, 10)).await.base_offset.get(), 0, "nobody else waits");
            assert_eq!(long.await.unwrap().base_offset.get(), 0);
            assert_eq!(next.await.unwrap().base_offset.get(), 1);
            log.flush().await.unwrap();
            let out = log.read(offset(0), EVERYTHING).await.unwrap();
            let bytes = bytes_of(&io, &out).await;
            let stored = RecordBatch::peek(&bytes).unwrap();
            let expected = if config.cleanup_policy.compacts() { codec } else { Compression::Zstd };
            assert_eq!(stored.compression(), Some(expected));
        });
    }
}

#[test]
fn who_gives_up_while_a_batch_is_opened_gives_its_turn_back() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("opened", 0), keyed()).await.unwrap();
        {
            let mut long = pin!(append(&log, zeros(Compression::Gzip, 1 << 20)));
            assert!(!is_ready(&mut long).await, "a helper thread opens it");
        }
        assert_eq!(append(&log, zeros(Compression::Gzip, 1 << 20)).await.unwrap().base_offset.get(), 0);
        assert_eq!(append(&log, zeros(Compression::None, 10)).await.unwrap().base_offset.get(), 1);
    });
}

#[test]
fn what_a_helper_thread_refuses_is_refused_as_on_the_core() {
    run(|io| async move {
        let home = home();
        let config = EngineConfig { decompressed_bytes_max: 512 << 10, ..EngineConfig::default() };
        let engine = open_engine(&io, home.path(), config).await;
        let log = engine.open_log(name("opened", 0), keyed()).await.unwrap();
        for codec in Compression::ALL.into_iter().filter(|codec| *codec != Compression::None) {
            let refused = append(&log, zeros(codec, 1 << 20)).await.unwrap_err();
            let is_too_large =
                matches!(&refused, AppendError::InvalidRecord { reason } if reason.contains("too large"));
            assert!(is_too_large, "{codec}: {refused}");
        }
        let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Lz4, ..BatchOptions::default() });
        builder.push(Timestamp::new(1000), None, Some(&vec![0; 300 << 10]), &[]).unwrap();
        let refused = append(&log, finish(builder)).await.unwrap_err();
        assert!(matches!(refused, AppendError::InvalidRecords(_)), "no key: {refused}");
        assert_eq!(append(&log, zeros(Compression::None, 10)).await.unwrap().base_offset.get(), 0);
    });
}
