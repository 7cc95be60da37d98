//! Writes the typed messages: one structure for each of the schema, with `Field::read` and `Field::write`;
//! `Field::skip` is in `skip.rs`.

use crate::line;
use crate::schema::{Field, FieldKind, Kind, Message, Schema, Struct, Versions};
use std::fmt::Write as _;

/// Writes the module of one schema file.
pub(crate) fn module(out: &mut String, schema: &Schema) {
    line(out, &format!("/// {}\npub mod {} {{", module_doc(schema), schema.module));
    line(out, "use crate::prelude::*;");
    for structure in &schema.structs {
        let view = View { schema, message: &schema.messages[structure.message], structure };
        view.definition(out);
        view.default(out);
        view.field_impl(out);
    }
    for message in &schema.messages {
        message_impl(out, schema, message);
    }
    crate::table::structs(out, schema);
    line(out, "}");
}

fn module_doc(schema: &Schema) -> String {
    let first = &schema.messages[0];
    match first.kind {
        Kind::Request => format!("API {}, {}.", first.key, api_name(first)),
        Kind::Key | Kind::Value | Kind::Metadata => format!("Record type {}.", first.key),
        _ => {
            let names: Vec<_> = schema.messages.iter().map(|message| format!("`{}`", message.name)).collect();
            format!("{}.", names.join(", "))
        }
    }
}

fn api_name(request: &Message) -> &str {
    request.name.strip_suffix("Request").expect("requests are named so")
}

/// A structure and where it stands.
pub(crate) struct View<'s> {
    pub(crate) schema: &'s Schema,
    pub(crate) message: &'s Message,
    pub(crate) structure: &'s Struct,
}

