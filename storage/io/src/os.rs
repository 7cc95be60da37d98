//! The system calls that need `unsafe`, each behind a safe function, and the blocking form of every file operation.
//!
//! Owns no state. Never waits for a socket: sockets are non-blocking here.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::io::{self, Error};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::squeue::Entry;

use crate::buffer::{Buffer, Lease};
use crate::file::{Access, DirEntry, EntryKind, File, FileKind, Metadata, OpenOptions};
use crate::op::{SyncKind, Value};
use crate::signal::Signal;
use crate::socket::{ListenOptions, Listener, ListenerKind, Socket, SocketKind};
use crate::timer::Monotonic;

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

pub(crate) fn timespec(span: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: span.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(span.subsec_nanos()),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Sockets.

/// An address as the kernel wants it.
pub(crate) struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    /// Room for any address.
    pub(crate) fn empty() -> RawAddress {
        // SAFETY: plain numbers; all zeros is a valid value.
        let storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        RawAddress { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(crate) fn new(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than, and aligned for, every kind of address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(sin) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: the storage is larger than, and aligned for, every kind of address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(sin6) };
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// The address, if it is one of the internet's.
    fn decode(&self) -> io::Result<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the kernel wrote this kind of address, and the storage is aligned for it.
                let sin = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddr::new(IpAddr::V4(ip), u16::from_be(sin.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let sin6 = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
                let port = u16::from_be(sin6.sin6_port);
                Ok(std::net::SocketAddrV6::new(ip, port, sin6.sin6_flowinfo, sin6.sin6_scope_id).into())
            }
            _ => Err(Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }
}

/// A non-blocking TCP socket for addresses like `address`.
pub(crate) fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    owned(unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) })
}

fn set_option(socket: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is valid for `size` bytes during the call.
    checked(unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), size) }).map(drop)
}

/// Sends small pieces at once instead of gathering them (Nagle): answers are written whole.
pub(crate) fn set_no_delay(socket: RawFd) {
    // Fails only on a connection that is over, which the next operation reports.
    let _ = set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
}

/// A listening socket.
pub(crate) fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<Listener> {
    let socket = tcp_socket(address)?;
    let descriptor = socket.as_raw_fd();
    set_option(descriptor, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if options.reuse_port {
        set_option(descriptor, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if address.is_ipv6() {
        // 0.0.0.0 and [::] are listeners of their own, so that both can be asked for.
        set_option(descriptor, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let raw = RawAddress::new(address);
    // SAFETY: `raw` is a valid address of the length that is given.
    checked(unsafe { libc::bind(descriptor, raw.as_ptr(), raw.len()) })?;
    let backlog = libc::c_int::try_from(options.backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: no memory is involved.
    checked(unsafe { libc::listen(descriptor, backlog) })?;
    let address = local_address(descriptor)?;
    Ok(Listener::new(address, ListenerKind::Os(socket)))
}

/// The address of this end.
pub(crate) fn local_address(socket: RawFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    // SAFETY: `raw` is a valid place of the length that it says.
    checked(unsafe { libc::getsockname(socket, (&raw mut raw.storage).cast(), &raw mut raw.len) })?;
    raw.decode()
}

/// The address of the other end.
pub(crate) fn peer_address(socket: RawFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    // SAFETY: `raw` is a valid place of the length that it says.
    checked(unsafe { libc::getpeername(socket, (&raw mut raw.storage).cast(), &raw mut raw.len) })?;
    raw.decode()
}

/// Takes a connection if one waits.
pub(crate) fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the peer's address is not asked for.
    owned(unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) })
}

/// Starts to connect a new socket. It is writable when the connection is made, or has failed.
pub(crate) fn begin_connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp_socket(address)?;
    match connect(&socket, address) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(socket),
    }
}

/// A descriptor that the kernel made for us through the ring.
pub(crate) fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    owned(descriptor)
}

/// The handle of an accepted connection, and its other end.
pub(crate) fn accepted(socket: OwnedFd) -> io::Result<(Socket, SocketAddr)> {
    let socket = connected(socket)?;
    let peer = socket.peer_addr();
    Ok((socket, peer))
}

