//! What can go wrong, by whose fault it is.
//!
//! [`Error`] is the world's fault (disk, directory, another process), [`AppendError`] and [`ReadError`] add what the
//! peer did wrong and map one to one to error codes of Kafka. Our own faults are assertions and crash.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use heddle_record::{BatchError, LogEndOffset, LogStartOffset, Offset};

use crate::record_faults::InvalidRecords;

/// The world's fault: what failed, on which file, at which position.
#[derive(Debug, Clone)]
pub enum Error {
    /// An operation on a file or directory failed.
    Io(heddle_io::Error),
    /// Another process has the data directory open.
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, where it is known.
        pid: Option<u32>,
    },
    /// The directory has files in it and none of them says that it is a data directory of ours.
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The name of a file in it.
        found: String,
    },
    /// A newer program wrote the data directory.
    NewerFormat {
        /// The data directory.
        path: PathBuf,
        /// The format version that it has.
        found: u32,
        /// The newest format version that this program knows.
        known: u32,
    },
    /// The data directory belongs to another cluster or broker than the one that was asked for.
    OtherIdentity {
        /// The data directory.
        path: PathBuf,
        /// Which part of the identity: `cluster.id` or `broker.id`.
        what: &'static str,
        /// What the data directory says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The file with the data directory's identity cannot be read as one.
    DamagedIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes that were flushed are not there any more: not a torn tail but damage. The log stays offline.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        position: u64,
        /// Which offset was expected there.
        offset: Offset,
        /// What is wrong there.
        reason: String,
    },
    /// The log, or its whole data directory, was taken offline by an earlier failure.
    Offline(Arc<str>),
    /// The topic's name is not one that Kafka allows, so no directory is made from it.
    InvalidTopicName(String),
    /// The direct device was asked for where the file system cannot write around the page cache.
    NoDirectWrites {
        /// What was found.
        reason: String,
    },
    /// Writes that another process began are still in flight, or another program has locked the file.
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The log is open already, or is being opened or deleted.
    InUse(String),
}

impl Error {
    /// Whether a flush failed, for another reason than a full disk. One on a file system that became read-only has failed:
    /// what it should have written may be gone.
    pub(crate) fn is_failed_flush(&self) -> bool {
        matches!(self, Error::Io(error) if error.operation().starts_with("sync") && !error.is_no_space())
    }

    /// Whether the process or the machine has run out of file descriptors.
    pub(crate) fn is_too_many_files(&self) -> bool {
        matches!(self, Error::Io(error) if error.is_too_many_files())
    }

