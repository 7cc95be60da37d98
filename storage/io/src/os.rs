//! The system calls that need `unsafe`, each behind a safe function: clocks, threads, signals, epoll here; `os/socket.rs`,
//! `os/file.rs`, `os/probe.rs`, `os/ring.rs` for the rest.
//!
//! Owns no state and decides nothing.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::signal::Signal;
use crate::timer::Monotonic;

mod file;
mod probe;
mod ring;
mod socket;

pub(crate) use file::*;
pub(crate) use probe::*;
pub(crate) use ring::*;
pub(crate) use socket::*;

/// Pieces that one vectored call takes, at most (IOV_MAX).
pub(crate) const PIECES_PER_CALL_MAX: usize = 1024;

/// The result of a system call that says -1 for "see errno".
pub(crate) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn checked_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// A descriptor that a system call has just made.
fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let descriptor = checked(result)?;
    // SAFETY: the kernel made this descriptor for this call, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

// ---------------------------------------------------------------------------------------------------------------------
// Clock and chance.

/// CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Monotonic {
    let time = clock(libc::CLOCK_MONOTONIC);
    Monotonic::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CLOCK_REALTIME in milliseconds.
pub(crate) fn wall_clock() -> i64 {
    let time = clock(libc::CLOCK_REALTIME);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

fn clock(id: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result during the call.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time
}

/// Bytes from the kernel's generator.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    assert!(bytes.len() <= 256, "up to 256 bytes come in one call");
    loop {
        // SAFETY: `bytes` is a valid place for the result during the call.
        let result = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if result == bytes.len() as isize {
            return;
        }
        let error = Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "every Linux has getrandom: {error}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Threads and signals.

/// The processors that this thread may use.
pub(crate) fn available_cpus() -> Vec<usize> {
    // SAFETY: a set of bits; all zeros is a valid one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place of the size that is given.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        // More processors than the set holds: the count is all that is known.
        return (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    // SAFETY: the number is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Binds this thread to one processor.
pub(crate) fn bind_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a set of bits; all zeros is a valid one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the size of the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a valid set of the size that is given.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) }).map(drop)
}

/// A descriptor that SIGTERM and SIGINT make readable, instead of ending the process.
pub(crate) fn signal_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: a set of bits; `sigemptyset` initialises it again.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid set during these calls, and both signals exist.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
    }
    // SAFETY: `set` is a valid set; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(Error::from_raw_os_error(result));
    }
    // SAFETY: `set` is a valid set; -1 asks for a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) })
}

/// The next signal, if there is one.
pub(crate) fn read_signal(descriptor: &OwnedFd) -> io::Result<Option<Signal>> {
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let (place, size) = ((&raw mut info).cast(), size_of_val(&info));
    // SAFETY: `place` is valid for `size` bytes during the call.
    match checked_len(unsafe { libc::read(descriptor.as_raw_fd(), place, size) }) {
        Ok(_) if info.ssi_signo == libc::SIGINT as u32 => Ok(Some(Signal::Interrupt)),
        Ok(_) => Ok(Some(Signal::Terminate)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Wake-ups.

/// A counter that makes a descriptor readable.
pub(crate) fn event_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })
}

/// Makes an event descriptor readable.
pub(crate) fn signal_event(descriptor: RawFd) {
    let one = 1_u64;
    // SAFETY: `one` is valid for 8 bytes during the call. The only failure is a counter that is full, and then the
    // descriptor is readable already.
    unsafe { libc::write(descriptor, (&raw const one).cast(), 8) };
}

/// Makes an event descriptor unreadable. On another kind of descriptor, or one that is not readable, nothing happens.
pub(crate) fn drain_event(descriptor: RawFd) {
    let mut count = 0_u64;
    // SAFETY: `count` is a valid place for 8 bytes during the call. An epoll set answers EINVAL.
    unsafe { libc::read(descriptor, (&raw mut count).cast(), 8) };
}

/// Waits until one of the descriptors can be read or the time is over. True if one other than the first can be.
pub(crate) fn poll_readable(first: RawFd, others: &[Arc<OwnedFd>], time_limit: Option<Duration>) -> bool {
    let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let others = others.iter().map(|other| wanted(other.as_raw_fd()));
    let mut descriptors: Vec<_> = std::iter::once(wanted(first)).chain(others).collect();
    let limit = time_limit.map(timespec);
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the descriptors and the limit are valid during the call; the mask is not asked for.
    unsafe { libc::ppoll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, limit, std::ptr::null()) };
    descriptors[1..].iter().any(|descriptor| descriptor.revents != 0)
}

// ---------------------------------------------------------------------------------------------------------------------
// epoll.

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Adds (`EPOLL_CTL_ADD`), changes or removes a descriptor.
pub(crate) fn epoll_control(
    epoll: &OwnedFd,
    operation: libc::c_int,
    descriptor: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` is valid during the call.
    checked(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, descriptor, &raw mut event) }).map(drop)
}

/// Waits for events, at most for `wait`; `None` is without end. An interruption counts as no event.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    wait: Option<Duration>,
) -> io::Result<usize> {
    let timeout = wait.map(timespec);
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| timeout as *const libc::timespec);
    let (place, room) = (events.as_mut_ptr(), events.len() as libc::c_int);
    // SAFETY: `place` has room for `room` events, and `timeout` is null or valid, during the call; the mask is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_raw_fd(),
            place,
            room,
            timeout,
            std::ptr::null::<libc::sigset_t>(),
            8,
        )
    };
    match checked_len(result as isize) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            // Kernels before 5.11 know milliseconds only; rounded up, so that a timer is due when we wake.
            let millis = wait.map_or(-1, |wait| wait.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32);
            // SAFETY: as above.
            let result = unsafe { libc::epoll_wait(epoll.as_raw_fd(), place, room, millis) };
            interrupted_is_zero(checked(result).map(|count| count as usize))
        }
        other => interrupted_is_zero(other),
    }
}

fn interrupted_is_zero(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

fn timespec(span: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: span.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(span.subsec_nanos()),
    }
}
