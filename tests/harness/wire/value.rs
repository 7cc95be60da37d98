//! A value in a script, as it is read and printed: `{name: thread, ids: [1, 2], metadata: b"x", note: null}`.
//!
//! Printing and reading are inverse. Knows no message: which field takes which value is the business of `encode`.

use std::fmt::Write as _;

/// Columns that a printed line may have.
const WIDTH: usize = 118;

/// Bytes that are printed in full; of more, the number is.
pub const BYTES_SHOWN_MAX: usize = 256;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, where a field may be nothing; also a way to write nothing where it may not.
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A number that is not whole.
    Float(f64),
    /// A string, an error's name, or `$name` for what was bound to it.
    Text(String),
    /// Bytes, up to some length.
    Bytes(Vec<u8>),
    /// Values of one kind.
    List(Vec<Value>),
    /// Fields.
    Map(Vec<(String, Value)>),
    /// Bytes that are made from fields: a record batch, or a message of the codec in a version, as `name/version`.
    Made(String, Vec<(String, Value)>),
}

impl Value {
    /// The field of a map.
    pub fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// What a path such as `topics.0.topicId` leads to.
    pub fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(self, |value, step| match value {
            Value::List(items) => items.get(step.parse::<usize>().ok()?),
            other => other.field(step),
        })
    }

    /// The same value with everything that `change` does to each part of it, given the name of the field around it.
    #[must_use]
    pub fn map(&self, field: &str, change: &mut impl FnMut(&str, &Value) -> Option<Value>) -> Value {
        if let Some(changed) = change(field, self) {
            return changed;
        }
        match self {
            Value::List(items) => Value::List(items.iter().map(|item| item.map(field, change)).collect()),
            Value::Map(fields) => Value::Map(map_fields(fields, change)),
            Value::Made(name, fields) => Value::Made(name.clone(), map_fields(fields, change)),
            other => other.clone(),
        }
    }

    /// The same value without the fields of these names, wherever they are.
    #[must_use]
    pub fn without(&self, names: &[String]) -> Value {
        match self {
            Value::List(items) => Value::List(items.iter().map(|item| item.without(names)).collect()),
            Value::Map(fields) => {
                let left = fields.iter().filter(|(name, _)| !names.contains(name));
                Value::Map(left.map(|(name, value)| (name.clone(), value.without(names))).collect())
            }
            other => other.clone(),
        }
    }

    /// Appends a line for every part that differs from `other`: where, and both values.
    pub fn differences(&self, other: &Value, path: &str, out: &mut Vec<String>) {
        match (self, other) {
            (Value::Map(mine), Value::Map(theirs)) => {
                let absent = Value::Text("<default>".to_owned());
                for (name, value) in mine {
                    value.differences(other.field(name).unwrap_or(&absent), &format!("{path}.{name}"), out);
                }
                for (name, value) in theirs.iter().filter(|(name, _)| self.field(name).is_none()) {
                    absent.differences(value, &format!("{path}.{name}"), out);
                }
            }
            (Value::List(mine), Value::List(theirs)) if mine.len() == theirs.len() => {
                let pairs = mine.iter().zip(theirs).enumerate();
                pairs.for_each(|(at, (mine, theirs))| mine.differences(theirs, &format!("{path}.{at}"), out));
            }
            (mine, theirs) if mine == theirs => {}
            (mine, theirs) => out.push(format!("{path}: {} | {}", mine.line(), theirs.line())),
        }
    }

    /// The value on one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut out = String::new();
        write_line(&mut out, self);
        out
    }

    /// The value on one line if that fits beside `indent` columns, else on several, the further ones indented by more.
    #[must_use]
    pub fn text(&self, indent: usize) -> String {
        let mut out = String::new();
        write_wrapped(&mut out, self, indent, indent);
        out
    }
}

fn map_fields(
    fields: &[(String, Value)],
    change: &mut impl FnMut(&str, &Value) -> Option<Value>,
) -> Vec<(String, Value)> {
    fields.iter().map(|(name, value)| (name.clone(), value.map(name, change))).collect()
}

fn write_wrapped(out: &mut String, value: &Value, column: usize, indent: usize) {
    let line = value.line();
    if column + line.len() <= WIDTH {
        out.push_str(&line);
        return;
    }
    let inner = indent + 2;
    let pad = " ".repeat(inner);
    match value {
        Value::List(items) => {
            out.push_str("[\n");
            for item in items {
                out.push_str(&pad);
                write_wrapped(out, item, inner, inner);
                out.push_str(",\n");
            }
            let _ = write!(out, "{}]", " ".repeat(indent));
        }
        Value::Map(fields) | Value::Made(_, fields) => {
            if let Value::Made(name, _) = value {
                out.push_str(name);
            }
            out.push_str("{\n");
            for (name, field) in fields {
                let _ = write!(out, "{pad}{name}: ");
                write_wrapped(out, field, inner + name.len() + 2, inner);
                out.push_str(",\n");
            }
            let _ = write!(out, "{}}}", " ".repeat(indent));
        }
        _ => out.push_str(&line),
    }
}