    /// Whether the disk (or its quota) is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Io(error) if error.is_no_space())
    }

    /// Whether the disk refused an operation that it may take later, without having lost anything: it is full, or its file
    /// system is read-only. A flush is never refused: it fails.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Io(error) if error.is_no_space() || error.is_read_only()) && !self.is_failed_flush()
    }

    /// What whoever keeps the machine can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::Io(error) if error.is_no_space() => {
                "make room on the disk (delete topics or records, or lower retention); the log comes back by itself"
            }
            Error::Io(_) if self.is_failed_flush() => {
                "check the disk and the kernel's log, then restart; what was not acknowledged may be gone"
            }
            Error::Io(error) if error.is_read_only() => {
                "see in the kernel's log why the file system became read-only, repair it and mount it writable; the log comes back by itself"
            }
            Error::Io(error) if error.is_too_many_files() => "raise the limit of open files (ulimit -n), then restart",
            Error::Io(_) => "check the disk and the kernel's log, then restart",
            Error::Damaged { .. } => {
                "restore the file from a replica or a backup, or give its records up with kafka-delete-records; the disk may be failing"
            }
            _ => "see the line that says what failed first",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "{error}"),
            Error::Locked { path, pid: Some(pid) } => {
                write!(
                    f,
                    "data directory {} is in use by process {pid}: stop it or choose another directory",
                    path.display()
                )
            }
            Error::Locked { path, pid: None } => {
                write!(
                    f,
                    "data directory {} is in use by another process: stop it or choose another directory",
                    path.display()
                )
            }
            Error::Foreign { path, found } => write!(
                f,
                "{} is not empty ({found} is in it) and not a data directory: choose an empty or a new directory",
                path.display()
            ),
            Error::NewerFormat { path, found, known } => write!(
                f,
                "data directory {} has format {found}, this program knows up to {known}: use the newer program",
                path.display()
            ),
            Error::OtherIdentity { path, what, found, expected } => write!(
                f,
                "data directory {} belongs to {what} {found}, not {expected}: correct the setting or choose another directory",
                path.display()
            ),
            Error::DamagedIdentity { path, reason } => {
                write!(f, "{} is damaged ({reason}): restore it from a backup", path.display())
            }
            Error::Damaged { path, position, offset, reason } => write!(
                f,
                "{} is damaged at byte {position}, where offset {offset} was expected: {reason}",
                path.display()
            ),
            Error::Offline(reason) => write!(f, "offline: {reason}"),
            Error::Busy { path } => {
                write!(
                    f,
                    "{} is locked: the disk hangs, or another program has it; see `fuser` and try again",
                    path.display()
                )
            }
            Error::NoDirectWrites { reason } => {
                write!(f, "log.device=direct cannot be here ({reason}); set log.device=auto or buffered")
            }
            Error::InvalidTopicName(name) => write!(f, "{name:?} is not a topic name"),
            Error::InUse(name) => write!(f, "log {name} is in use"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<heddle_io::Error> for Error {
    fn from(error: heddle_io::Error) -> Self {
        Error::Io(error)
    }
}

/// Why a batch was not appended. Nothing of it was stored and no state has changed.
#[derive(Debug, Clone)]
pub enum AppendError {
    /// The bytes are not one whole batch of magic 2: INVALID_RECORD, whatever the log is.
    NotOneBatch(BatchError),
    /// The bytes are not a batch, or their checksum does not match: CORRUPT_MESSAGE.
    Corrupt(BatchError),
    /// Not magic 2: UNSUPPORTED_FOR_MESSAGE_FORMAT.
    UnsupportedFormat(i8),
    /// Above `max.message.bytes`: MESSAGE_TOO_LARGE.
    TooLarge {
        /// The size of the batch as it would be stored, in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Above `segment.bytes`: RECORD_LIST_TOO_LARGE.
    LargerThanSegment {
        /// The size of the batch as it would be stored, in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A well-formed batch that a client may not send: INVALID_RECORD.
    InvalidRecord {
        /// What is wrong.
        reason: &'static str,
    },
    /// Records that the topic does not take: INVALID_TIMESTAMP if one is at fault for its time, else INVALID_RECORD.
    InvalidRecords(Box<InvalidRecords>),
    /// A codec that does not exist: UNSUPPORTED_COMPRESSION_TYPE.
    UnsupportedCompression,
    /// The producer's sequence does not follow its last: OUT_OF_ORDER_SEQUENCE_NUMBER.
    OutOfOrderSequence {
        /// The sequence that would have followed.
        expected: i32,
        /// The sequence that came.
        found: i32,
    },
    /// An epoch older than the producer's newest: INVALID_PRODUCER_EPOCH.
    InvalidProducerEpoch {
        /// The newest epoch.
        current: i16,
        /// The epoch that came.
        found: i16,
    },
    /// A transactional batch where there are no transactions: INVALID_TXN_STATE.
    InvalidTxnState,
    /// The append was made under an older leader epoch than the log has seen: NOT_LEADER_OR_FOLLOWER.
    StaleLeaderEpoch,
    /// Offsets given by a leader do not continue the log (case 35): the follower must truncate first.
    NotContiguous {
        /// The offset that would have continued the log.
        expected: Offset,
        /// The base offset that came.
        found: Offset,
    },
    /// The log is offline or deleted: KAFKA_STORAGE_ERROR.
    Offline(Error),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::NotOneBatch(error) => write!(f, "not one record batch: {error}"),
            AppendError::Corrupt(error) => write!(f, "corrupt batch: {error}"),
            AppendError::UnsupportedFormat(magic) => write!(f, "magic {magic} is not supported, only 2"),
            AppendError::TooLarge { size, limit } => write!(f, "batch of {size} bytes, at most {limit} are taken"),
            AppendError::LargerThanSegment { size, limit } => {
                write!(f, "batch of {size} bytes, a segment holds {limit}")
            }
            AppendError::InvalidRecord { reason } => write!(f, "invalid record: {reason}"),
            AppendError::InvalidRecords(invalid) => write!(f, "{} records that the topic does not take", invalid.count),
            AppendError::UnsupportedCompression => write!(f, "unknown compression codec"),
            AppendError::OutOfOrderSequence { expected, found } => {
                write!(f, "sequence {found} of the producer came where {expected} was due")
            }
            AppendError::InvalidProducerEpoch { current, found } => {
                write!(f, "producer epoch {found} is older than {current}")
            }
            AppendError::InvalidTxnState => write!(f, "transactions are not supported"),
            AppendError::StaleLeaderEpoch => write!(f, "append under an old leader epoch"),
            AppendError::NotContiguous { expected, found } => {
                write!(f, "base offset {found} does not continue the log, which ends at {expected}")
            }
            AppendError::Offline(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for AppendError {}

/// Why nothing was read.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// The offset is before the log's start or after its end: OFFSET_OUT_OF_RANGE.
    OutOfRange {
        /// The first offset that can be read.
        log_start: LogStartOffset,
        /// The end of the log.
        log_end: LogEndOffset,
    },
    /// The log cannot be read: KAFKA_STORAGE_ERROR.
    Failed(Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::OutOfRange { log_start, log_end } => {
                write!(f, "offset is outside of the log, which holds {log_start} to {log_end}")
            }
            ReadError::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ReadError {}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        ReadError::Failed(error)
    }
}

impl From<heddle_io::Error> for ReadError {
    fn from(error: heddle_io::Error) -> Self {
        ReadError::Failed(Error::Io(error))
    }
}
