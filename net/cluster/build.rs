//! Turns the settings tables (`settings/*.txt`) into Rust statics, so that an ill-formed line is a compile error and a
//! lookup costs nothing at run time. Reads nothing else.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// File, name of the static, scope.
const TABLES: [(&str, &str, &str); 5] = [
    ("settings/broker.txt", "KAFKA_BROKER", "Scope::Broker"),
    ("settings/heddle.txt", "OWN_BROKER", "Scope::Broker"),
    ("settings/topic.txt", "KAFKA_TOPIC", "Scope::Topic"),
    ("settings/group.txt", "KAFKA_GROUP", "Scope::Group"),
    ("settings/client_metrics.txt", "KAFKA_CLIENT_METRICS", "Scope::ClientMetrics"),
];

fn main() {
    let mut out = String::new();
    for (path, name, scope) in TABLES {
        println!("cargo::rerun-if-changed={path}");
        let text = fs::read_to_string(path).expect("the settings table is beside this script");
        table(&mut out, path, name, scope, &text);
    }
    println!("cargo::rerun-if-changed=build.rs");
    let directory = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&directory).join("settings_table.rs"), out).expect("OUT_DIR is writable");
}

fn table(out: &mut String, path: &str, name: &str, scope: &str, text: &str) {
    writeln!(out, "static {name}: &[Setting] = &[").expect("a String takes all");
    let mut last = String::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let setting = setting(line, scope).unwrap_or_else(|what| panic!("{path}:{}: {what}: {line}", index + 1));
        let key = line.split(' ').next().unwrap_or_default();
        assert!(last.as_str() < key, "{path}:{}: {key} is not above {last}", index + 1);
        key.clone_into(&mut last);
        writeln!(out, "    {setting},").expect("a String takes all");
    }
    out.push_str("];\n");
}

fn setting(line: &str, scope: &str) -> Result<String, String> {
    let (columns, doc) = line.split_once(" | ").ok_or("no doc")?;
    let columns: Vec<&str> = columns.split(' ').collect();
    let topic = scope != "Scope::Broker";
    let [name, value_type, default, valid, importance, mode, role, unit] =
        *columns.first_chunk::<8>().ok_or("fewer than eight columns")?;
    let synonyms = match columns.get(8..) {
        Some([list]) if topic => {
            if *list == "-" {
                Vec::new()
            } else {
                list.split(',').collect()
            }
        }
        Some([]) if !topic => Vec::new(),
        _ => return Err("wrong number of columns".into()),
    };
    let (mode, internal) = mode_of(mode, topic)?;
    Ok(format!(
        "Setting {{ name: {name:?}, scope: {scope}, value_type: ValueType::{}, default: {}, valid: {}, \
         importance: Importance::{}, mode: Mode::{mode}, internal: {internal}, role: Role::{}, unit: Unit::{}, \
         synonyms: &{synonyms:?}, doc: {doc:?} }}",
        one_of(value_type, &VALUE_TYPES)?,
        match default {
            "null" => "None".to_owned(),
            "\"\"" => "Some(\"\")".to_owned(),
            text => format!("Some({text:?})"),
        },
        valid_of(valid, value_type)?,
        one_of(importance, &[("high", "High"), ("medium", "Medium"), ("low", "Low")])?,
        one_of(role, &[("acts", "Acts"), ("stored", "Stored")])?,
        one_of(unit, &UNITS)?,
    ))
}

const VALUE_TYPES: [(&str, &str); 9] = [
    ("boolean", "Boolean"),
    ("string", "String"),
    ("int", "Int"),
    ("short", "Short"),
    ("long", "Long"),
    ("double", "Double"),
    ("list", "List"),
    ("class", "Class"),
    ("password", "Password"),
];

const UNITS: [(&str, &str); 7] = [
    ("-", "None"),
    ("ms", "Milliseconds"),
    ("s", "Seconds"),
    ("min", "Minutes"),
    ("h", "Hours"),
    ("bytes", "Bytes"),
    ("bytes/s", "BytesPerSecond"),
];

fn one_of(word: &str, table: &[(&'static str, &'static str)]) -> Result<&'static str, String> {
    table.iter().find(|(from, _)| *from == word).map(|(_, to)| *to).ok_or_else(|| format!("unknown word {word}"))
}

fn mode_of(text: &str, topic: bool) -> Result<(&'static str, bool), String> {
    let (mode, internal) = match (text, topic) {
        ("public", true) => return Ok(("ClusterWide", false)),
        ("internal", true) => return Ok(("ClusterWide", true)),
        (text, _) => text.strip_suffix(",internal").map_or((text, false), |mode| (mode, true)),
    };
    let modes = [("read-only", "ReadOnly"), ("per-broker", "PerBroker"), ("cluster-wide", "ClusterWide")];
    Ok((one_of(mode, &modes)?, internal))
}

fn valid_of(text: &str, value_type: &str) -> Result<String, String> {
    if text == "-" {
        return Ok("Valid::Any".into());
    } else if text == "non-empty" {
        return Ok("Valid::NonEmpty".into());
    } else if text == "throttled-replicas" {
        return Ok("Valid::ThrottledReplicas".into());
    } else if text == "reset-strategy" {
        return Ok("Valid::ResetStrategy".into());
    } else if let Some(list) = text.strip_prefix('{') {
        let (list, any_case) =
            list.strip_suffix("}i").map_or((list.strip_suffix('}'), false), |list| (Some(list), true));
        let words: Vec<&str> = list.ok_or("no closing brace")?.split(',').collect();
        return Ok(format!("Valid::OneOf {{ words: &{words:?}, any_case: {any_case} }}"));
    }
    let (range, or) = text.split_once("or").map_or((text, None), |(range, or)| (range, Some(or)));
    let bounds = range.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|rest| rest.split_once(".."));
    let (least, most) = bounds.ok_or("not a range")?;
    if value_type == "double" {
        let number = |text: &str| text.parse::<f64>().map_err(|error| error.to_string());
        return Ok(format!("Valid::Between {{ least: {:?}, most: {:?} }}", number(least)?, number(most)?));
    }
    let number = |text: &str| text.parse::<i64>().map_err(|error| error.to_string());
    let most = if most.is_empty() { "None".into() } else { format!("Some({})", number(most)?) };
    let or = or.map_or(Ok("None".to_owned()), |or| number(or).map(|or| format!("Some({or})")))?;
    Ok(format!("Valid::Range {{ least: {}, most: {most}, or: {or} }}", number(least)?))
}
