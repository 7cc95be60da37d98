//! Files and directories: the handle, and the operations that [`Io`] offers on it.
//!
//! Owns the shape of the operations and what their errors say. Never calls the system itself: the backends do.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::buffer::{Buffer, Lease};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::op::{Op, Outcome, SyncKind, Value};
use crate::os;
use crate::sim::SimFile;

/// An open file. Clones share it; the last to drop closes it. May be used from any core.
#[derive(Clone)]
pub struct File {
    inner: Arc<FileInner>,
}

struct FileInner {
    path: PathBuf,
    kind: FileKind,
    access: Access,
    /// The file system has refused RWF_NOWAIT for a write.
    cannot_refuse_to_block: AtomicBool,
    /// A foreign runtime's own file for this one.
    #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
    twin: std::sync::OnceLock<crate::foreign::Twin>,
    /// It has done a write that might have been refused: so does the ring.
    ring_writes_inline: AtomicBool,
}

/// How bytes reach the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Through the page cache.
    Cached,
    /// Past it (O_DIRECT).
    Direct,
    /// Through the page cache of a file system that another process or machine answers for, however long that takes.
    Remote,
}

/// Whose file it is.
pub(crate) enum FileKind {
    Os(OwnedFd),
    Sim(SimFile),
}

/// How a file is held by [`File::try_hold`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// With others that hold it so.
    Shared,
    /// With nobody.
    Alone,
}

impl File {
    /// A file whose bytes go through the page cache.
    pub(crate) fn new(path: PathBuf, kind: FileKind) -> File {
        File::with_access(path, kind, Access::Cached)
    }

    pub(crate) fn with_access(path: PathBuf, kind: FileKind, access: Access) -> File {
        let inner = FileInner {
            path,
            kind,
            access,
            cannot_refuse_to_block: AtomicBool::new(false),
            ring_writes_inline: AtomicBool::new(false),
            #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
            twin: std::sync::OnceLock::new(),
        };
        File { inner: Arc::new(inner) }
    }

    #[cfg(any(feature = "glommio", feature = "tokio-uring"))]
    pub(crate) fn twin(&self) -> &std::sync::OnceLock<crate::foreign::Twin> {
        &self.inner.twin
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.inner.access == Access::Direct
    }

    /// Whether writes need no thread of the kernel, so that the core has nothing to gain by doing them itself.
    pub(crate) fn does_ring_write_inline(&self) -> bool {
        self.inner.ring_writes_inline.load(Ordering::Relaxed)
    }

    /// The file system did a write that it could have refused.
    pub(crate) fn ring_writes_inline(&self) {
        self.inner.ring_writes_inline.store(true, Ordering::Relaxed);
    }

    /// Whether a copy to the page cache is all that a write does, as long as memory lasts.
    pub(crate) fn is_cached_here(&self) -> bool {
        self.inner.access == Access::Cached
    }

    /// Whether a write can be asked not to wait for the disk, as far as is known.
    pub(crate) fn can_refuse_to_block(&self) -> bool {
        !self.inner.cannot_refuse_to_block.load(Ordering::Relaxed)
    }

    /// The file system does not know such a wish.
    pub(crate) fn cannot_refuse_to_block(&self) {
        self.inner.cannot_refuse_to_block.store(true, Ordering::Relaxed);
    }

    /// The path that it was opened by. A rename since then does not show.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Takes part in the file's advisory lock (`flock`) without waiting: shared with others, or alone. Whether it could; the
    /// lock lasts until the last clone of this file drops *and* the last operation on it has ended, even if the process that
    /// began it is dead. In the simulator nobody is ever in the way: a simulated crash ends what is in flight.
    ///
    /// # Errors
    ///
    /// A file system without locks.
    pub fn try_hold(&self, how: Hold) -> Result<bool> {
        match &self.inner.kind {
            FileKind::Os(descriptor) => {
                crate::os::try_hold(descriptor.as_raw_fd(), how).map_err(|error| file_error("lock", self, &error))
            }
            FileKind::Sim(_) => Ok(true),
        }
    }

