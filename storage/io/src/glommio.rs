//! Files through glommio: its executor around the core, its files under ours.
//!
//! Owns the executor and its files. Never drops a future of the executor before it is done. Sockets are not offered.
//!
//! glommio takes bytes only in memory of its own (`Vec<u8>` for the page cache, registered buffers for O_DIRECT), so every
//! byte is copied once on its way in or out; a write of many pieces becomes one of a single piece. It wants an RLIMIT_MEMLOCK
//! of 512 KiB at least.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ::glommio::io::{BufferedFile, DmaFile, OpenOptions, ReadResult};
use ::glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement};

use crate::buffer::{Buffer, DIRECT_ALIGNMENT, Lease};
use crate::error::{Error, Result};
use crate::file::File;
use crate::foreign::{Boxed, Done, Runtime, Twins};
use crate::io::IoConfig;
use crate::op::{Op, Outcome, Value};
use crate::os;

/// Bytes in one call, at most.
const BYTES_PER_CALL_MAX: usize = 1 << 28;

/// The executor of one core.
pub(crate) struct Glommio {
    executor: LocalExecutor,
    files: Rc<Files>,
}

/// The files of one executor.
#[derive(Default)]
pub(crate) struct Files {
    twins: Twins<Rc<TheirFile>>,
    /// File systems of which glommio knows whether they can be polled for completions.
    probed: RefCell<BTreeSet<u64>>,
}

/// One of glommio's two kinds of files.
pub(crate) enum TheirFile {
    Buffered(BufferedFile),
    Direct(DmaFile),
}

impl Glommio {
    /// Makes the executor, on whatever processors the thread may use.
    ///
    /// # Errors
    ///
    /// No io_uring, too little memory may be locked, no descriptors or threads.
    pub(crate) fn open(config: &IoConfig) -> Result<Runtime> {
        let builder = LocalExecutorBuilder::new(Placement::Unbound)
            .name("heddle")
            .ring_depth(usize::try_from(config.ring_entries).expect("a ring has few entries"));
        let executor =
            builder.make().map_err(|error: GlommioError<()>| Error::from_std("set up glommio", &std_error(error)))?;
        Ok(Runtime::Glommio(Glommio { executor, files: Rc::default() }))
    }

    pub(crate) fn files(&self) -> &Twins<Rc<TheirFile>> {
        &self.files.twins
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.executor.run(future)
    }

    pub(crate) fn start(&self, op: Op, done: Done) {
        let files = Rc::clone(&self.files);
        // The task is detached: it owns all that the kernel uses, and runs to its end.
        ::glommio::spawn_local(async move { done(perform(&files, op).await) }).detach();
    }
}

/// A timer of the executor.
pub(crate) fn sleep(span: Duration) -> Boxed {
    Box::pin(::glommio::timer::sleep(span))
}

async fn perform(files: &Files, op: Op) -> Outcome {
    match op {
        Op::Read { file, position, buffer, len } => match twin(files, &file).await {
            Ok(theirs) => read(&theirs, position, buffer, len).await,
            Err(error) => Outcome { result: Err(error), buffer: Some(buffer) },
        },
        Op::Write { file, position, pieces } => Outcome::of(match twin(files, &file).await {
            Ok(theirs) => write(&theirs, position, pieces).await.map(|()| Value::Unit),
            Err(error) => Err(error),
        }),
        Op::Sync { file, .. } => Outcome::of(match twin(files, &file).await {
            Ok(theirs) => sync(&theirs).await.map(|()| Value::Unit),
            Err(error) => Err(error),
        }),
        _ => unreachable!("only reads, writes and syncs are given to a runtime"),
    }
}

/// glommio's file on the same inode. One for O_DIRECT can only be had by opening a path.
async fn twin(files: &Files, file: &File) -> io::Result<Rc<TheirFile>> {
    if let Some(theirs) = files.twins.find(file) {
        return Ok(theirs);
    }
    let path = format!("/proc/self/fd/{}", file.descriptor());
    let mut options = OpenOptions::new();
    options.read(true).write(os::is_writable(file.descriptor())?);
    let made = if file.is_direct() {
        files.probe(file).await;
        TheirFile::Direct(options.dma_open(&path).await.map_err(std_error)?)
    } else {
        TheirFile::Buffered(options.buffered_open(&path).await.map_err(std_error)?)
    };
    Ok(files.twins.keep(file, Rc::new(made)))
}

