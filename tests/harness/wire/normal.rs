//! What differs from run to run, made the same: ids, times, ports, texts for people, the order of what has none.

use std::collections::BTreeMap;

use super::value::{BYTES_SHOWN_MAX, Value};

/// A number from here on may be one that a broker chose; smaller ones are never taken for it.
const CHOSEN_NUMBER_MIN: i64 = 1_000;

/// Milliseconds that can only be a broker's clock. Scripts write smaller timestamps.
const NOW: std::ops::Range<i64> = 1_500_000_000_000..5_000_000_000_000;

/// What has a name in a script: `$name` in requests, and in the answers where its value was.
#[derive(Default)]
pub struct Names {
    bound: BTreeMap<String, (String, Value)>,
    uuids: Vec<String>,
}

impl Names {
    /// Gives a value a name; `field` is where it came from.
    pub fn bind(&mut self, name: &str, field: &str, value: Value) {
        self.bound.insert(name.to_owned(), (field.to_owned(), value));
    }

    /// The request with values where names were.
    ///
    /// # Errors
    /// A name that nothing was bound to.
    pub fn fill(&self, request: &Value) -> Result<Value, String> {
        let mut missing = None;
        let filled = request.map("", &mut |_, value| match value {
            Value::Text(text) if text.contains('$') => match self.filled(text) {
                Ok(value) => Some(value),
                Err(name) => {
                    missing = Some(name);
                    None
                }
            },
            _ => None,
        });
        missing.map_or(Ok(filled), |name| Err(format!("nothing is called `{name}`")))
    }

    fn filled(&self, text: &str) -> Result<Value, String> {
        let mut out = String::new();
        let mut pieces = text.split('$');
        out.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let end = piece.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(piece.len());
            let (name, after) = piece.split_at(end);
            let (_, value) = self.bound.get(name).ok_or_else(|| name.to_owned())?;
            if name.len() + 1 == text.len() {
                return Ok(value.clone());
            }
            out.push_str(&match value {
                Value::Text(text) => text.clone(),
                other => other.line(),
            });
            out.push_str(after);
        }
        Ok(Value::Text(out))
    }

    /// An answer as every run should give it.
    pub fn normal(&mut self, answer: &Value) -> Value {
        let without_texts = answer.map("", &mut |field, value| match value {
            Value::Text(_) if field == "errorMessage" || field.ends_with("ErrorMessage") => {
                Some(Value::Text("<text>".to_owned()))
            }
            _ => None,
        });
        self.verbatim(&without_texts)
    }

    /// The same with texts for people as they are, but for what differs from run to run in them.
    pub fn verbatim(&mut self, answer: &Value) -> Value {
        let named = answer.map("", &mut |field, value| self.normal_part(field, value));
        // Numbered in the order of what is seen, which is the same everywhere.
        sorted(&named).map("", &mut |field, value| self.numbered(field, value))
    }

    /// `$uuid1` for the first uuid that was seen and has no name, and so on.
    fn numbered(&mut self, field: &str, value: &Value) -> Option<Value> {
        let Value::Text(text) = value else { return None };
        if !(field.ends_with("Id") || field.ends_with("Ids")) || !is_short_uuid(text) {
            return None;
        }
        let number = self.uuids.iter().position(|known| known == text).unwrap_or_else(|| {
            self.uuids.push(text.clone());
            self.uuids.len() - 1
        });
        Some(Value::Text(format!("$uuid{}", number + 1)))
    }

    fn normal_part(&self, field: &str, value: &Value) -> Option<Value> {
        match value {
            Value::Text(_) if field == "logDir" => Some(Value::Text("<folder>".to_owned())),
            Value::Int(_) if field == "usableBytes" || field == "totalBytes" => Some(Value::Text("<bytes>".to_owned())),
            Value::Text(text) => Some(Value::Text(self.normal_text(text))),
            Value::Bytes(bytes) if bytes.len() > BYTES_SHOWN_MAX => {
                Some(Value::Text(format!("<{}-bytes>", bytes.len())))
            }
            Value::Int(number) if NOW.contains(number) => Some(Value::Text("<time>".to_owned())),
            Value::Int(number) if *number >= CHOSEN_NUMBER_MIN => self
                .bound
                .iter()
                .find(|(_, (of, bound))| of == field && bound == value)
                .map(|(name, _)| Value::Text(format!("${name}"))),
            _ => None,
        }
    }

    fn normal_text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (name, (_, value)) in &self.bound {
            if let Value::Text(bound) = value
                && bound.len() >= 8
            {
                out = out.replace(bound.as_str(), &format!("${name}"));
            }
        }
        without_times(&without_uuids(&out))
    }
}

/// The text with `<time>` for every number that can only be a broker's clock.
fn without_times(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(digits.max(first.len_utf8()));
        // Also the largest number less the clock: how far back a clock without a bound reaches.
        let is_time =
            piece.parse().is_ok_and(|number: i64| NOW.contains(&number) || NOW.contains(&(i64::MAX - number)));
        out.push_str(if is_time { "<time>" } else { piece });
        rest = after;
    }
    out
}

fn is_short_uuid(text: &str) -> bool {
    text.len() == 22
        && text != super::decode::ZERO_UUID
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The text with `<uuid>` for every uuid in its long form.
fn without_uuids(text: &str) -> String {
    const LONG: usize = 36;
    let is_uuid = |candidate: &str| {
        candidate.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match rest.get(..LONG) {
            Some(candidate) if is_uuid(candidate) => {
                out.push_str("<uuid>");
                rest = &rest[LONG..];
            }
            _ => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

/// Lists of structures in one order: that of most of them means nothing and differs from run to run.
fn sorted(value: &Value) -> Value {
    match value {
        Value::List(items) => {
            let mut items: Vec<Value> = items.iter().map(sorted).collect();
            if items.iter().all(|item| matches!(item, Value::Map(_))) {
                items.sort_by_key(order);
            }
            Value::List(items)
        }
        Value::Map(fields) => Value::Map(fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect()),
        other => other.clone(),
    }
}

/// By what names an item, then by all of it.
fn order(item: &Value) -> (Option<i64>, String) {
    let index = ["partitionIndex", "partition", "apiKey"].iter().find_map(|name| match item.field(name) {
        Some(Value::Int(index)) => Some(*index),
        _ => None,
    });
    let name = ["name", "topic", "groupId", "resourceName"].iter().find_map(|name| item.field(name));
    (index, format!("{} {}", name.map(Value::line).unwrap_or_default(), item.line()))
}
