//! What the tests of this folder share. Holds no assertion about the product; those stand in the tests.
#![forbid(unsafe_code)]

use std::thread::JoinHandle;

pub mod crash_states;
pub mod engine_life;
pub mod engine_recovery;
pub mod failing_fs;
pub mod group_member;
pub mod history;
pub mod kafka;
pub mod ledger;
pub mod loop_disk;
pub mod process;
pub mod proxy;
pub mod repository;
pub mod simulated_broker;
pub mod wire;

/// A thread of a test: it reads pipes and plays clients, beside the broker's process.
#[expect(clippy::disallowed_methods, reason = "a test's own threads run no part of a core")]
pub fn thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(body)
}

/// A pause of a test's own thread.
#[expect(clippy::disallowed_methods, reason = "a test's own threads run no part of a core")]
pub fn pause(length: std::time::Duration) {
    std::thread::sleep(length);
}
