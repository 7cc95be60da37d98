//! Record batches in a script, made and shown: `batch{values: [a, b], codec: gzip, timestamp: 1000, producerId: 7}`.

use std::ops::Range;

use heddle_protocol::json;
use heddle_record::checksum::crc32c;
use heddle_record::{
    BatchBuilder, BatchOptions, Compression, HEADER_LEN, LOG_OVERHEAD, Offset, ProducerEpoch, ProducerId, Sequence,
    Timestamp,
};
use serde_json::Value as Json;

use super::value::Value;

const LENGTH: Range<usize> = 8..12;
const CRC: Range<usize> = 17..21;

/// The bytes of a batch.
///
/// `values` and `keys` are lists of texts or null, `timestamps` one for each record (or one `timestamp` for all, 1000
/// where nothing is said). `body` stands instead of the records, `more` behind them, and `set: [at, byte, ..]` changes bytes;
/// length and checksum are right all the same. `patch: [at, byte]` changes a byte when all is done.///
/// # Errors
/// A field is unknown or of the wrong kind.
pub fn build(fields: &[(String, Value)]) -> Result<Vec<u8>, String> {
    const KNOWN: [&str; 15] = [
        "values",
        "keys",
        "timestamps",
        "timestamp",
        "codec",
        "producerId",
        "producerEpoch",
        "baseSequence",
        "transactional",
        "control",
        "body",
        "more",
        "set",
        "patch",
        "baseOffset",
    ];
    if let Some((name, _)) = fields.iter().find(|(name, _)| !KNOWN.contains(&name.as_str())) {
        return Err(format!("a batch has no field `{name}`"));
    }
    let map = Value::Map(fields.to_vec());
    let number = |name: &str, default: i64| match map.field(name) {
        None => Ok(default),
        Some(Value::Int(number)) => Ok(*number),
        Some(other) => Err(format!("`{name}: {}` is no number", other.line())),
    };
    let flag = |name: &str| map.field(name) == Some(&Value::Bool(true));
    let small = |name: &str| i16::try_from(number(name, -1)?).map_err(|_| format!("`{name}` is too large"));
    let mut builder = BatchBuilder::new(BatchOptions {
        base_offset: Offset::new(number("baseOffset", 0)?),
        compression: codec(map.field("codec"))?,
        producer_id: ProducerId::new(number("producerId", -1)?),
        producer_epoch: ProducerEpoch::new(small("producerEpoch")?),
        base_sequence: Sequence::new(i32::try_from(number("baseSequence", -1)?).map_err(|_| "too large a sequence")?),
        transactional: flag("transactional"),
        control: flag("control"),
        ..BatchOptions::default()
    });
    let Some(Value::List(values)) = map.field("values") else { return Err("a batch has `values`".to_owned()) };
    for (index, value) in values.iter().enumerate() {
        let timestamp = match map.at(&format!("timestamps.{index}")) {
            Some(Value::Int(timestamp)) => *timestamp,
            _ => number("timestamp", 1_000)?,
        };
        let key = map.at(&format!("keys.{index}")).map_or(Ok(None), text)?;
        builder
            .push(Timestamp::new(timestamp), key.as_deref(), text(value)?.as_deref(), &[])
            .map_err(|error| format!("no batch: {error}"))?;
    }
    let mut out = Vec::new();
    builder.finish(&mut out).map_err(|error| format!("no batch: {error}"))?;
    alter(&map, &mut out)?;
    if let Some(Value::List(patch)) = map.field("patch") {
        put(patch, &mut out)?;
    }
    Ok(out)
}

