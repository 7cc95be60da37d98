//! Helper threads for calls that block: directory operations everywhere, file operations in the blocking backend.
//!
//! Owns a bounded number of threads, started when first needed, and the queue before them. A job owns all that it
//! touches, so that nobody need wait for it when a core ends; file jobs are waited for nevertheless, so that a file is
//! not written any more when its core is gone.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::buffer::Buffer;
use crate::op::{Op, OpKey, Outcome, Value};
use crate::os;
use crate::wake::WakeList;

/// The helper threads of one core.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or the end.
    work: Condvar,
    /// A file job has ended.
    idle: Condvar,
    /// Weak: a thread that is still busy when its core ends keeps nothing of the core's open.
    wakes: Weak<WakeList>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(OpKey, Op)>,
    done: Vec<(OpKey, Outcome)>,
    threads: usize,
    /// Threads that wait for work.
    waiting: usize,
    /// File jobs that run now.
    file_jobs: usize,
    closed: bool,
}

impl Shared {
    /// A job that panicked leaves the state whole: the lock is not held while one runs.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something for [`Pool::take_done`].
    fn wake_core(&self) {
        if let Some(wakes) = self.wakes.upgrade() {
            wakes.kick_if_sleeping();
        }
    }
}

impl Pool {
    pub(crate) fn new(threads_max: usize, wakes: &Arc<WakeList>) -> Pool {
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            wakes: Arc::downgrade(wakes),
        };
        Pool { shared: Arc::new(shared), threads_max: threads_max.max(1) }
    }

    /// Queues a job. Its outcome comes through [`Pool::take_done`].
    pub(crate) fn start(&self, key: OpKey, op: Op) {
        let mut state = self.shared.lock();
        state.queue.push_back((key, op));
        // Those that work look into the queue before they wait.
        let is_awaited = state.waiting > 0;
        let start_another = state.queue.len() > state.waiting && state.threads < self.threads_max;
        if start_another {
            state.threads += 1;
        }
        drop(state);
        if is_awaited {
            self.shared.work.notify_one();
        }
        if start_another {
            self.start_thread();
        }
    }

    fn start_thread(&self) {
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name("heddle-files".to_owned()).spawn(move || work(&shared));
        if let Err(error) = started {
            let mut state = self.shared.lock();
            state.threads -= 1;
            if state.threads == 0 {
                // Nobody is there to do the work, and nobody may come.
                let queue = std::mem::take(&mut state.queue);
                let refuse = |(key, op)| (key, Outcome::refused(op, io::Error::new(error.kind(), error.to_string())));
                state.done.extend(queue.into_iter().map(refuse));
                drop(state);
                self.shared.wake_core();
            }
        }
    }

    /// Takes a job back that has not begun and changes nothing, and drops it. False if there is no such job.
    pub(crate) fn cancel(&self, key: OpKey) -> bool {
        let mut state = self.shared.lock();
        let cancellable = |(other, op): &(OpKey, Op)| *other == key && op.may_be_cancelled();
        let Some(index) = state.queue.iter().position(cancellable) else { return false };
        let removed = state.queue.remove(index);
        drop(state);
        removed.is_some()
    }

    /// What the threads have done since the last call.
    pub(crate) fn take_done(&self) -> Vec<(OpKey, Outcome)> {
        std::mem::take(&mut self.shared.lock().done)
    }

    /// Whether [`Pool::take_done`] would give anything.
    pub(crate) fn has_done(&self) -> bool {
        !self.shared.lock().done.is_empty()
    }

    /// Drops what has not begun and waits for the file jobs that run.
    pub(crate) fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        self.shared.work.notify_all();
        while state.file_jobs > 0 {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let done = std::mem::take(&mut state.done);
        drop(state);
        drop((queue, done));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return;
        }
        let Some((key, op)) = state.queue.pop_front() else {
            state.waiting += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
            continue;
        };
        let is_file_job = !matches!(op, Op::Run { .. });
        state.file_jobs += usize::from(is_file_job);
        drop(state);
        let outcome = run(op);
        state = shared.lock();
        state.file_jobs -= usize::from(is_file_job);
        if state.closed {
            shared.idle.notify_all();
        } else {
            state.done.push((key, outcome));
            shared.wake_core();
        }
    }
}

/// Does a file operation on this thread, however long it takes.
///
/// # Panics
///
/// On operations of sockets, which are never given to a pool.
pub(crate) fn run(op: Op) -> Outcome {
    match op {
        Op::Read { file, position, mut buffer, len } => {
            let result = os::read(file.descriptor(), position, &mut buffer, len).map(Value::Count);
            Outcome { result, buffer: Some(buffer) }
        }
        Op::OpenAndRead { path, options, hold, position, len } => {
            match os::open_and_read(&path, options, hold, position, len) {
                Ok((file, file_len, read)) => {
                    let result = Ok(Value::Opened(file, file_len, read.is_some()));
                    Outcome { result, buffer: Some(read.unwrap_or_else(|| Buffer::with_capacity(0))) }
                }
                Err(error) => Outcome::of(Err(error)),
            }
        }
        Op::Run { function } => {
            // A panic is seen as a value that never came; the thread goes on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(function));
            Outcome::of(Ok(Value::Unit))
        }
        other => Outcome::of(run_without_buffer(other)),
    }
}

fn run_without_buffer(op: Op) -> io::Result<Value> {
    match op {
        Op::Open { path, options } => return os::open(&path, options),
        Op::Lock { file } => return os::lock(file.descriptor()),
        Op::FileMetadata { file } => return file_metadata(&file).map(Value::Metadata),
        Op::Metadata { path } => return os::metadata(&path).map(Value::Metadata),
        Op::ReadDir { path } => return os::read_dir(&path).map(Value::Entries),
        Op::Write { file, position, pieces } => {
            os::write_all(file.descriptor(), position, &mut os::Vectored::new(pieces))?;
        }
        Op::Sync { file, kind } => os::sync(file.descriptor(), kind)?,
        Op::SetLength { file, len } => os::set_length(file.descriptor(), len)?,
        Op::Allocate { file, position, len } => os::allocate(file.descriptor(), position, len)?,
        Op::WriteZeros { file, position, len } => os::write_zeros(file.descriptor(), position, len)?,
        Op::CreateDirAll { path } => std::fs::create_dir_all(path)?,
        Op::Rename { from, to } => std::fs::rename(from, to)?,
        Op::RemoveFile { path } => std::fs::remove_file(path)?,
        Op::RemoveDirAll { path } => std::fs::remove_dir_all(path)?,
        Op::SyncDir { path } => os::sync_dir(&path)?,
        Op::SyncFileSystem { path } => os::sync_file_system(&std::fs::File::open(path)?)?,
        Op::Read { .. } | Op::OpenAndRead { .. } | Op::Run { .. } => unreachable!("done by the caller"),
        Op::Accept { .. } | Op::Connect { .. } | Op::Recv { .. } | Op::Send { .. } | Op::SendFile { .. } => {
            unreachable!("sockets never block a thread")
        }
        Op::Readable { .. } | Op::Arrival { .. } => unreachable!("waiting never blocks a thread"),
    }
    Ok(Value::Unit)
}

fn file_metadata(file: &crate::file::File) -> io::Result<crate::file::Metadata> {
    match file.kind() {
        crate::file::FileKind::Os(descriptor) => os::file_metadata(descriptor),
        crate::file::FileKind::Sim(_) => unreachable!("a simulated file outside of the simulator"),
    }
}
