//! Answers to bytes on the socket.
//!
//! Owns how a connection's answers are gathered into sends. Never reorders them; a file's bytes go from the file.

use std::pin::pin;

use heddle_io::{Lease, Socket};
use heddle_protocol::Writer;

use super::outbox::{Outbox, Queued};
use super::session::{Ending, Session};
use crate::api::{Answer, Part};
use crate::concurrently::poll_once;
use crate::core::Core;

/// Bytes of one send at most: a peer must take these within the time that a write may stall.
const SEND_BYTES_MAX: usize = 1 << 20;
/// Pieces of memory in one send at most.
const SEND_PIECES_MAX: usize = 256;
/// A larger piece goes out from where it lies, a smaller one is copied behind the one before it.
const COPY_BYTES_MAX: usize = 1 << 10;

/// Sends answers until no more come. Answers that are ready together go out together.
pub(crate) async fn write(core: &Core, socket: &Socket, session: &Session, outbox: &Outbox) -> Result<(), Ending> {
    let mut sending = Sending { core, socket, session, pieces: Vec::new(), written: Writer::new(), bytes: 0 };
    loop {
        let mut next = pin!(outbox.next_ready());
        let answer = match poll_once(&mut next).await {
            Some(answer) => answer,
            None => {
                sending.flush().await?;
                next.await
            }
        };
        match answer {
            Some(Queued::Ready(Answer(parts))) => {
                for part in parts {
                    sending.add(part).await?;
                }
            }
            Some(Queued::Pending(settled, _charge)) => sending.write(|writer| settled.respond(writer)).await?,
            None => break,
        }
        session.request_answered();
    }
    sending.flush().await
}

/// What is about to be sent.
struct Sending<'a> {
    core: &'a Core,
    socket: &'a Socket,
    session: &'a Session,
    pieces: Vec<Lease>,
    /// Small pieces behind all others.
    written: Writer,
    /// Bytes of the pieces.
    bytes: usize,
}

impl Sending<'_> {
    async fn add(&mut self, part: Part) -> Result<(), Ending> {
        match part {
            Part::Bytes(lease) if lease.len() <= COPY_BYTES_MAX => {
                self.write(|writer| {
                    writer.slice(&lease);
                    Ok::<_, Ending>(())
                })
                .await
            }
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

    /// Has a small piece written behind all others.
    async fn write<E: Into<Ending>>(&mut self, write: impl FnOnce(&mut Writer) -> Result<(), E>) -> Result<(), Ending> {
        write(&mut self.written).map_err(Into::into)?;
        if self.bytes + self.written.bytes().len() >= SEND_BYTES_MAX { self.flush().await } else { Ok(()) }
    }

    async fn add_bytes(&mut self, mut lease: Lease) -> Result<(), Ending> {
        self.seal();
        while !lease.is_empty() {
            let step = SEND_BYTES_MAX.saturating_sub(self.bytes).min(lease.len());
            self.pieces.push(lease.slice(0..step));
            self.bytes += step;
            lease.advance(step);
            if self.bytes >= SEND_BYTES_MAX || self.pieces.len() >= SEND_PIECES_MAX {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Makes a piece of what was written.
    fn seal(&mut self) {
        if !self.written.bytes().is_empty() {
            let written = Lease::from_vec(std::mem::take(&mut self.written).into_bytes());
            self.bytes += written.len();
            self.pieces.push(written);
        }
    }

    async fn flush(&mut self) -> Result<(), Ending> {
        self.seal();
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
