//! A script: requests with the answers that Apache Kafka gave to them, as a text that is read, run and written again.

use std::fmt::Write as _;

use heddle_protocol::ApiKey;

use super::value::{Cursor, Value, hex};

/// A range of versions, both ends included.
pub type Versions = (i16, i16);

/// One script.
pub struct Script {
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// What stands after the last step.
    ending: String,
}

/// One thing that happens, and what was recorded.
pub struct Step {
    /// What stands before it: comments and blank lines.
    before: String,
    /// Its own text.
    pub text: String,
    /// The last comment above it.
    pub title: String,
    /// On which connection.
    pub connection: String,
    /// What.
    pub action: Action,
    /// Names for what the answer holds: name and path.
    pub binds: Vec<(String, String)>,
    /// Fields that the answers are kept without, because they are long and recorded elsewhere.
    pub less: Vec<String>,
    /// Whether texts for people are kept as they are.
    pub verbatim: bool,
    /// The answer by version.
    pub answers: Vec<(Versions, Value)>,
}

/// What happens.
pub enum Action {
    /// A request in several versions, each answered before the next.
    Call(Request),
    /// A request, again until a path of the answer has a value.
    Until(Request, String, Value),
    /// A request whose answer is received later.
    Send(Request),
    /// A request that is never answered.
    Tell(Request),
    /// The answer to the oldest request that was sent.
    Receive,
    /// The end of the connection.
    Close,
    /// A frame, byte by byte after its length.
    Raw(Vec<u8>),
}

/// A request in a script.
pub struct Request {
    /// Its API.
    pub api: ApiKey,
    /// In which versions.
    pub versions: Versions,
    /// Its fields.
    pub fields: Value,
}

impl Action {
    /// The request that is sent, if one is.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        match self {
            Action::Call(request) | Action::Until(request, ..) | Action::Send(request) | Action::Tell(request) => {
                Some(request)
            }
            Action::Receive | Action::Close | Action::Raw(_) => None,
        }
    }
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// The line that is none, and why.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut script = Script { steps: Vec::new(), ending: String::new() };
        let (mut rest, mut title) = (text, String::new());
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            if line.is_empty() || line.starts_with('#') {
                if let Some(words) = line.strip_prefix('#') {
                    words.trim().clone_into(&mut title);
                }
                let _ = writeln!(script.ending, "{line}");
                rest = after;
                continue;
            }
            let number = text[..text.len() - rest.len()].lines().count() + 1;
            let mut step = Step::parse(&mut rest).map_err(|error| format!("line {number}: {error}"))?;
            step.before = std::mem::take(&mut script.ending);
            step.title.clone_from(&title);
            script.steps.push(step);
        }
        Ok(script)
    }

    /// The script as a text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            let _ = writeln!(out, "{}{}", step.before, step.text);
            for (versions, answer) in &step.answers {
                let versions = versions_text(*versions);
                let _ = writeln!(out, "  {versions} {}", answer.text(2));
            }
        }
        out + &self.ending
    }
}

/// `3`, or `3-5`.
#[must_use]
pub fn versions_text((first, last): Versions) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn versions_of(word: &str) -> Result<Versions, String> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("`{word}` is no range of versions")),
    }
}

impl Step {
    /// Takes a step and its answers from the start of `rest`.
    fn parse(rest: &mut &str) -> Result<Step, String> {
        let start = *rest;
        let mut cursor = Cursor::new(start);
        let first = cursor.word();
        let (connection, verb) =
            if cursor.take(":") { (first.to_owned(), cursor.word()) } else { ("a".to_owned(), first) };
        let action = action(verb, &mut cursor)?;
        let (mut binds, mut less) = (Vec::new(), Vec::new());
        let verbatim = cursor.take("verbatim");
        let mut more = cursor.take("less ");
        while more {
            less.push(cursor.word().to_owned());
            more = cursor.take(",");
        }
        more = cursor.take("->");
        while more {
            let name = cursor.word().to_owned();
            if !cursor.take("=") {
                return Err("expected name=path after ->".to_owned());
            }
            binds.push((name, cursor.word().to_owned()));
            more = cursor.take(",");
        }
        let text = start[..start.len() - cursor.rest().len()].trim_end().to_owned();
        let mut answers = Vec::new();
        while cursor.rest().trim_start_matches(['\n']).starts_with("  ") {
            let versions = versions_of(cursor.word())?;
            answers.push((versions, cursor.value()?));
        }
        *rest = cursor.rest();
        *rest = rest.strip_prefix('\n').unwrap_or(rest);
        Ok(Step {
            before: String::new(),
            text,
            title: String::new(),
            connection,
            action,
            binds,
            less,
            verbatim,
            answers,
        })
    }
}

fn action(verb: &str, cursor: &mut Cursor<'_>) -> Result<Action, String> {
    match verb {
        "send" => Ok(Action::Send(request(cursor.word(), cursor)?)),
        "tell" => Ok(Action::Tell(request(cursor.word(), cursor)?)),
        "receive" => Ok(Action::Receive),
        "close" => Ok(Action::Close),
        "raw" => match cursor.value()? {
            Value::Bytes(bytes) => Ok(Action::Raw(bytes)),
            Value::Text(digits) => hex(&digits).map(Action::Raw),
            other => Err(format!("`{}` is no bytes", other.line())),
        },
        "until" => {
            let path = cursor.word().to_owned();
            if !cursor.take("=") {
                return Err("expected until path=value".to_owned());
            }
            let value = cursor.value()?;
            Ok(Action::Until(request(cursor.word(), cursor)?, path, value))
        }
        api => Ok(Action::Call(request(api, cursor)?)),
    }
}

fn request(name: &str, cursor: &mut Cursor<'_>) -> Result<Request, String> {
    let api = ApiKey::ALL.iter().find(|api| api.name() == name).ok_or_else(|| format!("no API is called `{name}`"))?;
    let versions = versions_of(cursor.word())?;
    Ok(Request { api: *api, versions, fields: cursor.value()? })
}
