//! Heddle answers as Apache Kafka does: the scripts of `tests/compat`, request by request, against Kafka's recorded
//! answers, and where Kafka's jars are present (`HEDDLE_KAFKA_PEER`) the recorded answers against Kafka.
//!
//! `HEDDLE_COMPAT=record` writes Kafka's answers into the scripts; `HEDDLE_COMPAT_ONLY=NAME` runs one script.
//! What may differ stands in `tests/compat/exceptions.txt`; one that no longer differs fails the test.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use heddle_protocol::ApiKey;
use heddle_tests::kafka::Kafka;
use heddle_tests::process::Broker;
use heddle_tests::repository::root;
use heddle_tests::wire::script::{Script, Step, Versions};
use heddle_tests::wire::talk::{Answers, clean, run, served};
use heddle_tests::wire::value::Value;

/// As many as there are: adding one means raising this number where a reviewer sees it.
const EXCEPTIONS_MAX: usize = 26;

/// What both brokers are started with. Retention does not look at the scripts' records, whose times are long past.
const SETTINGS: [&str; 6] = [
    "log.initial.task.delay.ms=86400000",
    "num.partitions=4",
    "group.initial.rebalance.delay.ms=0",
    "broker.rack=r1",
    "group.min.session.timeout.ms=100",
    "offsets.topic.num.partitions=2",
];

fn folder() -> PathBuf {
    root().join("tests/compat")
}

/// Every script by its name, in the order of names.
fn scripts() -> Vec<(String, Script)> {
    let only = std::env::var("HEDDLE_COMPAT_ONLY").ok();
    let mut scripts = Vec::new();
    for file in fs::read_dir(folder()).expect("the scripts are there") {
        let path = file.expect("the folder can be listed").path();
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let wanted = only.as_ref().is_none_or(|only| *only == name);
        if path.extension().is_some_and(|extension| extension == "txt") && name != "exceptions" && wanted {
            let text = fs::read_to_string(&path).expect("a script is readable");
            let script = Script::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(script.text() == text || recording(), "{name} is not as it would be written: record it");
            scripts.push((name, script));
        }
    }
    scripts.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(!scripts.is_empty(), "no script is called {only:?}");
    scripts
}

fn recording() -> bool {
    std::env::var("HEDDLE_COMPAT").is_ok_and(|what| what == "record")
}

/// A difference that is known: a field of the answers to what stands under a title of a script, and why it differs.
struct Exception {
    script: String,
    title: String,
    field: String,
    used: bool,
}

impl Exception {
    /// `script | title | field | reason`, one a line.
    fn all() -> Vec<Exception> {
        let text = fs::read_to_string(folder().join("exceptions.txt")).expect("the list of exceptions is there");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let exceptions: Vec<Exception> = lines
            .map(|line| {
                let parts: Vec<&str> = line.split('|').map(str::trim).collect();
                let [script, title, field, reason] = parts.as_slice() else { panic!("`{line}` is no exception") };
                assert!(!reason.is_empty(), "`{line}` has no reason");
                let [script, title, field] = [script, title, field].map(|part| (*part).to_owned());
                Exception { script, title, field, used: false }
            })
            .collect();
        assert!(exceptions.len() <= EXCEPTIONS_MAX, "the list of exceptions may only shrink");
        exceptions
    }
}

/// The answers without a field; `*` is all of them.
fn without(answers: &[(Versions, Value)], field: &str) -> Vec<(Versions, Value)> {
    let strip = |value: &Value| if field == "*" { Value::Null } else { value.without(&[field.to_owned()]) };
    answers.iter().map(|(versions, value)| (*versions, strip(value))).collect()
}

/// An answer without what it says of errors that Kafka says nothing of: words that help are welcome.
fn without_more_words(found: &Value, kafkas: Option<&Value>) -> Value {
    let refuses = |value: &Value| matches!(value.field("errorCode"), Some(Value::Text(_)));
    match (found, kafkas) {
        (Value::Map(fields), Some(kafkas @ Value::Map(_))) => {
            let unasked = |name: &str| name == "errorMessage" && refuses(kafkas) && kafkas.field(name).is_none();
            let fields = fields.iter().filter(|(name, _)| !unasked(name));
            Value::Map(fields.map(|(name, it)| (name.clone(), without_more_words(it, kafkas.field(name)))).collect())
        }
        (Value::List(items), Some(Value::List(kafkas))) if items.len() == kafkas.len() => {
            Value::List(items.iter().zip(kafkas).map(|(it, kafkas)| without_more_words(it, Some(kafkas))).collect())
        }
        _ => found.clone(),
    }
}

/// One answer for each version.
fn by_version(answers: &[(Versions, Value)]) -> BTreeMap<i16, &Value> {
    answers.iter().flat_map(|((first, last), answer)| (*first..=*last).map(move |version| (version, answer))).collect()
}

fn same(expected: &[(Versions, Value)], found: &[(Versions, Value)]) -> bool {
    by_version(expected) == by_version(found)
}

/// What differs in a step, if something does that no exception covers.
fn difference(name: &str, step: &Step, found: &[(Versions, Value)], exceptions: &mut [Exception]) -> Option<String> {
    let (mut expected, mut left) = (step.answers.clone(), found.to_vec());
    let kafkas: BTreeMap<i16, Value> =
        by_version(&expected).into_iter().map(|(version, answer)| (version, answer.clone())).collect();
    left = by_version(&left)
        .into_iter()
        .map(|(version, answer)| ((version, version), without_more_words(answer, kafkas.get(&version))))
        .collect();
    for exception in exceptions.iter_mut().filter(|it| it.script == name && it.title == step.title) {
        let (fewer_expected, fewer_left) = (without(&expected, &exception.field), without(&left, &exception.field));
        exception.used |= differing(&fewer_expected, &fewer_left).len() < differing(&expected, &left).len();
        (expected, left) = (fewer_expected, fewer_left);
    }
    if same(&expected, &left) {
        return None;
    }
    let text: String = step.text.chars().take(300).collect();
    let lines = differing(&expected, &left);
    Some(format!("{name}: # {}\n{text}\n    Kafka | here\n{}", step.title, lines.join("\n")))
}

