//! Writes the schema as data: a static for each structure and the list of all messages.

use crate::line;
use crate::rust::constant;
use crate::schema::{Field, FieldKind, Kind, Message, Schema, Versions};

/// Writes the tables of one schema file into its module.
pub(crate) fn structs(out: &mut String, schema: &Schema) {
    for structure in &schema.structs {
        let message = &schema.messages[structure.message];
        line(out, &format!("pub(crate) static {}: StructSpec = StructSpec {{", constant(&structure.name)));
        line(out, &format!("name: \"{}\", fields: &[", structure.name));
        for field in &structure.fields {
            self::field(out, field, message);
        }
        line(out, "] };");
    }
}

fn field(out: &mut String, field: &Field, message: &Message) {
    let versions = field.versions.intersect(message.versions);
    let nullable = field.nullable.map(|nullable| range(nullable.intersect(versions)));
    let default = match field.default.as_deref() {
        Some("null") => "DefaultValue::Null".to_owned(),
        Some("true") => "DefaultValue::True".to_owned(),
        Some(number) => format!("DefaultValue::Number({number})"),
        None => "DefaultValue::Zero".to_owned(),
    };
    let option = |value: Option<String>| value.map_or("None".to_owned(), |value| format!("Some({value})"));
    line(
        out,
        &format!(
            "FieldSpec {{ name: \"{}\", kind: {}, versions: {}, nullable: {}, tag: {}, rigid: {}, default: {default} }},",
            field.name,
            kind(&field.kind),
            range(versions),
            option(nullable),
            option(field.tag.map(|tag| tag.to_string())),
            field.noncompact,
        ),
    );
}

fn range(versions: Versions) -> String {
    format!("VersionRange {{ min: {}, max: {} }}", versions.min, versions.max)
}

fn kind(kind: &FieldKind) -> String {
    match kind {
        FieldKind::Struct(name) => format!("FieldKind::Struct(&{})", constant(name)),
        FieldKind::Array(element) => format!("FieldKind::Array(&{})", self::kind(element)),
        plain => format!("FieldKind::{plain:?}"),
    }
}

/// Writes the list of all messages.
pub(crate) fn messages(out: &mut String, modules: &[(&str, Vec<Schema>)]) {
    line(out, "/// Every message of the schema.\npub static MESSAGES: &[MessageSpec] = &[");
    for (module, schemas) in modules {
        for schema in schemas {
            for message in &schema.messages {
                self::message(out, &format!("{module}::{}", schema.module), message);
            }
        }
    }
    line(out, "];");
}

fn message(out: &mut String, module: &str, message: &Message) {
    let Message { name, key, .. } = message;
    let kind: Kind = message.kind;
    let flexible = message.flexible.map(|versions| versions.min);
    line(
        out,
        &format!(
            "MessageSpec {{ name: \"{name}\", kind: MessageKind::{kind:?}, key: {key}, versions: {}, \
             flexible_from: {flexible:?}, structure: &{module}::{}, \
             reencode: |bytes, version| reencode::<{module}::{name}>(bytes, version) }},",
            range(message.versions),
            constant(name),
        ),
    );
}
