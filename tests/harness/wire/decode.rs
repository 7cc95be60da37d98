//! From the bytes of a response to a value, through the codec's tables.
//!
//! Fields at their default are left out, so that versions which say the same look the same. An error code is its name.

use heddle_protocol::ErrorCode;
use heddle_protocol::json;
use heddle_protocol::schema::{DefaultValue, FieldKind, FieldSpec, MessageSpec, StructSpec};
use serde_json::Value as Json;

use super::batch;
use super::value::Value;

/// The body of a response.
///
/// # Errors
/// The bytes are no such response, or more.
pub fn response(key: i16, version: i16, frame: &[u8]) -> Result<Value, String> {
    let shown = json::frame::show_response(key, version, frame).map_err(|error| error.to_string())?;
    if shown.trailing > 0 {
        return Err(format!("{} bytes too many", shown.trailing));
    }
    let json: Json = serde_json::from_str(&shown.json).map_err(|error| error.to_string())?;
    let spec = MessageSpec::response(key).ok_or("no such response")?;
    Ok(structure(spec.structure, json.get("body").ok_or("no body")?))
}

fn structure(spec: &StructSpec, json: &Json) -> Value {
    let fields = spec.fields.iter().filter_map(|field| {
        let value = value(field.name, &field.kind, json.get(field.name)?);
        (!is_default(field, &value)).then(|| (field.name.to_owned(), value))
    });
    Value::Map(fields.collect())
}

fn value(name: &str, kind: &FieldKind, json: &Json) -> Value {
    match (kind, json) {
        (_, Json::Null) => Value::Null,
        (FieldKind::Struct(spec), json) => structure(spec, json),
        (FieldKind::Array(element), Json::Array(items)) => {
            Value::List(items.iter().map(|item| value(name, element, item)).collect())
        }
        (FieldKind::Records, Json::String(text)) => batch::show(&from_base64(text)),
        (FieldKind::Bytes, Json::String(text)) => Value::Bytes(from_base64(text)),
        (FieldKind::Int16, Json::Number(number)) if name == "errorCode" || name.ends_with("ErrorCode") => {
            let code = number.as_i64().unwrap_or_default();
            match i16::try_from(code).ok().and_then(ErrorCode::from_i16) {
                Some(known) if code != 0 => Value::Text(known.name().to_owned()),
                _ => Value::Int(code),
            }
        }
        (_, Json::Bool(it)) => Value::Bool(*it),
        (_, Json::Number(number)) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
        }
        (_, Json::String(text)) => Value::Text(text.clone()),
        (_, other) => Value::Text(other.to_string()),
    }
}

fn is_default(field: &FieldSpec, value: &Value) -> bool {
    match (&field.default, value) {
        (DefaultValue::Null, value) => *value == Value::Null,
        (DefaultValue::True, value) => *value == Value::Bool(true),
        (DefaultValue::Number(number), value) => *value == Value::Int(*number),
        (DefaultValue::Zero, Value::Int(0) | Value::Bool(false)) => true,
        (DefaultValue::Zero, Value::Float(number)) => *number == 0.0,
        (DefaultValue::Zero, Value::Text(text)) => text.is_empty() || text == ZERO_UUID,
        (DefaultValue::Zero, Value::Bytes(bytes)) => bytes.is_empty(),
        (DefaultValue::Zero, Value::List(items)) => items.is_empty(),
        (DefaultValue::Zero, Value::Map(fields)) => fields.is_empty(),
        (DefaultValue::Zero, _) => false,
    }
}

/// How 16 zero bytes are written.
pub const ZERO_UUID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The bytes of base64, of either alphabet, padded or not.
#[must_use]
pub fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let digits: Vec<u32> = text.bytes().filter_map(digit).collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = (0..4).fold(0, |bits, index| bits << 6 | group.get(index).copied().unwrap_or(0));
        bytes.extend(bits.to_be_bytes()[1..].iter().take(group.len() * 6 / 8));
    }
    bytes
}