impl View<'_> {
    fn is_message(&self) -> bool {
        self.structure.name == self.message.name
    }

    fn definition(&self, out: &mut String) {
        let name = &self.structure.name;
        if self.is_message() {
            line(out, &format!("/// `{name}`, versions {}.", self.message.versions));
        } else {
            line(out, &format!("/// Part of [`{}`].", self.message.name));
        }
        let copy = if self.borrows() { "" } else { ", Copy" };
        let derive_default = if self.derives_default() { ", Default" } else { "" };
        line(out, &format!("#[derive(Clone{copy}, Debug, PartialEq{derive_default})]"));
        line(out, &format!("pub struct {} {{", self.type_name()));
        for field in &self.structure.fields {
            line(out, &format!("/// {}", self.field_doc(field)));
            line(out, &format!("pub {}: {},", ident(&field.name), self.field_type(field)));
        }
        line(out, "}");
    }

    fn field_doc(&self, field: &Field) -> String {
        let mut doc = format!("`{}`", field.name);
        if !field.versions.covers(self.message.versions) {
            write!(doc, ", versions {}", field.versions).expect("a String takes everything");
        }
        if let Some(nullable) = field.nullable
            && !nullable.covers(self.present(field))
        {
            write!(doc, ", null in versions {nullable}").expect("a String takes everything");
        }
        if let Some(tag) = field.tag {
            write!(doc, ", tag {tag}").expect("a String takes everything");
        }
        if let Some(default) = &field.default {
            write!(doc, ", default {default}").expect("a String takes everything");
        }
        doc + "."
    }

    fn default(&self, out: &mut String) {
        if self.derives_default() {
            return;
        }
        line(out, &format!("impl Default for {} {{\nfn default() -> Self {{\nSelf {{", self.elided()));
        for field in &self.structure.fields {
            line(out, &format!("{}: {},", ident(&field.name), default_value(field)));
        }
        line(out, "}\n}\n}");
    }

    /// Whether `#[derive(Default)]` gives the schema's defaults.
    fn derives_default(&self) -> bool {
        self.structure.fields.iter().all(|field| match (&field.nullable, field.default.as_deref()) {
            (Some(_), default) => default == Some("null") || matches!(field.kind, FieldKind::Records),
            (None, default) => default.is_none(),
        })
    }

    fn field_impl(&self, out: &mut String) {
        let (mut read, mut write) = (String::new(), String::new());
        self.read_body(&mut read);
        self.write_body(&mut write);
        let name = self.type_name();
        line(out, &format!("impl<'a> Field<'a> for {name} {{"));
        line(out, &format!("const SIZE_MIN: usize = {};", self.size_min()));
        let (r, c) = (argument("r", &read), argument("c", &read));
        line(out, "#[inline]");
        line(
            out,
            &format!("fn read({r}: &mut Reader<'a>, {c}: Context, _: &'static str) -> Result<Self, DecodeError> {{"),
        );
        out.push_str(&read);
        line(out, "}");
        self.skip(out);
        let (w, c) = (argument("w", &write), argument("c", &write));
        line(out, "#[inline]");
        line(
            out,
            &format!("fn write(&self, {w}: &mut Writer, {c}: Context, _: &'static str) -> Result<(), EncodeError> {{"),
        );
        out.push_str(&write);
        line(out, "}\n}");
        if self.is_nullable() {
            line(out, &format!("nullable_struct!({name});"));
        }
    }

    fn read_body(&self, out: &mut String) {
        for field in &self.structure.fields {
            let name = ident(&field.name);
            if field.tag.is_some() {
                line(out, &format!("let mut {name} = {};", default_value(field)));
                continue;
            }
            let read = self.read_value(field, "r");
            match self.condition(field.versions, self.message.versions) {
                None => line(out, &format!("let {name} = {read};")),
                Some(condition) => {
                    let default = default_value(field);
                    line(out, &format!("let {name} = if {condition} {{ {read} }} else {{ {default} }};"));
                }
            }
        }
        self.read_tags(out);
        let names: Vec<_> = self.structure.fields.iter().map(|field| ident(&field.name)).collect();
        line(out, &format!("Ok(Self {{ {} }})", names.join(", ")));
    }

    fn read_tags(&self, out: &mut String) {
        let Some(flexible) = self.message.flexible else { return };
        let always = flexible.covers(self.message.versions);
        if !always {
            line(out, "if c.flexible {");
        }
        let what = &self.structure.name;
        let tagged = self.tagged();
        if tagged.is_empty() {
            line(out, &format!("r.skip_tags(\"{what}\")?;"));
        } else {
            line(out, &format!("for _ in 0..r.tag_count(\"{what}\")? {{"));
            line(out, &format!("let (tag, mut value) = r.tag(\"{what}\")?;"));
            for (index, field) in tagged.iter().enumerate() {
                let otherwise = if index > 0 { "else " } else { "" };
                let tag = field.tag.expect("only tagged fields are here");
                let guard = self
                    .condition(field.versions, flexible.intersect(self.message.versions))
                    .map_or(String::new(), |condition| format!(" && {condition}"));
                let read = self.read_value(field, "&mut value");
                line(out, &format!("{otherwise}if tag == {tag}{guard} {{ {} = {read}; }}", ident(&field.name)));
            }
            line(out, "}");
        }
        if !always {
            line(out, "}");
        }
    }

    /// Reads a field in a version that has it.
    fn read_value(&self, field: &Field, reader: &str) -> String {
        let arguments = format!("({reader}, {}, \"{}\")?", context(field), self.what(field));
        match field.nullable.and_then(|nullable| self.condition(nullable, self.present(field))) {
            None => format!("Field::read{arguments}"),
            Some(condition) => {
                format!("if {condition} {{ Field::read{arguments} }} else {{ read_some{arguments} }}")
            }
        }
    }

    fn write_body(&self, out: &mut String) {
        for field in self.structure.fields.iter().filter(|field| field.tag.is_none()) {
            let mut write = format!("{}?;", self.write_value(field));
            if ident(&field.name) == "error_code" && matches!(field.kind, FieldKind::Int16) {
                write.push_str(" w.note_error(self.error_code);");
            }
            match self.condition(field.versions, self.message.versions) {
                None => line(out, &write),
                Some(condition) => {
                    line(out, &format!("if {condition} {{ {write} }} {}", self.absent(field, "else ")));
                }
            }
        }
        self.write_tags(out);
        line(out, "Ok(())");
    }

    fn write_tags(&self, out: &mut String) {
        let tagged = self.tagged();
        let flexible = self.message.flexible;
        for field in &tagged {
            let has = field.versions.intersect(flexible.expect("the tagged need a flexible version"));
            if let Some(condition) = self.condition(has, self.message.versions) {
                let absent = self.absent(field, "");
                if !absent.is_empty() {
                    line(out, &format!("if {} {absent}", opposite(&condition)));
                }
            }
        }
        let Some(flexible) = flexible else { return };
        let always = flexible.covers(self.message.versions);
        if !always {
            line(out, "if c.flexible {");
        }
        let mut count = String::new();
        for field in &tagged {
            let tag = field.tag.expect("only tagged fields are here");
            let condition = self
                .condition(field.versions, flexible.intersect(self.message.versions))
                .map_or(String::new(), |condition| format!("{condition} && "));
            line(out, &format!("let tag_{tag} = {condition}{};", is_not_default(field)));
            write!(count, "{}u32::from(tag_{tag})", if count.is_empty() { "" } else { " + " })
                .expect("a String takes everything");
        }
        line(out, &format!("w.varint({});", if count.is_empty() { "0" } else { &count }));
        for field in &tagged {
            let tag = field.tag.expect("only tagged fields are here");
            line(out, &format!("if tag_{tag} {{ w.tag({tag}, |w| {})?; }}", self.write_value(field)));
        }
        if !always {
            line(out, "}");
        }
    }

    fn write_value(&self, field: &Field) -> String {
        let (name, context, what) = (ident(&field.name), context(field), self.what(field));
        let write = format!("self.{name}.write(w, {context}, \"{what}\")");
        match field.nullable.and_then(|nullable| self.condition(nullable, self.present(field))) {
            None => write,
            Some(condition) => {
                format!("(if {condition} {{ {write} }} else {{ write_some(&self.{name}, w, {context}, \"{what}\") }})")
            }
        }
    }

    /// What becomes of a field in a version that lacks it.
    fn absent(&self, field: &Field, otherwise: &str) -> String {
        if field.ignorable {
            return String::new();
        }
        format!("{otherwise}{{ absent({}, c, \"{}\")?; }}", is_default(field), self.what(field))
    }

    fn what(&self, field: &Field) -> String {
        format!("{}.{}", self.structure.name, ident(&field.name).trim_start_matches("r#"))
    }

    /// The tagged fields in the order of their tags.
    pub(crate) fn tagged(&self) -> Vec<&Field> {
        let mut fields: Vec<_> = self.structure.fields.iter().filter(|field| field.tag.is_some()).collect();
        fields.sort_by_key(|field| field.tag);
        fields
    }

    /// The versions of the message that have the field.
    pub(crate) fn present(&self, field: &Field) -> Versions {
        field.versions.intersect(self.message.versions)
    }

    /// The test that `c.version` lies in `range`, when it is known to lie in `known`; `None` if it always does.
    pub(crate) fn condition(&self, range: Versions, known: Versions) -> Option<String> {
        let (min, max) = (range.min > known.min, range.max < known.max);
        match (min, max) {
            (false, false) => None,
            (true, false) => Some(format!("c.version >= {}", range.min)),
            (false, true) if range.max == known.min => Some(format!("c.version == {}", range.max)),
            (false, true) => Some(format!("c.version <= {}", range.max)),
            (true, true) if range.min == range.max => Some(format!("c.version == {}", range.min)),
            (true, true) => Some(format!("({}..={}).contains(&c.version)", range.min, range.max)),
        }
    }

    fn is_nullable(&self) -> bool {
        let this = FieldKind::Struct(self.structure.name.clone());
        let mut fields = self.schema.structs.iter().flat_map(|structure| &structure.fields);
        fields.any(|field| field.nullable.is_some() && field.kind == this)
    }

    fn borrows(&self) -> bool {
        borrows(self.schema, &self.structure.name)
    }

    fn type_name(&self) -> String {
        type_name(self.schema, &self.structure.name, "a")
    }

    fn elided(&self) -> String {
        type_name(self.schema, &self.structure.name, "_")
    }

    pub(crate) fn field_type(&self, field: &Field) -> String {
        let kind = self.kind_type(&field.kind);
        if field.nullable.is_some() { format!("Option<{kind}>") } else { kind }
    }

    pub(crate) fn kind_type(&self, kind: &FieldKind) -> String {
        match kind {
            FieldKind::Bool => "bool".into(),
            FieldKind::Int8 => "i8".into(),
            FieldKind::Int16 => "i16".into(),
            FieldKind::Uint16 => "u16".into(),
            FieldKind::Int32 => "i32".into(),
            FieldKind::Int64 => "i64".into(),
            FieldKind::Float64 => "f64".into(),
            FieldKind::Uuid => "Uuid".into(),
            FieldKind::String => "&'a str".into(),
            FieldKind::Bytes => "&'a [u8]".into(),
            FieldKind::Records => "Records<'a>".into(),
            FieldKind::Struct(name) => type_name(self.schema, name, "a"),
            FieldKind::Array(element) => format!("Array<'a, {}>", self.kind_type(element)),
        }
    }

    /// The fewest bytes that any version of the message takes for the structure.
    fn size_min(&self) -> usize {
        let versions = self.message.versions.min..=self.message.versions.max;
        versions.map(|version| self.size_min_in(&self.structure.name, version)).min().expect("a version or more")
    }

    fn size_min_in(&self, name: &str, version: i16) -> usize {
        let flexible = self.message.flexible.is_some_and(|flexible| flexible.contains(version));
        let fields = self.schema.structure(name).fields.iter();
        let fields = fields.filter(|field| field.tag.is_none() && field.versions.contains(version));
        let sizes = fields.map(|field| match &field.kind {
            FieldKind::Bool | FieldKind::Int8 => 1,
            FieldKind::Int16 | FieldKind::Uint16 => 2,
            FieldKind::Int32 => 4,
            FieldKind::Int64 | FieldKind::Float64 => 8,
            FieldKind::Uuid => 16,
            FieldKind::String if flexible && !field.noncompact => 1,
            FieldKind::String => 2,
            FieldKind::Bytes | FieldKind::Records | FieldKind::Array(_) => {
                if flexible {
                    1
                } else {
                    4
                }
            }
            FieldKind::Struct(_) if field.nullable.is_some() => 1,
            FieldKind::Struct(name) => self.size_min_in(name, version),
        });
        sizes.sum::<usize>() + usize::from(flexible)
    }
}

