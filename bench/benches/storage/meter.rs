//! What a stretch of work costs this process: time, processor time, system calls, punts to kernel workers, bytes to disk.
//!
//! Processor time is that of the whole process, user and system, the kernel's io-wq workers included: they are threads of
//! the process. Bytes to disk are `write_bytes` of /proc/self/io: what the process has made dirty in the page cache or written
//! past it; the file system's journal and what the drive writes for itself are not in it.
//!
//! System calls and punts are counted by the kernel's tracepoints, in passes of their own that are not timed, because
//! counting slows every system call of the machine.

use std::fs;
use std::io;
use std::time::Duration;

use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use rustix::time::{ClockId, clock_gettime};

/// A moment, and what the process has used up to it.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    time: Duration,
    cpu: Duration,
    written_bytes: u64,
}

/// What was used between two moments.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) time: Duration,
    pub(crate) cpu: Duration,
    pub(crate) written_bytes: u64,
}

impl Mark {
    pub(crate) fn now() -> Mark {
        Mark { time: clock(ClockId::Monotonic), cpu: clock(ClockId::ProcessCPUTime), written_bytes: written_bytes() }
    }

    pub(crate) fn spent(self) -> Spent {
        let now = Mark::now();
        Spent {
            time: now.time.saturating_sub(self.time),
            cpu: now.cpu.saturating_sub(self.cpu),
            written_bytes: now.written_bytes.saturating_sub(self.written_bytes),
        }
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.time += other.time;
        self.cpu += other.cpu;
        self.written_bytes += other.written_bytes;
    }
}

fn clock(id: ClockId) -> Duration {
    Duration::try_from(clock_gettime(id)).expect("these clocks begin at zero")
}

fn written_bytes() -> u64 {
    let counters = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = counters.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Counters of the kernel on every thread that there is when they are made, and on those that these start.
pub(crate) struct Counters {
    system_calls: Vec<Counter>,
    punts: Vec<Counter>,
}

impl Counters {
    /// # Errors
    ///
    /// The kernel does not let this user count: no tracefs, or kernel.perf_event_paranoid.
    pub(crate) fn start() -> io::Result<Counters> {
        Ok(Counters {
            system_calls: on_all_threads("raw_syscalls/sys_enter")?,
            punts: on_all_threads("io_uring/io_uring_queue_async_work")?,
        })
    }

    /// System calls and punts since the start.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        // A thread that has gone has no count any more; what it did is in its parent's, which inherits.
        let sum = |counters: &mut Vec<Counter>| counters.iter_mut().map(|counter| counter.read().unwrap_or(0)).sum();
        (sum(&mut self.system_calls), sum(&mut self.punts))
    }
}

fn on_all_threads(name: &str) -> io::Result<Vec<Counter>> {
    let id = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .find_map(|root| fs::read_to_string(format!("{root}/events/{name}/id")).ok())
        .and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no tracefs that this user may read"))?;
    let mut counters = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let Ok(thread) = thread?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let mut builder = Builder::new(Tracepoint::with_id(id));
        let counter = builder.observe_pid(thread).any_cpu().inherit(true).include_kernel().build();
        match counter {
            Ok(mut counter) => {
                counter.enable()?;
                counters.push(counter);
            }
            // It ended in between.
            Err(error) if error.raw_os_error() == Some(3) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(counters)
}
