//! The names that generated code uses.

pub(crate) use crate::array::Array;
pub(crate) use crate::error::{DecodeError, EncodeError};
pub(crate) use crate::field::{
    Context, Field, Nullable, Records, absent, nullable_struct, read_presence, read_some, write_some,
};
pub(crate) use crate::generated::ApiKey;
pub(crate) use crate::message::{Message, RecordKey, Request, VersionRange};
pub(crate) use crate::reader::Reader;
pub(crate) use crate::schema::{DefaultValue, FieldKind, FieldSpec, MessageKind, MessageSpec, StructSpec, reencode};
pub(crate) use crate::uuid::Uuid;
pub(crate) use crate::writer::Writer;

/// The default of a field of bytes.
pub(crate) const NO_BYTES: &[u8] = &[];
