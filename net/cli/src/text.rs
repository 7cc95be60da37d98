//! Records as text: escapes in separators, base64 for bytes that are no text, the JSON of a record both ways, and the
//! `--format` of `consume`.

use anyhow::{Context as _, bail};
use heddle_client::ConsumerRecord;
use serde_json::{Map, Value, json};

/// Replaces `\n`, `\t`, `\r`, `\0` and `\\`; any other backslash stays as it is.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes().peekable();
    while let Some(byte) = rest.next() {
        let meant = match (byte, rest.peek()) {
            (b'\\', Some(b'n')) => Some(b'\n'),
            (b'\\', Some(b't')) => Some(b'\t'),
            (b'\\', Some(b'r')) => Some(b'\r'),
            (b'\\', Some(b'0')) => Some(0),
            (b'\\', Some(b'\\')) => Some(b'\\'),
            _ => None,
        };
        if meant.is_some() {
            rest.next();
        }
        bytes.push(meant.unwrap_or(byte));
    }
    bytes
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes in base64 (RFC 4648, padded).
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(BASE64[digit as usize]) } else { '=' });
        }
    }
    text
}

/// The bytes that `text` is the base64 of.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in chunk {
            bits = (bits << 6) | u32::try_from(BASE64.iter().position(|it| it == digit)?).ok()?;
        }
        let whole = match chunk.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bits <<= 6 * (4 - chunk.len());
        bytes.extend(&bits.to_be_bytes()[1..=whole]);
    }
    Some(bytes)
}

/// Adds `name`, or `name_base64` where the bytes are no text.
fn insert_bytes(map: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => map.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => map.insert(name.to_owned(), json!(text)),
        Some(Err(_)) => map.insert(format!("{name}_base64"), json!(base64(bytes.unwrap_or_default()))),
    };
}

/// A record as one JSON object.
pub(crate) fn record_json(topic: &str, partition: i32, record: &ConsumerRecord<'_>) -> Value {
    let mut map = Map::new();
    map.insert("topic".to_owned(), json!(topic));
    map.insert("partition".to_owned(), json!(partition));
    map.insert("offset".to_owned(), json!(record.offset.get()));
    map.insert("timestamp".to_owned(), json!(record.timestamp.get()));
    insert_bytes(&mut map, "key", record.key);
    insert_bytes(&mut map, "value", record.value);
    let headers = record.headers.iter().map(|header| {
        let mut map = Map::new();
        map.insert("key".to_owned(), json!(String::from_utf8_lossy(header.key)));
        insert_bytes(&mut map, "value", header.value);
        Value::Object(map)
    });
    map.insert("headers".to_owned(), Value::Array(headers.collect()));
    Value::Object(map)
}

/// A record read from text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TextRecord {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

impl TextRecord {
    /// The record that [`record_json`] wrote; its topic, partition and offset are not read, any other field may be
    /// missing.
    ///
    /// # Errors
    /// What the line is instead.
    pub(crate) fn parse_json(line: &[u8]) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_slice(line).context("not JSON")?;
        let Value::Object(map) = value else { bail!("not a JSON object") };
        let mut headers = Vec::new();
        if let Some(list) = map.get("headers").filter(|it| !it.is_null()) {
            for header in list.as_array().context("\"headers\" is no array")? {
                let header = header.as_object().context("a header is no object")?;
                let key = header.get("key").and_then(Value::as_str).context("a header has no \"key\"")?;
                headers.push((key.to_owned(), bytes_of(header, "value")?));
            }
        }
        let timestamp = match map.get("timestamp") {
            None | Some(Value::Null) => None,
            Some(number) => Some(number.as_i64().context("\"timestamp\" is no number of milliseconds")?),
        };
        Ok(Self { key: bytes_of(&map, "key")?, value: bytes_of(&map, "value")?, headers, timestamp })
    }
}

/// What stands under `name` or `name_base64`.
fn bytes_of(map: &Map<String, Value>, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(encoded) = map.get(&format!("{name}_base64")) {
        let bytes = encoded.as_str().and_then(from_base64);
        return bytes.map(Some).with_context(|| format!("\"{name}_base64\" is no base64"));
    }
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone().into_bytes())),
        // Whoever writes {"value": {…}} means the object's own text.
        Some(other) => Ok(Some(other.to_string().into_bytes())),
    }
}

/// A piece of `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    Timestamp,
    Date,
    KeyLength,
    ValueLength,
}

/// How `consume` prints a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
}

