//! TCP: the handles, and the operations that [`Io`] and [`Socket`] offer.
//!
//! Owns the shape of the operations and what their errors say. Never calls the system itself: the backends do.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::buffer::{Buffer, Lease};
use crate::error::{Error, Result};
use crate::file::File;
use crate::io::Io;
use crate::op::{Op, Outcome, Pending, Value};
use crate::sim::{SimListener, SimSocket};

/// How to listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenOptions {
    /// Whether other sockets may listen on the same address and share its connections (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions { reuse_port: false, backlog: 1024 }
    }
}

/// A listening socket. Clones share it; the last to drop closes it.
#[derive(Clone)]
pub struct Listener {
    inner: Arc<ListenerInner>,
}

struct ListenerInner {
    address: SocketAddr,
    kind: ListenerKind,
}

/// Whose listener it is.
pub(crate) enum ListenerKind {
    Os(OwnedFd),
    Sim(SimListener),
}

impl Listener {
    pub(crate) fn new(address: SocketAddr, kind: ListenerKind) -> Listener {
        Listener { inner: Arc::new(ListenerInner { address, kind }) }
    }

    /// The address that it listens on, with the port that the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.address
    }

    pub(crate) fn kind(&self) -> &ListenerKind {
        &self.inner.kind
    }

    /// The operating system's descriptor.
    ///
    /// # Panics
    ///
    /// If the listener is a simulated one.
    pub(crate) fn descriptor(&self) -> RawFd {
        match &self.inner.kind {
            ListenerKind::Os(descriptor) => descriptor.as_raw_fd(),
            ListenerKind::Sim(_) => panic!("a simulated listener outside of the simulator"),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", self.inner.address)
    }
}

/// A connection. Clones share it (a reader and a writer); the last to drop closes it.
#[derive(Clone)]
pub struct Socket {
    inner: Arc<SocketInner>,
}

struct SocketInner {
    local: SocketAddr,
    peer: SocketAddr,
    kind: SocketKind,
}

/// Whose socket it is.
pub(crate) enum SocketKind {
    Os(OwnedFd),
    Sim(SimSocket),
}

impl Socket {
    pub(crate) fn new(local: SocketAddr, peer: SocketAddr, kind: SocketKind) -> Socket {
        Socket { inner: Arc::new(SocketInner { local, peer, kind }) }
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.inner.peer
    }

    /// This end: the address that the peer connected to.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Ends the connection in both directions at once: pending and later receives give 0, sends fail. No error if it is
    /// over already.
    pub fn shutdown(&self) {
        match &self.inner.kind {
            SocketKind::Os(descriptor) => crate::os::shutdown(descriptor.as_raw_fd()),
            SocketKind::Sim(socket) => socket.shutdown(),
        }
    }

    pub(crate) fn kind(&self) -> &SocketKind {
        &self.inner.kind
    }

    /// The operating system's descriptor.
    ///
    /// # Panics
    ///
    /// If the socket is a simulated one.
    pub(crate) fn descriptor(&self) -> RawFd {
        match &self.inner.kind {
            SocketKind::Os(descriptor) => descriptor.as_raw_fd(),
            SocketKind::Sim(_) => panic!("a simulated socket outside of the simulator"),
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({} to {})", self.inner.local, self.inner.peer)
    }
}

/// Operations on sockets.
impl Io {
    /// Listens on `address`, at once. Port 0 lets the system choose one.
    ///
    /// # Errors
    ///
    /// The address is in use or not this machine's, no permission.
    pub fn listen(&self, address: SocketAddr, options: ListenOptions) -> Result<Listener> {
        self.listen_now(address, options).map_err(|error| Error::from_std("listen on", &error).with_peer(address))
    }

    /// Takes the next connection.
    ///
    /// # Errors
    ///
    /// [`Error::is_too_many_files`]: wait until a descriptor is free and call again; the connection waits meanwhile.
    /// What concerns only the connection (the peer has gone already) is not reported: the next one is taken.
    pub async fn accept(&self, listener: &Listener) -> Result<(Socket, SocketAddr)> {
        match self.perform(Op::Accept { listener: listener.clone() }).await.result {
            Ok(Value::Accepted(socket, peer)) => Ok((socket, peer)),
            Ok(other) => unreachable!("accept gives a socket, not {other:?}"),
            Err(error) => Err(Error::from_std("accept on", &error).with_peer(listener.local_addr())),
        }
    }

