//! The schema as data: what `schema/*.txt` says about each message, for code that walks any of them.
//!
//! The tables are generated. Typed code needs none of them; `json.rs` shows messages through them.

use crate::error::{DecodeError, EncodeError};
use crate::message::{Message, VersionRange};
use crate::reader::Reader;
use crate::writer::Writer;
use alloc::vec::Vec;
use core::fmt;

pub use crate::generated::MESSAGES;

/// What a message is for, and what goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// The body of a request.
    Request,
    /// The body of a response.
    Response,
    /// The header of a request or response.
    Header,
    /// The key of a record in an internal topic; its int16 record type goes before it.
    Key,
    /// The value of a record in an internal topic; its int16 version goes before it.
    Value,
    /// The consumer protocol inside JoinGroup and SyncGroup; its int16 version goes before it.
    Embedded,
    /// A record of the cluster's metadata log; its int16 record type and its int16 version go before it.
    Metadata,
    /// Anything else that is stored or sent without more ado.
    Data,
}

/// One message.
#[derive(Debug)]
pub struct MessageSpec {
    /// Its name, such as `FetchRequest`.
    pub name: &'static str,
    /// What it is for.
    pub kind: MessageKind,
    /// API key or record type; -1 where there is none.
    pub key: i16,
    /// The versions described.
    pub versions: VersionRange,
    /// The first flexible version.
    pub flexible_from: Option<i16>,
    /// Its fields.
    pub structure: &'static StructSpec,
    /// Decodes the message with its typed codec and encodes it again.
    pub reencode: Reencode,
}

/// Decodes and encodes a message of the version: the bytes, and how many were read.
pub type Reencode = fn(&[u8], i16) -> Result<(Vec<u8>, usize), ReencodeError>;

/// A structure.
#[derive(Debug)]
pub struct StructSpec {
    /// Its name in the schema.
    pub name: &'static str,
    /// Its fields in the order of the schema, tagged ones among them.
    pub fields: &'static [FieldSpec],
}

/// A field of a structure.
#[derive(Debug)]
pub struct FieldSpec {
    /// Its name in JSON, such as `throttleTimeMs`.
    pub name: &'static str,
    /// Its type.
    pub kind: FieldKind,
    /// The versions that have it.
    pub versions: VersionRange,
    /// The versions in which it may be null.
    pub nullable: Option<VersionRange>,
    /// Its tag, if it is a tagged field.
    pub tag: Option<u32>,
    /// Whether its length is never compact, even in flexible versions.
    pub rigid: bool,
    /// Its default.
    pub default: DefaultValue,
}

/// The type of a field.
#[derive(Clone, Copy, Debug)]
pub enum FieldKind {
    /// One byte, zero or not.
    Bool,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Unsigned, 16 bits.
    Uint16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE 754, 64 bits.
    Float64,
    /// 16 bytes.
    Uuid,
    /// UTF-8.
    String,
    /// Bytes.
    Bytes,
    /// Record batches.
    Records,
    /// A structure.
    Struct(&'static StructSpec),
    /// An array.
    Array(&'static FieldKind),
}

/// The value of a field that is not there.
#[derive(Clone, Copy, Debug)]
pub enum DefaultValue {
    /// Zero, false, empty, or a structure of defaults.
    Zero,
    /// Null.
    Null,
    /// A number.
    Number(i64),
    /// True.
    True,
}

impl MessageSpec {
    /// The request of an API.
    #[must_use]
    pub fn request(key: i16) -> Option<&'static MessageSpec> {
        MESSAGES.iter().find(|message| message.kind == MessageKind::Request && message.key == key)
    }

    /// The response of an API.
    #[must_use]
    pub fn response(key: i16) -> Option<&'static MessageSpec> {
        MESSAGES.iter().find(|message| message.kind == MessageKind::Response && message.key == key)
    }

    /// The message of this name, such as `OffsetCommitValue`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static MessageSpec> {
        MESSAGES.iter().find(|message| message.name == name)
    }

    /// Whether `version` is flexible.
    #[must_use]
    pub fn is_flexible(&self, version: i16) -> bool {
        self.flexible_from.is_some_and(|first| version >= first)
    }
}

/// Why bytes could not be decoded and encoded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReencodeError {
    /// They are no such message.
    Decode(DecodeError),
    /// They are, but the message cannot be written.
    Encode(EncodeError),
}

impl ReencodeError {
    /// The same error in a message that `bytes` go before.
    #[must_use]
    pub fn after(self, bytes: usize) -> ReencodeError {
        match self {
            ReencodeError::Decode(error) => ReencodeError::Decode(DecodeError { at: error.at + bytes, ..error }),
            ReencodeError::Encode(error) => ReencodeError::Encode(error),
        }
    }
}

impl fmt::Display for ReencodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReencodeError::Decode(error) => error.fmt(f),
            ReencodeError::Encode(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReencodeError {}

/// One typed codec there and back.
pub(crate) fn reencode<'a, M: Message<'a>>(bytes: &'a [u8], version: i16) -> Result<(Vec<u8>, usize), ReencodeError> {
    let mut reader = Reader::new(bytes);
    let message = M::decode(&mut reader, version).map_err(ReencodeError::Decode)?;
    let mut writer = Writer::new();
    message.encode(&mut writer, version).map_err(ReencodeError::Encode)?;
    Ok((writer.into_bytes(), reader.position()))
}
