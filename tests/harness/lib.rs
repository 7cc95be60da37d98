//! What the tests of this folder share. Holds no assertion about the product; those stand in the tests.
#![forbid(unsafe_code)]

use std::thread::JoinHandle;

pub mod crash_states;
pub mod engine_life;
pub mod engine_recovery;
pub mod failing_fs;
pub mod group_member;
pub mod history;
pub mod hung_thread;
pub mod kafka;
pub mod ledger;
pub mod loop_disk;
pub mod process;
pub mod proxy;
pub mod repository;
pub mod scrape;
pub mod simulated_broker;
pub mod table_life;
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

/// What a test needs of the machine, if it could be had; else a line that says why the test does not run. Where the
/// environment variable `variable` is `required`, that is a failure.
///
/// # Panics
/// If it is required and could not be had.
#[expect(clippy::print_stdout, reason = "a test that cannot run here says so")]
pub fn available<T>(what: &str, variable: &str, tried: Result<T, impl std::fmt::Display>) -> Option<T> {
    match tried {
        Ok(there) => Some(there),
        Err(error) => {
            let required = std::env::var(variable).is_ok_and(|word| word == "required");
            assert!(!required, "{what} is required here, and cannot be used: {error}");
            println!("NOT RUN: {what} cannot be used here ({error})");
            None
        }
    }
}