    /// Opens a connection. Has no time limit of its own but the system's: use [`Io::timeout`].
    ///
    /// # Errors
    ///
    /// Refused, unreachable, timed out.
    pub async fn connect(&self, address: SocketAddr) -> Result<Socket> {
        match self.perform(Op::Connect { address }).await.result {
            Ok(Value::Socket(socket)) => Ok(socket),
            Ok(other) => unreachable!("connect gives a socket, not {other:?}"),
            Err(error) => Err(Error::from_std("connect to", &error).with_peer(address)),
        }
    }

    /// Receives at least one byte behind what `buffer` holds, up to its capacity; 0 when the peer has closed.
    ///
    /// Begins when called. What arrives for a future that is dropped before its end is lost: keep it and poll it again.
    ///
    /// # Panics
    ///
    /// If `buffer` is full.
    pub fn recv(&self, socket: &Socket, buffer: Buffer) -> Receiving {
        assert!(buffer.spare() > 0, "receive into a full buffer");
        let socket = socket.clone();
        Receiving { pending: self.submit(Op::Recv { socket: socket.clone(), buffer }), socket }
    }

    /// Sends all `pieces`, one after the other. One send at a time for each socket: two at once may mix their bytes.
    ///
    /// Begins when called, as [`Io::write`] does. A send that is dropped before its end may have sent a part.
    ///
    /// # Errors
    ///
    /// The connection is over.
    pub fn send(&self, socket: &Socket, pieces: Vec<Lease>) -> impl Future<Output = Result<()>> + use<> {
        let pending = self.submit(Op::Send { socket: socket.clone(), pieces });
        let socket = socket.clone();
        async move { pending.await.result.map(|_| ()).map_err(|error| socket_error("send to", &socket, &error)) }
    }

    /// Sends `len` bytes of `file` from `position`, without copying them where they are in memory already.
    ///
    /// # Errors
    ///
    /// The connection is over; the file ends before ([`std::io::ErrorKind::UnexpectedEof`]); the disk's. How much was
    /// sent then is unknown.
    pub async fn send_file(&self, socket: &Socket, file: &File, position: u64, len: usize) -> Result<()> {
        let op = Op::SendFile { socket: socket.clone(), file: file.clone(), position, len };
        let outcome = self.perform(op).await;
        outcome.result.map(|_| ()).map_err(|error| {
            socket_error("send file to", socket, &error).with_path(file.path()).with_position(position)
        })
    }

    /// The addresses of a host, as the system resolves names, on a helper thread. An address resolves to itself.
    ///
    /// # Errors
    ///
    /// No such name, no answer.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let name = host.to_owned();
        let resolved = self
            .run_blocking(move || std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), port)).map(Vec::from_iter));
        resolved.await?.map_err(|error| Error::from_std("resolve", &error).with_path(host))
    }
}

/// The future of [`Io::recv`].
#[must_use = "a receive that is dropped loses what arrives"]
pub struct Receiving {
    pending: Pending,
    socket: Socket,
}

impl Future for Receiving {
    type Output = (Result<usize>, Buffer);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<(Result<usize>, Buffer)> {
        let Outcome { result, buffer } = ready!(Pin::new(&mut self.pending).poll(context));
        let buffer = buffer.expect("a receive gives its buffer back");
        let result = match result {
            Ok(Value::Count(count)) => Ok(count),
            Ok(other) => unreachable!("receive gives a count, not {other:?}"),
            Err(error) => Err(socket_error("receive from", &self.socket, &error)),
        };
        Poll::Ready((result, buffer))
    }
}

pub(crate) fn socket_error(operation: &'static str, socket: &Socket, error: &std::io::Error) -> Error {
    Error::from_std(operation, error).with_peer(socket.peer_addr())
}
