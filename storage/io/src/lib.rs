//! One core's kernel: an executor for plain futures, timers, files, sockets, buffers, and the rings that cross cores.
//!
//! A core is a value. [`Executor`] owns everything that a core needs and [`Io`] is the cheap handle that its tasks carry;
//! there are no thread-locals and no process globals, so that one thread can run many cores (the simulator does) and a
//! core can run as one future inside a foreign runtime.
//!
//! | file | owns |
//! |---|---|
//! | `executor.rs`, `inside.rs` | tasks, the loop, [`Executor`], [`Task`]; the loop inside of a foreign runtime |
//! | `io.rs` | [`Io`], the choice of a backend, the seam that backends implement |
//! | `op.rs` | operations in flight and who owns their memory |
//! | `timer.rs` | [`Monotonic`], sleeping, timeouts |
//! | `buffer.rs`, `append_buffer.rs`, `recycle.rs` | [`Buffer`] and [`Lease`]; [`AppendBuffer`]; large memory that is used again |
//! | `memory.rs`, `hints.rs` | how much memory there is; hints how it will be used |
//! | `file.rs`, `socket.rs`, `arrival.rs`, `signal.rs` | the operations that [`Io`] offers |
//! | `probe.rs` | [`DiskTraits`]: what a directory's file system and device can do |
//! | `sync.rs` | primitives between tasks of one core |
//! | `ring.rs`, `wake.rs`, `spin.rs` | what crosses cores: the ring and the wake-up; waiting awake for it |
//! | `rounds.rs`, `budget.rs` | work that many cores want and one does; what they together have in flight |
//! | `uring.rs` (with `flight.rs`, `inline.rs`), `blocking.rs`, `sim.rs` | the backends |
//! | `foreign.rs`, `tokio_uring.rs`, `glommio.rs` | backends of files only, on foreign runtimes; behind features |
//! | `counters.rs`, `load.rs`, `latencies.rs` | [`Counters`]: what a core has asked of the kernel; [`Load`]: how it spends its time; [`Latencies`]: a histogram |
//! | `send_file.rs`, `zeros.rs`, `pool.rs`, `os.rs`, `threads.rs` | files to sockets, helper threads, system calls, cores' threads |
//!
//! An operation owns its buffers until the kernel has finished with them. Dropping the future of an operation gives up
//! its result, never its memory: see `op.rs`.

mod append_buffer;
mod arrival;
mod blocking;
mod budget;
mod buffer;
mod counters;
mod error;
mod executor;
mod file;
mod flight;
#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
mod foreign;
#[cfg(feature = "glommio")]
mod glommio;
mod hints;
mod inline;
mod inside;
mod io;
mod latencies;
mod load;
mod memory;
mod op;
mod os;
mod pool;
mod probe;
mod recycle;
pub mod ring;
mod rounds;
mod send_file;
mod signal;
pub mod sim;
mod socket;
mod spin;
pub mod sync;
pub mod threads;
mod timer;
#[cfg(feature = "tokio-uring")]
mod tokio_uring;
mod uring;
mod wake;
mod zeros;

pub use append_buffer::AppendBuffer;
pub use arrival::Arrived;
pub use budget::Budget;
pub use buffer::{Buffer, DIRECT_ALIGNMENT, Lease};
pub use counters::Counters;
pub use error::Error;
pub use executor::{Executor, Panicked, Task};
pub use file::{DirEntry, EntryKind, File, Hold, LockError, Metadata, OpenOptions, Opened};
pub use hints::{prefer_huge_pages, prefetch};
pub use io::{Backend, Io, IoConfig};
pub use latencies::{Latencies, LatencyCounts};
pub use load::Load;
pub use memory::{Memory, memory};
pub use probe::{DiskSpace, DiskTraits};
pub use rounds::{Failed, Rounds};
pub use signal::{Signal, Signals};
pub use socket::{ListenOptions, Listener, Receiving, Socket};
pub use timer::{Elapsed, Monotonic};
pub use wake::RemoteWaker;
pub use zeros::zeros;
