//! Reads the schema notation (`schema/README.md`) into plain structures. Refuses what it does not understand, with file
//! and line: a typo in a schema fails the build.

use std::fmt;

/// One schema file: a module of the generated code.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The Rust module, such as `list_offsets`.
    pub(crate) module: String,
    pub(crate) messages: Vec<Message>,
    /// Every structure of the file, those of the messages themselves included.
    pub(crate) structs: Vec<Struct>,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// API key or record type, -1 where there is none.
    pub(crate) key: i16,
    /// The name of the message, which is also that of its structure.
    pub(crate) name: String,
    pub(crate) versions: Versions,
    pub(crate) flexible: Option<Versions>,
    /// The first version that may still change.
    pub(crate) unstable: Option<i16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Response,
    Header,
    Key,
    Value,
    Embedded,
    Metadata,
    Data,
}

#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
    /// The message that it belongs to, as an index; a shared one belongs to the first.
    pub(crate) message: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: FieldKind,
    /// The versions that have the field.
    pub(crate) versions: Versions,
    pub(crate) nullable: Option<Versions>,
    pub(crate) tag: Option<u32>,
    pub(crate) ignorable: bool,
    pub(crate) noncompact: bool,
    /// As written behind `=`.
    pub(crate) default: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FieldKind {
    Bool,
    Int8,
    Int16,
    Uint16,
    Int32,
    Int64,
    Float64,
    Uuid,
    String,
    Bytes,
    Records,
    Struct(String),
    Array(Box<FieldKind>),
}

/// An inclusive range of versions; the open end is `i16::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) min: i16,
    pub(crate) max: i16,
}

impl Versions {
    pub(crate) const ALL: Versions = Versions { min: 0, max: i16::MAX };

    pub(crate) fn contains(self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }

    /// Whether every version of `other` is in this range.
    pub(crate) fn covers(self, other: Versions) -> bool {
        self.min <= other.min && other.max <= self.max
    }

    pub(crate) fn intersect(self, other: Versions) -> Versions {
        Versions { min: self.min.max(other.min), max: self.max.min(other.max) }
    }

    fn parse(text: &str) -> Result<Versions, String> {
        let number = |text: &str| text.parse::<i16>().map_err(|_| format!("`{text}` is no version"));
        if let Some(min) = text.strip_suffix('+') {
            return Ok(Versions { min: number(min)?, max: i16::MAX });
        }
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        Ok(Versions { min: number(min)?, max: number(max)? })
    }
}

/// `3 to 12`, `3 and later`, `3`.
impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (min, i16::MAX) => write!(f, "{min} and later"),
            (min, max) if min == max => write!(f, "{min}"),
            (min, max) => write!(f, "{min} to {max}"),
        }
    }
}

impl Schema {
    /// Parses one file.
    pub(crate) fn parse(path: &str, module: &str, text: &str) -> Result<Schema, String> {
        let mut schema = Schema { module: module.into(), messages: Vec::new(), structs: Vec::new() };
        // The structure that a line of each depth adds its field to.
        let mut open: Vec<usize> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or_default().trim_end();
            if content.is_empty() {
                continue;
            }
            schema.line(content, &mut open).map_err(|error| format!("{path}:{}: {error}", number + 1))?;
        }
        schema.check().map_err(|error| format!("{path}: {error}"))?;
        Ok(schema)
    }

    fn line(&mut self, line: &str, open: &mut Vec<usize>) -> Result<(), String> {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        if !indent.is_multiple_of(2) {
            return Err("indent by two spaces".into());
        }
        let depth = indent / 2;
        if depth == 0 {
            let message = Message::parse(words)?;
            *open = vec![self.open(&message.name, self.messages.len())?];
            self.messages.push(message);
            return Ok(());
        }
        let Some(&parent) = open.get(depth - 1) else { return Err("indented too far".into()) };
        open.truncate(depth);
        let field = Field::parse(words)?;
        let name = field.kind.structure().map(String::from);
        self.structs[parent].fields.push(field);
        // The fields of a structure follow where it is first named.
        if let Some(name) = name {
            let index = match self.structs.iter().position(|structure| structure.name == name) {
                Some(_) => usize::MAX,
                None => self.open(&name, self.messages.len() - 1)?,
            };
            open.push(index);
        }
        Ok(())
    }

    fn open(&mut self, name: &str, message: usize) -> Result<usize, String> {
        if self.structs.iter().any(|structure| structure.name == name) {
            return Err(format!("`{name}` is described twice"));
        }
        self.structs.push(Struct { name: name.into(), fields: Vec::new(), message });
        Ok(self.structs.len() - 1)
    }

    fn check(&self) -> Result<(), String> {
        for structure in &self.structs {
            let is_message = self.messages.iter().any(|message| message.name == structure.name);
            if structure.fields.is_empty() && !is_message {
                return Err(format!("`{}` has no fields", structure.name));
            }
            for field in &structure.fields {
                field.check(&structure.name)?;
            }
        }
        Ok(())
    }

    pub(crate) fn structure(&self, name: &str) -> &Struct {
        self.structs.iter().find(|structure| structure.name == name).expect("every named structure was opened")
    }
}

