//! What files, sockets and listeners hold when they are simulated ones.
//!
//! Owns the way back from a handle to what it stands for, and the mail by which dropped handles reach the world. Never
//! reaches the world itself: handles are `Send`, the world is not.

use std::sync::{Arc, Mutex};

use super::network::{EndpointId, HostId, ListenerId};
use super::request::{Errno, Handle};
use super::tree::Inode;
use crate::buffer::{Buffer, Lease};
use crate::file::{Access, EntryKind, File, FileKind};
use crate::socket::{Listener, ListenerKind, Socket, SocketKind};

/// A file of the simulated disk, as [`File`] holds it.
#[derive(Debug)]
pub(crate) struct SimFile {
    pub(super) host: HostId,
    pub(super) process: u64,
    pub(super) inode: Inode,
    pub(super) handle: Handle,
    pub(super) writable: bool,
    pub(super) direct: bool,
}

impl SimFile {
    pub(super) fn access(&self) -> Access {
        if self.direct { Access::Direct } else { Access::Cached }
    }
}

/// A connection of the simulated network, as [`Socket`] holds it.
#[derive(Debug)]
pub(crate) struct SimSocket {
    pub(super) endpoint: EndpointId,
    pub(super) mail: Arc<Mail>,
}

impl SimSocket {
    /// See [`Socket::shutdown`].
    pub(crate) fn shutdown(&self) {
        self.mail.post(Letter::Shutdown(self.endpoint));
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.mail.post(Letter::Close(self.endpoint));
    }
}

/// A listener of the simulated network, as [`Listener`] holds it.
#[derive(Debug)]
pub(crate) struct SimListener {
    pub(super) listener: ListenerId,
    pub(super) mail: Arc<Mail>,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.mail.post(Letter::CloseListener(self.listener));
    }
}

/// What handles have to say. They are `Send` and cannot hold the world; it reads this before it does anything else.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    letters: Mutex<Vec<Letter>>,
}

#[derive(Debug)]
pub(crate) enum Letter {
    Shutdown(EndpointId),
    Close(EndpointId),
    CloseListener(ListenerId),
}

impl Mail {
    fn post(&self, letter: Letter) {
        self.letters.lock().expect("nobody panics while posting").push(letter);
    }

    pub(super) fn take(&self) -> Vec<Letter> {
        std::mem::take(&mut *self.letters.lock().expect("nobody panics while posting"))
    }
}

/// O_DIRECT takes whole blocks of 4,096 bytes from memory that is aligned alike.
pub(super) fn check_alignment(file: &SimFile, position: u64, pieces: &[Lease]) -> Result<(), Errno> {
    let aligned = |number: usize| number.is_multiple_of(crate::buffer::DIRECT_ALIGNMENT);
    let fits = |piece: &Lease| aligned(piece.len()) && aligned(piece.as_ptr() as usize);
    let direct_ok = position.is_multiple_of(crate::buffer::DIRECT_ALIGNMENT as u64) && pieces.iter().all(fits);
    if !file.direct || direct_ok { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

/// Whether a position or a length is a multiple of the block.
pub(super) fn is_aligned(number: u64) -> bool {
    number.is_multiple_of(crate::buffer::DIRECT_ALIGNMENT as u64)
}

/// The same of a read: its position, its length, and the place in the buffer.
pub(super) fn is_aligned_read(file: &SimFile, position: u64, buffer: &Buffer, len: usize) -> bool {
    let aligned = |number: usize| number.is_multiple_of(crate::buffer::DIRECT_ALIGNMENT);
    let place = buffer.as_ptr() as usize + buffer.len();
    !file.direct || position.is_multiple_of(crate::buffer::DIRECT_ALIGNMENT as u64) && aligned(len) && aligned(place)
}

pub(super) fn joined(pieces: &[Lease]) -> Vec<u8> {
    pieces.iter().map(|piece| &**piece).collect::<Vec<&[u8]>>().concat()
}

pub(super) fn kind(is_directory: bool) -> EntryKind {
    if is_directory { EntryKind::Directory } else { EntryKind::File }
}

pub(super) fn os_error(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

pub(super) fn sim_file(file: &File) -> &SimFile {
    match file.kind() {
        FileKind::Sim(file) => file,
        FileKind::Os(_) => panic!("a file of the operating system in the simulator: {}", file.path().display()),
    }
}

pub(super) fn sim_socket(socket: &Socket) -> &SimSocket {
    match socket.kind() {
        SocketKind::Sim(socket) => socket,
        SocketKind::Os(_) => panic!("a socket of the operating system in the simulator"),
    }
}

pub(super) fn sim_listener(listener: &Listener) -> &SimListener {
    match listener.kind() {
        ListenerKind::Sim(listener) => listener,
        ListenerKind::Os(_) => panic!("a listener of the operating system in the simulator"),
    }
}
