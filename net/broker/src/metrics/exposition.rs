//! The text that Prometheus reads: its exposition format, version 0.0.4.
//!
//! Owns the syntax, escaping included. Knows no metric: they are in the catalogue.

use std::fmt::{self, Display, Write as _};

use heddle_io::LatencyCounts;

use super::catalogue::{Family, Kind};

/// A text in the making.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    text: &'a mut String,
    family: &'static Family,
}

impl Exposition {
    /// Begins a family. All its samples follow here.
    pub(super) fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let Family { name, kind, help, .. } = family;
        let text = &mut self.text;
        write(text, format_args!("# HELP {name} {}\n# TYPE {name} {}\n", EscapedHelp(help), kind.name()));
        Samples { text, family }
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

impl Samples<'_> {
    /// One sample, with a value for each of the family's labels in their order.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub(super) fn value(&mut self, labels: &[&str], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// A histogram of times, in seconds.
    ///
    /// # Panics
    /// As [`Samples::value`].
    pub(super) fn histogram(&mut self, labels: &[&str], counts: &LatencyCounts) {
        assert_eq!(self.family.kind, Kind::Histogram, "{}", self.family.name);
        for (bound, count) in counts.cumulative() {
            self.line("_bucket", labels, Some(&bound.as_secs_f64().to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), counts.count());
        self.line("_sum", labels, None, counts.sum().as_secs_f64());
        self.line("_count", labels, None, counts.count());
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: impl Display) {
        let Family { name, labels: names, .. } = self.family;
        assert_eq!(names.len(), labels.len(), "{name} has the labels {names:?}");
        write(self.text, format_args!("{name}{suffix}"));
        let bound = bound.map(|bound| ("le", bound));
        let pairs = names.iter().copied().zip(labels.iter().copied()).chain(bound);
        let mut opening = '{';
        for (label, value) in pairs {
            write(self.text, format_args!("{opening}{label}=\"{}\"", EscapedLabel(value)));
            opening = ',';
        }
        let closing = if opening == ',' { "}" } else { "" };
        write(self.text, format_args!("{closing} {value}\n"));
    }
}

fn write(text: &mut String, arguments: fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

/// The value of a label between its quotes.
struct EscapedLabel<'a>(&'a str);

impl Display for EscapedLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in self.0.split_inclusive(['\\', '"', '\n']) {
            let plain = piece.trim_end_matches(['\\', '"', '\n']);
            f.write_str(plain)?;
            f.write_str(match &piece[plain.len()..] {
                "\\" => "\\\\",
                "\"" => "\\\"",
                "\n" => "\\n",
                _ => "",
            })?;
        }
        Ok(())
    }
}

/// A help text up to the end of its line.
struct EscapedHelp<'a>(&'a str);

impl Display for EscapedHelp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.replace('\\', "\\\\").replace('\n', "\\n"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use heddle_io::Latencies;

    use super::*;

    static TOTAL: Family =
        Family { name: "x_total", kind: Kind::Counter, labels: &["a", "b"], help: "one\\two\nlines", kafka: "" };
    static PLAIN: Family = Family { name: "x", kind: Kind::Gauge, labels: &[], help: "plain", kafka: "" };
    static SPAN: Family = Family { name: "x_seconds", kind: Kind::Histogram, labels: &["a"], help: "span", kafka: "" };

    #[test]
    fn samples_are_lines_with_escaped_labels() {
        let mut text = Exposition::default();
        let mut samples = text.family(&TOTAL);
        samples.value(&["", r#"a\b"c"#], 7_u64);
        samples.value(&["two\nlines", "\\\"\n"], -1_i64);
        text.family(&PLAIN).value(&[], 0.25);
        let expected = "\
# HELP x_total one\\\\two\\nlines
# TYPE x_total counter
x_total{a=\"\",b=\"a\\\\b\\\"c\"} 7
x_total{a=\"two\\nlines\",b=\"\\\\\\\"\\n\"} -1
# HELP x plain
# TYPE x gauge
x 0.25
";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_everything() {
        let latencies = Latencies::default();
        [10, 20, 100_000_000].into_iter().for_each(|micros| latencies.record(Duration::from_micros(micros)));
        let mut text = Exposition::default();
        text.family(&SPAN).histogram(&["z"], &latencies.counts());
        let text = text.finish();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), 22 + 1 + 2);
        assert_eq!(lines[0], "x_seconds_bucket{a=\"z\",le=\"0.000016\"} 1");
        assert_eq!(lines[1], "x_seconds_bucket{a=\"z\",le=\"0.000032\"} 2");
        assert_eq!(
            lines[22..],
            [
                "x_seconds_bucket{a=\"z\",le=\"+Inf\"} 3",
                "x_seconds_sum{a=\"z\"} 100.00003",
                "x_seconds_count{a=\"z\"} 3",
            ]
        );
    }

    #[test]
    #[should_panic(expected = "x_total has the labels")]
    fn a_label_without_a_value_is_a_fault_of_ours() {
        Exposition::default().family(&TOTAL).value(&["one"], 1);
    }
}
