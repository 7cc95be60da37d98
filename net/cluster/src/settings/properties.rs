//! Reads Java's `.properties` syntax, so that a Kafka `server.properties` works as it is. Knows no setting.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::iter::Peekable;
use core::str::Chars;

/// One assignment of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Property {
    /// Line of the file that it begins on, from 1.
    pub line: usize,
    /// The name, escapes resolved.
    pub name: String,
    /// The value, escapes resolved; blanks at its end are kept, as Java keeps them.
    pub value: String,
}

/// A `\u` without four hexadecimal digits, or half of a surrogate pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEscape {
    /// Line of the file, from 1.
    pub line: usize,
}

impl fmt::Display for BadEscape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: \\u needs four hexadecimal digits of a character", self.line)
    }
}

impl core::error::Error for BadEscape {}

/// All assignments of a file in their order; in Java the last one of a name wins.
///
/// # Errors
/// When an escape is malformed. Nothing else can be wrong with a `.properties` file.
pub fn parse(text: &str) -> Result<Vec<Property>, BadEscape> {
    let mut properties = Vec::new();
    let mut lines = natural_lines(text).enumerate();
    while let Some((index, first)) = lines.next() {
        let mut logical = String::from(first.trim_start_matches(BLANKS));
        if logical.is_empty() || logical.starts_with(['#', '!']) {
            continue;
        }
        while is_continued(&logical) {
            logical.pop();
            let Some((_, next)) = lines.next() else { break };
            logical.push_str(next.trim_start_matches(BLANKS));
        }
        if !logical.is_empty() {
            properties.push(property(&logical, index + 1)?);
        }
    }
    Ok(properties)
}

const BLANKS: [char; 3] = [' ', '\t', '\x0c'];

fn natural_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// An odd number of backslashes at its end joins a line to the next.
fn is_continued(line: &str) -> bool {
    line.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

fn property(logical: &str, line: usize) -> Result<Property, BadEscape> {
    let mut rest = logical.chars().peekable();
    let name = unescape(&mut rest, line, |c| BLANKS.contains(&c) || c == '=' || c == ':')?;
    skip_blanks(&mut rest);
    if rest.next_if(|&c| c == '=' || c == ':').is_some() {
        skip_blanks(&mut rest);
    }
    let value = unescape(&mut rest, line, |_| false)?;
    Ok(Property { line, name, value })
}

fn skip_blanks(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|c| BLANKS.contains(c)).is_some() {}
}

fn unescape(rest: &mut Peekable<Chars<'_>>, line: usize, is_end: impl Fn(char) -> bool) -> Result<String, BadEscape> {
    let mut units: Vec<u16> = Vec::new();
    while let Some(c) = rest.next_if(|&c| !is_end(c)) {
        let resolved = match c {
            '\\' => match rest.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0c',
                Some('u') => {
                    units.push(code_unit(rest).ok_or(BadEscape { line })?);
                    continue;
                }
                Some(other) => other,
                None => break,
            },
            plain => plain,
        };
        units.extend_from_slice(resolved.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).map_err(|_| BadEscape { line })
}

fn code_unit(rest: &mut Peekable<Chars<'_>>) -> Option<u16> {
    (0..4).try_fold(0_u16, |unit, _| {
        let digit = rest.next()?.to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|property| (property.name, property.value)).collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn the_ways_to_separate() {
        let text = "a=1\nb:2\nc 3\n d \t= 4\ne\n\nf==x\ng = :y";
        let wanted = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", ""), ("f", "=x"), ("g", ":y")];
        assert_eq!(pairs(text), wanted.map(|(name, value)| pair(name, value)));
    }

    #[test]
    fn comments_and_line_ends() {
        assert_eq!(
            pairs("# a=1\r\n  ! b=2\r\nc=3 \r\nd=4\re=5"),
            vec![pair("c", "3 "), pair("d", "4"), pair("e", "5")]
        );
    }

    #[test]
    fn continued_lines() {
        assert_eq!(
            pairs("a=1,\\\n   2,\\\n\t3\nb=\\\\\nc=4\\"),
            vec![pair("a", "1,2,3"), pair("b", "\\"), pair("c", "4")]
        );
        assert_eq!(pairs("a=1\\\n# not a comment"), vec![pair("a", "1# not a comment")]);
        assert_eq!(parse("\n\na=\\\n1\nb=2").unwrap().iter().map(|property| property.line).collect::<Vec<_>>(), [3, 5]);
    }

    #[test]
    fn escapes() {
        assert_eq!(pairs(r"a\=b\ c=\t\u00e4\uD83D\uDE00\q"), vec![pair("a=b c", "\tä😀q")]);
        assert_eq!(parse("x=1\na=\\u12g4"), Err(BadEscape { line: 2 }));
        assert_eq!(parse("a=\\ud83d"), Err(BadEscape { line: 1 }));
    }
}
