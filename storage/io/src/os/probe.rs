//! System calls that tell what a file system and its device can do.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{checked, checked_len};

/// The alignment that O_DIRECT needs for this file, of memory and of positions, in bytes. `None` if the kernel (before
/// 6.1) or the file system does not say; zeros if the file cannot be used so.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<(u32, u32)>> {
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    let (descriptor, empty) = (file.as_raw_fd(), c"".as_ptr());
    // SAFETY: the empty path and `answer` are valid during the call.
    let result = unsafe { libc::statx(descriptor, empty, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut answer) };
    checked(result)?;
    let said = answer.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(said.then_some((answer.stx_dio_mem_align, answer.stx_dio_offset_align)))
}

/// The magic number of the file system that holds `path`.
pub(crate) fn file_system_magic(path: &Path) -> io::Result<u32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path and `answer` are valid during the call.
    checked(unsafe { libc::statfs(path.as_ptr(), &raw mut answer) })?;
    Ok(answer.f_type as u32)
}

/// Bytes of the file system that holds `path`: in all, and those that this process may still use.
pub(crate) fn disk_space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path and `answer` are valid during the call.
    checked(unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) })?;
    Ok((answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize))
}

/// The same of an open file.
pub(crate) fn file_system_magic_of(file: &File) -> io::Result<u32> {
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `answer` is valid during the call.
    checked(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) })?;
    Ok(answer.f_type as u32)
}

/// Whether another process or machine answers for the files: FUSE, NFS, SMB, Ceph, 9p.
pub(crate) fn is_remote(magic: u32) -> bool {
    matches!(magic, 0x6573_5546 | 0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x517b | 0x00c3_6400 | 0x0102_1997)
}

/// Makes the file's bytes go through the page cache from now on.
pub(crate) fn end_direct(file: &File) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let flags = checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: no memory is involved.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) }).map(drop)
}

/// Writes with the wish not to wait for the disk (RWF_NOWAIT).
pub(crate) fn write_without_waiting(file: &File, position: u64, bytes: &[u8]) -> io::Result<usize> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let position = position as libc::off_t;
    // SAFETY: `piece` leads to `bytes`, which the kernel only reads, during the call.
    checked_len(unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, position, libc::RWF_NOWAIT) })
}

/// The error of a file system that does not know what it was asked for.
pub(crate) fn is_not_supported(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::EISDIR))
}

/// A device number in its two parts.
pub(crate) fn device_numbers(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}
