//! What can be wrong with bytes that came in and with a message that is to go out.
//!
//! Owns [`DecodeError`] and [`EncodeError`]. Neither holds anything on the heap: refusing bad bytes costs nothing.

use core::fmt;

/// Bytes that are no message: what was being read, where, and why it cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The structure and field that was being read, such as `PartitionProduceData.records`.
    pub what: &'static str,
    /// The byte at which that value starts, counted from the start of the reader's bytes.
    pub at: usize,
    /// Why it cannot be read.
    pub kind: DecodeErrorKind,
}

/// Why bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// The value takes more bytes than remain.
    Truncated {
        /// Bytes that the value needs, as far as known.
        needed: usize,
        /// Bytes that remain.
        remaining: usize,
    },
    /// An array announces more elements than the remaining bytes can hold.
    Count {
        /// Elements announced.
        count: u32,
        /// Bytes that remain.
        remaining: usize,
    },
    /// Null where the version allows none.
    Null,
    /// The presence byte of a structure is neither null nor present.
    Presence(i8),
    /// A string above 2¹⁵−1 bytes, the limit of Kafka in every version.
    StringLength(usize),
    /// A variable-length number with more than 32 bits.
    Varint,
    /// A string that is not UTF-8.
    Utf8,
    /// A version that the schema does not describe.
    Version(i16),
    /// An API key that the schema does not describe.
    ApiKey(i16),
    /// The record type of another key.
    RecordType(i16),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match self.kind {
            DecodeErrorKind::Truncated { needed, remaining } => {
                write!(f, "{needed} bytes needed, {remaining} remain")
            }
            DecodeErrorKind::Count { count, remaining } => {
                write!(f, "{count} elements announced, {remaining} bytes remain")
            }
            DecodeErrorKind::Null => f.write_str("null is not allowed"),
            DecodeErrorKind::Presence(byte) => write!(f, "presence byte {byte} is neither -1 nor 1"),
            DecodeErrorKind::StringLength(length) => write!(f, "a string of {length} bytes is too long"),
            DecodeErrorKind::Varint => f.write_str("varint of more than 32 bits"),
            DecodeErrorKind::Utf8 => f.write_str("not UTF-8"),
            DecodeErrorKind::Version(version) => write!(f, "unknown version {version}"),
            DecodeErrorKind::ApiKey(key) => write!(f, "unknown API key {key}"),
            DecodeErrorKind::RecordType(other) => write!(f, "record type {other} is another's"),
        }?;
        write!(f, ", at byte {}", self.at)
    }
}

impl core::error::Error for DecodeError {}

/// A message that its version cannot express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeError {
    /// The structure and field that cannot be written.
    pub what: &'static str,
    /// Why it cannot be written.
    pub kind: EncodeErrorKind,
}

/// Why a message cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeErrorKind {
    /// The field does not exist in this version, is not at its default, and may not be left out silently.
    Absent {
        /// The version that lacks the field.
        version: i16,
    },
    /// Null in a version that does not allow it.
    Null {
        /// The version that forbids null.
        version: i16,
    },
    /// More bytes or elements than the length field can say.
    TooLong {
        /// Bytes or elements.
        length: usize,
    },
    /// A version that the schema does not describe.
    Version(i16),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match self.kind {
            EncodeErrorKind::Absent { version } => write!(f, "version {version} has no such field"),
            EncodeErrorKind::Null { version } => write!(f, "null is not allowed in version {version}"),
            EncodeErrorKind::TooLong { length } => write!(f, "length {length} does not fit"),
            EncodeErrorKind::Version(version) => write!(f, "unknown version {version}"),
        }
    }
}

impl core::error::Error for EncodeError {}
