//! Messages as JSON, for people: the bytes of any message become the text that Kafka's own converters write.
//!
//! Walks the schema's tables ([`crate::schema`]), not the typed messages, and so knows every message without code for
//! it. Null is `null`, bytes and records are base64, a uuid is base64url without padding, an int64 is a plain number.
//! Left out are fields that the version lacks, tagged fields at their default, and unknown tagged fields.
//! Nothing here is fast, and nothing reads JSON. Record batches ([`batch`]) have their own form, whole frames
//! ([`frame`]) are a header and a body.

pub mod batch;
pub mod frame;

use crate::base64::{self, Alphabet};
use crate::error::{DecodeError, DecodeErrorKind};
use crate::field::{Context, Field, Nullable, read_presence};
use crate::message::context;
use crate::reader::Reader;
use crate::schema::{DefaultValue, FieldKind, FieldSpec, MessageKind, MessageSpec, ReencodeError, StructSpec};
use crate::uuid::Uuid;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// A message that was decoded, shown and encoded again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The version that it was decoded in.
    pub version: i16,
    /// Its fields as one JSON object.
    pub json: String,
    /// What its typed codec writes for it, with its prefix if its kind has one. Unknown tagged fields are gone.
    pub bytes: Vec<u8>,
    /// Bytes that followed the message.
    pub trailing: usize,
}

/// Decodes a message of `version` with its typed codec, encodes it again, and writes its fields as JSON.
///
/// The bytes of a key start with its int16 record type; those of a value and of the consumer protocol with an int16
/// version, which counts instead of `version`; those of a metadata record with both.
///
/// # Errors
/// [`ReencodeError`] when the bytes are no such message.
pub fn show(spec: &MessageSpec, version: i16, bytes: &[u8]) -> Result<Shown, ReencodeError> {
    let mut reader = Reader::new(bytes);
    let (version, prefix) = read_prefix(spec, version, &mut reader).map_err(ReencodeError::Decode)?;
    let body = reader.remaining();
    let (body_again, read) = (spec.reencode)(body, version).map_err(|error| error.after(reader.position()))?;
    let mut json = String::new();
    write_message(&mut json, spec, version, &mut reader).map_err(ReencodeError::Decode)?;
    let mut again = Vec::from(prefix);
    again.extend_from_slice(&body_again);
    Ok(Shown { version, json, bytes: again, trailing: body.len() - read })
}

/// Takes what goes before some kinds of message; returns the version to decode and the prefix itself.
fn read_prefix<'a>(spec: &MessageSpec, version: i16, reader: &mut Reader<'a>) -> Result<(i16, &'a [u8]), DecodeError> {
    let (has_type, has_version) = match spec.kind {
        MessageKind::Key => (true, false),
        MessageKind::Value | MessageKind::Embedded => (false, true),
        MessageKind::Metadata => (true, true),
        _ => (false, false),
    };
    let whole = reader.remaining();
    if has_type {
        let start = reader.clone();
        let found = i16::from_be_bytes(reader.array("record type")?);
        if found != spec.key {
            return Err(start.error("record type", DecodeErrorKind::RecordType(found)));
        }
    }
    let version = if has_version { i16::from_be_bytes(reader.array("version")?) } else { version };
    let (prefix, _) = whole.split_at(whole.len() - reader.remaining().len());
    Ok((version, prefix))
}

/// Appends the fields of the message at `reader` as one JSON object.
///
/// # Errors
/// [`DecodeError`] when the bytes are no such message or the version is unknown.
pub fn write_message(
    out: &mut String,
    spec: &MessageSpec,
    version: i16,
    reader: &mut Reader<'_>,
) -> Result<(), DecodeError> {
    if !spec.versions.contains(version) {
        return Err(reader.error(spec.name, DecodeErrorKind::Version(version)));
    }
    write_struct(out, spec.structure, reader, context(spec.flexible_from, version))
}

