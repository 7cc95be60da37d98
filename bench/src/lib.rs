//! What the comparisons in `benches/` measure on: record batches of known make.
//!
//! Owns the samples, so that every comparison sees the same bytes, the clocks, and the thinnest client (`wire.rs`). It
//! measures nothing itself.
//!
//! - `record`: checksum, validation, iteration, the five codecs.
//! - `codec`: Produce and Fetch, ours and the crate `kafka-protocol`.
//! - `append`: a log of the engine and a plain file of `std::fs`, cached and durable.
//! - `compaction`: a pass, beside reading, hashing and writing the same bytes.
//! - `logs`: ten thousand logs of which few are active, and a cold backlog beside live appends.
//! - `storage`: the engine on every backend and device, beside the physical limit.
#![forbid(unsafe_code)]

pub mod wire;

use std::fmt::Display;
use std::time::Duration;

use heddle_record::{BatchBuilder, BatchOptions, Compression, Timestamp};

/// A record batch of about `size` bytes before compression: records of 1 KiB with a short key, half of their value
/// noise and half of it text that repeats, as JSON does.
///
/// # Panics
/// If `size` is too small for one record.
pub fn batch(size: usize, compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut index = 0;
    while builder.size_uncompressed() + 1024 <= size {
        let key = format!("key-{index:08}");
        let value = value(&mut state, 1000 - key.len());
        let timestamp = Timestamp::new(1_700_000_000_000 + index);
        builder.push(timestamp, Some(key.as_bytes()), Some(&value), &[]).expect("the batch stays far below 2^31 bytes");
        index += 1;
    }
    let mut out = Vec::new();
    builder.finish(&mut out).expect("there is a record and memory");
    out
}

fn value(state: &mut u64, len: usize) -> Vec<u8> {
    let mut value: Vec<u8> = (0..len / 2).map(|_| noise(state)).collect();
    value.extend(br#"{"name":"warp","position":17,"colour":"undyed"}"#.iter().cycle().take(len - len / 2));
    value
}

/// The next byte of a sequence that looks random (xorshift64).
fn noise(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as u8
}

/// The time by the machine's clock: what a program that measures needs, whatever clock the cores have that it runs.
#[expect(clippy::disallowed_methods, reason = "how long a call takes, also while the simulator's clock stands still")]
pub fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// What this process has used of processors so far: user and system, the kernel's workers for it included.
pub fn busy() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).expect("this clock begins at zero")
}

/// Bytes of memory that a process, by its number or `self`, has in use.
///
/// # Panics
/// If there is no such process.
pub fn resident_bytes(process: impl Display) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory is counted");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}
