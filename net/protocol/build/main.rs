//! Turns `schema/*.txt` into the structures and tables of the crate.
//!
//! `schema.rs` reads the notation, `rust.rs` and `skip.rs` write the typed messages, `table.rs` the schema as data. The result is one
//! file, `generated.rs` in the build's output directory: modules `messages`, `records` and `metadata`, one module in them
//! for each schema file.

mod rust;
mod schema;
mod skip;
mod table;

use schema::Schema;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Directories below the crate and the modules that they become.
const TREE: [(&str, &str, &str); 3] = [
    ("schema", "messages", "Requests, responses and headers: one module for each API."),
    ("schema/records", "records", "What is stored in logs or inside other messages: one module for each schema file."),
    ("schema/metadata", "metadata", "The records of the cluster's metadata log: one module for each schema file."),
];

fn main() {
    if let Err(error) = generate() {
        // The only way for a build script to say what is wrong.
        panic!("{error}");
    }
}

#[expect(clippy::print_stdout, reason = "cargo reads what a build script prints")]
fn generate() -> Result<(), String> {
    let mut out = String::new();
    let mut modules = Vec::new();
    for (directory, module, doc) in TREE {
        println!("cargo::rerun-if-changed={directory}");
        let schemas = read_directory(Path::new(directory))?;
        line(&mut out, &format!("/// {doc}\npub mod {module} {{"));
        for schema in &schemas {
            rust::module(&mut out, schema);
        }
        line(&mut out, "}\n");
        modules.push((module, schemas));
    }
    rust::api_keys(&mut out, &modules[0].1);
    table::messages(&mut out, &modules);
    let path = PathBuf::from(env::var("OUT_DIR").map_err(|error| error.to_string())?).join("generated.rs");
    fs::write(&path, out).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_directory(directory: &Path) -> Result<Vec<Schema>, String> {
    let at = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(at)? {
        let path = entry.map_err(at)?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| read_file(path)).collect()
}

fn read_file(path: &Path) -> Result<Schema, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or("a schema's name is UTF-8")?;
    // `02_list_offsets.txt` is the module `list_offsets`.
    let module = stem.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('_');
    Schema::parse(&path.display().to_string(), module, &text)
}

/// Appends a line of code.
fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a String takes everything");
}