/// What differs, by path: the versions, Kafka's value, and the one found.
fn differing(expected: &[(Versions, Value)], found: &[(Versions, Value)]) -> Vec<String> {
    let (expected, found) = (by_version(expected), by_version(found));
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (version, expected) in &expected {
        let found = found.get(version).copied().unwrap_or(&Value::Null);
        let mut differences = Vec::new();
        expected.differences(found, "", &mut differences);
        differences.into_iter().for_each(|line| lines.entry(line).or_default().push(version.to_string()));
    }
    lines.into_iter().map(|(line, versions)| format!("    {} {line}", versions.join(","))).collect()
}

fn differences(name: &str, script: &Script, answers: &Answers, exceptions: &mut [Exception]) -> Vec<String> {
    let steps = script.steps.iter().zip(answers);
    steps.filter_map(|(step, found)| difference(name, step, found.as_ref()?, exceptions)).collect()
}

fn fail_with(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{} {what}:\n\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn heddle_answers_as_kafka() {
    let mut exceptions = Exception::all();
    let mut findings = Vec::new();
    let (mut asked, mut left_out) = (0, 0);
    for (name, script) in scripts() {
        let data = tempfile::tempdir().expect("a temporary folder");
        let broker = Broker::start(data.path(), &SETTINGS.map(|setting| ["--set", setting]).concat());
        let answers = run(&script, &broker.address).unwrap_or_else(|error| panic!("{name}: {error}"));
        asked += answers.iter().flatten().flatten().map(|((first, last), _)| last - first + 1).sum::<i16>();
        left_out += answers.iter().filter(|answer| answer.is_none()).count();
        findings.extend(differences(&name, &script, &answers, &mut exceptions));
    }
    println!("{asked} answers compared; {left_out} requests of APIs that are not served were left out");
    fail_with("differences from Kafka", &findings);
    let whole = std::env::var_os("HEDDLE_COMPAT_ONLY").is_none();
    let stale = exceptions.iter().filter(|exception| whole && !exception.used);
    let stale: Vec<String> = stale.map(|it| format!("{} | {} | {}", it.script, it.title, it.field)).collect();
    fail_with("exceptions that no longer differ: strike them", &stale);
}

/// A Kafka, one for all scripts: the one that `HEDDLE_COMPAT_KAFKA` names the address of, else one of its own.
fn kafka(data: &Path) -> Result<(String, Option<Kafka>), String> {
    if let Ok(address) = std::env::var("HEDDLE_COMPAT_KAFKA") {
        return Ok((address, None));
    }
    let kafka = Kafka::start_with(&data.join("kafka"), None, &SETTINGS.map(str::to_owned))?;
    Ok((kafka.address.clone(), Some(kafka)))
}

#[test]
fn kafka_answers_as_recorded() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (address, _kafka) = match kafka(data.path()) {
        Ok(kafka) => kafka,
        Err(why) if !recording() => {
            println!("the records are not held to Kafka itself: {why}");
            return;
        }
        Err(why) => panic!("nothing can be recorded: {why}"),
    };
    let mut findings = Vec::new();
    // How much a Kafka has been told of metadata is another number at each start.
    let mut passing: Vec<Exception> =
        Exception::all().into_iter().filter(|it| it.field == "finalizedFeaturesEpoch").collect();
    for (name, mut script) in scripts() {
        clean(&address).unwrap_or_else(|error| panic!("before {name}: {error}"));
        let answers = run(&script, &address).unwrap_or_else(|error| panic!("{name}: {error}"));
        if recording() {
            for (step, answer) in script.steps.iter_mut().zip(answers) {
                step.answers = answer.unwrap_or_else(|| panic!("{name}: Kafka does not serve {}", step.text));
            }
            fs::write(folder().join(format!("{name}.txt")), script.text()).expect("a script is writable");
        } else {
            findings.extend(differences(&name, &script, &answers, &mut passing));
        }
    }
    fail_with("differences from what was recorded", &findings);
}

/// Whoever serves another API, or another version of one, says here what Kafka answers to it.
#[test]
fn every_version_that_is_served_is_asked() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let broker = Broker::start(data.path(), &[]);
    let mut asked: BTreeMap<i16, Vec<Versions>> = BTreeMap::new();
    if std::env::var_os("HEDDLE_COMPAT_ONLY").is_some() {
        return;
    }
    for (_, script) in scripts() {
        for request in script.steps.iter().filter_map(|step| step.action.request()) {
            asked.entry(request.api.code()).or_default().push(request.versions);
        }
    }
    let mut findings = Vec::new();
    for (key, (first, last)) in served(&broker.address).expect("the broker says what it serves") {
        let ranges = asked.get(&key).map(Vec::as_slice).unwrap_or_default();
        let missing = |version: &i16| !ranges.iter().any(|(from, to)| (from..=to).contains(&version));
        let name = ApiKey::from_i16(key).map_or("an unknown API", ApiKey::name);
        findings.extend((first..=last).filter(missing).map(|version| format!("{name} {version}")));
    }
    fail_with("versions that no script in tests/compat asks for", &findings);
}
