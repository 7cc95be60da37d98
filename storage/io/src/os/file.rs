//! System calls on files, which wait for the disk if need be, and the pieces of vectored ones.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::{PIECES_PER_CALL_MAX, checked, checked_len};
use crate::buffer::{Buffer, Lease};
use crate::file::{Access, DirEntry, EntryKind, File, FileKind, Hold, Metadata, OpenOptions};
use crate::op::{SyncKind, Value};
use crate::zeros::Zeros;

/// What is left of a vectored write: the pieces, and the pointers to them that the kernel gets.
pub(crate) struct Vectored {
    /// Keeps the memory alive. Never read: the kernel does.
    _pieces: Vec<Lease>,
    pointers: Vec<libc::iovec>,
    /// The first piece that is not written whole.
    next: usize,
    /// Bytes that are not written yet.
    left: usize,
}

// SAFETY: the pointers lead into the leases beside them, which are Send and whose memory nobody changes.
unsafe impl Send for Vectored {}

impl Vectored {
    pub(crate) fn new(pieces: Vec<Lease>) -> Vectored {
        let pointers: Vec<libc::iovec> = pieces
            .iter()
            .filter(|piece| !piece.is_empty())
            .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() })
            .collect();
        let left = pieces.iter().map(|piece| piece.len()).sum();
        Vectored { _pieces: pieces, pointers, next: 0, left }
    }

    /// Bytes that are not written yet.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// The pieces for the next call.
    pub(crate) fn next_call(&self) -> &[libc::iovec] {
        let end = self.pointers.len().min(self.next + PIECES_PER_CALL_MAX);
        &self.pointers[self.next..end]
    }

    /// `count` bytes were written.
    pub(crate) fn written(&mut self, mut count: usize) {
        assert!(count <= self.left, "the kernel wrote {count} bytes of {}", self.left);
        self.left -= count;
        while count > 0 {
            let piece = &mut self.pointers[self.next];
            if count < piece.iov_len {
                // SAFETY: the result is inside of the same piece.
                piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(count) }.cast();
                piece.iov_len -= count;
                return;
            }
            count -= piece.iov_len;
            self.next += 1;
        }
    }
}

pub(crate) fn open(path: &Path, options: OpenOptions) -> io::Result<Value> {
    open_file(path, options).map(Value::File)
}

fn open_file(path: &Path, options: OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut open = std::fs::OpenOptions::new();
    open.read(true).write(options.write).create(options.create).create_new(options.create_new);
    open.truncate(options.truncate).mode(0o640);
    if options.direct {
        open.custom_flags(libc::O_DIRECT);
    }
    let file = open.open(path)?;
    let access = match options.direct {
        true => Access::Direct,
        false if options.write && super::is_remote(super::file_system_magic_of(&file)?) => Access::Remote,
        false => Access::Cached,
    };
    Ok(File::with_access(path.to_owned(), FileKind::Os(file.into()), access))
}

/// Opens a file and reads `len` bytes at `position`, fewer where it ends before. The file, its length, and what was read:
/// `None` if the file is to be held and somebody else holds it.
pub(crate) fn open_and_read(
    path: &Path,
    options: OpenOptions,
    hold: Option<Hold>,
    position: u64,
    len: usize,
) -> io::Result<(File, u64, Option<Buffer>)> {
    let file = open_file(path, options)?;
    let descriptor = file.descriptor();
    // What the file's former holder had in flight may have changed its length as well: held first, looked at then.
    let is_held = hold.map_or(Ok(true), |how| try_hold(descriptor, how))?;
    let FileKind::Os(owned) = file.kind() else { unreachable!("it was opened here") };
    let file_len = file_metadata(owned)?.len;
    if !is_held {
        return Ok((file, file_len, None));
    }
    let len = usize::try_from(file_len.saturating_sub(position)).map_or(len, |left| left.min(len));
    let mut buffer = Buffer::with_capacity(len);
    read(descriptor, position, &mut buffer, len)?;
    Ok((file, file_len, Some(buffer)))
}

