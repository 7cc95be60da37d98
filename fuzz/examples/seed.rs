//! Fills `corpus/` from the vectors in `testdata`: bytes that Kafka's own classes wrote, one file for each.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seed`

use std::path::{Path, PathBuf};
use std::{fs, io};

use heddle_protocol::{ApiKey, Message as _, RequestHeader, Writer};
use serde_json::Value;

fn main() -> io::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut seeds = 0;
    for line in lines(&root.join("../storage/record/testdata/record_batches.jsonl"))? {
        seeds += seed(&root, "record_batch", &line, &[])?;
    }
    for file in fs::read_dir(root.join("../net/protocol/testdata/vectors"))? {
        for line in lines(&file?.path())? {
            let key = line["key"].as_i64().and_then(|key| i16::try_from(key).ok()).unwrap_or(-1);
            let version = line["version"].as_i64().and_then(|version| i16::try_from(version).ok()).unwrap_or(-1);
            match (line["message"].as_str(), ApiKey::from_i16(key)) {
                (Some("request"), Some(api)) => {
                    seeds += seed(&root, "request_frame", &line, &request_header(api, version))?;
                }
                (Some("response"), Some(_)) => {
                    let prefix = [key.to_be_bytes(), version.to_be_bytes()].concat();
                    seeds += seed(&root, "response_frame", &line, &prefix)?;
                }
                _ => {}
            }
        }
    }
    println!("{seeds} seeds in fuzz/corpus");
    Ok(())
}

/// The vectors of a file; none of one that is not JSON Lines.
fn lines(file: &Path) -> io::Result<Vec<Value>> {
    if file.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(Vec::new());
    }
    fs::read_to_string(file)?.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
}

fn request_header(api: ApiKey, version: i16) -> Vec<u8> {
    let header = RequestHeader {
        request_api_key: api.code(),
        request_api_version: version,
        correlation_id: 7,
        client_id: Some("seed"),
    };
    let mut writer = Writer::new();
    header.encode(&mut writer, api.request_header_version(version)).expect("every known version has a header");
    writer.into_bytes()
}

/// Writes one seed, unless it would only slow the fuzzer down; returns how many were written.
fn seed(root: &Path, target: &str, line: &Value, prefix: &[u8]) -> io::Result<usize> {
    const BYTES_MAX: usize = 4 << 10;
    let hex = line["hex"].as_str().expect("a vector has its bytes");
    let digit = |byte: &u8| (*byte as char).to_digit(16).expect("hex") as u8;
    let mut bytes = prefix.to_vec();
    bytes.extend(hex.as_bytes().chunks_exact(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])));
    if bytes.len() > BYTES_MAX {
        return Ok(0);
    }
    let folder = root.join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    fs::write(folder.join(format!("{}-{}-{}", text("api"), line["version"], text("variant"))), bytes)?;
    Ok(1)
}
