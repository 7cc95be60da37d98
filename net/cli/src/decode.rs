//! `heddle decode`: captured bytes of the protocol as JSON, one line for each line.
//!
//! A line in is `{"api":"Produce","key":0,"version":9,"message":"request","hex":"…"}`; the line out is
//! `{"json":{…},"hex":"…"}`, the fields and the bytes of encoding them again, or `{"error":"…","at":byte}`. What the
//! codec knows is in `heddle_protocol`; here are only lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};

use anyhow::Context as _;
use heddle_protocol::json::{self, Shown};
use heddle_protocol::schema::{MessageSpec, ReencodeError};
use serde_json::Value;

use crate::args::DecodeArgs;

/// Decodes every line; a bad line is answered with an error and never stops the rest.
///
/// # Errors
/// The input cannot be read or the output cannot be written.
pub(crate) fn run(args: &DecodeArgs) -> anyhow::Result<()> {
    let output = BufWriter::new(io::stdout().lock());
    match &args.file {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            decode_lines(BufReader::new(file), output, args.frame)
        }
        None => decode_lines(BufReader::new(io::stdin().lock()), output, args.frame),
    }
}

/// One line at a time, so that the input may be of any size.
fn decode_lines<R: io::Read>(mut input: BufReader<R>, mut output: impl Write, frame: bool) -> anyhow::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).context("cannot read the input")? == 0 {
            return output.flush().context("cannot write the output");
        }
        let answer = answer(&line, frame);
        writeln!(output, "{answer}").context("cannot write the output")?;
        // Whoever waits for the answer before sending the next line gets it.
        if input.buffer().is_empty() {
            output.flush().context("cannot write the output")?;
        }
    }
}

/// What a line says about its bytes. Fields that are not needed may be missing, others are ignored.
struct Line {
    api: String,
    key: Option<i16>,
    version: Option<i16>,
    message: String,
    bytes: Vec<u8>,
}

impl Line {
    fn parse(line: &[u8]) -> Result<Line, Problem> {
        let line: Value =
            serde_json::from_slice(line).map_err(|error| Problem::in_line(format!("not a line to decode: {error}")))?;
        let hex = line.get("hex").and_then(Value::as_str).ok_or_else(|| Problem::in_line("`hex` is missing"))?;
        let text = |name| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Line {
            api: text("api"),
            key: number(&line, "key")?,
            version: number(&line, "version")?,
            message: text("message"),
            bytes: bytes_of(hex)?,
        })
    }
}

fn number(line: &Value, name: &str) -> Result<Option<i16>, Problem> {
    let Some(value) = line.get(name) else { return Ok(None) };
    let number = value.as_i64().and_then(|number| i16::try_from(number).ok());
    number.map(Some).ok_or_else(|| Problem::in_line(format!("`{name}` is no number of 16 bits")))
}

/// What is wrong, and at which byte of the message; 0 when the line itself is wrong.
struct Problem {
    what: String,
    at: usize,
}

impl Problem {
    fn in_line(what: impl Into<String>) -> Problem {
        Problem { what: what.into(), at: 0 }
    }
}

impl From<ReencodeError> for Problem {
    fn from(error: ReencodeError) -> Problem {
        let at = match error {
            ReencodeError::Decode(error) => error.at,
            ReencodeError::Encode(_) => 0,
        };
        Problem { what: error.to_string(), at }
    }
}

fn answer(line: &[u8], frame: bool) -> String {
    let mut out = String::new();
    match decode_line(line, frame) {
        Ok(shown) => {
            out.push_str("{\"json\":");
            out.push_str(&shown.json);
            out.push_str(",\"hex\":\"");
            push_hex(&mut out, &shown.bytes);
            out.push('"');
            if shown.trailing > 0 {
                out.push_str(&format!(",\"trailing\":{}", shown.trailing));
            }
        }
        Err(problem) => {
            out.push_str("{\"error\":");
            json::write_string(&mut out, &problem.what);
            out.push_str(&format!(",\"at\":{}", problem.at));
        }
    }
    out.push('}');
    out
}

fn decode_line(line: &[u8], frame: bool) -> Result<Shown, Problem> {
    let line = Line::parse(line)?;
    if frame {
        return decode_frame(&line);
    }
    if line.message == "batch" {
        return json::batch::show(&line.bytes).map_err(|error| Problem { what: error.to_string(), at: error.at });
    }
    let spec = spec_of(&line)?;
    let version = match line.version {
        Some(version) => version,
        // A key has one version and a value carries its own.
        None if matches!(line.message.as_str(), "key" | "value" | "embedded" | "record") => spec.versions.min,
        None => return Err(Problem::in_line("`version` is missing")),
    };
    Ok(json::show(spec, version, &line.bytes)?)
}