/// Reads behind what the buffer holds until `len` bytes or the end of the file.
pub(crate) fn read(file: RawFd, position: u64, buffer: &mut Buffer, len: usize) -> io::Result<usize> {
    assert!(len <= buffer.spare(), "the caller made room");
    let mut count = 0;
    while count < len {
        let place = buffer.spare_start().cast();
        let offset = (position + count as u64) as libc::off_t;
        // SAFETY: `place` is valid for `len - count` bytes: the buffer is ours during the call.
        match checked_len(unsafe { libc::pread(file, place, len - count, offset) }) {
            Ok(0) => break,
            Ok(more) => {
                // SAFETY: the kernel has just filled that many bytes there.
                unsafe { buffer.filled(more) };
                count += more;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Writes everything that is left.
pub(crate) fn write_all(file: RawFd, mut position: u64, vectored: &mut Vectored) -> io::Result<()> {
    while vectored.left() > 0 {
        match write_once(file, position, vectored) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => position += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One call that writes as much as it can.
pub(crate) fn write_once(file: RawFd, position: u64, vectored: &mut Vectored) -> io::Result<usize> {
    let pieces = vectored.next_call();
    let (first, count, offset) = (pieces.as_ptr(), pieces.len() as libc::c_int, position as libc::off_t);
    // SAFETY: the pieces point into leases that `vectored` holds during the call; the kernel only reads them.
    let count = checked_len(unsafe { libc::pwritev(file, first, count, offset) })?;
    vectored.written(count);
    Ok(count)
}

/// One call that writes without waiting for the disk, as far as the file system lets us say so: `WouldBlock` if it would.
pub(crate) fn write_inline(file: &File, position: u64, vectored: &mut Vectored) -> io::Result<usize> {
    if !file.can_refuse_to_block() {
        return write_once(file.descriptor(), position, vectored);
    }
    let pieces = vectored.next_call();
    let (first, count, offset) = (pieces.as_ptr(), pieces.len() as libc::c_int, position as libc::off_t);
    // SAFETY: the pieces point into leases that `vectored` holds during the call; the kernel only reads them.
    let result = unsafe { libc::pwritev2(file.descriptor(), first, count, offset, libc::RWF_NOWAIT) };
    match checked_len(result) {
        Ok(count) => {
            file.ring_writes_inline();
            vectored.written(count);
            Ok(count)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            file.cannot_refuse_to_block();
            write_once(file.descriptor(), position, vectored)
        }
        Err(error) => Err(error),
    }
}

/// A second descriptor of the same open file.
#[cfg(feature = "tokio-uring")]
pub(crate) fn duplicate(file: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    super::owned(unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 0) })
}

/// Whether the file was opened for writing.
#[cfg(feature = "glommio")]
pub(crate) fn is_writable(file: RawFd) -> io::Result<bool> {
    // SAFETY: no memory is involved.
    let flags = checked(unsafe { libc::fcntl(file, libc::F_GETFL) })?;
    Ok(flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// The number of the file system that an open file is on.
#[cfg(feature = "glommio")]
pub(crate) fn device_of(file: RawFd) -> io::Result<u64> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` is a valid place for the result during the call.
    checked(unsafe { libc::fstat(file, status.as_mut_ptr()) })?;
    // SAFETY: the kernel has just filled it.
    Ok(unsafe { status.assume_init() }.st_dev)
}

pub(crate) fn sync(file: RawFd, kind: SyncKind) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe {
        match kind {
            SyncKind::Data => libc::fdatasync(file),
            SyncKind::All => libc::fsync(file),
        }
    })
    .map(drop)
}

/// Makes everything durable that was written to the file system that an open file is on, data and names of all files.
/// `Unsupported` where that is not known to be what syncfs(2) does.
pub(crate) fn sync_file_system(file: &std::fs::File) -> io::Result<()> {
    const EXT4: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    if !matches!(super::file_system_magic_of(file)?, EXT4 | XFS) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: no memory is involved.
    checked(unsafe { libc::syncfs(file.as_raw_fd()) })?;
    // On XFS it does not empty the device's cache where there was no metadata to write: the flush of a file does.
    sync(file.as_raw_fd(), SyncKind::Data)
}

pub(crate) fn set_length(file: RawFd, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is involved.
    checked(unsafe { libc::ftruncate(file, len) }).map(drop)
}

pub(crate) fn allocate(file: RawFd, position: u64, len: u64) -> io::Result<()> {
    let too_big = |_| Error::from_raw_os_error(libc::EFBIG);
    let (position, len) =
        (libc::off_t::try_from(position).map_err(too_big)?, libc::off_t::try_from(len).map_err(too_big)?);
    // SAFETY: no memory is involved.
    checked(unsafe { libc::fallocate(file, 0, position, len) }).map(drop)
}

/// Fresh zeroed pages for `len` bytes, if the kernel has them: it limits how many stretches of memory a process has.
pub(crate) fn map_pages(len: usize) -> Option<std::ptr::NonNull<u8>> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if start == libc::MAP_FAILED { None } else { std::ptr::NonNull::new(start.cast()) }
}

/// Gives pages back.
///
/// # Safety
/// They are `len` bytes that [`map_pages`] gave, and nobody uses them any more.
pub(crate) unsafe fn unmap_pages(start: std::ptr::NonNull<u8>, len: usize) {
    // SAFETY: the caller vouches for the pages.
    let result = unsafe { libc::munmap(start.as_ptr().cast(), len) };
    if result != 0 {
        // A hole would be one stretch of memory too many: the addresses are lost, the memory is not.
        // SAFETY: as above.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED) };
    }
}

/// Faults in the `len` bytes of memory from `start`, a page's boundary; where the kernel cannot (before 5.14), the first
/// touch does.
pub(crate) fn populate(start: std::ptr::NonNull<u8>, len: usize) {
    // SAFETY: the range is memory of the caller; faulting it in changes no byte of it.
    unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
}

/// FALLOC_FL_WRITE_ZEROES: zeros in blocks that count as written, without writing them.
pub(crate) const WRITE_ZEROES: libc::c_int = 0x80;

/// Makes a range zeros, by whatever means there are.
pub(crate) fn write_zeros(file: RawFd, position: u64, len: u64) -> io::Result<()> {
    let (offset, bytes) = (position as libc::off_t, len as libc::off_t);
    // SAFETY: no memory is involved.
    match checked(unsafe { libc::fallocate(file, WRITE_ZEROES, offset, bytes) }) {
        Ok(_) => return Ok(()),
        Err(error) if super::is_not_supported(&error) => {}
        Err(error) => return Err(error),
    }
    let mut zeros = Zeros::new(position, len);
    while zeros.left() > 0 {
        let at = zeros.position();
        match write_once(file, at, zeros.pieces()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => zeros.written(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is known of an open file.
pub(crate) fn file_metadata(file: &OwnedFd) -> io::Result<Metadata> {
    // A borrowed descriptor in the standard library's clothes, only for its `fstat`.
    let file = std::mem::ManuallyDrop::new(
        // SAFETY: `ManuallyDrop` keeps this from closing a descriptor that `file` still owns.
        unsafe { std::fs::File::from_raw_fd(file.as_raw_fd()) },
    );
    Ok(metadata_of(&file.metadata()?))
}

/// What is known of a path.
pub(crate) fn metadata(path: &Path) -> io::Result<Metadata> {
    Ok(metadata_of(&std::fs::metadata(path)?))
}

fn metadata_of(metadata: &std::fs::Metadata) -> Metadata {
    use std::os::unix::fs::MetadataExt;
    Metadata {
        len: metadata.len(),
        kind: kind_of(metadata.file_type()),
        modified_ms: metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000,
    }
}

fn kind_of(kind: std::fs::FileType) -> EntryKind {
    if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Directory
    } else {
        EntryKind::Other
    }
}

pub(crate) fn read_dir(path: &Path) -> io::Result<Vec<DirEntry>> {
    std::fs::read_dir(path)?
        .map(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok(DirEntry { name, kind: kind_of(entry.file_type()?) })
        })
        .collect()
}

pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Locks a file and writes our process id into it, or says who has it.
pub(crate) fn lock(file: RawFd) -> io::Result<Value> {
    // SAFETY: plain numbers; all zeros is a valid value and means "the whole file".
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `lock` is valid during the call. A lock of the open file, not of the process: another opening in this very
    // process is kept out too, and closing another descriptor of the file does not release it.
    match checked(unsafe { libc::fcntl(file, libc::F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => {
            let words = Lease::from_vec(format!("{}\n", std::process::id()).into_bytes());
            set_length(file, 0)?;
            write_all(file, 0, &mut Vectored::new(vec![words]))?;
            Ok(Value::Unit)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            let mut words = Buffer::with_capacity(32);
            read(file, 0, &mut words, 32)?;
            Ok(Value::LockedBy(std::str::from_utf8(&words).ok().and_then(|words| words.trim().parse().ok())))
        }
        Err(error) => Err(error),
    }
}

/// `flock` without waiting; whether the lock was free.
pub(crate) fn try_hold(file: RawFd, how: Hold) -> io::Result<bool> {
    let operation = match how {
        Hold::Shared => libc::LOCK_SH,
        Hold::Alone => libc::LOCK_EX,
    };
    // SAFETY: plain numbers.
    match checked(unsafe { libc::flock(file, operation | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// `POSIX_FADV_NORMAL` or `POSIX_FADV_RANDOM`, for reads by this descriptor.
pub(crate) fn set_read_ahead(file: RawFd, reads_ahead: bool) {
    let advice = if reads_ahead { libc::POSIX_FADV_NORMAL } else { libc::POSIX_FADV_RANDOM };
    // SAFETY: plain numbers. Whoever does not take the hint answers with an error that says nothing else.
    unsafe { libc::posix_fadvise(file, 0, 0, advice) };
}

/// Whether all these bytes of a file are in memory; false if the kernel (before 6.5) or the file system cannot tell.
pub(crate) fn is_resident(file: RawFd, position: u64, len: usize) -> bool {
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        position: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { position, len: len as u64 };
    let mut pages = Pages::default();
    // SAFETY: `range` and `pages` have the layout that cachestat(2) gives and are valid during the call.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file, &raw const range, &raw mut pages, 0) };
    let page = 4096;
    let wanted = (position + len as u64).div_ceil(page) - position / page;
    result == 0 && pages.cached >= wanted
}