fn write_struct(
    out: &mut String,
    spec: &StructSpec,
    reader: &mut Reader<'_>,
    context: Context,
) -> Result<(), DecodeError> {
    // Tagged fields come last on the wire and in the schema's order in JSON: gather, then write.
    let mut texts: Vec<String> = spec.fields.iter().map(|_| String::new()).collect();
    for (field, text) in spec.fields.iter().zip(&mut texts) {
        if field.tag.is_none() && field.versions.contains(context.version) {
            write_field(text, field, reader, context)?;
        }
    }
    if context.flexible {
        for _ in 0..reader.tag_count(spec.name)? {
            let (tag, mut value) = reader.tag(spec.name)?;
            let known = |field: &FieldSpec| field.tag == Some(tag) && field.versions.contains(context.version);
            if let Some((field, text)) = spec.fields.iter().zip(&mut texts).find(|(field, _)| known(field)) {
                text.clear();
                write_field(text, field, &mut value, context)?;
                let mut default = String::new();
                write_default(&mut default, field, context);
                if *text == default {
                    text.clear();
                }
            }
        }
    }
    write_object(out, spec.fields.iter().zip(&texts).filter(|(_, text)| !text.is_empty()));
    Ok(())
}

fn write_object<'t>(out: &mut String, fields: impl Iterator<Item = (&'t FieldSpec, &'t String)>) {
    out.push('{');
    for (index, (field, text)) in fields.enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, field.name);
        out.push(':');
        out.push_str(text);
    }
    out.push('}');
}

fn write_field(
    out: &mut String,
    field: &FieldSpec,
    reader: &mut Reader<'_>,
    context: Context,
) -> Result<(), DecodeError> {
    let context = if field.rigid { context.rigid() } else { context };
    let nullable = field.nullable.is_some_and(|versions| versions.contains(context.version));
    let start = reader.clone();
    if write_value(out, &field.kind, reader, context, nullable, field.name)? {
        return Ok(());
    }
    if !nullable {
        return Err(start.error(field.name, DecodeErrorKind::Null));
    }
    out.push_str("null");
    Ok(())
}

/// Appends a value; returns false, having appended nothing, when it is null.
fn write_value(
    out: &mut String,
    kind: &FieldKind,
    reader: &mut Reader<'_>,
    context: Context,
    nullable: bool,
    what: &'static str,
) -> Result<bool, DecodeError> {
    match kind {
        FieldKind::Bool => write_plain(out, bool::read(reader, context, what)?),
        FieldKind::Int8 => write_plain(out, i8::read(reader, context, what)?),
        FieldKind::Int16 => write_plain(out, i16::read(reader, context, what)?),
        FieldKind::Uint16 => write_plain(out, u16::read(reader, context, what)?),
        FieldKind::Int32 => write_plain(out, i32::read(reader, context, what)?),
        FieldKind::Int64 => write_plain(out, i64::read(reader, context, what)?),
        FieldKind::Float64 => write_float(out, f64::read(reader, context, what)?),
        FieldKind::Uuid => write_uuid(out, Uuid::read(reader, context, what)?),
        FieldKind::String => match <&str>::read_nullable(reader, context, what)? {
            Some(text) => write_string(out, text),
            None => return Ok(false),
        },
        FieldKind::Bytes | FieldKind::Records => match <&[u8]>::read_nullable(reader, context, what)? {
            Some(bytes) => write_bytes(out, bytes),
            None => return Ok(false),
        },
        FieldKind::Struct(spec) => {
            if nullable && !read_presence(reader, what)? {
                return Ok(false);
            }
            write_struct(out, spec, reader, context)?;
        }
        FieldKind::Array(element) => return write_array(out, element, reader, context, what),
    }
    Ok(true)
}

fn write_array(
    out: &mut String,
    element: &FieldKind,
    reader: &mut Reader<'_>,
    context: Context,
    what: &'static str,
) -> Result<bool, DecodeError> {
    let Some(count) = reader.count(context.flexible, 1, what)? else { return Ok(false) };
    out.push('[');
    for index in 0..count {
        if index > 0 {
            out.push(',');
        }
        let start = reader.clone();
        if !write_value(out, element, reader, context, false, what)? {
            return Err(start.error(what, DecodeErrorKind::Null));
        }
    }
    out.push(']');
    Ok(true)
}

