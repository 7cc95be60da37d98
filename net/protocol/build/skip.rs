//! Writes `Field::skip`: the check of a structure that nobody looks at yet.
//!
//! Arrays are checked when they are decoded and read when they are iterated, so this runs over most bytes that come in.
//! Fields of fixed size that follow each other are passed in one step.

use crate::line;
use crate::rust::{View, argument, context};
use crate::schema::{Field, FieldKind, Schema};
use std::fmt::Write as _;

impl View<'_> {
    /// Writes the method, if the structure is ever an element of an array or inside one.
    pub(crate) fn skip(&self, out: &mut String) {
        if !is_in_array(self.schema, &self.structure.name) {
            return;
        }
        let mut body = String::new();
        self.skip_body(&mut body);
        let (r, c) = (argument("r", &body), argument("c", &body));
        line(out, &format!("#[inline]\nfn skip({r}: &mut Reader<'a>, {c}: Context) -> Option<()> {{"));
        out.push_str(&body);
        line(out, "}");
    }

    fn skip_body(&self, out: &mut String) {
        let mut fixed = 0;
        let mut sometimes = String::new();
        for field in self.structure.fields.iter().filter(|field| field.tag.is_none()) {
            let condition = self.condition(field.versions, self.message.versions);
            match (fixed_size(&field.kind), condition) {
                (Some(size), None) => fixed += size,
                (Some(size), Some(condition)) => {
                    write!(sometimes, " + if {condition} {{ {size} }} else {{ 0 }}")
                        .expect("a String takes everything");
                }
                (None, condition) => {
                    advance(out, &mut fixed, &mut sometimes);
                    let skip = self.skip_value(field, "r");
                    line(out, &condition.map_or(format!("{skip}?;"), |test| format!("if {test} {{ {skip}?; }}")));
                }
            }
        }
        advance(out, &mut fixed, &mut sometimes);
        self.skip_tags(out);
        line(out, "Some(())");
    }

    fn skip_value(&self, field: &Field, reader: &str) -> String {
        let arguments = format!("({reader}, {})", context(field));
        let plain = self.kind_type(&field.kind);
        let condition = field.nullable.and_then(|nullable| self.condition(nullable, self.present(field)));
        match condition {
            None => format!("<{}>::skip{arguments}", self.field_type(field)),
            Some(test) => {
                format!("(if {test} {{ <Option<{plain}>>::skip{arguments} }} else {{ <{plain}>::skip{arguments} }})")
            }
        }
    }

    fn skip_tags(&self, out: &mut String) {
        let Some(flexible) = self.message.flexible else { return };
        let always = flexible.covers(self.message.versions);
        if !always {
            line(out, "if c.flexible {");
        }
        if self.tagged().is_empty() {
            line(out, "r.skip_tags(\"\").ok()?;");
        } else {
            line(out, "for _ in 0..r.tag_count(\"\").ok()? {\nlet (tag, mut value) = r.tag(\"\").ok()?;");
            for (index, field) in self.tagged().into_iter().enumerate() {
                let otherwise = if index > 0 { "else " } else { "" };
                let tag = field.tag.expect("only tagged fields are here");
                let guard = self
                    .condition(field.versions, flexible.intersect(self.message.versions))
                    .map_or(String::new(), |condition| format!(" && {condition}"));
                let skip = self.skip_value(field, "&mut value");
                line(out, &format!("{otherwise}if tag == {tag}{guard} {{ {skip}?; }}"));
            }
            line(out, "}");
        }
        if !always {
            line(out, "}");
        }
    }
}

/// Passes over the fields of fixed size that were gathered.
fn advance(out: &mut String, fixed: &mut usize, sometimes: &mut String) {
    if *fixed > 0 || !sometimes.is_empty() {
        let sum = if *fixed > 0 { format!("{fixed}{sometimes}") } else { sometimes.trim_start_matches(" + ").into() };
        line(out, &format!("r.advance({sum})?;"));
        *fixed = 0;
        sometimes.clear();
    }
}

/// Bytes of a type whose values take the same in every version and are all legal.
fn fixed_size(kind: &FieldKind) -> Option<usize> {
    match kind {
        FieldKind::Bool | FieldKind::Int8 => Some(1),
        FieldKind::Int16 | FieldKind::Uint16 => Some(2),
        FieldKind::Int32 => Some(4),
        FieldKind::Int64 | FieldKind::Float64 => Some(8),
        FieldKind::Uuid => Some(16),
        _ => None,
    }
}

fn is_in_array(schema: &Schema, name: &str) -> bool {
    let mut holders = schema.structs.iter().flat_map(|holder| holder.fields.iter().map(move |field| (holder, field)));
    holders.any(|(holder, field)| {
        field.kind.structure() == Some(name)
            && (matches!(field.kind, FieldKind::Array(_)) || is_in_array(schema, &holder.name))
    })
}