    /// Whether anybody else holds this file open: a clone, or an operation in flight.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    pub(crate) fn kind(&self) -> &FileKind {
        &self.inner.kind
    }

    /// The operating system's descriptor.
    ///
    /// # Panics
    ///
    /// If the file is a simulated one: it was given to another backend's core.
    pub(crate) fn descriptor(&self) -> std::os::fd::RawFd {
        match &self.inner.kind {
            FileKind::Os(descriptor) => descriptor.as_raw_fd(),
            FileKind::Sim(_) => panic!("a simulated file outside of the simulator: {}", self.inner.path.display()),
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.inner.path.display())
    }
}

/// How to open a file. Begins as "read an existing file".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    pub(crate) write: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) truncate: bool,
    pub(crate) direct: bool,
}

impl OpenOptions {
    /// Reads an existing file.
    pub const fn read() -> OpenOptions {
        OpenOptions { write: false, create: false, create_new: false, truncate: false, direct: false }
    }

    /// Reads and writes an existing file.
    pub const fn read_write() -> OpenOptions {
        OpenOptions { write: true, ..OpenOptions::read() }
    }

    /// Reads and writes a file, created if it is not there.
    pub const fn create() -> OpenOptions {
        OpenOptions { create: true, ..OpenOptions::read_write() }
    }

    /// Reads and writes a file that must not be there yet.
    pub const fn create_new() -> OpenOptions {
        OpenOptions { create_new: true, ..OpenOptions::create() }
    }

    /// The same, cut to length 0.
    pub const fn truncate(self) -> OpenOptions {
        OpenOptions { truncate: true, ..self }
    }

    /// The same, past the page cache (O_DIRECT): positions, lengths and memory are multiples of 4,096 then.
    pub const fn direct(self) -> OpenOptions {
        OpenOptions { direct: true, ..self }
    }
}

/// What kind of thing a path names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else, symbolic links included.
    Other,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// The last part of the path. Bytes that are no UTF-8 are replaced: no file of ours has such a name.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What is known of a file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: EntryKind,
    /// The last change of its bytes, in milliseconds since 1970-01-01 UTC.
    pub modified_ms: i64,
}

/// A file, and what was read of it when it was opened.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
    /// What was read; `None` if the file was to be held and somebody else holds it.
    pub bytes: Option<Lease>,
}

