//! Writing the protocol's primitive values, and leaving room for records that are sent from elsewhere.
//!
//! A [`Writer`] appends to one `Vec`. Records need not pass through it: a [`Gap`] notes where they belong and how long
//! they are, so that a fetch response goes out as bytes, file range, bytes.

use crate::error::{EncodeError, EncodeErrorKind};
use alloc::vec::Vec;

/// A place in the written bytes where records belong that the writer did not copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Written bytes that go out before the records.
    pub position: usize,
    /// Bytes of records, at most 2³¹−1.
    pub length: usize,
}

/// Bytes in the making.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    gaps: Vec<Gap>,
    /// Each error code that was written as one, and how often.
    errors: Vec<(i16, u32)>,
}

impl From<Vec<u8>> for Writer {
    /// A writer that appends to `bytes` and keeps what they hold.
    fn from(bytes: Vec<u8>) -> Self {
        Writer { bytes, gaps: Vec::new(), errors: Vec::new() }
    }
}

impl Writer {
    /// A writer without bytes.
    #[must_use]
    pub const fn new() -> Self {
        Writer { bytes: Vec::new(), gaps: Vec::new(), errors: Vec::new() }
    }

    /// Forgets all that was written; keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.gaps.clear();
        self.errors.clear();
    }

    /// The bytes written so far, gaps left out.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The gaps so far, in the order of their positions.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Bytes that go out in the end: those written and those of the gaps.
    #[must_use]
    pub fn total_length(&self) -> usize {
        self.bytes.len() + self.gaps.iter().map(|gap| gap.length).sum::<usize>()
    }

    /// Takes down the value of a field that says what failed; 0 says that nothing did.
    #[inline]
    pub fn note_error(&mut self, code: i16) {
        if code != 0 {
            self.count_error(code);
        }
    }

    #[cold]
    fn count_error(&mut self, code: i16) {
        match self.errors.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.errors.push((code, 1)),
        }
    }

    /// The error codes in what was written since this was asked last, and how often each; without 0.
    #[must_use]
    pub fn take_errors(&mut self) -> Vec<(i16, u32)> {
        core::mem::take(&mut self.errors)
    }

    /// The bytes and the gaps among them.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Vec<Gap>) {
        (self.bytes, self.gaps)
    }

    /// The bytes of a message that has no gaps.
    ///
    /// # Panics
    /// When there is a gap: its records would be lost.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        assert!(self.gaps.is_empty(), "the records of a gap would be lost");
        self.bytes
    }

    /// Appends `bytes` as they are.
    #[inline]
    pub fn slice(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an unsigned varint.
    #[inline]
    pub fn varint(&mut self, value: u32) {
        let mut rest = value;
        while rest >= 0x80 {
            self.bytes.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest.to_le_bytes()[0]);
    }

    /// Appends the length of a string, null for `None`.
    ///
    /// # Errors
    /// [`EncodeErrorKind::TooLong`] above 2¹⁵−1 bytes, the limit of Kafka in every version.
    #[inline]
    pub fn string_length(
        &mut self,
        length: Option<usize>,
        flexible: bool,
        what: &'static str,
    ) -> Result<(), EncodeError> {
        let short = match length {
            None => -1,
            Some(length) => i16::try_from(length).map_err(|_| too_long(length, what))?,
        };
        if flexible {
            self.varint(i32::from(short).wrapping_add(1).cast_unsigned());
        } else {
            self.slice(&short.to_be_bytes());
        }
        Ok(())
    }

    /// Appends the length of bytes, records or an array, null for `None`.
    ///
    /// # Errors
    /// [`EncodeErrorKind::TooLong`] above 2³¹−1.
    #[inline]
    pub fn length(&mut self, length: Option<usize>, flexible: bool, what: &'static str) -> Result<(), EncodeError> {
        let long = match length {
            None => -1,
            Some(length) => i32::try_from(length).map_err(|_| too_long(length, what))?,
        };
        if flexible {
            self.varint(long.wrapping_add(1).cast_unsigned());
        } else {
            self.slice(&long.to_be_bytes());
        }
        Ok(())
    }

    /// Leaves out `length` bytes of records that somebody else sends at this place.
    pub fn gap(&mut self, length: usize) {
        if length > 0 {
            self.gaps.push(Gap { position: self.bytes.len(), length });
        }
    }

    /// Appends a tagged field: its tag, its size, and what `value` writes, which must leave no gap.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn tag(
        &mut self,
        tag: u32,
        value: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.varint(tag);
        let start = self.bytes.len();
        let gaps = self.gaps.len();
        value(self)?;
        assert_eq!(self.gaps.len(), gaps, "a tagged field holds no records");
        let end = self.bytes.len();
        let size = u32::try_from(end - start).map_err(|_| too_long(end - start, "tagged field"))?;
        // The size comes first but is known last: write it behind the value, then turn the two around.
        self.varint(size);
        let size_bytes = self.bytes.len() - end;
        if let Some(field) = self.bytes.get_mut(start..) {
            field.rotate_right(size_bytes);
        }
        Ok(())
    }

    /// Starts a frame: four bytes that [`Writer::end_frame`] fills in. Returns its position.
    pub fn start_frame(&mut self) -> FrameStart {
        let start = FrameStart { position: self.bytes.len(), gaps: self.gaps.len() };
        self.slice(&[0; 4]);
        start
    }

    /// Ends the frame: its length, gaps included, goes where it started.
    ///
    /// # Errors
    /// [`EncodeErrorKind::TooLong`] above 2³¹−1 bytes.
    ///
    /// # Panics
    /// When `start` is no frame of this writer.
    pub fn end_frame(&mut self, start: FrameStart) -> Result<(), EncodeError> {
        let gaps = self.gaps.get(start.gaps..).expect("gaps are only added");
        let written = self.bytes.len() - start.position - 4;
        let total = written + gaps.iter().map(|gap| gap.length).sum::<usize>();
        let length = i32::try_from(total).map_err(|_| too_long(total, "frame"))?;
        let place = self.bytes.get_mut(start.position..start.position + 4).expect("the frame was started here");
        place.copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

/// Where a frame began; made by [`Writer::start_frame`].
#[derive(Debug)]
#[must_use]
pub struct FrameStart {
    position: usize,
    gaps: usize,
}

#[cold]
const fn too_long(length: usize, what: &'static str) -> EncodeError {
    EncodeError { what, kind: EncodeErrorKind::TooLong { length } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::Reader;

    #[test]
    fn error_codes_are_taken_down_where_something_failed() {
        let mut writer = Writer::new();
        [0, 3, 0, -1, 3].into_iter().for_each(|code| writer.note_error(code));
        assert_eq!(writer.take_errors(), [(3, 2), (-1, 1)]);
        assert_eq!(writer.take_errors(), []);
    }

    #[test]
    fn varints_read_back() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 1 << 21, 1 << 28, 1 << 31, u32::MAX] {
            let mut writer = Writer::new();
            writer.varint(value);
            assert_eq!(Reader::new(writer.bytes()).varint("x"), Ok(value));
        }
    }

    #[test]
    fn tag_size_goes_before_its_value() {
        let mut writer = Writer::new();
        writer
            .tag(3, |writer| {
                writer.slice(&[7; 200]);
                Ok(())
            })
            .unwrap();
        let bytes = writer.into_bytes();
        assert_eq!(bytes.get(..4), Some(&[3, 0xc8, 0x01, 7][..]));
        assert_eq!(bytes.len(), 203);
    }

    #[test]
    fn frame_length_counts_the_gaps() {
        let mut writer = Writer::from(alloc::vec![1, 2]);
        let start = writer.start_frame();
        writer.slice(&[9]);
        writer.gap(1000);
        writer.slice(&[8]);
        writer.end_frame(start).unwrap();
        assert_eq!(writer.total_length(), 1008);
        assert_eq!(writer.gaps(), [Gap { position: 7, length: 1000 }]);
        assert_eq!(writer.bytes(), [1, 2, 0, 0, 0x03, 0xea, 9, 8]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut writer = Writer::new();
        assert!(writer.string_length(Some(32_767), true, "x").is_ok());
        let error = writer.string_length(Some(32_768), false, "x").unwrap_err();
        assert_eq!(error.kind, EncodeErrorKind::TooLong { length: 32_768 });
        assert!(writer.length(Some(1 << 31), true, "x").is_err());
    }
}
