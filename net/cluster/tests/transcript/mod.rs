//! A transcript: a file of commands and what was said to each, held against what is said now.
//!
//! Lines that start with `> ` are commands; empty lines and those that start with `#` stand as they are; the rest are
//! answers. `HEDDLE_REWRITE_TRANSCRIPTS=1` writes the file again.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// Gives every command of `testdata/<name>` to `command`, which writes its answers.
///
/// # Panics
/// If anything else is answered than the file says.
pub(crate) fn run(name: &str, mut command: impl FnMut(&str, &mut String)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let wanted = fs::read_to_string(&path).unwrap();
    let mut told = String::new();
    for line in wanted.lines().filter(|line| line.is_empty() || line.starts_with(['>', '#'])) {
        writeln!(told, "{line}").unwrap();
        if let Some(words) = line.strip_prefix("> ") {
            command(words, &mut told);
        }
    }
    if env::var_os("HEDDLE_REWRITE_TRANSCRIPTS").is_some() {
        fs::write(&path, told).unwrap();
    } else if told != wanted {
        let differs = told.lines().zip(wanted.lines()).enumerate().find(|(_, (told, wanted))| told != wanted);
        let (line, (told, wanted)) = differs.unwrap_or((wanted.lines().count(), ("the end", "the end")));
        panic!("{name}:{}\n  told:   {told}\n  wanted: {wanted}", line + 1);
    }
}
