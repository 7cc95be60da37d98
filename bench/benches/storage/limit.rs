//! What the machine and the file system can do at best, probed beside the measurements.
//!
//! Copying and checksumming in memory; writing and reading past the page cache, 1 MiB at a time, four in flight, over blocks
//! that are written already; one durable overwrite of 4 KiB. Each probe takes some tens of milliseconds and is
//! repeated for every group, because other users of the machine come and go.

use std::path::Path;
use std::time::Duration;

use heddle_io::{Buffer, Executor, File, Io, IoConfig, Lease, OpenOptions};

use crate::meter::Mark;

const LARGE: usize = 1 << 20;
/// Bytes of the file that is written and read past the page cache.
const FILE_LEN: u64 = 64 << 20;
const IN_FLIGHT: u64 = 4;
const COMMITS: u32 = 32;

/// What was found. Seconds each, the best that the probe saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// To copy one byte in memory.
    pub(crate) copy: f64,
    /// To checksum one byte (CRC-32C).
    pub(crate) checksum: f64,
    /// To write one byte past the page cache, in sequence.
    pub(crate) write: f64,
    /// To read one byte past the page cache, in sequence.
    pub(crate) read: f64,
    /// To overwrite 4 KiB and flush: one commit.
    pub(crate) commit: f64,
    /// O_DIRECT was refused: the last three are those of the page cache.
    pub(crate) cached: bool,
}

impl Limits {
    /// Probes memory, and the file system of `folder`.
    pub(crate) fn probe(folder: &Path) -> Limits {
        let executor = Executor::new(IoConfig::default()).expect("a backend");
        let io = executor.io();
        let (write, read, commit, cached) = executor.run(probe_disk(&io, &folder.join("limits")));
        let source = vec![0x5a_u8; LARGE];
        let mut target = vec![0_u8; LARGE];
        let copy = best(16, || std::hint::black_box(&mut target).copy_from_slice(std::hint::black_box(&source)));
        let checksum = best(16, || {
            std::hint::black_box(crc32c::crc32c(std::hint::black_box(&source)));
        });
        Limits { copy: copy / LARGE as f64, checksum: checksum / LARGE as f64, write, read, commit, cached }
    }

    /// One line.
    pub(crate) fn describe(&self) -> String {
        let rate = |seconds: f64| 1.0 / seconds / 1e9;
        format!(
            "copy {:.1} GB/s, CRC-32C {:.1} GB/s, {} write {:.2} GB/s, read {:.2} GB/s, durable 4 KiB {:.0} µs",
            rate(self.copy),
            rate(self.checksum),
            if self.cached { "page cache" } else { "O_DIRECT" },
            rate(self.write),
            rate(self.read),
            self.commit * 1e6
        )
    }
}

/// The fastest of some tries, in seconds.
fn best(tries: u32, mut work: impl FnMut()) -> f64 {
    let once = |work: &mut dyn FnMut()| {
        let mark = Mark::now();
        work();
        mark.spent().time
    };
    (0..tries).map(|_| once(&mut work)).min().unwrap_or(Duration::MAX).as_secs_f64()
}

async fn probe_disk(io: &Io, path: &Path) -> (f64, f64, f64, bool) {
    let create = OpenOptions::create().truncate();
    let direct = io.open(path, create.direct()).await;
    let cached = direct.is_err();
    let file = match direct {
        Ok(file) => file,
        Err(_) => io.open(path, create).await.expect("a file in the folder of the measurement"),
    };
    let block = {
        let mut buffer = Buffer::aligned(LARGE);
        buffer.extend_zeroed(LARGE);
        buffer.freeze()
    };
    // Blocks that are written once are overwritten without metadata.
    write_all(io, &file, &block).await;
    io.sync_all(&file).await.expect("the disk works");
    let mark = Mark::now();
    write_all(io, &file, &block).await;
    let write = mark.spent().time.as_secs_f64() / FILE_LEN as f64;
    let mark = Mark::now();
    read_all(io, &file).await;
    let read = mark.spent().time.as_secs_f64() / FILE_LEN as f64;
    let mut commit = Duration::MAX;
    for number in 0..COMMITS {
        let mark = Mark::now();
        io.write(&file, u64::from(number) * 4096, vec![block.slice(0..4096)]).await.expect("the disk works");
        io.sync_data(&file).await.expect("the disk works");
        commit = commit.min(mark.spent().time);
    }
    drop(file);
    io.remove_file(path).await.expect("it was just made");
    (write, read, commit.as_secs_f64(), cached)
}

async fn write_all(io: &Io, file: &File, block: &Lease) {
    for first in (0..FILE_LEN).step_by(LARGE * IN_FLIGHT as usize) {
        let writes: Vec<_> =
            (0..IN_FLIGHT).map(|number| io.write(file, first + number * LARGE as u64, vec![block.clone()])).collect();
        for write in writes {
            write.await.expect("the disk works");
        }
    }
}

async fn read_all(io: &Io, file: &File) {
    for first in (0..FILE_LEN).step_by(LARGE * IN_FLIGHT as usize) {
        let reads: Vec<_> = (0..IN_FLIGHT)
            .map(|number| {
                let (io, file) = (io.clone(), file.clone());
                let position = first + number * LARGE as u64;
                io.clone().spawn(async move { io.read(&file, position, Buffer::aligned(LARGE), LARGE).await.0 })
            })
            .collect();
        for read in reads {
            read.await.expect("the disk works");
        }
    }
}