/// The name of an argument, with an underscore if `body` does not use it.
pub(crate) fn argument(name: &str, body: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if body.split(|c| !is_name(c)).any(|word| word == name) { name.to_owned() } else { format!("_{name}") }
}

/// The opposite of a test that [`View::condition`] wrote.
fn opposite(condition: &str) -> String {
    for (operator, opposite) in [(" >= ", " < "), (" <= ", " > "), (" == ", " != ")] {
        if condition.contains(operator) {
            return condition.replace(operator, opposite);
        }
    }
    format!("!{condition}")
}

pub(crate) fn context(field: &Field) -> &'static str {
    if field.noncompact { "c.rigid()" } else { "c" }
}

fn borrows(schema: &Schema, name: &str) -> bool {
    schema.structure(name).fields.iter().any(|field| match &field.kind {
        FieldKind::String | FieldKind::Bytes | FieldKind::Records | FieldKind::Array(_) => true,
        FieldKind::Struct(name) => borrows(schema, name),
        _ => false,
    })
}

fn type_name(schema: &Schema, name: &str, lifetime: &str) -> String {
    if borrows(schema, name) { format!("{name}<'{lifetime}>") } else { name.to_owned() }
}

fn default_value(field: &Field) -> String {
    let value = match (&field.kind, field.default.as_deref()) {
        (_, Some("null")) => return "None".into(),
        (FieldKind::Records, None) if field.nullable.is_some() => return "None".into(),
        (_, Some(text)) => text.into(),
        (FieldKind::Bool, None) => "false".into(),
        (FieldKind::Float64, None) => "0.0".into(),
        (FieldKind::Uuid, None) => "Uuid::ZERO".into(),
        (FieldKind::String, None) => "\"\"".into(),
        (FieldKind::Bytes, None) => "NO_BYTES".into(),
        (FieldKind::Records, None) => "Records::EMPTY".into(),
        (FieldKind::Struct(name), None) => format!("{name}::default()"),
        (FieldKind::Array(_), None) => "Array::new()".into(),
        (_, None) => "0".into(),
    };
    if field.nullable.is_some() { format!("Some({value})") } else { value }
}

