//! The engine on a real file system: one file for each thing that it promises.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod data_dir;
mod failing_disk;
mod fixture;
mod format;
mod harness;
mod inspect;
mod log;
mod recovery;
mod retention;
mod times;
