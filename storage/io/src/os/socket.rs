//! System calls on sockets. None of them waits.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::io::{self, Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{PIECES_PER_CALL_MAX, checked, checked_len, owned};
use crate::buffer::Buffer;
use crate::socket::{ListenOptions, Listener, ListenerKind, Socket, SocketKind};

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

/// Receives exactly `count` bytes that are there already, to `place`.
///
/// # Errors
/// The connection was reset; [`ErrorKind::UnexpectedEof`] if fewer were there.
///
/// # Safety
/// `place` is valid for `count` bytes.
pub(crate) unsafe fn receive_there(socket: RawFd, place: *mut u8, count: usize) -> io::Result<()> {
    // SAFETY: the caller vouches for the place.
    let received = checked_len(unsafe { libc::recv(socket, place.cast(), count, libc::MSG_DONTWAIT) })?;
    if received == count { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Removes at most `count` bytes that are there already; returns how many.
pub(crate) fn discard(socket: RawFd, count: usize) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: with MSG_TRUNC a TCP socket copies nothing (tcp(7)).
    checked_len(unsafe { libc::recv(socket, std::ptr::null_mut(), count, flags) })
}

/// Bytes that can be received without waiting.
pub(crate) fn received_bytes(socket: RawFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: `count` is valid during the call.
    checked(unsafe { libc::ioctl(socket, libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// From how many bytes on the socket counts as readable. The kernel makes room for as many, as far as it may.
pub(crate) fn set_low_water(socket: RawFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
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
