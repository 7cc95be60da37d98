//! Reading the protocol's primitive values from bytes that nobody has checked.
//!
//! A [`Reader`] borrows the frame and only moves forward. Every method checks that the bytes are there before it looks
//! at them, and none of them allocates.

use crate::error::{DecodeError, DecodeErrorKind};

/// The longest string: its length was an int16 once.
const STRING_BYTES_MAX: usize = 0x7fff;

/// A position in a frame.
///
/// The `what` of every method names the field for the error, such as `FetchTopic.partitions`.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// The position of the end, from which that of the next value follows.
    end: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the first of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, end: bytes.len() }
    }

    /// Bytes before the next value.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Bytes not yet read. A message that has been decoded may leave some: Kafka tolerates trailing bytes.
    #[must_use]
    pub const fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    /// The error that says `what` cannot be read at this position.
    #[cold]
    #[must_use]
    pub const fn error(&self, what: &'static str, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { what, at: self.position(), kind }
    }

    #[cold]
    const fn truncated(&self, what: &'static str, needed: usize) -> DecodeError {
        self.error(what, DecodeErrorKind::Truncated { needed, remaining: self.rest.len() })
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Truncated`] when fewer remain.
    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((chunk, rest)) => {
                self.rest = rest;
                Ok(*chunk)
            }
            None => Err(self.truncated(what, N)),
        }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Truncated`] when fewer remain.
    #[inline]
    pub fn slice(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(length) {
            Some((slice, rest)) => {
                self.rest = rest;
                Ok(slice)
            }
            None => Err(self.truncated(what, length)),
        }
    }

    /// Passes over `length` bytes; `None` when fewer remain.
    #[inline]
    pub(crate) fn advance(&mut self, length: usize) -> Option<()> {
        let (_, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(())
    }

    /// An unsigned varint of at most five bytes.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Truncated`] at the end of the bytes, [`DecodeErrorKind::Varint`] above 2³²−1.
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u32::from(byte))
            }
            _ => self.long_varint(what),
        }
    }

    fn long_varint(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let mut value = 0;
        let mut rest = self.rest;
        for shift in [0, 7, 14, 21, 28] {
            let Some((&byte, after)) = rest.split_first() else {
                return Err(self.truncated(what, self.rest.len() + 1));
            };
            rest = after;
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                if shift == 28 && byte > 0x0f {
                    break;
                }
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.error(what, DecodeErrorKind::Varint))
    }

    /// The length of a string: an int16, or a compact length in a flexible version. `None` is null.
    ///
    /// # Errors
    /// [`DecodeErrorKind::StringLength`] above 2¹⁵−1, which no version can write; as [`Reader::varint`] and
    /// [`Reader::array`].
    #[inline]
    pub fn string_length(&mut self, flexible: bool, what: &'static str) -> Result<Option<usize>, DecodeError> {
        if flexible {
            let start = self.clone();
            match self.compact_length(what)? {
                Some(length) if length > STRING_BYTES_MAX => {
                    Err(start.error(what, DecodeErrorKind::StringLength(length)))
                }
                length => Ok(length),
            }
        } else {
            Ok(usize::try_from(i16::from_be_bytes(self.array(what)?)).ok())
        }
    }

    /// The length of bytes, records or an array: an int32, or a compact length in a flexible version. `None` is null.
    ///
    /// # Errors
    /// As [`Reader::varint`] and [`Reader::array`].
    #[inline]
    pub fn length(&mut self, flexible: bool, what: &'static str) -> Result<Option<usize>, DecodeError> {
        if flexible {
            self.compact_length(what)
        } else {
            Ok(usize::try_from(i32::from_be_bytes(self.array(what)?)).ok())
        }
    }

    /// A varint that is one more than the length; zero is null. All 32 bits count: `8080808008` is 2³¹−1.
    #[inline]
    fn compact_length(&mut self, what: &'static str) -> Result<Option<usize>, DecodeError> {
        Ok(self.varint(what)?.checked_sub(1).map(|length| length as usize))
    }

    /// The number of elements of an array whose elements take `element_size_min` bytes or more; `None` is null.
    ///
    /// A count that the remaining bytes cannot hold is refused here, before anybody acts on it.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Count`], besides those of [`Reader::length`].
    #[inline]
    pub fn count(
        &mut self,
        flexible: bool,
        element_size_min: usize,
        what: &'static str,
    ) -> Result<Option<u32>, DecodeError> {
        let at = self.position();
        let Some(count) = self.length(flexible, what)? else { return Ok(None) };
        let remaining = self.rest.len();
        // Every element takes a byte at least, whatever its schema says: so a loop over `count` is bounded by the frame.
        let fits = count.checked_mul(element_size_min.max(1)).is_some_and(|bytes| bytes <= remaining);
        match u32::try_from(count) {
            Ok(count) if fits => Ok(Some(count)),
            other => {
                let count = other.unwrap_or(u32::MAX);
                Err(DecodeError { what, at, kind: DecodeErrorKind::Count { count, remaining } })
            }
        }
    }

    /// The number of tagged fields that end a structure of a flexible version.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Count`] when the remaining bytes cannot hold them: each takes two at least.
    #[inline]
    pub fn tag_count(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let at = self.position();
        let count = self.varint(what)?;
        let remaining = self.rest.len();
        if count as usize > remaining / 2 {
            return Err(DecodeError { what, at, kind: DecodeErrorKind::Count { count, remaining } });
        }
        Ok(count)
    }

    /// The next tagged field: its tag and a reader over its bytes alone.
    ///
    /// # Errors
    /// As [`Reader::varint`] and [`Reader::slice`].
    pub fn tag(&mut self, what: &'static str) -> Result<(u32, Reader<'a>), DecodeError> {
        let tag = self.varint(what)?;
        let length = self.varint(what)? as usize;
        let value = self.slice(length, what)?;
        Ok((tag, Reader { rest: value, end: self.position() }))
    }

    /// Passes over the tagged fields of a structure that knows none.
    ///
    /// # Errors
    /// As [`Reader::tag_count`] and [`Reader::tag`].
    #[inline]
    pub fn skip_tags(&mut self, what: &'static str) -> Result<(), DecodeError> {
        for _ in 0..self.tag_count(what)? {
            self.tag(what)?;
        }
        Ok(())
    }

    /// Passes over the next `length` bytes if they are UTF-8.
    #[inline]
    pub(crate) fn skip_text(&mut self, length: usize) -> Option<()> {
        let (text, rest) = self.rest.split_at_checked(length)?;
        if !is_ascii(text) {
            core::str::from_utf8(text).ok()?;
        }
        self.rest = rest;
        Some(())
    }
}

