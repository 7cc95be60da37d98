//! Answers to bytes on the socket.
//!
//! Owns how a connection's answers are gathered into sends. Never reorders them; a file's bytes go from the file.

use heddle_io::{Lease, Socket};

use super::outbox::Outbox;
use super::session::{Ending, Session};
use crate::api::{Answer, Part};
use crate::core::Core;

/// Bytes of one send at most: a peer must take these within the time that a write may stall.
const SEND_BYTES_MAX: usize = 1 << 20;
/// Pieces of memory in one send at most.
const SEND_PIECES_MAX: usize = 256;

/// Sends answers until no more come. Answers that are ready together go out together.
pub(crate) async fn write(core: &Core, socket: &Socket, session: &Session, outbox: &Outbox) -> Result<(), Ending> {
    let mut sending = Sending { core, socket, session, pieces: Vec::new(), bytes: 0 };
    while let Some(answer) = outbox.next().await {
        if let Answer::Parts(parts) = answer? {
            for part in parts {
                sending.add(part).await?;
            }
        }
        session.request_answered(core.io().now());
        if !outbox.has_ready() {
            sending.flush().await?;
        }
    }
    sending.flush().await
}

/// What is about to be sent.
struct Sending<'a> {
    core: &'a Core,
    socket: &'a Socket,
    session: &'a Session,
    pieces: Vec<Lease>,
    bytes: usize,
}

impl Sending<'_> {
    async fn add(&mut self, part: Part) -> Result<(), Ending> {
        match part {
            Part::Bytes(lease) => self.add_bytes(lease).await,
            Part::File { file, position, length } => {
                self.flush().await?;
                let mut sent = 0;
                while sent < length {
                    let step = SEND_BYTES_MAX.min(length - sent);
                    self.session.write_started(self.core.io().now());
                    let result = self.core.io().send_file(self.socket, &file, position + sent as u64, step).await;
                    self.session.write_ended();
                    result.map_err(Ending::Socket)?;
                    sent += step;
                }
                Ok(())
            }
        }
    }

    async fn add_bytes(&mut self, mut lease: Lease) -> Result<(), Ending> {
        loop {
            let room = SEND_BYTES_MAX - self.bytes;
            let step = room.min(lease.len());
            self.pieces.push(lease.slice(0..step));
            self.bytes += step;
            lease.advance(step);
            if self.bytes == SEND_BYTES_MAX || self.pieces.len() == SEND_PIECES_MAX {
                self.flush().await?;
            }
            if lease.is_empty() {
                return Ok(());
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Ending> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        self.session.write_started(self.core.io().now());
        let result = self.core.io().send(self.socket, std::mem::take(&mut self.pieces)).await;
        self.session.write_ended();
        result.map_err(Ending::Socket)
    }
}
