//! What commands print: tables for people, JSON for programs, progress for those who wait at a terminal.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use anyhow::Context as _;
use heddle_io::{Io, Monotonic};
use serde_json::Value;

/// Columns of text under their names.
#[derive(Debug)]
pub(crate) struct Table {
    names: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows. A column whose name starts with a space is aligned to the right.
    pub(crate) fn new(names: &[&'static str]) -> Self {
        Self { names: names.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// It has more or fewer cells than the table has columns.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.names.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The table as lines, each with its end.
    pub(crate) fn render(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|name| name.trim_start().to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&names).chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.names.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let mut row = String::new();
            for (column, cell) in line.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let right = self.names[column].starts_with(' ');
                let (before, after) = if right { (padding.as_str(), "") } else { ("", padding.as_str()) };
                row.push_str(&format!("{before}{cell}{after}  "));
            }
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Writes text to standard output.
///
/// # Errors
/// Nobody reads it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("standard output")
}

/// Writes a JSON value to standard output, laid out for people where they look at it.
///
/// # Errors
/// Nobody reads it.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    let text = if io::stdout().is_terminal() { format!("{value:#}\n") } else { format!("{value}\n") };
    print(&text)
}

/// Says something to the person at the terminal; says nothing to a file or a program.
pub(crate) fn note(text: &str) {
    let mut output = io::stderr().lock();
    if output.is_terminal() {
        // Nobody to tell is no failure.
        let _ = writeln!(output, "{text}");
    }
}

/// Tells of a failure that does not end the command, which goes on to the next piece of its work.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody to tell: the exit code still does.
    let _ = writeln!(io::stderr().lock(), "heddle: {error:#}");
}

/// `1 record`, `2 records`, `1,234,567 records`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How far long work has come, on one line of the terminal, from the second second on.
pub(crate) struct Progress {
    io: Io,
    enabled: bool,
    next: Monotonic,
    shown: bool,
}

const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

impl Progress {
    /// Progress on standard error, if `wanted` and that is a terminal.
    pub(crate) fn new(io: &Io, wanted: bool) -> Self {
        let enabled = wanted && io::stderr().is_terminal();
        Self { io: io.clone(), enabled, next: io.now() + PROGRESS_AFTER, shown: false }
    }

    /// Shows `line` if it is time to.
    pub(crate) fn tick(&mut self, line: impl FnOnce() -> String) {
        if self.enabled && self.io.now() >= self.next {
            self.next = self.io.now() + PROGRESS_EVERY;
            self.shown = true;
            Self::write(&format!("\r\x1b[K{}", line()));
        }
    }

    fn write(text: &str) {
        let mut output = io::stderr().lock();
        // Nobody to tell is no failure.
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            Self::write("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", " COUNT", "REST"]);
        table.row(["a".to_owned(), "12".to_owned(), "x".to_owned()]);
        table.row(["longer".to_owned(), "3".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME    COUNT  REST\na          12  x\nlonger      3\n");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