/// What a batch has otherwise than the builder makes it, under a checksum that fits.
fn alter(map: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let bytes = |name| map.field(name).map(text).transpose().map(|bytes| bytes.flatten());
    let (body, more) = (bytes("body")?, bytes("more")?);
    if let Some(body) = body {
        out.truncate(HEADER_LEN);
        out.extend(body);
    }
    out.extend(more.unwrap_or_default());
    let length = i32::try_from(out.len() - LOG_OVERHEAD).expect("a script's batch is small");
    out[LENGTH].copy_from_slice(&length.to_be_bytes());
    if let Some(Value::List(set)) = map.field("set") {
        put(set, out)?;
    }
    let crc = crc32c(&out[CRC.end..]);
    out[CRC].copy_from_slice(&crc.to_be_bytes());
    Ok(())
}

/// Writes bytes: `[at, byte, at, byte, ..]`.
fn put(pairs: &[Value], out: &mut [u8]) -> Result<(), String> {
    for pair in pairs.chunks(2) {
        let [Value::Int(at), Value::Int(byte)] = pair else { return Err("bytes are [at, byte, ..]".to_owned()) };
        let at = usize::try_from(*at).ok().filter(|at| *at < out.len()).ok_or("a byte lies outside the batch")?;
        out[at] = u8::try_from(*byte).map_err(|_| "a byte is 0 to 255")?;
    }
    Ok(())
}

fn text(value: &Value) -> Result<Option<Vec<u8>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text.clone().into_bytes())),
        Value::Bytes(bytes) => Ok(Some(bytes.clone())),
        other => Err(format!("`{}` is no record's key or value", other.line())),
    }
}

fn codec(value: Option<&Value>) -> Result<Compression, String> {
    let Some(value) = value else { return Ok(Compression::None) };
    match value {
        Value::Text(name) => match name.as_str() {
            "gzip" => Ok(Compression::Gzip),
            "snappy" => Ok(Compression::Snappy),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::Zstd),
            other => Err(format!("no codec is called `{other}`")),
        },
        other => Err(format!("`{}` is no codec", other.line())),
    }
}

/// Every batch of a fetch's records, as far as they are whole and sound: what clients see of them.
#[must_use]
pub fn show(mut bytes: &[u8]) -> Value {
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        let Ok(shown) = json::batch::show(bytes) else {
            batches.push(Value::Text(format!("<{}-bytes-of-no-batch>", bytes.len())));
            break;
        };
        let batch: Json = serde_json::from_str(&shown.json).expect("the codec writes JSON");
        batches.push(Value::Made("batch".to_owned(), fields(&batch)));
        bytes = &bytes[bytes.len() - shown.trailing..];
    }
    Value::List(batches)
}

fn fields(batch: &Json) -> Vec<(String, Value)> {
    let number = |name: &str| batch.get(name).and_then(Json::as_i64).unwrap_or(i64::MIN);
    let records = batch.get("records").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |name: &str| Value::List(records.iter().map(|record| bytes(record.get(name))).collect());
    let timestamps = records.iter().filter_map(|record| record.get("timestamp")?.as_i64()).map(Value::Int).collect();
    let mut all = vec![
        ("baseOffset".to_owned(), Value::Int(number("base_offset"))),
        ("lastOffsetDelta".to_owned(), Value::Int(number("last_offset_delta"))),
        ("leaderEpoch".to_owned(), Value::Int(number("partition_leader_epoch"))),
        ("attributes".to_owned(), Value::Int(number("attributes"))),
        ("timestamps".to_owned(), Value::List(timestamps)),
        ("maxTimestamp".to_owned(), Value::Int(number("max_timestamp"))),
        ("keys".to_owned(), of("key")),
        ("values".to_owned(), of("value")),
    ];
    if number("producer_id") >= 0 {
        all.push(("producerId".to_owned(), Value::Int(number("producer_id"))));
        all.push(("producerEpoch".to_owned(), Value::Int(number("producer_epoch"))));
        all.push(("baseSequence".to_owned(), Value::Int(number("base_sequence"))));
    }
    all
}

fn bytes(hex: Option<&Json>) -> Value {
    let Some(hex) = hex.and_then(Json::as_str) else { return Value::Null };
    let bytes = super::value::hex(hex).expect("the codec writes hexadecimal");
    String::from_utf8(bytes).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text)
}