fn is_default(field: &Field) -> String {
    let place = format!("self.{}", ident(&field.name));
    match (&field.kind, default_value(field).as_str()) {
        (_, "None") => format!("{place}.is_none()"),
        (_, "false") => format!("!{place}"),
        (_, "true") => place,
        (FieldKind::String | FieldKind::Bytes | FieldKind::Records | FieldKind::Array(_), _)
            if field.nullable.is_none() =>
        {
            format!("{place}.is_empty()")
        }
        (_, default) => format!("{place} == {default}"),
    }
}

fn is_not_default(field: &Field) -> String {
    let test = is_default(field);
    if let Some(place) = test.strip_suffix(".is_none()") {
        return format!("{place}.is_some()");
    }
    match test.strip_prefix('!') {
        Some(place) => place.to_owned(),
        None if test.contains(" == ") => test.replacen(" == ", " != ", 1),
        None => format!("!{test}"),
    }
}

fn message_impl(out: &mut String, schema: &Schema, message: &Message) {
    let name = type_name(schema, &message.name, "a");
    let flexible = message.flexible.map_or("None".into(), |versions| format!("Some({})", versions.min));
    line(out, &format!("impl<'a> Message<'a> for {name} {{"));
    line(out, &format!("const NAME: &'static str = \"{}\";", message.name));
    let Versions { min, max } = message.versions;
    line(out, &format!("const VERSIONS: VersionRange = VersionRange {{ min: {min}, max: {max} }};"));
    line(out, &format!("const FLEXIBLE_FROM: Option<i16> = {flexible};\n}}"));
    let partner = |kind| schema.messages.iter().find(|other| other.kind == kind && other.key == message.key);
    match message.kind {
        Kind::Request => {
            let response = partner(Kind::Response).expect("every request has a response");
            line(out, &format!("impl<'a> Request<'a> for {name} {{"));
            line(out, &format!("const KEY: ApiKey = ApiKey::{};", api_name(message)));
            line(out, &format!("type Response<'r> = {};\n}}", type_name(schema, &response.name, "r")));
        }
        Kind::Key => {
            let value = partner(Kind::Value).expect("every key has a value");
            line(out, &format!("impl<'a> RecordKey<'a> for {name} {{"));
            line(out, &format!("const RECORD_TYPE: i16 = {};", message.key));
            line(out, &format!("type Value<'v> = {};\n}}", type_name(schema, &value.name, "v")));
        }
        _ => {}
    }
}

