//! Arrays that are read where they lie.
//!
//! A decoded [`Array`] is a view of the frame: decoding walks its elements once to know that all of them are good and
//! where they end, and iterating decodes them again, one by one. Nothing is allocated, and no iteration can fail.
//! An array that is to be written holds its elements in a `Vec`.
//!
//! Iterating decodes each element, and an element that holds arrays passes over them to find its own end. A value at
//! depth *d* is hence passed *d* times at most and read once: linear in the frame, since the depth of a schema is fixed.

use crate::error::{DecodeError, DecodeErrorKind, EncodeError};
use crate::field::{Context, Field, Nullable};
use crate::reader::Reader;
use crate::writer::Writer;
use alloc::vec::Vec;
use core::fmt;

/// The elements of an array: in the frame they came in, or in memory to be written.
#[derive(Clone)]
pub enum Array<'a, T> {
    /// As they lie in the frame.
    Wire(Wire<'a>),
    /// Made to be encoded.
    Items(Vec<T>),
}

/// The checked bytes of an array's elements.
#[derive(Clone, Copy, Debug)]
pub struct Wire<'a> {
    bytes: &'a [u8],
    count: u32,
    context: Context,
}

impl<'a, T> Array<'a, T> {
    /// An array without elements.
    #[must_use]
    pub const fn new() -> Self {
        Array::Items(Vec::new())
    }

    /// The number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Array::Wire(wire) => wire.count as usize,
            Array::Items(items) => items.len(),
        }
    }

    /// Whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a, T: Field<'a> + Clone> Array<'a, T> {
    /// The elements by value: decoded one by one from a frame, cloned from an array that is to be written.
    #[must_use]
    pub fn iter(&self) -> Iter<'a, '_, T> {
        match self {
            Array::Wire(wire) => Iter { source: Source::Wire(wire.cursor()) },
            Array::Items(items) => Iter { source: Source::Items(items.iter()) },
        }
    }

    /// The first element.
    #[must_use]
    pub fn first(&self) -> Option<T> {
        self.iter().next()
    }
}

impl<'a> Wire<'a> {
    const fn cursor(&self) -> Cursor<'a> {
        Cursor { reader: Reader::new(self.bytes), left: self.count, context: self.context }
    }
}

/// The way through an array's bytes.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    reader: Reader<'a>,
    left: u32,
    context: Context,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn next<T: Field<'a>>(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        Some(T::read(&mut self.reader, self.context, "").expect("the array was checked when it was decoded"))
    }
}

/// The elements of an [`Array`].
#[derive(Clone, Debug)]
pub struct Iter<'a, 'r, T> {
    source: Source<'a, core::slice::Iter<'r, T>>,
}

/// The elements of an [`Array`] that is no longer needed.
#[derive(Debug)]
pub struct IntoIter<'a, T> {
    source: Source<'a, alloc::vec::IntoIter<T>>,
}

#[derive(Clone, Debug)]
enum Source<'a, I> {
    Wire(Cursor<'a>),
    Items(I),
}

impl<'a, I: ExactSizeIterator> Source<'a, I> {
    fn len(&self) -> usize {
        match self {
            Source::Wire(cursor) => cursor.left as usize,
            Source::Items(items) => items.len(),
        }
    }
}

impl<'a, T: Field<'a> + Clone> Iterator for Iter<'a, '_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match &mut self.source {
            Source::Wire(cursor) => cursor.next(),
            Source::Items(items) => items.next().cloned(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.source.len(), Some(self.source.len()))
    }
}

impl<'a, T: Field<'a>> Iterator for IntoIter<'a, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match &mut self.source {
            Source::Wire(cursor) => cursor.next(),
            Source::Items(items) => items.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.source.len(), Some(self.source.len()))
    }
}

impl<'a, T: Field<'a> + Clone> ExactSizeIterator for Iter<'a, '_, T> {}
impl<'a, T: Field<'a>> ExactSizeIterator for IntoIter<'a, T> {}

impl<'a, 'r, T: Field<'a> + Clone> IntoIterator for &'r Array<'a, T> {
    type Item = T;
    type IntoIter = Iter<'a, 'r, T>;

    fn into_iter(self) -> Iter<'a, 'r, T> {
        self.iter()
    }
}

impl<'a, T: Field<'a>> IntoIterator for Array<'a, T> {
    type Item = T;
    type IntoIter = IntoIter<'a, T>;

    fn into_iter(self) -> IntoIter<'a, T> {
        let source = match self {
            Array::Wire(wire) => Source::Wire(wire.cursor()),
            Array::Items(items) => Source::Items(items.into_iter()),
        };
        IntoIter { source }
    }
}

impl<T> From<Vec<T>> for Array<'_, T> {
    fn from(items: Vec<T>) -> Self {
        Array::Items(items)
    }
}

