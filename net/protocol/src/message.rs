//! What every message can do, whatever its fields.

use crate::api_key::ApiKey;
use crate::error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};
use crate::field::{Context, Field};
use crate::reader::Reader;
use crate::writer::Writer;
use core::fmt;

/// An inclusive range of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: i16,
    /// The newest.
    pub max: i16,
}

impl VersionRange {
    /// Whether `version` lies in the range.
    #[must_use]
    pub const fn contains(self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// A message of the protocol: a request, a response, a header, or a record that a broker keeps for itself.
pub trait Message<'a>: Field<'a> {
    /// Its name, such as `FetchRequest`.
    const NAME: &'static str;
    /// The versions that its schema describes.
    const VERSIONS: VersionRange;
    /// The first flexible version, if there is one.
    const FLEXIBLE_FROM: Option<i16>;

    /// Reads the message; bytes that follow it stay in `reader`.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no such message or the version is unknown.
    #[inline]
    fn decode(reader: &mut Reader<'a>, version: i16) -> Result<Self, DecodeError> {
        if !Self::VERSIONS.contains(version) {
            return Err(reader.error(Self::NAME, DecodeErrorKind::Version(version)));
        }
        Self::read(reader, context(Self::FLEXIBLE_FROM, version), Self::NAME)
    }

    /// Appends the message.
    ///
    /// # Errors
    /// [`EncodeError`] when the version is unknown or cannot express the message.
    #[inline]
    fn encode(&self, writer: &mut Writer, version: i16) -> Result<(), EncodeError> {
        if !Self::VERSIONS.contains(version) {
            return Err(EncodeError { what: Self::NAME, kind: EncodeErrorKind::Version(version) });
        }
        self.write(writer, context(Self::FLEXIBLE_FROM, version), Self::NAME)
    }
}

/// What a version of a message means for its fields.
pub(crate) const fn context(flexible_from: Option<i16>, version: i16) -> Context {
    Context { version, flexible: matches!(flexible_from, Some(first) if version >= first) }
}

/// A request and the response that belongs to it.
pub trait Request<'a>: Message<'a> {
    /// The API.
    const KEY: ApiKey;
    /// The answer.
    type Response<'r>: Message<'r>;
}

/// The key of a record that a coordinator keeps in an internal topic.
///
/// On disk an int16, the record type, goes before the key, and an int16, its version, before the value.
pub trait RecordKey<'a>: Message<'a> {
    /// What the key starts with.
    const RECORD_TYPE: i16;
    /// The value of records with this key.
    type Value<'v>: Message<'v>;
}

/// Reads the int16 that goes before a message: the record type of a key, the version of a value or of the consumer
/// protocol inside JoinGroup and SyncGroup.
///
/// # Errors
/// [`DecodeErrorKind::Truncated`] when there are fewer than two bytes.
pub fn decode_prefix(reader: &mut Reader<'_>) -> Result<i16, DecodeError> {
    reader.array("prefix").map(i16::from_be_bytes)
}

/// Reads a message that its int16 version goes before: the value of an internal record, the consumer protocol.
///
/// # Errors
/// As [`Message::decode`].
pub fn decode_versioned<'a, M: Message<'a>>(bytes: &'a [u8]) -> Result<M, DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = decode_prefix(&mut reader)?;
    M::decode(&mut reader, version)
}

/// Appends a message with its int16 version before it.
///
/// # Errors
/// As [`Message::encode`].
pub fn encode_versioned<'a, M: Message<'a>>(message: &M, writer: &mut Writer, version: i16) -> Result<(), EncodeError> {
    writer.slice(&version.to_be_bytes());
    message.encode(writer, version)
}

/// Appends a record key with its int16 type before it. Keys have one version, 0.
///
/// # Errors
/// As [`Message::encode`].
pub fn encode_key<'a, K: RecordKey<'a>>(key: &K, writer: &mut Writer) -> Result<(), EncodeError> {
    writer.slice(&K::RECORD_TYPE.to_be_bytes());
    key.encode(writer, 0)
}