/// Appends the default of a field, as a tagged field that is not there has it.
fn write_default(out: &mut String, field: &FieldSpec, context: Context) {
    match (&field.default, &field.kind) {
        (DefaultValue::Null, _) => out.push_str("null"),
        (DefaultValue::True, _) => out.push_str("true"),
        (DefaultValue::Number(number), _) => write_plain(out, *number),
        (DefaultValue::Zero, FieldKind::Bool) => out.push_str("false"),
        (DefaultValue::Zero, FieldKind::Float64) => write_float(out, 0.0),
        (DefaultValue::Zero, FieldKind::Uuid) => write_uuid(out, Uuid::ZERO),
        (DefaultValue::Zero, FieldKind::String | FieldKind::Bytes | FieldKind::Records) => out.push_str("\"\""),
        (DefaultValue::Zero, FieldKind::Array(_)) => out.push_str("[]"),
        (DefaultValue::Zero, FieldKind::Struct(spec)) => {
            let mut texts: Vec<String> = spec.fields.iter().map(|_| String::new()).collect();
            for (field, text) in spec.fields.iter().zip(&mut texts) {
                if field.tag.is_none() && field.versions.contains(context.version) {
                    write_default(text, field, context);
                }
            }
            write_object(out, spec.fields.iter().zip(&texts).filter(|(_, text)| !text.is_empty()));
        }
        (DefaultValue::Zero, _) => out.push('0'),
    }
}

fn write_plain(out: &mut String, value: impl core::fmt::Display) {
    write!(out, "{value}").expect("a String takes everything");
}

/// JSON has no word for what is not finite: Kafka quotes it.
fn write_float(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
    } else {
        write!(out, "{value:?}").expect("a String takes everything");
    }
}

fn write_uuid(out: &mut String, value: Uuid) {
    write!(out, "\"{value}\"").expect("a String takes everything");
}

fn write_bytes(out: &mut String, bytes: &[u8]) {
    out.push('"');
    base64::write(out, bytes, Alphabet::Standard).expect("a String takes everything");
    out.push('"');
}

/// Appends bytes in hex, or null.
fn write_hex(out: &mut String, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return out.push_str("null") };
    out.push('"');
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a String takes everything");
    }
    out.push('"');
}

/// Appends a string in quotes, escaped as JSON asks.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => write!(out, "\\u{:04X}", c as u32).expect("a String takes everything"),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn strings_are_escaped() {
        assert_eq!(text(|out| write_string(out, "a\"\\\n\0é🦀\u{ffff}")), "\"a\\\"\\\\\\n\\u0000é🦀\u{ffff}\"");
    }

    #[test]
    fn floats_keep_their_sign_and_say_what_they_are() {
        let cases = [
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
            (1e300, "1e300"),
        ];
        for (value, expected) in cases {
            assert_eq!(text(|out| write_float(out, value)), expected);
        }
    }

    #[test]
    fn the_version_of_a_value_is_in_its_bytes() {
        let spec = MessageSpec::named("OffsetCommitValue").unwrap();
        let bytes = [&[0, 1][..], &[0; 8], &[0, 0], &[0; 8], &[0xff; 8]].concat();
        let shown = show(spec, 0, &bytes).unwrap();
        assert_eq!((shown.version, shown.trailing, &shown.bytes), (1, 0, &bytes));
        assert_eq!(shown.json, "{\"offset\":0,\"metadata\":\"\",\"commitTimestamp\":0,\"expireTimestamp\":-1}");
    }

    #[test]
    fn a_key_of_another_type_is_refused() {
        let spec = MessageSpec::named("OffsetCommitKey").unwrap();
        let error = show(spec, 0, &[0, 2, 0, 0]).unwrap_err();
        assert_eq!(error.to_string(), "record type: record type 2 is another's, at byte 0");
    }

    #[test]
    fn errors_count_from_the_first_byte() {
        let spec = MessageSpec::named("OffsetCommitValue").unwrap();
        let ReencodeError::Decode(error) = show(spec, 0, &[0, 1, 9]).unwrap_err() else { panic!("no such value") };
        assert_eq!((error.what, error.at), ("OffsetCommitValue.offset", 2));
    }

    #[test]
    fn bytes_behind_a_message_are_counted() {
        let spec = MessageSpec::response(12).unwrap();
        let shown = show(spec, 0, &[0, 5, 1, 2, 3]).unwrap();
        assert_eq!((shown.json.as_str(), shown.trailing), ("{\"errorCode\":5}", 3));
    }
}
