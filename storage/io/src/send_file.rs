//! Bytes of a file to a socket, without ever waiting for the disk on the core.
//!
//! Owns the state of one such operation. Never waits: each [`SendFile::step`] says what to wait for.
//!
//! `sendfile` copies nothing, but on pages that are not in memory it blocks the core for as long as the disk takes
//! (milliseconds), even on a non-blocking socket. `cachestat(2)` (Linux 6.5) tells in a few microseconds whether they
//! are. So: resident bytes go by `sendfile`, the others are read by the backend first and sent from memory.

use std::io::{self, ErrorKind};

use crate::buffer::Buffer;
use crate::file::File;
use crate::os::{self, Vectored};
use crate::socket::Socket;

/// Bytes asked about and sent in one step, at most: bounds how long a step keeps the core.
const STEP_BYTES_MAX: usize = 1 << 20;

/// Bytes read at once when they are not in memory.
const READ_BYTES_MAX: usize = 256 << 10;

/// One operation: what is left to send.
pub(crate) struct SendFile {
    socket: Socket,
    file: File,
    /// The next byte of the file that is neither sent nor loaded.
    position: u64,
    /// Bytes from `position` on.
    left: usize,
    /// Bytes that were read and are to be sent before.
    loaded: Option<Vectored>,
}

/// What an operation waits for.
pub(crate) enum Step {
    /// Nothing: it is over.
    Done(io::Result<()>),
    /// The socket to take more.
    WaitWritable,
    /// These bytes of the file, to be given to [`SendFile::load`].
    Read { position: u64, len: usize },
}

impl SendFile {
    pub(crate) fn new(socket: Socket, file: File, position: u64, len: usize) -> SendFile {
        SendFile { socket, file, position, left: len, loaded: None }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Sends what can be sent without waiting.
    pub(crate) fn step(&mut self) -> Step {
        match self.advance() {
            Ok(step) => step,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::WaitWritable,
            Err(error) => Step::Done(Err(error)),
        }
    }

    /// The bytes that [`Step::Read`] asked for.
    pub(crate) fn load(&mut self, bytes: Buffer) -> io::Result<()> {
        if bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.position += bytes.len() as u64;
        self.left -= bytes.len();
        self.loaded = Some(Vectored::new(vec![bytes.freeze()]));
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        let socket = self.socket.descriptor();
        if let Some(loaded) = &mut self.loaded {
            while loaded.left() > 0 {
                let sent = os::send(socket, loaded.next_call())?;
                loaded.written(sent);
            }
            self.loaded = None;
        }
        while self.left > 0 {
            let len = self.left.min(STEP_BYTES_MAX);
            if !os::is_resident(self.file.descriptor(), self.position, len) {
                return Ok(Step::Read { position: self.position, len: self.left.min(READ_BYTES_MAX) });
            }
            match os::send_file(socket, self.file.descriptor(), self.position, len)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                sent => {
                    self.position += sent as u64;
                    self.left -= sent;
                }
            }
        }
        Ok(Step::Done(Ok(())))
    }
}