fn decode_frame(line: &Line) -> Result<Shown, Problem> {
    match line.message.as_str() {
        "request" => Ok(json::frame::show_request(&line.bytes)?),
        "response" => {
            let key = spec_of(line)?.key;
            let version = line.version.ok_or_else(|| Problem::in_line("`version` is missing"))?;
            Ok(json::frame::show_response(key, version, &line.bytes)?)
        }
        other => Err(Problem::in_line(format!("`{other}` has no frame; `message` is request or response"))),
    }
}

/// The message that a line is about: requests and responses by API key or else by name, all others by name.
fn spec_of(line: &Line) -> Result<&'static MessageSpec, Problem> {
    let api = line.api.as_str();
    let spec = match (line.message.as_str(), line.key) {
        ("request", Some(key)) => MessageSpec::request(key),
        ("response", Some(key)) => MessageSpec::response(key),
        ("request", None) => MessageSpec::named(&format!("{api}Request")),
        ("response", None) => MessageSpec::named(&format!("{api}Response")),
        ("header" | "key" | "value" | "embedded" | "data" | "record", _) => MessageSpec::named(api),
        (other, _) => return Err(Problem::in_line(format!("`{other}` is no kind of message"))),
    };
    spec.ok_or_else(|| match line.key {
        Some(key) => Problem::in_line(format!("no {} is called `{api}` with key {key}", line.message)),
        None => Problem::in_line(format!("no {} is called `{api}`", line.message)),
    })
}

fn bytes_of(hex: &str) -> Result<Vec<u8>, Problem> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.as_bytes().chunks(2).enumerate();
    pairs
        .map(|(at, pair)| {
            match *pair {
                [high, low] => digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low),
                _ => None,
            }
            .ok_or_else(|| Problem { what: format!("`hex` is no hexadecimal at byte {at}"), at })
        })
        .collect()
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 0x0f)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &str, frame: bool) -> Vec<String> {
        let mut output = Vec::new();
        decode_lines(BufReader::new(input.as_bytes()), &mut output, frame).unwrap();
        String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_out_for_every_line_in() {
        let input = r#"{"api":"Heartbeat","key":12,"version":0,"message":"response","hex":"001B"}
{"api":"Heartbeat","key":12,"version":0,"message":"response","hex":"00"}
nonsense

{"api":"Heartbeat","version":1,"message":"response","hex":"0000000500000102"}
{"api":"Heartbeat","key":12,"version":0,"message":"response","hex":"0z"}
{"api":"Nobody","message":"value","hex":"0000"}"#;
        let answers = lines(input, false);
        assert_eq!(answers[0], r#"{"json":{"errorCode":27},"hex":"001b"}"#);
        assert_eq!(
            answers[1],
            r#"{"error":"HeartbeatResponse.error_code: 2 bytes needed, 1 remain, at byte 0","at":0}"#
        );
        assert!(answers[2].starts_with(r#"{"error":"not a line to decode: "#), "{}", answers[2]);
        assert!(answers[3].starts_with(r#"{"error":"not a line to decode: "#), "{}", answers[3]);
        assert_eq!(answers[4], r#"{"json":{"throttleTimeMs":5,"errorCode":0},"hex":"000000050000","trailing":2}"#);
        assert_eq!(answers[5], r#"{"error":"`hex` is no hexadecimal at byte 0","at":0}"#);
        assert_eq!(answers[6], r#"{"error":"no value is called `Nobody`","at":0}"#);
        assert_eq!(answers.len(), 7);
    }

    #[test]
    fn frames_come_with_their_header() {
        let input = r#"{"message":"request","hex":"0000000a001200000000000affff"}
{"key":12,"version":0,"message":"response","hex":"00000007001b"}
{"message":"key","hex":"00"}"#;
        let answers = lines(input, true);
        assert_eq!(
            answers[0],
            concat!(
                r#"{"json":{"header":{"requestApiKey":18,"requestApiVersion":0,"correlationId":10,"clientId":null},"#,
                r#""body":{}},"hex":"0000000a001200000000000affff"}"#
            )
        );
        assert_eq!(
            answers[1],
            r#"{"json":{"header":{"correlationId":7},"body":{"errorCode":27}},"hex":"00000007001b"}"#
        );
        assert_eq!(answers[2], r#"{"error":"`key` has no frame; `message` is request or response","at":0}"#);
    }
}
