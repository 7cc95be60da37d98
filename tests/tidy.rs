//! The repository itself: dependency edges, what each crate forbids, banned words, and documents that name only what
//! exists. Fails with a list of what to mend, never with the first finding alone.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use heddle_tests::repository::{files_below, root, rust_files};

/// Which of our packages a package may link. Everything else is a wrong edge.
const EDGES: [(&str, &[&str]); 10] = [
    ("storage/record", &[]),
    ("storage/io", &[]),
    ("storage/engine", &["record", "io"]),
    ("net/protocol", &["record"]),
    ("net/cluster", &["record", "protocol"]),
    ("net/broker", &["record", "io", "engine", "protocol", "cluster"]),
    ("net/client", &["record", "io", "protocol"]),
    // The codec, the types and the executor are what a command line prints and runs on.
    ("net/cli", &["broker", "client", "engine", "record", "io", "protocol"]),
    ("bench", &["record", "io", "engine", "protocol", "cluster", "broker", "client"]),
    ("tests", &["record", "io", "engine", "protocol", "cluster", "broker", "client"]),
];

/// Crates whose compiler keeps files, sockets, clocks and threads out.
const NO_STD: [&str; 3] = ["storage/record", "net/protocol", "net/cluster"];

/// The one crate that may write `unsafe`.
const UNSAFE_ALLOWED: &str = "storage/io";

const FILE_LINES_MAX: usize = 1_000;

/// Words that say nothing, or that say the work is not done. Split so that this file does not contain them.
const BANNED_WORDS: [(&str, &str); 8] = [
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X:"),
    ("topi", "tion"),
    ("#[ig", "nore"),
    ("fn get", "_"),
    ("Arc<Mu", "tex<Log"),
    ("unimple", "mented!("),
];

const BANNED_FILE_NAMES: [&str; 6] = ["util.rs", "utils.rs", "common.rs", "helpers.rs", "manager.rs", "impls.rs"];

fn fail_with(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

fn is_generated(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "generated")
}

/// The packages of ours that a manifest names, by section (`dependencies`, `dev-dependencies`, ...).
fn our_dependencies(manifest: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if section.ends_with("dependencies")
            && let Some(rest) = line.strip_prefix("heddle-")
        {
            let name = rest.split(['.', ' ', '=']).next().unwrap_or_default();
            sections.entry(section.clone()).or_default().insert(name.to_owned());
        }
    }
    sections
}

#[test]
fn dependencies_point_down() {
    let mut findings = Vec::new();
    for (folder, allowed) in EDGES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("each package has a manifest");
        let found = our_dependencies(&manifest);
        for package in found.get("dependencies").into_iter().flatten() {
            if !allowed.contains(&package.as_str()) {
                findings.push(format!("{folder} links heddle-{package}; allowed: {allowed:?}"));
            }
        }
    }
    fail_with("wrong dependency edges", &findings);
}

#[test]
fn every_package_is_in_the_table_of_edges() {
    let listed: BTreeSet<&str> = EDGES.iter().map(|(folder, _)| *folder).collect();
    let manifests = files_below("").expect("the tree can be listed");
    let findings: Vec<String> = manifests
        .iter()
        .filter(|path| path.ends_with("Cargo.toml"))
        .filter_map(|path| path.parent())
        .map(|folder| folder.to_string_lossy().into_owned())
        .filter(|folder| !folder.is_empty() && folder != "fuzz" && !listed.contains(folder.as_str()))
        .collect();
    fail_with("packages without a row in EDGES", &findings);
}

#[test]
fn the_compiler_keeps_the_outside_out() {
    let mut findings = Vec::new();
    for (folder, _) in EDGES {
        let source = root().join(folder).join("src");
        let entry = ["lib.rs", "main.rs"].map(|name| source.join(name)).into_iter().find(|path| path.exists());
        let text = entry.map(|path| fs::read_to_string(path).expect("a source file is readable")).unwrap_or_default();
        if NO_STD.contains(&folder) && !text.contains("#![no_std]") && !text.contains("#![cfg_attr(not(test), no_std)]")
        {
            findings.push(format!("{folder} is not no_std"));
        }
        let has_source = !text.is_empty();
        if has_source && folder != UNSAFE_ALLOWED && !text.contains("#![forbid(unsafe_code)]") {
            findings.push(format!("{folder} does not forbid unsafe code"));
        }
    }
    fail_with("crates that forbid less than they say", &findings);
}

