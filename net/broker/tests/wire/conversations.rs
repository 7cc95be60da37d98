//! Conversations that Apache Kafka 4.3 had with a client, word for word in `testdata/conversation_*.txt`, and ours beside
//! them. `HEDDLE_REWRITE_TRANSCRIPTS=1` writes our answers anew.
//!
//! ```text
//! > ListConfigResources 1 004a0001…     the request: API, version, bytes of its frame
//!   {"resourceTypes":[2]}               the same for people
//! < {"throttleTimeMs":0,…}              what Kafka answered; `closed` where it closed the connection
//! = {"throttleTimeMs":0,…}              what Heddle answers, where that is something else; why, is said above
//! ```
//!
//! Times, sizes of disks and positions in the metadata log are masked, lists that Kafka gives in the order of a hash
//! are compared without their order.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use heddle_protocol::ApiKey;
use heddle_protocol::json::frame::{show_request, show_response};
use serde_json::Value;

use super::world::{Connection, World};

#[test]
fn about_topics() {
    play("conversation_topics.txt");
}

#[test]
fn about_settings() {
    play("conversation_settings.txt");
}

#[test]
fn about_administration() {
    play("conversation_administration.txt");
}

/// One request of a file, and what was answered.
struct Exchange<'a> {
    /// Comments and empty lines before it.
    before: Vec<&'a str>,
    /// API, version and bytes in hexadecimal.
    request: &'a str,
    shown: &'a str,
    kafka: &'a str,
    /// `None`: as Kafka.
    heddle: Option<&'a str>,
}

fn play(file: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let text = fs::read_to_string(&path).expect("the file is there");
    let (exchanges, rest) = parse(&text);
    let requests: Vec<String> = exchanges.iter().map(|exchange| exchange.request.to_owned()).collect();
    let world = World::new(1, 1, &[("num.partitions", "4")]);
    let (io, address) = (world.io.clone(), world.address);
    let answers = world.run(async move {
        let mut answers = Vec::new();
        let mut connection = World::connect(io.clone(), address).await;
        for request in &requests {
            let answer = converse(&mut connection, request).await;
            if answer.is_none() {
                connection = World::connect(io.clone(), address).await;
            }
            answers.push(answer.unwrap_or_else(|| "closed".to_owned()));
        }
        answers
    });
    let mut again = String::new();
    for (exchange, answer) in exchanges.iter().zip(&answers) {
        for line in &exchange.before {
            writeln!(again, "{line}").expect("a String takes all");
        }
        let Exchange { request, shown, kafka, .. } = exchange;
        writeln!(again, "> {request}\n  {shown}\n< {kafka}").expect("a String takes all");
        if masked(answer) != masked(kafka) {
            writeln!(again, "= {answer}").expect("a String takes all");
        }
    }
    again.extend(rest.iter().flat_map(|line| [line, "\n"]));
    if env::var_os("HEDDLE_REWRITE_TRANSCRIPTS").is_some() {
        fs::write(&path, again).expect("the file can be written");
        return;
    }
    for (exchange, answer) in exchanges.iter().zip(&answers) {
        let expected = exchange.heddle.unwrap_or(exchange.kafka);
        assert_eq!(masked(answer), masked(expected), "{file}: {}\n{}", exchange.request, exchange.shown);
    }
}

fn parse(text: &str) -> (Vec<Exchange<'_>>, Vec<&str>) {
    let mut exchanges = Vec::new();
    let mut before = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(request) = line.strip_prefix("> ") else {
            before.push(line);
            continue;
        };
        let shown = lines.next().and_then(|line| line.strip_prefix("  ")).expect("a request is shown");
        let kafka = lines.next().and_then(|line| line.strip_prefix("< ")).expect("Kafka answered");
        let heddle = lines.next_if(|line| line.starts_with("= ")).map(|line| &line[2..]);
        exchanges.push(Exchange { before: std::mem::take(&mut before), request, shown, kafka, heddle });
    }
    (exchanges, before)
}

/// The answer's body; `None` when the broker closes the connection.
async fn converse(connection: &mut Connection, request: &str) -> Option<String> {
    let mut words = request.split(' ');
    let (name, version, bytes) = (words.next(), words.next(), words.next());
    let bytes = bytes_of(bytes.expect("a request has bytes"));
    let key = ApiKey::from_i16(i16::from_be_bytes([bytes[0], bytes[1]])).expect("an API that is known");
    let version: i16 = version.expect("a request has a version").parse().expect("a version is a number");
    assert_eq!(Some(format!("{key:?}").as_str()), name, "the bytes are what they are called");
    assert!(show_request(&bytes).is_ok(), "{request}");
    let mut frame = u32::try_from(bytes.len()).expect("requests here are short").to_be_bytes().to_vec();
    frame.extend(bytes);
    connection.send_bytes(frame).await;
    let answer = connection.receive().await?;
    let shown = show_response(key.code(), version, &answer).expect("the answer is one of this API");
    assert_eq!(shown.trailing, 0, "{request}: bytes follow the answer");
    let whole: Value = serde_json::from_str(&shown.json).expect("it is JSON");
    Some(whole.get("body").expect("an answer has a body").to_string())
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
    digits.map(byte).collect()
}

/// Fields whose values are never the same twice.
const MASKED: [&str; 12] = [
    "topicId",
    "clusterId",
    "leaderEpoch",
    "highWatermark",
    "logEndOffset",
    "lastFetchTimestamp",
    "lastCaughtUpTimestamp",
    "lastTimestamp",
    "totalBytes",
    "usableBytes",
    "host",
    "port",
];

fn masked(answer: &str) -> Value {
    if answer == "closed" {
        return Value::String(answer.to_owned());
    }
    let mut value: Value = serde_json::from_str(answer).expect("an answer is JSON");
    mask(&mut value);
    value
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if MASKED.contains(&name.as_str()) {
                    *field = Value::Null;
                }
                mask(field);
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(mask);
            items.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}