/// Why [`Io::lock_exclusive`] gave no lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else holds it: the process id, if the holder has written it.
    Locked {
        /// The process that holds the lock.
        pid: Option<u32>,
    },
    /// The system failed.
    Failed(Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Locked { pid: Some(pid) } => write!(f, "locked by process {pid}"),
            LockError::Locked { pid: None } => f.write_str("locked by another process"),
            LockError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

/// From so many on one flush of the file system is cheaper than one of each.
const SYNCED_AS_ONE_MIN: usize = 16;
const SYNCED_AS_ONE_MIN_SIMULATED: usize = 2;
/// Files that are open at the same time for their flushes.
const SYNCED_TOGETHER_MAX: usize = 64;

/// Operations on open files.
impl Io {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// Not found, no permission, exists already, too many files, ...
    pub async fn open(&self, path: &Path, options: OpenOptions) -> Result<File> {
        match self.path_op("open", path, Op::Open { path: path.to_owned(), options }).await? {
            Value::File(file) => Ok(file),
            other => unreachable!("open gives a file, not {other:?}"),
        }
    }

    /// Opens a file, takes part in its lock if `hold` says so ([`File::try_hold`]), and reads `len` bytes at `position`, fewer
    /// where the file ends before: what would be four operations is one.
    ///
    /// # Errors
    ///
    /// As [`Io::open`], [`File::try_hold`] and [`Io::read_lease`].
    pub async fn open_and_read(
        &self,
        path: &Path,
        options: OpenOptions,
        hold: Option<Hold>,
        position: u64,
        len: usize,
    ) -> Result<Opened> {
        if self.simulated_disk_traits().is_some() {
            return self.open_then_read(path, options, position, len).await;
        }
        let op = Op::OpenAndRead { path: path.to_owned(), options, hold, position, len };
        let Outcome { result, buffer } = self.perform(op).await;
        match result {
            Ok(Value::Opened(file, file_len, is_held)) => {
                let bytes = buffer.filter(|_| is_held).map(Buffer::freeze);
                Ok(Opened { file, len: file_len, bytes })
            }
            Ok(other) => unreachable!("opening and reading gives both, not {other:?}"),
            Err(error) => Err(Error::from_std("open and read", &error).with_path(path).with_position(position)),
        }
    }

    /// The same, one after the other: each may fail by itself on a simulated disk.
    async fn open_then_read(&self, path: &Path, options: OpenOptions, position: u64, len: usize) -> Result<Opened> {
        let file = self.open(path, options).await?;
        let file_len = self.len(&file).await?;
        let left = file_len.saturating_sub(position);
        let len = usize::try_from(left).map_or(len, |left| left.min(len));
        let bytes = if len > 0 { self.read_lease(&file, position, len).await? } else { Lease::empty() };
        Ok(Opened { file, len: file_len, bytes: Some(bytes) })
    }

    /// Reads `len` bytes at `position`, behind what `buffer` holds already. Fewer only if the file ends before.
    ///
    /// # Panics
    ///
    /// If `buffer` has no room for `len` more bytes.
    pub async fn read(&self, file: &File, position: u64, buffer: Buffer, len: usize) -> (Result<usize>, Buffer) {
        assert!(len <= buffer.spare(), "read of {len} bytes into {} spare ones", buffer.spare());
        let outcome = self.perform(Op::Read { file: file.clone(), position, buffer, len }).await;
        let Outcome { result, buffer } = outcome;
        let buffer = buffer.expect("a read gives its buffer back");
        let result = match result {
            Ok(Value::Count(count)) => Ok(count),
            Ok(other) => unreachable!("read gives a count, not {other:?}"),
            Err(error) => Err(file_error("read", file, &error).with_position(position)),
        };
        (result, buffer)
    }

    /// Reads `len` bytes at `position` into memory of their own. Fewer only if the file ends before.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub async fn read_lease(&self, file: &File, position: u64, len: usize) -> Result<Lease> {
        let (result, buffer) = self.read(file, position, Buffer::with_capacity(len), len).await;
        result.map(|_| buffer.freeze())
    }

    /// Whether these bytes are in memory, so that reading them does not touch the disk; false where nobody can tell (Linux
    /// before 6.5, the simulator, O_DIRECT).
    pub fn is_resident(&self, file: &File, position: u64, len: usize) -> bool {
        match &file.inner.kind {
            FileKind::Os(descriptor) => {
                use std::os::fd::AsRawFd;
                os::is_resident(descriptor.as_raw_fd(), position, len)
            }
            FileKind::Sim(_) => false,
        }
    }

    /// Lets the kernel read ahead of who reads this file in order, as it does at first, or has it bring nothing into memory but what
    /// it is asked for. A hint: where it is not taken (by the simulator, which reads nothing ahead, or by a file system) nothing
    /// else changes.
    pub fn set_read_ahead(&self, file: &File, reads_ahead: bool) {
        if let FileKind::Os(descriptor) = &file.inner.kind {
            use std::os::fd::AsRawFd;
            os::set_read_ahead(descriptor.as_raw_fd(), reads_ahead);
        }
    }

    /// Writes all `pieces`, one after the other, at `position`. Any number of pieces of any size.
    ///
    /// The operation begins when this is called, not when it is first polled: of two calls in a row, the first is the
    /// first to be submitted. They may still overtake each other below; where the order matters, await.
    ///
    /// # Errors
    ///
    /// No space, the disk's, ... How much was written then is unknown.
    pub fn write(&self, file: &File, position: u64, pieces: Vec<Lease>) -> impl Future<Output = Result<()>> + use<> {
        let pending = self.submit(Op::Write { file: file.clone(), position, pieces });
        let file = file.clone();
        async move {
            let outcome = pending.await;
            unit(outcome).map_err(|error| file_error("write", &file, &error).with_position(position))
        }
    }

    /// Makes every write to `file` that completed before this call durable, with the length that is needed to read it.
    ///
    /// # Errors
    ///
    /// The disk's. What was not yet durable may then be lost for good: trying again proves nothing.
    pub fn sync_data(&self, file: &File) -> impl Future<Output = Result<()>> + use<> {
        self.sync(file, SyncKind::Data)
    }

    /// The same as [`Io::sync_data`], with all metadata.
    ///
    /// # Errors
    ///
    /// As [`Io::sync_data`].
    pub fn sync_all(&self, file: &File) -> impl Future<Output = Result<()>> + use<> {
        self.sync(file, SyncKind::All)
    }

    /// [`Io::sync_data`] of several files, by their paths, and [`Io::sync_dir`] of several directories, all on the file system
    /// of `home`, a directory. Where they are many and the file system can, it is one flush of all that it holds, whoever wrote it:
    /// thousands of flushes take many seconds, most of them to find nothing left to do.
    ///
    /// # Errors
    ///
    /// The first that fails; what of the others is durable is not known.
    pub async fn sync_many(&self, home: &Path, files: &[PathBuf], directories: &[PathBuf]) -> Result<()> {
        // A simulated machine has few files, and shall go this way too.
        let is_simulated = self.simulated_disk_traits().is_some();
        let least = if is_simulated { SYNCED_AS_ONE_MIN_SIMULATED } else { SYNCED_AS_ONE_MIN };
        if files.len() + directories.len() >= least {
            match self.path_unit("sync", home, Op::SyncFileSystem { path: home.to_owned() }).await {
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
                // It may be another's bytes that are lost; what failed is not tried again to find that out.
                done => return done,
            }
        }
        for some in files.chunks(SYNCED_TOGETHER_MAX) {
            let mut syncing = Vec::with_capacity(some.len());
            for path in some {
                let file = self.open(path, OpenOptions::read_write()).await?;
                syncing.push(self.sync_data(&file));
            }
            for one in syncing {
                one.await?;
            }
        }
        for directory in directories {
            self.sync_dir(directory).await?;
        }
        Ok(())
    }

    fn sync(&self, file: &File, kind: SyncKind) -> impl Future<Output = Result<()>> + use<> {
        let pending = self.submit(Op::Sync { file: file.clone(), kind });
        let file = file.clone();
        async move { unit(pending.await).map_err(|error| file_error("sync", &file, &error)) }
    }

    /// Cuts or extends the file to `len` bytes. New bytes are zero.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub async fn set_len(&self, file: &File, len: u64) -> Result<()> {
        let outcome = self.perform(Op::SetLength { file: file.clone(), len }).await;
        unit(outcome).map_err(|error| file_error("set length of", file, &error).with_position(len))
    }

    /// The length in bytes.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub async fn len(&self, file: &File) -> Result<u64> {
        match self.perform(Op::FileMetadata { file: file.clone() }).await.result {
            Ok(Value::Metadata(metadata)) => Ok(metadata.len),
            Ok(other) => unreachable!("metadata gives metadata, not {other:?}"),
            Err(error) => Err(file_error("metadata of", file, &error)),
        }
    }

    /// Reserves `len` bytes of blocks at `position`. They read as zero, and the file's length covers them.
    ///
    /// # Errors
    ///
    /// No space; not offered by the file system.
    pub async fn allocate(&self, file: &File, position: u64, len: u64) -> Result<()> {
        let outcome = self.perform(Op::Allocate { file: file.clone(), position, len }).await;
        unit(outcome).map_err(|error| file_error("allocate", file, &error).with_position(position))
    }

    /// Makes `len` bytes at `position` zeros, in blocks that count as written: a later direct write there is an overwrite in
    /// place. The file's length covers them afterwards. Durable after a flush of this file.
    ///
    /// The kernel does it without writing where it and the device can (FALLOC_FL_WRITE_ZEROES, Linux 6.17); else zeros are
    /// written, in pieces of up to 1 MiB. On a file for O_DIRECT both numbers are multiples of 4,096.
    ///
    /// # Errors
    ///
    /// No space, the disk's, ... How much is zero then is unknown.
    pub async fn write_zeros(&self, file: &File, position: u64, len: u64) -> Result<()> {
        let outcome = self.perform(Op::WriteZeros { file: file.clone(), position, len }).await;
        unit(outcome).map_err(|error| file_error("write zeros to", file, &error).with_position(position))
    }

    /// Locks the file against every other opening of it, in this process and in others, until the last clone of `file`
    /// drops; writes this process' id into it for others to read.
    ///
    /// # Errors
    ///
    /// [`LockError::Locked`] with the holder's process id.
    pub async fn lock_exclusive(&self, file: &File) -> std::result::Result<(), LockError> {
        match self.perform(Op::Lock { file: file.clone() }).await.result {
            Ok(Value::Unit) => Ok(()),
            Ok(Value::LockedBy(pid)) => Err(LockError::Locked { pid }),
            Ok(other) => unreachable!("a lock gives nothing or its holder, not {other:?}"),
            Err(error) => Err(LockError::Failed(file_error("lock", file, &error))),
        }
    }
}

