//! The error of every operation: what was tried, on what, where, and what the system said.
//!
//! Never decides anything: whether an error takes a log offline is the engine's business.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why an operation of [`crate::Io`] failed.
///
/// One line of text says all of it: `write /data/orders-0/00000000000000000000.log at 4096: No space left on device (os error 28)`.
#[derive(Clone)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    operation: &'static str,
    path: Option<PathBuf>,
    peer: Option<SocketAddr>,
    position: Option<u64>,
    cause: Cause,
}

/// What the system said.
#[derive(Clone)]
enum Cause {
    /// An errno.
    Os(i32),
    /// Anything that has no errno, with its words.
    Other(ErrorKind, String),
}

/// The result of an operation.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `operation` with the errno that the system gave.
    pub fn from_raw_os_error(operation: &'static str, errno: i32) -> Error {
        Error::from_cause(operation, Cause::Os(errno))
    }

    /// An error of `operation` without an errno: its kind and a few words.
    pub fn new(operation: &'static str, kind: ErrorKind, words: impl Into<String>) -> Error {
        Error::from_cause(operation, Cause::Other(kind, words.into()))
    }

    /// An error of `operation` from the standard library's error.
    pub(crate) fn from_std(operation: &'static str, error: &std::io::Error) -> Error {
        match error.raw_os_error() {
            Some(errno) => Error::from_raw_os_error(operation, errno),
            None => Error::new(operation, error.kind(), error.to_string()),
        }
    }

    fn from_cause(operation: &'static str, cause: Cause) -> Error {
        Error { inner: Box::new(Inner { operation, path: None, peer: None, position: None, cause }) }
    }

    /// The same error, naming the file or directory it is about.
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Error {
        self.inner.path = Some(path.into());
        self
    }

    /// The same error, naming the other end of the connection.
    pub fn with_peer(mut self, peer: SocketAddr) -> Error {
        self.inner.peer = Some(peer);
        self
    }

    /// The same error, naming the position in the file, in bytes.
    pub fn with_position(mut self, position: u64) -> Error {
        self.inner.position = Some(position);
        self
    }

    /// The operation that failed: `write`, `sync data`, `accept`, ...
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// The file or directory, where there is one.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The other end of the connection, where there is one.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.inner.peer
    }

    /// The position in the file in bytes, where there is one.
    pub fn position(&self) -> Option<u64> {
        self.inner.position
    }

    /// What kind of error the system reported.
    pub fn kind(&self) -> ErrorKind {
        match &self.inner.cause {
            Cause::Os(errno) => std::io::Error::from_raw_os_error(*errno).kind(),
            Cause::Other(kind, _) => *kind,
        }
    }

    /// The errno, where the system gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self.inner.cause {
            Cause::Os(errno) => Some(errno),
            Cause::Other(..) => None,
        }
    }

    /// Whether the disk (or its quota) is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) || self.kind() == ErrorKind::StorageFull
    }

    /// Whether the file system is mounted read-only, or has become so after an error.
    pub fn is_read_only(&self) -> bool {
        self.raw_os_error() == Some(libc::EROFS)
    }

    /// Whether the process or the machine has run out of file descriptors: accept again later.
    pub fn is_too_many_files(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.operation)?;
        if let Some(path) = &self.inner.path {
            write!(f, " {}", path.display())?;
        }
        if let Some(peer) = &self.inner.peer {
            write!(f, " {peer}")?;
        }
        if let Some(position) = &self.inner.position {
            write!(f, " at {position}")?;
        }
        match &self.inner.cause {
            Cause::Os(errno) => write!(f, ": {}", std::io::Error::from_raw_os_error(*errno)),
            Cause::Other(_, words) => write!(f, ": {words}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_where_and_why() {
        let error = Error::from_raw_os_error("write", libc::ENOSPC).with_path("/data/a.log").with_position(4096);
        assert_eq!(error.to_string(), "write /data/a.log at 4096: No space left on device (os error 28)");
        assert!(error.is_no_space());
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn running_out_of_descriptors_is_told_apart() {
        assert!(Error::from_raw_os_error("accept", libc::EMFILE).is_too_many_files());
        assert!(!Error::new("accept", ErrorKind::Other, "stopped").is_too_many_files());
    }
}