impl Message {
    /// `request 0 Produce 3-13 flexible 9+ unstable 13`
    fn parse(line: &str) -> Result<Message, String> {
        let mut words = line.split_whitespace();
        let mut word = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
        let kind = match word("kind")? {
            "request" => Kind::Request,
            "response" => Kind::Response,
            "header" => Kind::Header,
            "key" => Kind::Key,
            "value" => Kind::Value,
            "embedded" => Kind::Embedded,
            "record" => Kind::Metadata,
            "data" => Kind::Data,
            other => return Err(format!("`{other}` is no kind of message")),
        };
        let key = match kind {
            Kind::Header | Kind::Embedded | Kind::Data => -1,
            _ => word("key")?.parse().map_err(|_| "the key is no number".to_owned())?,
        };
        let name = word("name")?;
        let name = match kind {
            Kind::Request => format!("{name}Request"),
            Kind::Response => format!("{name}Response"),
            _ => name.to_owned(),
        };
        let versions = Versions::parse(word("versions")?)?;
        if versions.max == i16::MAX {
            return Err("a message needs a last version".into());
        }
        let mut message = Message { kind, key, name, versions, flexible: None, unstable: None };
        while let Ok(attribute) = word("attribute") {
            let value = word(attribute)?;
            match attribute {
                "flexible" => message.flexible = Some(Versions::parse(value)?),
                "unstable" => message.unstable = Some(Versions::parse(value)?.min),
                other => return Err(format!("`{other}` is no attribute of a message")),
            }
        }
        Ok(message)
    }
}

impl Field {
    /// `rack string?2+ 1+ tag 0 ignorable noncompact = null`
    fn parse(line: &str) -> Result<Field, String> {
        let (line, default) = match line.split_once(" = ") {
            Some((line, default)) => (line, Some(default.trim().to_owned())),
            None => (line, None),
        };
        let mut words = line.split_whitespace().peekable();
        let name = words.next().ok_or("name is missing")?.to_owned();
        let kind = words.next().ok_or("type is missing")?;
        let (kind, nullable) = match kind.split_once('?') {
            None => (kind, None),
            Some((kind, "")) => (kind, Some(Versions::ALL)),
            Some((kind, versions)) => (kind, Some(Versions::parse(versions)?)),
        };
        let kind = FieldKind::parse(kind)?;
        let versions = match words.next_if(|word| word.starts_with(|c: char| c.is_ascii_digit())) {
            Some(word) => Versions::parse(word)?,
            None => Versions::ALL,
        };
        let mut field =
            Field { name, kind, versions, nullable, tag: None, ignorable: false, noncompact: false, default };
        while let Some(word) = words.next() {
            match word {
                "tag" => {
                    let tag = words.next().and_then(|tag| tag.parse().ok());
                    field.tag = Some(tag.ok_or("a tag needs a number")?);
                }
                "ignorable" => field.ignorable = true,
                "noncompact" => field.noncompact = true,
                other => return Err(format!("`{other}` is no attribute of a field")),
            }
        }
        Ok(field)
    }

    fn check(&self, structure: &str) -> Result<(), String> {
        let fail = |what: &str| Err(format!("{structure}.{}: {what}", self.name));
        let is_null = self.default.as_deref() == Some("null");
        if is_null && self.nullable.is_none() {
            return fail("defaults to null and is never null");
        }
        if self.tag.is_some() && matches!(self.kind, FieldKind::Records) {
            return fail("records are never tagged: their bytes may be left out");
        }
        let good = match (&self.kind, self.default.as_deref()) {
            (_, None | Some("null")) => true,
            (FieldKind::Bool, Some(text)) => text == "true",
            (FieldKind::Int8, Some(text)) => text.parse::<i8>().is_ok(),
            (FieldKind::Int16, Some(text)) => text.parse::<i16>().is_ok(),
            (FieldKind::Uint16, Some(text)) => text.parse::<u16>().is_ok(),
            (FieldKind::Int32, Some(text)) => text.parse::<i32>().is_ok(),
            (FieldKind::Int64, Some(text)) => text.parse::<i64>().is_ok(),
            _ => false,
        };
        if good { Ok(()) } else { fail("no such default for this type") }
    }
}

impl FieldKind {
    fn parse(text: &str) -> Result<FieldKind, String> {
        if let Some(element) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return Ok(FieldKind::Array(Box::new(FieldKind::parse(element)?)));
        }
        Ok(match text {
            "bool" => FieldKind::Bool,
            "int8" => FieldKind::Int8,
            "int16" => FieldKind::Int16,
            "uint16" => FieldKind::Uint16,
            "int32" => FieldKind::Int32,
            "int64" => FieldKind::Int64,
            "float64" => FieldKind::Float64,
            "uuid" => FieldKind::Uuid,
            "string" => FieldKind::String,
            "bytes" => FieldKind::Bytes,
            "records" => FieldKind::Records,
            name if name.starts_with(|c: char| c.is_ascii_uppercase()) => FieldKind::Struct(name.to_owned()),
            other => return Err(format!("`{other}` is no type")),
        })
    }

    /// The structure that a value of this type is or holds.
    pub(crate) fn structure(&self) -> Option<&str> {
        match self {
            FieldKind::Struct(name) => Some(name),
            FieldKind::Array(element) => element.structure(),
            _ => None,
        }
    }
}
