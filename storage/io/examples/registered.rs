//! What registering with the ring saves here: files, and the memory of direct writes.
//! `cargo run --release -p heddle-io --example registered [DIR]`.
//!
//! Both on a bare ring as this crate sets one up, so that nothing but the registration differs; the CPU time of the one thread
//! that uses it counts. A small receive is the least that an entry can cost, and a large write the most pages that it can name.
#![expect(clippy::print_stdout, reason = "a table for people")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails says nothing")]
#![expect(unsafe_code, reason = "a bare ring, aligned memory, and the CPU time of a thread")]

mod thread_cpu;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use heddle_io::threads::spawn_core;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, opcode};
use thread_cpu::thread_cpu;

const ROUNDS: usize = 9;
/// What the file of the direct writes holds.
const FILE_BYTES: usize = 64 << 20;
const KINDS: [Kind; 3] = [Kind::Plain, Kind::File, Kind::Both];

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// The descriptor is registered.
    File,
    /// The descriptor and the memory are.
    Both,
}

fn main() {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let measured = spawn_core("measure", None, move || {
        row("receive 1 KiB", &KINDS[..2], receive);
        for (bytes, count) in [(4 << 10, 4000), (64 << 10, 1000), (1 << 20, 200)] {
            let path = Path::new(&directory).join("heddle-registered.tmp");
            row(&format!("direct overwrite {} KiB", bytes >> 10), &KINDS, |kind| overwrite(kind, &path, bytes, count));
            std::fs::remove_file(&path).unwrap();
        }
    });
    measured.unwrap().join().unwrap();
}

/// Prints the medians of the kinds, which are measured in turn.
fn row(name: &str, kinds: &[Kind], measure: impl Fn(Kind) -> f64) {
    let mut costs = vec![Vec::new(); kinds.len()];
    for _ in 0..ROUNDS {
        for (kind, costs) in kinds.iter().zip(&mut costs) {
            costs.push(measure(*kind));
        }
    }
    let medians = costs.into_iter().map(|mut of_kind| {
        of_kind.sort_by(f64::total_cmp);
        of_kind[ROUNDS / 2]
    });
    let names = ["plain", "file registered", "file and memory registered"];
    let cells: Vec<String> = names.iter().zip(medians).map(|(name, cost)| format!("{name} {cost:.2} µs")).collect();
    println!("{name}: {}", cells.join(", "));
}

/// CPU microseconds for a receive of 1 KiB that is there.
fn receive(kind: Kind) -> f64 {
    const COUNT: usize = 100;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut ring = ring();
    ring.submitter().register_files(&[ours.as_raw_fd()]).unwrap();
    let mut buffer = vec![0; 1 << 10];
    let entry = match kind {
        Kind::Plain => opcode::Recv::new(Fd(ours.as_raw_fd()), buffer.as_mut_ptr(), 1 << 10).build(),
        Kind::File | Kind::Both => opcode::Recv::new(Fixed(0), buffer.as_mut_ptr(), 1 << 10).build(),
    };
    let mut spent = 0.0;
    for _ in 0..40 {
        theirs.write_all(&vec![1; COUNT << 10]).unwrap();
        let began = thread_cpu();
        for _ in 0..COUNT {
            complete(&mut ring, &entry, 1 << 10);
        }
        spent += thread_cpu() - began;
    }
    spent / (40 * COUNT) as f64
}

/// CPU microseconds for a direct write of `bytes` over what a file holds.
fn overwrite(kind: Kind, path: &Path, bytes: usize, count: usize) -> f64 {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path).unwrap();
    if file.metadata().unwrap().len() == 0 {
        file.write_all(&vec![1; FILE_BYTES]).unwrap();
        file.sync_all().unwrap();
    }
    let file = options.custom_flags(libc::O_DIRECT).open(path).unwrap();
    let descriptor: RawFd = file.as_raw_fd();
    let layout = Layout::from_size_align(bytes, 4096).unwrap();
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    let mut ring = ring();
    ring.submitter().register_files(&[descriptor]).unwrap();
    let vector = libc::iovec { iov_base: memory.cast(), iov_len: bytes };
    // SAFETY: the memory outlives the ring.
    unsafe { ring.submitter().register_buffers(&[vector]) }.unwrap();
    let entry = |position: u64| match kind {
        Kind::Plain => opcode::Write::new(Fd(descriptor), memory, bytes as u32).offset(position).build(),
        Kind::File => opcode::Write::new(Fixed(0), memory, bytes as u32).offset(position).build(),
        Kind::Both => opcode::WriteFixed::new(Fixed(0), memory, bytes as u32, 0).offset(position).build(),
    };
    let began = thread_cpu();
    for index in 0..count {
        complete(&mut ring, &entry((index * bytes % FILE_BYTES) as u64), bytes);
    }
    let spent = thread_cpu() - began;
    drop(ring);
    // SAFETY: allocated above with this layout; the ring that had it registered is gone.
    unsafe { dealloc(memory, layout) };
    spent / count as f64
}

fn ring() -> IoUring {
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(64).unwrap()
}

fn complete(ring: &mut IoUring, entry: &Entry, bytes: usize) {
    // SAFETY: what the entries lead to outlives the ring in both callers.
    unsafe { ring.submission().push(entry) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    let result = ring.completion().next().unwrap().result();
    assert_eq!(result as usize, bytes, "done whole");
}