impl Files {
    /// Has glommio find out whether the file's device can be polled for completions. It finds out once for each device, by
    /// a polled read of the first file that is opened for O_DIRECT; and if that file is empty, the read succeeds without
    /// having met the device, and every later read of it fails with EOPNOTSUPP. So the first one is a file of ours with a
    /// block in it and no name. Where there can be none, glommio finds out in its own way.
    async fn probe(&self, file: &File) {
        let Ok(device) = os::device_of(file.descriptor()) else { return };
        if self.probed.borrow().contains(&device) {
            return;
        }
        if let Some(directory) = file.path().parent() {
            // Whatever it says, the file itself is opened next.
            let _ = probe_device(directory).await;
        }
        self.probed.borrow_mut().insert(device);
    }
}

async fn probe_device(directory: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = options.clone().tmpfile(true).buffered_open(directory).await.map_err(std_error)?;
    file.write_at(vec![0; DIRECT_ALIGNMENT], 0).await.map_err(std_error)?;
    file.fdatasync().await.map_err(std_error)?;
    let direct = options.dma_open(format!("/proc/self/fd/{}", file.as_raw_fd())).await.map_err(std_error)?;
    direct.close().await.map_err(std_error)?;
    file.close().await.map_err(std_error)
}

async fn read(file: &TheirFile, position: u64, mut buffer: Buffer, len: usize) -> Outcome {
    let mut count = 0;
    let result = loop {
        if count == len {
            break Ok(Value::Count(count));
        }
        let (at, room) = (position + count as u64, (len - count).min(BYTES_PER_CALL_MAX));
        match read_once(file, at, room).await {
            Ok(bytes) if bytes.is_empty() => break Ok(Value::Count(count)),
            Ok(bytes) => {
                buffer.extend_from_slice(&bytes);
                count += bytes.len();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    Outcome { result, buffer: Some(buffer) }
}

async fn read_once(file: &TheirFile, position: u64, room: usize) -> io::Result<ReadResult> {
    match file {
        TheirFile::Buffered(file) => file.read_at(position, room).await.map_err(std_error),
        TheirFile::Direct(file) => file.read_at(position, room).await.map_err(std_error),
    }
}

async fn write(file: &TheirFile, mut position: u64, mut pieces: Vec<Lease>) -> io::Result<()> {
    pieces.retain(|piece| !piece.is_empty());
    while !pieces.is_empty() {
        let mut count = match write_once(file, position, &pieces).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        position += count as u64;
        pieces.retain_mut(|piece| {
            let whole = count.min(piece.len());
            piece.advance(whole);
            count -= whole;
            !piece.is_empty()
        });
    }
    Ok(())
}

/// One write of as much as goes into one.
async fn write_once(file: &TheirFile, position: u64, pieces: &[Lease]) -> io::Result<usize> {
    let len = pieces.iter().map(|piece| piece.len()).sum::<usize>().min(BYTES_PER_CALL_MAX);
    match file {
        TheirFile::Buffered(file) => {
            let mut bytes = Vec::with_capacity(len);
            for piece in pieces {
                let take = piece.len().min(len - bytes.len());
                bytes.extend_from_slice(&piece[..take]);
            }
            file.write_at(bytes, position).await.map_err(std_error)
        }
        TheirFile::Direct(file) => {
            let mut bytes = file.alloc_dma_buffer(len);
            let mut filled = 0;
            for piece in pieces {
                let take = piece.len().min(len - filled);
                bytes.as_bytes_mut()[filled..filled + take].copy_from_slice(&piece[..take]);
                filled += take;
            }
            file.write_at(bytes, position).await.map_err(std_error)
        }
    }
}

async fn sync(file: &TheirFile) -> io::Result<()> {
    match file {
        TheirFile::Buffered(file) => file.fdatasync().await.map_err(std_error),
        TheirFile::Direct(file) => file.fdatasync().await.map_err(std_error),
    }
}

/// The system's own error, where there is one under glommio's.
fn std_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}
