//! The engine on a real file system: one file for each thing that it promises. Here on the buffered device; `direct.rs`
//! runs the same on the direct one.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use heddle_engine::DeviceChoice;

mod compaction;
mod data_dir;
mod devices;
mod failing_disk;
mod faults;
mod fixture;
mod format;
mod full_disk;
mod harness;
mod inspect;
mod log;
mod many;
mod opening;
mod recovery;
mod retention;
mod rot;
mod side_files;
mod staged;
mod times;

const DEVICE: DeviceChoice = DeviceChoice::Buffered;
