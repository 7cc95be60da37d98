//! `heddle decode` over the golden vectors of the codec: the binary as a user runs it.
#![expect(clippy::unwrap_used, reason = "what a test unwraps is its own data")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::Builder;

use serde_json::Value;

fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every vector file of messages, and the one of record batches.
fn vector_files() -> Vec<PathBuf> {
    let directory = crate_root().join("../protocol/testdata/vectors");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.push(crate_root().join("../../storage/record/testdata/record_batches.jsonl"));
    files.sort();
    files
}

/// What the binary answers to `input`, line by line; it must exit with success.
fn decode(arguments: &[&str], input: String) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .arg("decode")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Both pipes are bounded: whoever writes all before reading any waits for ever.
    let writer = Builder::new().spawn(move || stdin.write_all(input.as_bytes()).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_vector_comes_back_as_its_json_and_its_bytes() {
    let mut input = String::new();
    for file in vector_files() {
        input.push_str(&fs::read_to_string(file).unwrap());
    }
    let vectors: Vec<Value> = input.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(vectors.len() > 2100, "{} vectors are not all of them", vectors.len());
    let answers = decode(&[], input);
    assert_eq!(answers.len(), vectors.len());
    for (vector, answer) in vectors.iter().zip(&answers) {
        let name = format!("{} {} {}", vector["api"], vector["version"], vector["variant"]);
        assert_eq!(answer["json"].to_string(), vector["json"].to_string(), "{name}");
        let compressed = vector["message"] == "batch" && vector["json"]["attributes"].as_i64().unwrap() & 7 != 0;
        if vector["variant"] != "unknown-tag" && !compressed {
            assert_eq!(answer["hex"], vector["hex"], "{name}");
        }
    }
}

/// Frames are made from the vectors: the header that the API and version call for, then the body.
#[test]
fn every_vector_comes_back_in_a_frame() {
    let (mut input, mut expected) = (String::new(), Vec::new());
    for file in vector_files() {
        for line in fs::read_to_string(file).unwrap().lines() {
            let vector: Value = serde_json::from_str(line).unwrap();
            if let Some((hex, header)) = frame(&vector) {
                let line = serde_json::json!({
                    "key": vector["key"], "version": vector["version"], "message": vector["message"], "hex": hex,
                });
                input.push_str(&format!("{line}\n"));
                let json = serde_json::json!({"header": header, "body": vector["json"]});
                expected.push((json.to_string(), hex, vector["variant"] == "unknown-tag"));
            }
        }
    }
    let answers = decode(&["--frame"], input);
    assert_eq!(answers.len(), expected.len());
    for (answer, (json, hex, loses_a_tag)) in answers.iter().zip(&expected) {
        assert_eq!(answer["json"].to_string(), *json, "{answer}");
        assert!(*loses_a_tag || answer["hex"] == *hex, "{answer}");
    }
}

/// A frame in hex and its header as JSON, for requests and responses.
fn frame(vector: &Value) -> Option<(String, Value)> {
    let (key, version) = (vector["key"].as_i64()?, vector["version"].as_i64()?);
    let api = heddle_protocol::ApiKey::from_i16(i16::try_from(key).ok()?);
    let tags = |header_version: i16, flexible: i16| if header_version == flexible { "00" } else { "" };
    let (header, json) = match vector["message"].as_str()? {
        "request" => {
            let header = api?.request_header_version(i16::try_from(version).ok()?);
            let json = serde_json::json!({
                "requestApiKey": key, "requestApiVersion": version, "correlationId": 7, "clientId": "me",
            });
            (format!("{key:04x}{version:04x}0000000700026d65{}", tags(header, 2)), json)
        }
        "response" => {
            let header = api?.response_header_version(i16::try_from(version).ok()?);
            (format!("00000007{}", tags(header, 1)), serde_json::json!({"correlationId": 7}))
        }
        _ => return None,
    };
    let frame = format!("{header}{}", vector["hex"].as_str()?);
    Some((format!("{:08x}{frame}", frame.len() / 2), json))
}

#[test]
fn bad_lines_are_answered_and_stop_nothing() {
    let good = r#"{"api":"Heartbeat","key":12,"version":0,"message":"response","hex":"001b"}"#;
    let bad = [
        "",
        "{",
        "[]",
        r#"{"api":"Heartbeat","key":12,"version":0,"message":"response"}"#,
        r#"{"api":"Heartbeat","key":12,"version":0,"message":"response","hex":"001"}"#,
        r#"{"api":"Heartbeat","key":12,"version":99,"message":"response","hex":"001b"}"#,
        r#"{"api":"Heartbeat","key":12,"message":"response","hex":"001b"}"#,
        r#"{"api":"Nothing","key":4,"version":0,"message":"request","hex":"001b"}"#,
        r#"{"api":"Nothing","key":400000,"version":0,"message":"request","hex":"001b"}"#,
        r#"{"api":"Metadata","key":3,"version":1,"message":"request","hex":"7fffffff"}"#,
        r#"{"api":"RecordBatch","key":-1,"version":2,"message":"batch","hex":"00"}"#,
        r#"{"api":"OffsetCommitKey","key":1,"version":0,"message":"key","hex":"0002"}"#,
    ];
    let input = bad.map(|line| format!("{line}\n{good}\n")).concat();
    let answers = decode(&[], input);
    assert_eq!(answers.len(), 2 * bad.len());
    for (pair, line) in answers.chunks(2).zip(bad) {
        assert!(pair[0]["error"].is_string() && pair[0]["at"].is_u64(), "{line}: {}", pair[0]);
        assert_eq!(pair[1]["hex"], "001b", "{line}");
    }
}
