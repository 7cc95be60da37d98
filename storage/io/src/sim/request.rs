//! What a process asks of a simulated disk, and what it gets.
//!
//! Owns the words of that conversation. Never carries anything out; `disk.rs` does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::fault::OperationKind;
use super::random::mix;
use super::tree::Inode;
use crate::file::Access;

/// An error number of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

/// Keeps a file open while it lives.
pub(crate) type Handle = Arc<()>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenMode {
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) truncate: bool,
    pub(crate) direct: bool,
    pub(crate) write: bool,
}

/// What a process asks for.
#[derive(Clone)]
pub(crate) enum Request {
    Open { path: PathBuf, mode: OpenMode },
    Read { file: Inode, position: u64, length: usize },
    Write { file: Inode, position: u64, bytes: Rc<[u8]>, access: Access },
    Flush { file: Inode },
    SetLen { file: Inode, len: u64 },
    Allocate { file: Inode, position: u64, length: u64, extend: bool },
    CreateDirectories { path: PathBuf },
    List { path: PathBuf },
    Stat { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    RemoveFile { path: PathBuf },
    RemoveTree { path: PathBuf },
    SyncDirectory { path: PathBuf },
    FlushEverything { path: PathBuf },
}

impl Request {
    pub(crate) fn kind(&self) -> OperationKind {
        match self {
            Request::Read { .. } => OperationKind::Read,
            Request::Write { .. } => OperationKind::Write,
            Request::Flush { .. } | Request::FlushEverything { .. } => OperationKind::Flush,
            Request::SyncDirectory { .. } => OperationKind::SyncDirectory,
            _ => OperationKind::Metadata,
        }
    }

    /// Bytes that it asks for.
    pub(crate) fn bytes_to_read(&self) -> u64 {
        if let Request::Read { length, .. } = self { *length as u64 } else { 0 }
    }

    /// The open file that it concerns.
    pub(crate) fn file(&self) -> Option<Inode> {
        match self {
            Request::Read { file, .. }
            | Request::Write { file, .. }
            | Request::Flush { file }
            | Request::SetLen { file, .. }
            | Request::Allocate { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// The path that it concerns; of a rename, the new one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Request::Open { path, .. }
            | Request::CreateDirectories { path }
            | Request::List { path }
            | Request::Stat { path }
            | Request::Rename { to: path, .. }
            | Request::RemoveFile { path }
            | Request::RemoveTree { path }
            | Request::SyncDirectory { path }
            | Request::FlushEverything { path } => Some(path),
            _ => None,
        }
    }

    /// A number for the trace.
    pub(crate) fn digest(&self) -> u64 {
        let path_digest = |path: &Path| digest_of(path.as_os_str().as_encoded_bytes());
        match self {
            Request::Open { path, .. } => 1 << 40 | path_digest(path),
            Request::Read { file, position, length } => {
                2 << 40 | (file.0 ^ position ^ (*length as u64) << 20) & 0xff_ffff_ffff
            }
            Request::Write { file, position, bytes, .. } => {
                3 << 40 | (digest_of(bytes) ^ file.0 ^ position) & 0xff_ffff_ffff
            }
            Request::Flush { file } => 4 << 40 | file.0,
            Request::SetLen { file, len } => 5 << 40 | (file.0 << 30 ^ len) & 0xff_ffff_ffff,
            Request::Allocate { file, .. } => 6 << 40 | file.0,
            Request::CreateDirectories { path } => 7 << 40 | path_digest(path),
            Request::List { path } => 8 << 40 | path_digest(path),
            Request::Stat { path } => 9 << 40 | path_digest(path),
            Request::Rename { from, to } => 10 << 40 | path_digest(from) ^ path_digest(to),
            Request::RemoveFile { path } => 11 << 40 | path_digest(path),
            Request::RemoveTree { path } => 12 << 40 | path_digest(path),
            Request::SyncDirectory { path } => 13 << 40 | path_digest(path),
            Request::FlushEverything { path } => 14 << 40 | path_digest(path),
        }
    }

    /// Whether a file system that is mounted read-only refuses it.
    pub(crate) fn needs_to_write(&self) -> bool {
        match self {
            Request::Open { mode, .. } => mode.write,
            Request::Read { .. } | Request::List { .. } | Request::Stat { .. } | Request::SyncDirectory { .. } => false,
            _ => true,
        }
    }

    /// Whether it changes the disk or what is durable of it; the others make no steps.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self, Request::Read { .. } | Request::List { .. } | Request::Stat { .. })
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) is_directory: bool,
}

/// What a process gets.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Opened { file: Inode, handle: Handle },
    Bytes(Vec<u8>),
    Written(usize),
    Entries(Vec<Entry>),
    Stat { is_directory: bool, len: u64, modified_ms: i64 },
}

impl Reply {
    /// A number for the trace.
    pub(crate) fn digest(&self) -> u64 {
        match self {
            Reply::Done => 1,
            Reply::Opened { file, .. } => 2 << 40 | file.0,
            Reply::Bytes(bytes) => 3 << 40 | digest_of(bytes),
            Reply::Written(count) => 4 << 40 | *count as u64,
            Reply::Entries(entries) => 5 << 40 | entries.len() as u64,
            Reply::Stat { len, .. } => 6 << 40 | len,
        }
    }
}

/// 40 bits that depend on every byte.
pub(crate) fn digest_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let digest = words.iter().fold(bytes.len() as u64, |digest, word| mix(digest ^ u64::from_le_bytes(*word)));
    rest.iter().fold(digest, |digest, byte| mix(digest ^ u64::from(*byte))) >> 24
}

/// An operation that was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub(crate) u64);