impl<T> FromIterator<T> for Array<'_, T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Array::Items(items.into_iter().collect())
    }
}

impl<T> Default for Array<'_, T> {
    fn default() -> Self {
        Array::new()
    }
}

impl<'a, T: Field<'a> + Clone + PartialEq> PartialEq for Array<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<'a, T: Field<'a> + Clone + fmt::Debug> fmt::Debug for Array<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Field<'a>> Field<'a> for Array<'a, T> {
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError> {
        let at = reader.position();
        Self::read_nullable(reader, context, what)?.ok_or(DecodeError { what, at, kind: DecodeErrorKind::Null })
    }

    #[inline]
    fn skip(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        let count = reader.count(context.flexible, T::SIZE_MIN, "").ok()??;
        skip_elements::<T>(reader, count, context)
    }

    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        writer.length(Some(self.len()), context.flexible, what)?;
        match self {
            Array::Items(items) => items.iter().try_for_each(|item| item.write(writer, context, what)),
            Array::Wire(wire) => {
                let mut cursor = wire.cursor();
                while let Some(item) = cursor.next::<T>() {
                    item.write(writer, context, what)?;
                }
                Ok(())
            }
        }
    }
}

impl<'a, T: Field<'a>> Nullable<'a> for Array<'a, T> {
    fn read_nullable(
        reader: &mut Reader<'a>,
        context: Context,
        what: &'static str,
    ) -> Result<Option<Self>, DecodeError> {
        let Some(count) = reader.count(context.flexible, T::SIZE_MIN, what)? else { return Ok(None) };
        let mut elements = reader.clone();
        if skip_elements::<T>(&mut elements, count, context).is_none() {
            // Read again what was skipped: reading says what is wrong and where.
            elements = reader.clone();
            for _ in 0..count {
                T::read(&mut elements, context, what)?;
            }
        }
        let bytes = reader.slice(elements.position() - reader.position(), what)?;
        Ok(Some(Array::Wire(Wire { bytes, count, context })))
    }

    #[inline]
    fn skip_nullable(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        match reader.count(context.flexible, T::SIZE_MIN, "").ok()? {
            Some(count) => skip_elements::<T>(reader, count, context),
            None => Some(()),
        }
    }

    #[inline]
    fn write_null(writer: &mut Writer, context: Context) {
        writer.slice(if context.flexible { &[0] } else { &[0xff; 4] });
    }
}

/// Passes over elements that [`Reader::count`] has held against the bytes.
#[inline]
fn skip_elements<'a, T: Field<'a>>(reader: &mut Reader<'a>, count: u32, context: Context) -> Option<()> {
    if T::FIXED {
        return reader.advance(count as usize * T::SIZE_MIN);
    }
    for _ in 0..count {
        T::skip(reader, context)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const RIGID: Context = Context { version: 0, flexible: false };
    const FLEXIBLE: Context = Context { version: 0, flexible: true };

    #[test]
    fn elements_read_back_in_both_encodings() {
        for context in [RIGID, FLEXIBLE] {
            let items: Array<'_, &str> = vec!["a", "", "ccc"].into();
            let mut writer = Writer::new();
            items.write(&mut writer, context, "x").unwrap();
            let mut reader = Reader::new(writer.bytes());
            let array = Array::<&str>::read(&mut reader, context, "x").unwrap();
            assert!(reader.remaining().is_empty());
            assert_eq!(array, items);
            assert_eq!(array.iter().len(), 3);
            assert_eq!(array.into_iter().collect::<Vec<_>>(), ["a", "", "ccc"]);
        }
    }

    #[test]
    fn numbers_are_taken_in_one_step() {
        let bytes = [0, 0, 0, 2, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 9];
        let mut reader = Reader::new(&bytes);
        let array = Array::<i32>::read(&mut reader, RIGID, "x").unwrap();
        assert_eq!(array.iter().collect::<Vec<_>>(), [7, -1]);
        assert_eq!(reader.remaining(), [9]);
    }

    #[test]
    fn a_bad_element_is_found_when_the_array_is_decoded() {
        let bytes = [0, 0, 0, 2, 0, 1, b'a', 0, 5, b'b'];
        let error = Array::<&str>::read(&mut Reader::new(&bytes), RIGID, "Names.names").unwrap_err();
        assert_eq!((error.what, error.at), ("Names.names", 9));
    }

    #[test]
    fn null_is_not_empty() {
        let null = Option::<Array<'_, i32>>::read(&mut Reader::new(&[0]), FLEXIBLE, "x").unwrap();
        assert!(null.is_none());
        assert!(Array::<i32>::read(&mut Reader::new(&[0xff; 4]), RIGID, "x").is_err());
        let empty = Array::<i32>::read(&mut Reader::new(&[1]), FLEXIBLE, "x").unwrap();
        assert!(empty.is_empty());
    }
}
