//! What can go wrong when talking to a cluster, in plain words, and whether trying again can help.

use std::fmt;
use std::time::Duration;

use heddle_protocol::{ApiKey, ErrorCode, Reaction};
use heddle_record::PartitionIndex;

/// Why a call to a cluster did not succeed. Cheap to clone: every record of a batch gets its batch's error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No broker could be reached at the addresses that were given.
    Unreachable {
        /// The addresses, comma separated.
        addresses: String,
        /// What the last attempt said.
        reason: String,
    },
    /// The connection to a broker ended while something was asked of it, or could not be made.
    Disconnected {
        /// `host:port`.
        broker: String,
        /// What ended it.
        reason: String,
    },
    /// A broker did not answer in time. Whether it did the work is not known.
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// A broker answered with an error of the Kafka protocol.
    Broker {
        /// The error.
        code: ErrorCode,
        /// What it is about: a topic, a partition, a broker.
        subject: String,
        /// What the broker says about it.
        message: Option<String>,
    },
    /// The broker and this client have no version of an API in common, or the broker lacks the API.
    Unsupported {
        /// The API.
        api: ApiKey,
        /// What the broker offers, in words.
        offered: String,
    },
    /// There is no such topic.
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// The topic has no such partition.
    UnknownPartition {
        /// The topic's name.
        topic: String,
        /// The partition that was named.
        partition: PartitionIndex,
        /// How many there are.
        partition_count: i32,
    },
    /// The partition has no leader at the moment.
    NoLeader {
        /// The topic's name.
        topic: String,
        /// The partition.
        partition: PartitionIndex,
    },
    /// What a broker sent cannot be understood.
    Malformed {
        /// `host:port`, or the partition for records.
        from: String,
        /// What is wrong with it.
        what: String,
    },
    /// What was asked cannot be sent.
    Invalid {
        /// Why.
        what: String,
    },
    /// The record is larger than a batch may be.
    RecordTooLarge {
        /// The record's size.
        bytes: u64,
        /// The limit, and what sets it.
        bytes_max: u64,
    },
    /// The batch may have been written or not: it was sent and no answer came, and sending it again could write it twice.
    OutcomeUnknown {
        /// Topic and partition.
        subject: String,
    },
    /// The producer, consumer or client was closed.
    Closed,
}

/// The result of a call to a cluster.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the same call can succeed later without anybody changing anything.
    pub fn retriable(&self) -> bool {
        match self {
            Error::Broker { code, .. } => code.is_retriable(),
            Error::Unreachable { .. }
            | Error::Disconnected { .. }
            | Error::TimedOut { .. }
            | Error::NoLeader { .. } => true,
            _ => false,
        }
    }

    /// The Kafka error code that a broker answered with, if one did.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the cached leader of a partition, or the controller, may be out of date.
    pub(crate) fn invalidates_metadata(&self) -> bool {
        match self {
            Error::Broker { code, .. } => {
                code.reaction() == Reaction::Refresh
                    || matches!(code, ErrorCode::NotController | ErrorCode::UnknownLeaderEpoch)
            }
            Error::Disconnected { .. } | Error::TimedOut { .. } | Error::NoLeader { .. } => true,
            _ => false,
        }
    }

    /// The error that `code` stands for, `Ok` where it is none. A code that Kafka 4.3 does not know counts as
    /// `UNKNOWN_SERVER_ERROR`.
    pub(crate) fn check(code: i16, message: Option<&str>, subject: impl FnOnce() -> String) -> Result<()> {
        let code = ErrorCode::from_i16(code).unwrap_or(ErrorCode::UnknownServerError);
        if code == ErrorCode::None {
            return Ok(());
        }
        Err(Error::Broker { code, subject: subject(), message: message.filter(|it| !it.is_empty()).map(str::to_owned) })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreachable { addresses, reason } => {
                write!(f, "no broker could be reached at {addresses}: {reason}")
            }
            Error::Disconnected { broker, reason } => write!(f, "connection to {broker}: {reason}"),
            Error::TimedOut { what, after } => write!(f, "{what}: no answer within {:.1} s", after.as_secs_f64()),
            Error::Broker { code, subject, message: Some(message) } => {
                write!(f, "{subject}: {message} ({})", code.name())
            }
            Error::Broker { code, subject, message: None } => write!(f, "{subject}: {}", in_words(*code)),
            Error::Unsupported { api, offered } => {
                write!(f, "this client and the broker share no version of {}: the broker offers {offered}", api.name())
            }
            Error::UnknownTopic { topic } => write!(f, "there is no topic {topic:?}"),
            Error::UnknownPartition { topic, partition, partition_count } => {
                let last = partition_count - 1;
                write!(f, "topic {topic:?} has no partition {partition}: its partitions are 0 to {last}")
            }
            Error::NoLeader { topic, partition } => write!(f, "{topic}-{partition} has no leader at the moment"),
            Error::Malformed { from, what } => write!(f, "{from} sent what cannot be understood: {what}"),
            Error::Invalid { what } => f.write_str(what),
            Error::RecordTooLarge { bytes, bytes_max } => {
                write!(f, "a record of {bytes} bytes is above the limit of {bytes_max} bytes")
            }
            Error::OutcomeUnknown { subject } => {
                write!(f, "{subject}: the batch was sent but no answer came; it may have been written or not")
            }
            Error::Closed => f.write_str("closed"),
        }
    }
}

impl std::error::Error for Error {}

/// The codes that people meet most, in words; the name of any other.
fn in_words(code: ErrorCode) -> String {
    let words = match code {
        ErrorCode::OffsetOutOfRange => "that offset is outside of the log",
        ErrorCode::UnknownTopicOrPartition => "no such topic or partition",
        ErrorCode::LeaderNotAvailable => "the partition has no leader at the moment",
        ErrorCode::MessageTooLarge => "the batch is above the topic's max.message.bytes",
        ErrorCode::NotEnoughReplicas => "fewer replicas are in sync than min.insync.replicas asks for",
        ErrorCode::TopicAlreadyExists => "the topic exists already",
        ErrorCode::InvalidTopicException => "the topic's name is not allowed",
        ErrorCode::InvalidPartitions => "that number of partitions is not allowed",
        ErrorCode::InvalidReplicationFactor => "that replication factor is not possible with the brokers there are",
        ErrorCode::KafkaStorageError => "the broker's disk failed",
        _ => return code.name().to_owned(),
    };
    format!("{words} ({})", code.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_tried_again() {
        let broker = |code| Error::Broker { code, subject: "t-0".to_owned(), message: None };
        assert!(broker(ErrorCode::NotLeaderOrFollower).retriable());
        assert!(broker(ErrorCode::NotLeaderOrFollower).invalidates_metadata());
        assert!(broker(ErrorCode::NotEnoughReplicas).retriable());
        assert!(!broker(ErrorCode::NotEnoughReplicas).invalidates_metadata());
        assert!(!broker(ErrorCode::MessageTooLarge).retriable());
        assert!(!Error::Closed.retriable());
    }

    #[test]
    fn the_brokers_own_words_come_first() {
        let message = Some("min.insync.replicas is 3".to_owned());
        let error = Error::Broker { code: ErrorCode::InvalidConfig, subject: "topic t".to_owned(), message };
        assert_eq!(error.to_string(), "topic t: min.insync.replicas is 3 (INVALID_CONFIG)");
        assert!(Error::check(0, None, String::new).is_ok());
    }
}