impl Format {
    /// Reads a format as `consume --help` describes it.
    ///
    /// # Errors
    /// What is no part of a format.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            let (before, from) = rest.split_at(at);
            pieces.push(Piece::Text(unescape(before)));
            let letter =
                from[1..].chars().next().context("--format ends with a single %; write %% for a percent sign")?;
            pieces.push(match letter {
                't' => Piece::Topic,
                'p' => Piece::Partition,
                'o' => Piece::Offset,
                'k' => Piece::Key,
                's' => Piece::Value,
                'h' => Piece::Headers,
                'T' => Piece::Timestamp,
                'D' => Piece::Date,
                'K' => Piece::KeyLength,
                'S' => Piece::ValueLength,
                '%' => Piece::Text(b"%".to_vec()),
                other => bail!("--format knows no %{other}; it knows %t %p %o %k %s %h %T %D %K %S %%"),
            });
            rest = &from[1 + letter.len_utf8()..];
        }
        pieces.push(Piece::Text(unescape(rest)));
        Ok(Self { pieces })
    }

    /// Fields that are asked for one by one, with a separator between them; the value comes last.
    pub(crate) fn of_fields(fields: &[char], separator: &str) -> anyhow::Result<Self> {
        let separator = separator.replace('%', "%%");
        let fields: String = fields.iter().map(|field| format!("%{field}{separator}")).collect();
        Self::parse(&format!("{fields}%s\\n"))
    }

    /// Appends a record.
    pub(crate) fn write(&self, topic: &str, partition: i32, record: &ConsumerRecord<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend(text),
                Piece::Topic => out.extend(topic.as_bytes()),
                Piece::Partition => out.extend(partition.to_string().as_bytes()),
                Piece::Offset => out.extend(record.offset.to_string().as_bytes()),
                Piece::Key => out.extend(record.key.unwrap_or_default()),
                Piece::Value => out.extend(record.value.unwrap_or_default()),
                Piece::Timestamp => out.extend(record.timestamp.to_string().as_bytes()),
                Piece::Date => out.extend(date(record).as_bytes()),
                Piece::KeyLength => out.extend(length(record.key).as_bytes()),
                Piece::ValueLength => out.extend(length(record.value).as_bytes()),
                Piece::Headers => write_headers(record, out),
            }
        }
    }
}

/// The timestamp as people write it; a dash where the record has none.
fn date(record: &ConsumerRecord<'_>) -> String {
    match record.timestamp.get() {
        ..0 => "-".to_owned(),
        ms => crate::time::format_timestamp(ms),
    }
}

/// The length in bytes; -1 for null.
fn length(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.len().to_string())
}

/// `name=value,name=value`; a header without value is its name alone.
fn write_headers(record: &ConsumerRecord<'_>, out: &mut Vec<u8>) {
    for (place, header) in record.headers.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend(header.key);
        if let Some(value) = header.value {
            out.push(b'=');
            out.extend(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use heddle_record::{BatchBuilder, BatchOptions, Offset, RecordBatch, RecordHeader, Timestamp};

    use super::*;

    /// Runs `look` on a record that went through a batch.
    fn with_record(key: Option<&[u8]>, value: Option<&[u8]>, look: impl FnOnce(&ConsumerRecord<'_>)) {
        let headers = [RecordHeader { key: b"h", value: Some(b"1") }, RecordHeader { key: b"n", value: None }];
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(Timestamp::new(5), key, value, &headers).unwrap();
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        let record = RecordBatch::peek(&bytes).unwrap().records().next().unwrap().unwrap();
        look(&ConsumerRecord {
            offset: Offset::new(9),
            timestamp: Timestamp::new(5),
            key: record.key,
            value: record.value,
            headers: record.headers,
        });
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(from_base64("Z"), None);
        assert_eq!(from_base64("Zg?="), None);
    }

    #[test]
    fn what_is_written_as_json_is_read_back() {
        for (key, value) in
            [(None, None), (Some(&b"k"[..]), Some(&b"v\n\"x\""[..])), (Some(&[0xff, 0][..]), Some(&[][..]))]
        {
            with_record(key, value, |record| {
                let line = record_json("t", 3, record).to_string();
                let read = TextRecord::parse_json(line.as_bytes()).unwrap();
                let expected = TextRecord {
                    key: key.map(<[u8]>::to_vec),
                    value: value.map(<[u8]>::to_vec),
                    headers: vec![("h".to_owned(), Some(b"1".to_vec())), ("n".to_owned(), None)],
                    timestamp: Some(5),
                };
                assert_eq!(read, expected, "{line}");
            });
        }
    }

    #[test]
    fn json_from_elsewhere_needs_little() {
        let read = TextRecord::parse_json(br#"{"value": {"a": 1}}"#).unwrap();
        assert_eq!(read.value.as_deref(), Some(&br#"{"a":1}"#[..]));
        assert!(TextRecord::parse_json(b"[1]").is_err());
        assert!(TextRecord::parse_json(b"{").is_err());
        assert!(TextRecord::parse_json(br#"{"timestamp": "noon"}"#).is_err());
    }

    #[test]
    fn formats_print_what_they_name() {
        with_record(Some(b"key"), None, |record| {
            let printed = |format: &str| {
                let mut out = Vec::new();
                Format::parse(format).unwrap().write("t", 2, record, &mut out);
                String::from_utf8(out).unwrap()
            };
            assert_eq!(printed("%D"), "1970-01-01T00:00:00.005Z");
            assert_eq!(printed(r"%t-%p@%o %T\t%k=%s;%K,%S %h 100%%\n"), "t-2@9 5\tkey=;3,-1 h=1,n 100%\n");
            let mut out = Vec::new();
            Format::of_fields(&['o', 'k'], ": ").unwrap().write("t", 2, record, &mut out);
            assert_eq!(out, b"9: key: \n");
        });
        assert!(Format::parse("%x").is_err());
        assert!(Format::parse("50%").is_err());
    }

    #[test]
    fn escapes_are_those_of_a_shell() {
        assert_eq!(unescape(r"a\tb\\n\x"), b"a\tb\\n\\x");
    }
}
