//! What a scraper does: HTTP of one request, and a strict reader of Prometheus' text format.
//!
//! Owns nothing of the product: it is written from the format's own description, so that the text is held to that.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take: more than a broker ever lets a connection live.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

/// GET.
///
/// # Errors
/// Nobody listens, or what comes back is no HTTP.
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
}

/// Sends these bytes, and reads an answer up to the end of the connection.
///
/// # Errors
/// As [`get`].
pub fn send(address: &str, request: &[u8]) -> io::Result<Answer> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.write_all(request)?;
    let mut bytes = Vec::new();
    let ended = socket.read_to_end(&mut bytes);
    // A peer that closes with bytes of ours unread resets the connection behind its answer.
    if bytes.is_empty() {
        ended?;
    }
    parse_answer(&String::from_utf8_lossy(&bytes)).ok_or_else(|| io::Error::other("no HTTP"))
}

fn parse_answer(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Some(Answer { status, headers: lines.filter_map(header).collect(), body: body.to_owned() })
}

/// A metric in a text.
#[derive(Debug, Default)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it says of itself.
    pub help: String,
    /// Values by the whole series: the name, then labels as they stand.
    pub samples: BTreeMap<String, f64>,
}

/// A text, read.
#[derive(Debug)]
pub struct Scrape {
    /// By name.
    pub families: BTreeMap<String, Family>,
}

impl Scrape {
    /// Reads a text; what the format does not allow is refused, and so are series that are there twice.
    ///
    /// # Errors
    /// The line, and what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        if !text.is_empty() && !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        for line in text.lines() {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
                let family = Family { help: help.to_owned(), ..Family::default() };
                if families.insert(name.to_owned(), family).is_some() {
                    return Err(wrong("twice"));
                }
                name.clone_into(&mut current);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                if name != current || !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(wrong("a type that is none, or not behind its help"));
                }
                kind.clone_into(&mut families.get_mut(name).expect("its help was just read").kind);
            } else {
                let family = families.get_mut(&current).ok_or_else(|| wrong("no family"))?;
                let (series, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
                let name = series.split('{').next().unwrap_or_default();
                let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                if !suffixes.iter().any(|suffix| name == format!("{current}{suffix}")) {
                    return Err(wrong("not of its family"));
                }
                if family.samples.insert(series, value).is_some() {
                    return Err(wrong("a series that is there twice"));
                }
            }
        }
        let read = Self { families };
        read.check_histograms()?;
        Ok(read)
    }

    /// Buckets ascend, and the last is the count.
    fn check_histograms(&self) -> Result<(), String> {
        for (name, family) in self.families.iter().filter(|(_, family)| family.kind == "histogram") {
            let mut rows: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (series, value) in &family.samples {
                if let Some((before, bound)) = series.split_once("le=\"") {
                    let bound =
                        bound.trim_end_matches("\"}").parse::<f64>().map_err(|_| format!("{series}: no bound"))?;
                    rows.entry(before.to_owned()).or_default().push((bound, *value));
                }
            }
            for (labels, mut buckets) in rows {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                let ascends = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
                let labels = labels.trim_start_matches(&format!("{name}_bucket{{")).trim_end_matches(',').to_owned();
                let of = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let count = family.samples.get(&format!("{name}_count{of}"));
                let last = buckets.last().filter(|(bound, _)| bound.is_infinite()).map(|(_, value)| value);
                if !ascends || last.is_none() || last != count {
                    return Err(format!("{name}{of}: buckets that do not add up"));
                }
            }
        }
        Ok(())
    }

    /// The value of a series.
    pub fn value(&self, series: &str) -> Option<f64> {
        let name = series.split('{').next().unwrap_or_default();
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = self.families.get(name).or_else(|| self.families.get(bare?))?;
        family.samples.get(series).copied()
    }

    /// All series of a metric together.
    pub fn sum(&self, name: &str) -> f64 {
        self.families.get(name).map_or(0.0, |family| family.samples.values().sum())
    }

    /// The series of a metric.
    pub fn series(&self, name: &str) -> Vec<&str> {
        self.families.get(name).map_or_else(Vec::new, |family| family.samples.keys().map(String::as_str).collect())
    }
}

/// A series and its value.
fn sample(line: &str) -> Option<(String, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let end = end_of_value(quoted)?;
        if !is_name(label) {
            return None;
        }
        rest = match quoted[end + 1..].strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            Some(_) => return None,
            None if quoted.len() == end + 1 => "",
            None => return None,
        };
    }
    is_name(name).then(|| (series.to_owned(), value))
}

/// Where the quote is that ends a value; nothing where an escape is none.
fn end_of_value(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some(at),
            '\\' if !matches!(characters.next()?.1, '\\' | '"' | 'n') => return None,
            _ => {}
        }
    }
    None
}
