//! The same promises on the direct device: the tests of `main.rs`, on a file system that takes O_DIRECT.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use heddle_engine::DeviceChoice;

mod cold;
mod compaction;
mod data_dir;
mod failing_disk;
mod faults;
mod fixture;
mod format;
mod full_disk;
mod harness;
mod inspect;
mod log;
mod opening;
mod recovery;
mod retention;
mod rot;
mod side_files;
mod staged;
mod times;

const DEVICE: DeviceChoice = DeviceChoice::Direct;
