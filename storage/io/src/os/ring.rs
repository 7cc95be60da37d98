//! The calls into a ring that the crate `io-uring` leaves to us: entering it by its registered number, with a time limit.
#![expect(unsafe_code, reason = "system calls through libc, entries that lead to memory")]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::squeue::Entry;

use super::checked_len;

/// Puts an entry into a ring's submission queue. False if it is full.
pub(crate) fn push_entry(ring: &mut IoUring, entry: &Entry) -> bool {
    // SAFETY: every entry is made by `flight.rs` or `uring.rs`; what its pointers lead to is owned by a flight that the
    // ring keeps until the entry's last result has come (`Ring::take`, `Ring::close`).
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// The call into a ring, by its registered number where the kernel gives one.
pub(crate) struct RingEnter {
    ring: RawFd,
    registered: Option<u32>,
    /// Flags of every call.
    flags: u32,
}

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 8;
const ENTER_REGISTERED_RING: u32 = 16;
const ENTER_NO_IOWAIT: u32 = 128;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// The kernel's `io_uring_getevents_arg`.
#[repr(C)]
struct EnterArgument {
    mask: u64,
    mask_size: u32,
    min_wait_micros: u32,
    timeout: u64,
}

/// The kernel's `__kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanos: i64,
}

/// The kernel's `io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

impl RingEnter {
    /// `without_iowait`: a sleep is not counted as waiting for a disk, where the kernel knows the difference.
    pub(crate) fn new(ring: RawFd, without_iowait: bool) -> RingEnter {
        let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: ring as u64 };
        // A thread may register 16 rings; the next goes without, which costs some nanoseconds for each call.
        let registered = register(ring, REGISTER_RING_FDS, &mut update).ok().map(|_| update.offset);
        let flags = ENTER_GETEVENTS
            | ENTER_EXT_ARG
            | if without_iowait { ENTER_NO_IOWAIT } else { 0 }
            | if registered.is_some() { ENTER_REGISTERED_RING } else { 0 };
        RingEnter { ring, registered, flags }
    }

    /// Submits `to_submit` entries, runs the ring's deferred work, waits for `min_complete` completions.
    pub(crate) fn enter(&self, to_submit: u32, min_complete: u32, time_limit: Option<Duration>) -> io::Result<()> {
        let timeout = time_limit.map(|span| KernelTimespec {
            seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            nanos: i64::from(span.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(0, |timeout| std::ptr::from_ref(timeout) as u64);
        let argument = EnterArgument { mask: 0, mask_size: 8, min_wait_micros: 0, timeout };
        let ring = self.registered.unwrap_or(self.ring as u32);
        let (place, size) = (&raw const argument, size_of::<EnterArgument>());
        // SAFETY: the argument and the time limit it points to have the kernel's layout and are valid during the call;
        // the entries are covered by the promise of `push_entry`.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, to_submit, min_complete, self.flags, place, size) };
        checked_len(result as isize).map(drop)
    }

    /// Gives the registered number back: the thread holds the ring as long as it has one.
    pub(crate) fn close(&mut self) {
        if let Some(offset) = self.registered.take() {
            let mut update = RingUpdate { offset, reserved: 0, data: 0 };
            // Nothing is left to do about a failure: the number goes with the thread.
            let _ = register(self.ring, UNREGISTER_RING_FDS, &mut update);
            self.flags &= !ENTER_REGISTERED_RING;
        }
    }
}

fn register(ring: RawFd, operation: u32, update: &mut RingUpdate) -> io::Result<usize> {
    let place = std::ptr::from_mut(update);
    // SAFETY: `update` has the kernel's layout and is valid during the call, which takes one of it.
    checked_len(unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, place, 1) } as isize)
}

/// The kernel's release: `6.12.3-arch1-1`. Asked of the kernel itself: a bare container may have no `/proc`.
pub(crate) fn kernel_release() -> String {
    // SAFETY: plain bytes; all zeros is a valid value.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `names` is valid during the call, which ends each name with a zero.
    let known = unsafe { libc::uname(&raw mut names) } == 0;
    let release = names.release.iter().map(|byte| *byte as u8).take_while(|byte| known && *byte != 0);
    String::from_utf8_lossy(&release.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_what_the_kernel_says_elsewhere() {
        let said = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("tests run where there is /proc");
        assert_eq!(kernel_release(), said.trim());
    }
}
