//! From a script's value to the bytes of a message, through the codec's tables.
//!
//! Says what the script says, right or wrong: null is written where a field may not be null, too. Fields that the version
//! lacks are left out, so that one value serves all versions; fields that the message lacks are an error of the script.

use heddle_protocol::schema::{DefaultValue, FieldKind, FieldSpec, MessageKind, MessageSpec, StructSpec};

use super::batch;
use super::decode::from_base64;
use super::value::Value;

/// A version of a message, while it is written.
#[derive(Clone, Copy)]
struct Context {
    version: i16,
    flexible: bool,
}

/// Appends the message's fields. A version outside those described is written like the nearest one that is.
///
/// # Errors
/// The value does not fit the message: the script is wrong.
pub fn message(out: &mut Vec<u8>, spec: &MessageSpec, version: i16, value: &Value) -> Result<(), String> {
    let described = version.clamp(spec.versions.min, spec.versions.max);
    let context = Context { version: described, flexible: spec.is_flexible(described) };
    structure(out, spec.structure, context, value).map_err(|error| format!("{} {version}: {error}", spec.name))
}

fn structure(out: &mut Vec<u8>, spec: &StructSpec, context: Context, value: &Value) -> Result<(), String> {
    let Value::Map(fields) = value else { return Err(format!("`{}` is no {}", value.line(), spec.name)) };
    if let Some((name, _)) = fields.iter().find(|(name, _)| spec.fields.iter().all(|field| field.name != name)) {
        return Err(format!("{} has no field `{name}`", spec.name));
    }
    let present = |field: &&FieldSpec| field.versions.contains(context.version);
    for field in spec.fields.iter().filter(present).filter(|field| field.tag.is_none()) {
        match value.field(field.name) {
            Some(value) => self::field(out, field, context, value)?,
            None => default(out, field, context)?,
        }
    }
    if !context.flexible {
        return Ok(());
    }
    let mut tagged: Vec<(u32, Vec<u8>)> = Vec::new();
    for field in spec.fields.iter().filter(present) {
        if let (Some(tag), Some(value)) = (field.tag, value.field(field.name)) {
            let mut bytes = Vec::new();
            self::field(&mut bytes, field, context, value)?;
            tagged.push((tag, bytes));
        }
    }
    tagged.sort();
    varint(out, tagged.len());
    for (tag, bytes) in tagged {
        varint(out, tag as usize);
        varint(out, bytes.len());
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

fn field(out: &mut Vec<u8>, field: &FieldSpec, context: Context, value: &Value) -> Result<(), String> {
    let context = if field.rigid { Context { flexible: false, ..context } } else { context };
    let nullable = field.nullable.is_some_and(|versions| versions.contains(context.version));
    self::value(out, &field.kind, context, nullable, value).map_err(|error| format!("{}: {error}", field.name))
}

fn value(out: &mut Vec<u8>, kind: &FieldKind, context: Context, nullable: bool, value: &Value) -> Result<(), String> {
    let wrong = || format!("`{}` is no {kind:?}", value.line().chars().take(60).collect::<String>());
    match (kind, value) {
        (FieldKind::Bool, Value::Bool(it)) => out.push(u8::from(*it)),
        (FieldKind::Int8, Value::Int(it)) => out.extend(i8::try_from(*it).map_err(|_| wrong())?.to_be_bytes()),
        (FieldKind::Int16, Value::Int(it)) => out.extend(i16::try_from(*it).map_err(|_| wrong())?.to_be_bytes()),
        (FieldKind::Uint16, Value::Int(it)) => out.extend(u16::try_from(*it).map_err(|_| wrong())?.to_be_bytes()),
        (FieldKind::Int32, Value::Int(it)) => out.extend(i32::try_from(*it).map_err(|_| wrong())?.to_be_bytes()),
        (FieldKind::Int64, Value::Int(it)) => out.extend(it.to_be_bytes()),
        (FieldKind::Float64, Value::Float(it)) => out.extend(it.to_be_bytes()),
        (FieldKind::Float64, Value::Int(it)) => out.extend((*it as f64).to_be_bytes()),
        (FieldKind::Uuid, Value::Bytes(bytes)) if bytes.len() == 16 => out.extend_from_slice(bytes),
        (FieldKind::Uuid, Value::Text(text)) if text.len() == 22 => out.extend(from_base64(text)),
        (FieldKind::String, Value::Null) => length(out, context.flexible, None, 2)?,
        (FieldKind::String, Value::Text(text)) => {
            length(out, context.flexible, Some(text.len()), 2)?;
            out.extend_from_slice(text.as_bytes());
        }
        (FieldKind::Bytes | FieldKind::Records | FieldKind::Array(_), Value::Null) => {
            length(out, context.flexible, None, 4)?;
        }
        (FieldKind::Bytes | FieldKind::Records, value) => {
            let bytes = bytes(value)?;
            length(out, context.flexible, Some(bytes.len()), 4)?;
            out.extend_from_slice(&bytes);
        }
        (FieldKind::Struct(_), Value::Null) => out.push(0xff),
        (FieldKind::Struct(spec), value) => {
            if nullable {
                out.push(1);
            }
            structure(out, spec, context, value)?;
        }
        (FieldKind::Array(element), Value::List(items)) => {
            length(out, context.flexible, Some(items.len()), 4)?;
            items.iter().try_for_each(|item| self::value(out, element, context, false, item))?;
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

/// Bytes as they are, or as they are made.
fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    match value {
        Value::Bytes(bytes) => Ok(bytes.clone()),
        Value::Text(text) => Ok(text.clone().into_bytes()),
        Value::List(items) => items.iter().map(bytes).collect::<Result<Vec<_>, _>>().map(|all| all.concat()),
        Value::Made(name, fields) if name == "batch" => batch::build(fields),
        Value::Made(name, fields) => {
            let (name, version) = name.split_once('/').ok_or_else(|| format!("`{name}` has no version"))?;
            let version: i16 = version.parse().map_err(|_| format!("`{version}` is no version"))?;
            let spec = MessageSpec::named(name).ok_or_else(|| format!("no message is called `{name}`"))?;
            let mut out = Vec::new();
            if matches!(spec.kind, MessageKind::Embedded | MessageKind::Value) {
                out.extend(version.to_be_bytes());
            }
            message(&mut out, spec, version, &Value::Map(fields.clone()))?;
            Ok(out)
        }
        other => Err(format!("`{}` is no bytes", other.line())),
    }
}

fn default(out: &mut Vec<u8>, field: &FieldSpec, context: Context) -> Result<(), String> {
    let value = match (&field.default, &field.kind) {
        (DefaultValue::Null, _) => Value::Null,
        (DefaultValue::True, _) => Value::Bool(true),
        (DefaultValue::Number(number), _) => Value::Int(*number),
        (DefaultValue::Zero, kind) => zero(kind),
    };
    self::field(out, field, context, &value)
}

fn zero(kind: &FieldKind) -> Value {
    match kind {
        FieldKind::Bool => Value::Bool(false),
        FieldKind::Float64 => Value::Float(0.0),
        FieldKind::Uuid => Value::Bytes(vec![0; 16]),
        FieldKind::String => Value::Text(String::new()),
        FieldKind::Bytes | FieldKind::Records => Value::Bytes(Vec::new()),
        FieldKind::Struct(_) => Value::Map(Vec::new()),
        FieldKind::Array(_) => Value::List(Vec::new()),
        _ => Value::Int(0),
    }
}

/// A length of `width` bytes, or a compact one; `None` is null.
fn length(out: &mut Vec<u8>, flexible: bool, length: Option<usize>, width: usize) -> Result<(), String> {
    match (flexible, length, width) {
        (true, length, _) => varint(out, length.map_or(0, |length| length + 1)),
        (false, None, 2) => out.extend((-1_i16).to_be_bytes()),
        (false, None, _) => out.extend((-1_i32).to_be_bytes()),
        (false, Some(length), 2) => {
            out.extend(i16::try_from(length).map_err(|_| format!("{length} is too long"))?.to_be_bytes());
        }
        (false, Some(length), _) => {
            out.extend(i32::try_from(length).map_err(|_| format!("{length} is too long"))?.to_be_bytes());
        }
    }
    Ok(())
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}
