//! Base64 for people: uuids and the bytes inside JSON. Writes only.

use core::fmt;

/// Which base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// `+`, `/` and padding: bytes in JSON.
    Standard,
    /// `-`, `_` and no padding: uuids.
    UrlUnpadded,
}

/// Writes `bytes` as base64.
pub(crate) fn write(out: &mut dyn fmt::Write, bytes: &[u8], alphabet: Alphabet) -> fmt::Result {
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        if let Some(place) = group.get_mut(1..=chunk.len()) {
            place.copy_from_slice(chunk);
        }
        let bits = u32::from_be_bytes(group);
        for index in 0..4 {
            if index <= chunk.len() {
                out.write_char(digit(bits >> (18 - 6 * index) & 0x3f, alphabet))?;
            } else if alphabet == Alphabet::Standard {
                out.write_char('=')?;
            }
        }
    }
    Ok(())
}

fn digit(value: u32, alphabet: Alphabet) -> char {
    let base = match (value, alphabet) {
        (0..26, _) => 'A' as u32,
        (26..52, _) => 'a' as u32 - 26,
        (52..62, _) => return char::from_digit(value - 52, 10).expect("a decimal digit"),
        (62, Alphabet::Standard) => return '+',
        (62, Alphabet::UrlUnpadded) => return '-',
        (_, Alphabet::Standard) => return '/',
        (_, Alphabet::UrlUnpadded) => return '_',
    };
    char::from_u32(base + value).expect("an ASCII letter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn known_texts() {
        for (bytes, standard, url) in [
            (&b""[..], "", ""),
            (b"f", "Zg==", "Zg"),
            (b"fo", "Zm8=", "Zm8"),
            (b"foo", "Zm9v", "Zm9v"),
            (&[0xfb, 0xff, 0xbe], "+/++", "-_--"),
        ] {
            for (alphabet, text) in [(Alphabet::Standard, standard), (Alphabet::UrlUnpadded, url)] {
                let mut out = String::new();
                write(&mut out, bytes, alphabet).unwrap();
                assert_eq!(out, text);
            }
        }
    }
}