/// Writes the enum of all APIs.
pub(crate) fn api_keys(out: &mut String, schemas: &[Schema]) {
    let requests: Vec<_> =
        schemas.iter().flat_map(|schema| &schema.messages).filter(|message| message.kind == Kind::Request).collect();
    line(out, "/// An API by its number.\n#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]");
    line(out, "#[repr(i16)]\npub enum ApiKey {");
    for request in &requests {
        let (name, key) = (api_name(request), request.key);
        line(out, &format!("/// API {key}.\n{name} = {key},"));
    }
    line(out, "}\nimpl ApiKey {\n/// Every API in the order of the numbers.");
    let all: Vec<_> = requests.iter().map(|request| format!("ApiKey::{}", api_name(request))).collect();
    line(out, &format!("pub const ALL: &'static [ApiKey] = &[{}];", all.join(", ")));
    line(out, "/// Kafka's name of the API.\n#[must_use]\npub const fn name(self) -> &'static str {\nmatch self {");
    for request in &requests {
        line(out, &format!("ApiKey::{0} => \"{0}\",", api_name(request)));
    }
    line(out, "}\n}\n/// The versions that the codec knows, unstable ones included.\n#[must_use]");
    line(out, "pub const fn versions(self) -> VersionRange {\nlet (min, max) = match self {");
    for request in &requests {
        let Versions { min, max } = request.versions;
        line(out, &format!("ApiKey::{} => ({min}, {max}),", api_name(request)));
    }
    line(out, "};\nVersionRange { min, max }\n}\n/// The first version that Kafka may still change.\n#[must_use]");
    line(out, "pub const fn unstable_from(self) -> Option<i16> {\nmatch self {");
    for request in requests.iter().filter(|request| request.unstable.is_some()) {
        line(out, &format!("ApiKey::{} => {:?},", api_name(request), request.unstable));
    }
    line(out, "_ => None,\n}\n}\n/// The first flexible version.\n#[must_use]");
    line(out, "pub const fn flexible_from(self) -> Option<i16> {\nmatch self {");
    for request in &requests {
        let first = request.flexible.map(|versions| versions.min);
        line(out, &format!("ApiKey::{} => {first:?},", api_name(request)));
    }
    line(out, "}\n}\n}");
}

fn ident(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    if matches!(snake.as_str(), "type" | "match" | "ref" | "self") { format!("r#{snake}") } else { snake }
}

/// `ListOffsetsTopic` as the name of a static.
pub(crate) fn constant(name: &str) -> String {
    ident(name).trim_start_matches("r#").to_ascii_uppercase()
}