/// The handle of a connection.
pub(crate) fn connected(socket: OwnedFd) -> io::Result<Socket> {
    set_no_delay(socket.as_raw_fd());
    let (local, peer) = (local_address(socket.as_raw_fd())?, peer_address(socket.as_raw_fd())?);
    Ok(Socket::new(local, peer, SocketKind::Os(socket)))
}

/// Whether an error of accept concerns only the connection that would have been taken (accept(2), "Error handling").
pub(crate) fn concerns_one_connection(error: &Error) -> bool {
    let codes = [
        libc::ECONNABORTED,
        libc::ENOTCONN,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::EINTR,
    ];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Starts to connect; `WouldBlock` while it goes on.
fn connect(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::new(address);
    // SAFETY: `raw` is a valid address of the length that is given.
    match checked(unsafe { libc::connect(socket.as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Err(io::ErrorKind::WouldBlock.into()),
        other => other.map(drop),
    }
}

/// The error that a socket has met in the background.
pub(crate) fn take_socket_error(socket: RawFd) -> io::Result<()> {
    let mut code: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let place = (&raw mut code).cast();
    // SAFETY: `place` is valid for `size` bytes during the call.
    checked(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, place, &raw mut size) })?;
    if code == 0 { Ok(()) } else { Err(Error::from_raw_os_error(code)) }
}

/// Receives what is there, behind what the buffer holds.
pub(crate) fn receive(socket: RawFd, buffer: &mut Buffer) -> io::Result<usize> {
    let (place, room) = (buffer.spare_start(), buffer.spare());
    // SAFETY: `place` is valid for `room` bytes: the buffer is ours during the call.
    let count = checked_len(unsafe { libc::recv(socket, place.cast(), room, 0) })?;
    // SAFETY: the kernel has just filled that many bytes there.
    unsafe { buffer.filled(count) };
    Ok(count)
}

/// A message header of nothing.
pub(crate) fn empty_message() -> libc::msghdr {
    // SAFETY: plain numbers and null pointers; all zeros is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Sends as much of `pieces` as the socket takes. A connection that is over is an error, not a signal.
pub(crate) fn send(socket: RawFd, pieces: &[libc::iovec]) -> io::Result<usize> {
    let mut message = empty_message();
    message.msg_iov = pieces.as_ptr().cast_mut();
    message.msg_iovlen = pieces.len().min(PIECES_PER_CALL_MAX) as _;
    // SAFETY: the pieces point into leases that the caller holds during the call; the kernel only reads them.
    checked_len(unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) })
}

/// Sends bytes of a file; 0 at its end.
pub(crate) fn send_file(socket: RawFd, file: RawFd, position: u64, len: usize) -> io::Result<usize> {
    let mut offset = position as libc::off_t;
    // SAFETY: `offset` is valid during the call.
    checked_len(unsafe { libc::sendfile(socket, file, &raw mut offset, len) })
}

/// Ends a connection in both directions.
pub(crate) fn shutdown(socket: RawFd) {
    // SAFETY: no memory is involved. Fails only on a connection that is over already.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

// ---------------------------------------------------------------------------------------------------------------------
// Pieces of vectored calls.

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

// ---------------------------------------------------------------------------------------------------------------------
// Files, blocking.

pub(crate) fn open(path: &Path, options: OpenOptions) -> io::Result<Value> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut open = std::fs::OpenOptions::new();
    open.read(true).write(options.write).create(options.create).create_new(options.create_new);
    open.truncate(options.truncate).mode(0o640);
    if options.direct {
        open.custom_flags(libc::O_DIRECT);
    }
    let file = open.open(path)?;
    let access = if options.direct { Access::Direct } else { Access::Cached };
    Ok(Value::File(File::with_access(path.to_owned(), FileKind::Os(file.into()), access)))
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

// ---------------------------------------------------------------------------------------------------------------------
// The ring.

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

/// The kernel's release: `6.12.3-arch1-1`.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