/// Names are short and nearly always ASCII: eight bytes at a time and without a table this is six times faster for them
/// than checking for UTF-8.
#[inline]
fn is_ascii(text: &[u8]) -> bool {
    let (words, tail) = text.as_chunks::<8>();
    let high = words.iter().fold(0, |bits, word| bits | u64::from_ne_bytes(*word));
    let tail = tail.iter().fold(0, |bits, byte| bits | byte);
    high & 0x8080_8080_8080_8080 == 0 && tail < 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_reads_up_to_32_bits() {
        for (bytes, value) in [
            (&[0x00][..], 0),
            (&[0x7f], 127),
            (&[0x80, 0x01], 128),
            (&[0x80, 0x80, 0x80, 0x80, 0x08], 1 << 31),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], u32::MAX),
            (&[0x81, 0x80, 0x80, 0x80, 0x00], 1),
        ] {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.varint("x"), Ok(value));
            assert!(reader.remaining().is_empty());
        }
    }

    #[test]
    fn varint_refuses_what_is_longer_or_cut() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff, 0x10][..], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]] {
            let error = Reader::new(bytes).varint("x").unwrap_err();
            assert_eq!(error.kind, DecodeErrorKind::Varint);
        }
        let error = Reader::new(&[0x80, 0x80]).varint("x").unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Truncated { needed: 3, remaining: 2 });
    }

    #[test]
    fn compact_length_is_unsigned_before_the_one_is_taken_off() {
        let mut reader = Reader::new(&[0x80, 0x80, 0x80, 0x80, 0x08]);
        assert_eq!(reader.length(true, "x"), Ok(Some(0x7fff_ffff)));
    }

    /// Four bytes must not make anybody reserve room for 2³¹−1 elements.
    #[test]
    fn count_beyond_the_remaining_bytes_is_refused() {
        let error = Reader::new(&[0x7f, 0xff, 0xff, 0xff]).count(false, 4, "x").unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Count { count: 0x7fff_ffff, remaining: 0 });
        assert_eq!(error.at, 0);
        let error = Reader::new(&[0, 0, 0, 3, 1, 2]).count(false, 0, "x").unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Count { count: 3, remaining: 2 });
        let error = Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).count(true, 1 << 40, "x").unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Count { count: u32::MAX - 1, remaining: 0 });
    }

    #[test]
    fn compact_strings_are_no_longer_than_others() {
        assert_eq!(Reader::new(&[0x80, 0x80, 0x02]).string_length(true, "x"), Ok(Some(0x7fff)));
        let error = Reader::new(&[0x81, 0x80, 0x02]).string_length(true, "x").unwrap_err();
        assert_eq!((error.kind, error.at), (DecodeErrorKind::StringLength(0x8000), 0));
    }

    #[test]
    fn tags_are_bounded_by_their_own_bytes() {
        let mut reader = Reader::new(&[1, 5, 2, 0xaa, 0xbb, 9]);
        assert_eq!(reader.tag_count("x"), Ok(1));
        let (tag, mut value) = reader.tag("x").unwrap();
        assert_eq!((tag, value.position()), (5, 3));
        assert_eq!(value.slice(3, "x").unwrap_err().at, 3);
        assert_eq!(reader.remaining(), [9]);
        let error = Reader::new(&[0x80, 0xda, 0xc4, 0x09, 0, 0]).tag_count("x").unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Count { count: 20_000_000, remaining: 2 });
    }
}
