//! Signals that ask the process to end, as a stream.
//!
//! Owns the signal descriptor. Never decides what to do about a signal.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::Io;
use crate::op::Op;

/// A request to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

/// The stream of [`Io::signals`].
pub struct Signals {
    io: Io,
    descriptor: Arc<OwnedFd>,
}

impl Io {
    /// SIGTERM and SIGINT from here on, for the one core that asks; they no longer end the process by themselves.
    ///
    /// Call it before other threads are started: a thread takes over the mask of the one that starts it, and a thread
    /// without the mask would die of the signal, and the process with it. They work for PID 1 as well.
    ///
    /// # Errors
    ///
    /// The process is out of file descriptors.
    pub fn signals(&self) -> Result<Signals> {
        let descriptor = crate::os::signal_descriptor().map_err(|error| Error::from_std("watch signals", &error))?;
        Ok(Signals { io: self.clone(), descriptor: Arc::new(descriptor) })
    }
}

impl Signals {
    /// Waits for the next signal.
    ///
    /// # Errors
    ///
    /// The executor is gone.
    pub async fn next(&mut self) -> Result<Signal> {
        loop {
            let read = crate::os::read_signal(&self.descriptor);
            if let Some(signal) = read.map_err(|error| Error::from_std("read signal", &error))? {
                return Ok(signal);
            }
            let outcome = self.io.perform(Op::Readable { descriptor: Arc::clone(&self.descriptor) }).await;
            outcome.result.map_err(|error| Error::from_std("wait for signal", &error))?;
        }
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}