#[test]
fn lints_are_on_everywhere() {
    let findings: Vec<String> = EDGES
        .iter()
        .map(|(folder, _)| *folder)
        .filter(|folder| {
            let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
            !manifest.contains("[lints]\nworkspace = true")
        })
        .map(str::to_owned)
        .collect();
    fail_with("packages without the workspace's lints", &findings);
}

#[test]
fn sources_open_with_their_purpose_and_stay_readable() {
    let mut findings = Vec::new();
    for (path, text) in rust_files().expect("sources are readable") {
        if is_generated(&path) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{} has {lines} lines", path.display()));
        }
        if !text.starts_with("//!") {
            findings.push(format!("{} does not open with //!", path.display()));
        }
        if BANNED_FILE_NAMES.contains(&name.as_str()) {
            findings.push(format!("{} has a name that says nothing", path.display()));
        }
    }
    fail_with("files that a newcomer cannot read", &findings);
}

#[test]
fn banned_words_are_absent() {
    let mut findings = Vec::new();
    for (path, text) in rust_files().expect("sources are readable") {
        for (first, second) in BANNED_WORDS {
            let word = format!("{first}{second}");
            for (number, _) in text.lines().enumerate().filter(|(_, line)| line.contains(&word)) {
                findings.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    fail_with("banned words", &findings);
}

/// What stands between single back-ticks in a Markdown text, outside fenced blocks.
fn quoted(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let pieces = line.split('`').skip(1).step_by(2);
            found.extend(pieces.map(|piece| (number + 1, piece.to_owned())));
        }
    }
    found
}

fn is_path(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c));
    let source = word.ends_with(".rs") || word.ends_with(".md") || word.ends_with(".toml");
    plain && source && !word.starts_with('.') && !word.starts_with("target")
}

/// `Log::append` or `Log::append()`, as type and item.
fn as_item(word: &str) -> Option<(&str, &str)> {
    let (owner, item) = word.trim_end_matches("()").split_once("::")?;
    let name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (owner.starts_with(|c: char| c.is_ascii_uppercase()) && name(owner) && name(item)).then_some((owner, item))
}

fn declares(text: &str, name: &str) -> bool {
    ["struct ", "enum ", "trait ", "type "].iter().any(|kind| {
        text.match_indices(&format!("{kind}{name}"))
            .any(|(at, found)| !text[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    })
}

#[test]
fn documents_name_only_what_exists() {
    let files = files_below("").expect("the tree can be listed");
    let names: BTreeSet<String> = files.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let sources: Vec<String> = rust_files().expect("sources are readable").into_iter().map(|(_, text)| text).collect();
    let mut findings = Vec::new();
    let documents = files.iter().filter(|path| {
        path.extension().is_some_and(|extension| extension == "md")
            && (path.starts_with("docs") || path.parent().is_some_and(|parent| parent.as_os_str().is_empty()))
    });
    for document in documents {
        let text = fs::read_to_string(root().join(document)).expect("a document is readable");
        for (line, word) in quoted(&text) {
            let place = format!("{}:{line}: {word}", document.display());
            if is_path(&word) {
                let ending = format!("/{word}");
                if !names.contains(&word) && !names.iter().any(|name| name.ends_with(&ending)) {
                    findings.push(place);
                }
            } else if let Some((owner, item)) = as_item(&word) {
                let known = sources.iter().any(|text| declares(text, owner))
                    && sources.iter().any(|text| text.contains(&format!("fn {item}")) || text.contains(item));
                if !known {
                    findings.push(place);
                }
            }
        }
    }
    fail_with("documents name what is not there", &findings);
}

#[test]
fn the_door_is_there() {
    let findings: Vec<String> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "check", "docs/format.md"]
        .into_iter()
        .filter(|name| !root().join(name).exists())
        .map(str::to_owned)
        .collect();
    fail_with("missing files", &findings);
}
