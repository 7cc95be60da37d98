//! The golden vectors: bytes that Kafka 4.3's own classes wrote, and the JSON that its converters made of them.
//!
//! Each is decoded, shown, encoded again, cut at every byte and damaged. `testdata/vectors/README.md` says what the
//! vectors are.
#![expect(clippy::unwrap_used, reason = "what a test unwraps is its own data")]

use std::fs;
use std::path::Path;

use heddle_protocol::schema::{MESSAGES, MessageKind, MessageSpec};
use heddle_protocol::{ApiKey, json};
use serde_json::Value;

/// One line of a vector file.
struct Vector {
    name: String,
    spec: &'static MessageSpec,
    version: i16,
    variant: String,
    json: Value,
    bytes: Vec<u8>,
}

impl Vector {
    /// Unknown tagged fields are dropped: all that a vector has and we do not write again.
    fn has_unknown_tag(&self) -> bool {
        self.variant == "unknown-tag"
    }

    /// The version and bytes that the typed codec gets: behind the int16 that some kinds start with.
    fn body(&self) -> &[u8] {
        match self.spec.kind {
            MessageKind::Key | MessageKind::Value | MessageKind::Embedded => &self.bytes[2..],
            _ => &self.bytes,
        }
    }
}

fn vectors() -> Vec<Vector> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/vectors");
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths.iter().flat_map(|path| read_vectors(path)).collect()
}

fn read_vectors(path: &Path) -> Vec<Vector> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| vector(&serde_json::from_str(line).unwrap())).collect()
}

fn vector(line: &Value) -> Vector {
    let text = |name: &str| line[name].as_str().unwrap();
    let key = i16::try_from(line["key"].as_i64().unwrap()).unwrap();
    let version = i16::try_from(line["version"].as_i64().unwrap()).unwrap();
    let spec = match text("message") {
        "request" => MessageSpec::request(key),
        "response" => MessageSpec::response(key),
        _ => MessageSpec::named(text("api")),
    };
    let name = format!("{} {} {version} {}", text("api"), text("message"), text("variant"));
    let spec = spec.unwrap_or_else(|| panic!("{name} is in no schema"));
    Vector { name, spec, version, variant: text("variant").into(), json: line["json"].clone(), bytes: hex(text("hex")) }
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_vector_is_shown_as_kafka_shows_it_and_encodes_to_its_bytes() {
    let vectors = vectors();
    assert!(vectors.len() > 2000, "{} vectors are not all of them", vectors.len());
    for vector in &vectors {
        let shown = json::show(vector.spec, vector.version, &vector.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        assert_eq!((shown.version, shown.trailing), (vector.version, 0), "{}", vector.name);
        let ours: Value = serde_json::from_str(&shown.json).unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        // As text, since the order of the fields counts as well.
        assert_eq!(ours.to_string(), vector.json.to_string(), "{}", vector.name);
        if vector.has_unknown_tag() {
            assert!(shown.bytes.len() < vector.bytes.len(), "{}", vector.name);
            let again = json::show(vector.spec, vector.version, &shown.bytes).unwrap();
            assert_eq!((again.bytes, again.json), (shown.bytes, shown.json), "{}", vector.name);
        } else {
            assert_eq!(shown.bytes, vector.bytes, "{}", vector.name);
        }
    }
}

#[test]
fn vectors_cover_every_api_and_version() {
    let vectors = vectors();
    for spec in MESSAGES {
        if !matches!(spec.kind, MessageKind::Request | MessageKind::Response) {
            continue;
        }
        for version in spec.versions.min..=spec.versions.max {
            let covered = vectors.iter().any(|vector| vector.spec.name == spec.name && vector.version == version);
            assert!(covered, "no vector of {} {version}", spec.name);
        }
    }
}

/// What is cut anywhere is no message, and says so instead of anything worse.
#[test]
fn every_vector_cut_at_every_byte_is_refused() {
    for vector in vectors() {
        let body = vector.body();
        for length in 0..body.len() {
            let cut = &body[..length];
            let Err(error) = (vector.spec.reencode)(cut, vector.version) else {
                panic!("{} decodes from its first {length} bytes", vector.name);
            };
            let heddle_protocol::schema::ReencodeError::Decode(error) = error else {
                panic!("{} cut at {length}: {error}", vector.name);
            };
            assert!(error.at <= length, "{} cut at {length}: {error}", vector.name);
        }
    }
}

/// The typed codec and the tables are two decoders of one schema: whatever the bytes, they agree on what is a message
/// and on where it ends.
#[test]
fn damaged_vectors_never_panic_and_both_decoders_agree() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut accepted = 0;
    for vector in vectors() {
        for _ in 0..40 {
            let damaged = random.damage(vector.body());
            let typed = (vector.spec.reencode)(&damaged, vector.version);
            let mut reader = heddle_protocol::Reader::new(&damaged);
            let mut text = String::new();
            let shown = json::write_message(&mut text, vector.spec, vector.version, &mut reader);
            assert_eq!(typed.is_ok(), shown.is_ok(), "{} {damaged:02x?}: {typed:?}, {shown:?}", vector.name);
            if let Ok((bytes, read)) = typed {
                accepted += 1;
                assert_eq!(read, reader.position(), "{}", vector.name);
                let again = (vector.spec.reencode)(&bytes, vector.version).unwrap();
                assert_eq!(again.0, bytes, "{} {damaged:02x?}", vector.name);
            }
        }
    }
    assert!(accepted > 1000, "only {accepted} damaged messages were still messages");
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// Flips, overwrites, cuts or inserts.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            let extreme = [0x00, 0x01, 0x7f, 0x80, 0xff][self.below(5)];
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = extreme,
                2 if !bytes.is_empty() => {
                    bytes.remove(at);
                }
                3 => bytes.truncate(at),
                _ => bytes.insert(at, extreme),
            }
        }
        bytes
    }
}