fn write_line(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(it) => out.push_str(&it.to_string()),
        Value::Int(it) => out.push_str(&it.to_string()),
        Value::Float(it) => out.push_str(&format!("{it:?}")),
        Value::Text(text) => write_text(out, text),
        Value::Bytes(bytes) => write_bytes(out, bytes),
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_line(out, item);
            }
            out.push(']');
        }
        Value::Map(fields) | Value::Made(_, fields) => {
            if let Value::Made(name, _) = value {
                out.push_str(name);
            }
            out.push('{');
            for (index, (name, field)) in fields.iter().enumerate() {
                let _ = write!(out, "{}{name}: ", if index > 0 { ", " } else { "" });
                write_line(out, field);
            }
            out.push('}');
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    let first = text.starts_with(|first: char| first.is_ascii_alphabetic() || "_$<".contains(first));
    if first && text.chars().all(is_bare) && !["null", "true", "false"].contains(&text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_bytes(out: &mut String, bytes: &[u8]) {
    if bytes.len() > BYTES_SHOWN_MAX {
        let _ = write!(out, "<{}-bytes>", bytes.len());
    } else if bytes.iter().all(|byte| (b' '..=b'~').contains(byte) && !b"\"\\".contains(byte)) {
        let _ = write!(out, "b\"{}\"", String::from_utf8_lossy(bytes));
    } else {
        out.push_str("x\"");
        for byte in bytes {
            let _ = write!(out, "{byte:02x}");
        }
        out.push('"');
    }
}

/// What a word may hold that needs no quotes.
fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-$<>/".contains(c)
}

/// Reads values from a text.
pub struct Cursor<'t> {
    rest: &'t str,
}

impl<'t> Cursor<'t> {
    /// A cursor at the start of `text`.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        Cursor { rest: text }
    }

    /// What was not read yet.
    #[must_use]
    pub fn rest(&self) -> &'t str {
        self.rest
    }

    /// Skips blanks, line ends among them.
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes `text` if it is next.
    pub fn take(&mut self, text: &str) -> bool {
        let taken = self.rest.trim_start().strip_prefix(text);
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    /// Takes a word without quotes; empty where none is next.
    pub fn word(&mut self) -> &'t str {
        self.blanks();
        let end = self.rest.find(|c| !is_bare(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.take(text) { Ok(()) } else { Err(format!("expected `{text}` before `{}`", self.near())) }
    }

    fn near(&self) -> String {
        self.rest.chars().take(40).collect()
    }

    /// Takes a value.
    ///
    /// # Errors
    /// What is next is none.
    pub fn value(&mut self) -> Result<Value, String> {
        self.blanks();
        let value = match self.rest.chars().next() {
            Some('[') => self.list()?,
            Some('{') => Value::Map(self.fields()?),
            Some('"') => Value::Text(self.quoted()?),
            Some(c) if is_bare(c) => self.bare()?,
            _ => return Err(format!("expected a value before `{}`", self.near())),
        };
        if self.rest.starts_with('*') {
            self.rest = &self.rest[1..];
            let times: usize = self.word().parse().map_err(|_| format!("no number of times at `{}`", self.near()))?;
            return repeat(value, times);
        }
        Ok(value)
    }

    fn list(&mut self) -> Result<Value, String> {
        self.expect("[")?;
        let mut items = Vec::new();
        while !self.take("]") {
            items.push(self.value()?);
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Value::List(items))
    }

    fn fields(&mut self) -> Result<Vec<(String, Value)>, String> {
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.take("}") {
            let name = self.word().to_owned();
            self.expect(":")?;
            fields.push((name, self.value()?));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }

    fn quoted(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, other)) => text.push(other),
                    None => break,
                },
                other => text.push(other),
            }
        }
        Err("a quote that does not end".to_owned())
    }

    fn bare(&mut self) -> Result<Value, String> {
        let word = self.word();
        match (word, self.rest.chars().next()) {
            ("b", Some('"')) => return Ok(Value::Bytes(self.quoted()?.into_bytes())),
            ("x", Some('"')) => return hex(&self.quoted()?).map(Value::Bytes),
            (name, Some('{')) => return Ok(Value::Made(name.to_owned(), self.fields()?)),
            _ => {}
        }
        Ok(match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => match number.parse::<i64>() {
                Ok(int) => Value::Int(int),
                Err(_) => Value::Float(number.parse().map_err(|_| format!("`{number}` is no number"))?),
            },
            text => Value::Text(text.to_owned()),
        })
    }
}

fn repeat(value: Value, times: usize) -> Result<Value, String> {
    match value {
        Value::Text(text) => Ok(Value::Text(text.repeat(times))),
        Value::Bytes(bytes) => Ok(Value::Bytes(bytes.repeat(times))),
        Value::List(items) => {
            let count = items.len() * times;
            Ok(Value::List(items.into_iter().cycle().take(count).collect()))
        }
        other => Err(format!("`{}` cannot be repeated", other.line())),
    }
}

/// The bytes that hexadecimal digits stand for.
///
/// # Errors
/// They are none.
pub fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let digits: String = digits.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2))
        .map(|pair| pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{digits}` is no hexadecimal"))
}