/// Operations on directories and paths.
impl Io {
    /// Creates a directory and the parents that are missing. No error if it is there.
    ///
    /// # Errors
    ///
    /// No permission, no space, a file in the way.
    pub async fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.path_unit("create directory", path, Op::CreateDirAll { path: path.to_owned() }).await
    }

    /// What is in a directory, in the order of names.
    ///
    /// # Errors
    ///
    /// Not found, no permission.
    pub async fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>> {
        match self.path_op("read directory", path, Op::ReadDir { path: path.to_owned() }).await? {
            Value::Entries(mut entries) => {
                entries.sort_unstable();
                Ok(entries)
            }
            other => unreachable!("read directory gives entries, not {other:?}"),
        }
    }

    /// Renames a file or directory; what is at `to` is replaced. Durable after [`Io::sync_dir`] of the parent.
    ///
    /// # Errors
    ///
    /// Not found, no permission, another file system.
    pub async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.path_unit("rename", from, Op::Rename { from: from.to_owned(), to: to.to_owned() }).await
    }

    /// Removes a file. Open handles go on reading it.
    ///
    /// # Errors
    ///
    /// Not found, no permission.
    pub async fn remove_file(&self, path: &Path) -> Result<()> {
        self.path_unit("remove", path, Op::RemoveFile { path: path.to_owned() }).await
    }

    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    ///
    /// Not found, no permission.
    pub async fn remove_dir_all(&self, path: &Path) -> Result<()> {
        self.path_unit("remove directory", path, Op::RemoveDirAll { path: path.to_owned() }).await
    }

    /// Makes the names in a directory durable: what was created, renamed and removed there.
    ///
    /// # Errors
    ///
    /// The disk's; see [`Io::sync_data`].
    pub async fn sync_dir(&self, path: &Path) -> Result<()> {
        self.path_unit("sync directory", path, Op::SyncDir { path: path.to_owned() }).await
    }

    /// Whether a path names anything.
    ///
    /// # Errors
    ///
    /// Everything but "not found".
    pub async fn exists(&self, path: &Path) -> Result<bool> {
        match self.metadata(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is known of a path. Symbolic links are followed.
    ///
    /// # Errors
    ///
    /// Not found, no permission.
    pub async fn metadata(&self, path: &Path) -> Result<Metadata> {
        match self.path_op("metadata of", path, Op::Metadata { path: path.to_owned() }).await? {
            Value::Metadata(metadata) => Ok(metadata),
            other => unreachable!("metadata gives metadata, not {other:?}"),
        }
    }

    async fn path_unit(&self, operation: &'static str, path: &Path, op: Op) -> Result<()> {
        self.path_op(operation, path, op).await.map(|_| ())
    }

    async fn path_op(&self, operation: &'static str, path: &Path, op: Op) -> Result<Value> {
        let outcome = self.perform(op).await;
        outcome.result.map_err(|error| Error::from_std(operation, &error).with_path(path))
    }
}

fn file_error(operation: &'static str, file: &File, error: &std::io::Error) -> Error {
    Error::from_std(operation, error).with_path(file.path())
}

fn unit(outcome: Outcome) -> std::io::Result<()> {
    outcome.result.map(|_| ())
}