#[test]
fn header_versions_are_kafkas() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/vectors/header_versions.txt"));
    let mut lines = 0;
    for line in text.unwrap().lines().skip(1) {
        let fields: Vec<_> = line.split('\t').collect();
        let [key, name, version, request, response, stability] = fields[..] else { panic!("{line}") };
        let number = |text: &str| text.parse::<i16>().unwrap();
        let (api, version) = (ApiKey::from_i16(number(key)).unwrap(), number(version));
        assert_eq!(api.name(), name);
        assert_eq!(api.request_header_version(version), number(request), "{line}");
        assert_eq!(api.response_header_version(version), number(response), "{line}");
        let stable = api.unstable_from().is_none_or(|first| version < first);
        assert_eq!(stable, stability == "stable", "{line}");
        lines += 1;
    }
    assert!(lines > 200, "{lines} lines are not all of them");
}

/// The four bytes that make a decoder which trusts a count reserve 150 GB.
#[test]
fn a_count_of_two_billion_is_refused() {
    for spec in MESSAGES {
        for version in spec.versions.min..=spec.versions.max {
            for bytes in [&[0x7f, 0xff, 0xff, 0xff][..], &[0x80, 0x80, 0x80, 0x80, 0x08], &[0xff; 64], &[0x7f; 64]] {
                // Some short messages do decode from such bytes; none may do more than that.
                let _ = (spec.reencode)(bytes, version);
            }
        }
    }
    let metadata = MessageSpec::request(3).unwrap();
    let error = (metadata.reencode)(&[0x7f, 0xff, 0xff, 0xff], 1).unwrap_err();
    assert_eq!(error.to_string(), "MetadataRequest.topics: 2147483647 elements announced, 0 bytes remain, at byte 0");
}

#[test]
fn every_record_batch_is_shown_as_kafka_shows_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../storage/record/testdata/record_batches.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let mut same = 0;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (variant, bytes) = (line["variant"].as_str().unwrap(), hex(line["hex"].as_str().unwrap()));
        let shown = json::batch::show(&bytes).unwrap_or_else(|error| panic!("{variant}: {error}"));
        let ours: Value = serde_json::from_str(&shown.json).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(ours.to_string(), line["json"].to_string(), "{variant}");
        let again = json::batch::show(&shown.bytes).unwrap_or_else(|error| panic!("{variant}: {error}"));
        let compressed = line["json"]["attributes"].as_i64().unwrap() & 7 != 0;
        if compressed {
            // Another compressor, other bytes, another checksum: the same records.
            let again: Value = serde_json::from_str(&again.json).unwrap();
            assert_eq!(again["records"], ours["records"], "{variant}");
        } else {
            assert_eq!(shown.bytes, bytes, "{variant}");
            same += 1;
        }
        for length in 0..bytes.len() {
            assert!(json::batch::show(&bytes[..length]).is_err(), "{variant} cut at {length}");
        }
    }
    assert!(same >= 30, "{same} batches were written to the same bytes");
}
