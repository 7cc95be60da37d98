//! How one value of each type stands in a message: the trait [`Field`] and its primitive types.
//!
//! Structures and arrays implement the same trait (generated code and `array.rs`), so that a message is written as one
//! line per field.

use crate::error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};
use crate::reader::Reader;
use crate::uuid::Uuid;
use crate::writer::Writer;

/// What the encoding of a field depends on besides its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The version of the message.
    pub version: i16,
    /// Whether that version is flexible: compact lengths, tagged fields.
    pub flexible: bool,
}

impl Context {
    /// The same version with lengths that are not compact: the client id of a flexible request header.
    #[must_use]
    pub const fn rigid(self) -> Self {
        Context { flexible: false, ..self }
    }
}

/// A value inside a message. `what` names it in errors.
pub trait Field<'a>: Sized {
    /// The fewest bytes that any version takes for it.
    const SIZE_MIN: usize;
    /// Whether every value takes [`Field::SIZE_MIN`] bytes and any bytes will do.
    const FIXED: bool = false;

    /// Reads the value.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no such value.
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError>;

    /// Passes over the value, having checked all that [`Field::read`] checks; `None`, and the reader anywhere, when that
    /// would fail. Faster than reading, and silent about what is wrong.
    #[inline]
    fn skip(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        Self::read(reader, context, "").ok().map(|_| ())
    }

    /// Appends the value.
    ///
    /// # Errors
    /// [`EncodeError`] when the version cannot express it.
    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError>;
}

/// A value whose encoding knows a null.
pub trait Nullable<'a>: Field<'a> {
    /// Reads the value or null.
    ///
    /// # Errors
    /// As [`Field::read`].
    fn read_nullable(
        reader: &mut Reader<'a>,
        context: Context,
        what: &'static str,
    ) -> Result<Option<Self>, DecodeError>;

    /// Passes over the value or null as [`Field::skip`] does.
    #[inline]
    fn skip_nullable(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        Self::read_nullable(reader, context, "").ok().map(|_| ())
    }

    /// Appends the value where null could stand as well.
    ///
    /// # Errors
    /// As [`Field::write`].
    #[inline]
    fn write_present(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        self.write(writer, context, what)
    }

    /// Appends null.
    fn write_null(writer: &mut Writer, context: Context);
}

impl<'a, T: Nullable<'a>> Field<'a> for Option<T> {
    // Null takes one byte at least.
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError> {
        T::read_nullable(reader, context, what)
    }

    #[inline]
    fn skip(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        T::skip_nullable(reader, context)
    }

    #[inline]
    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        match self {
            Some(value) => value.write_present(writer, context, what),
            None => {
                T::write_null(writer, context);
                Ok(())
            }
        }
    }
}

/// Reads a value that must not be null in this version although it may be in others.
///
/// # Errors
/// As [`Field::read`].
#[inline]
pub(crate) fn read_some<'a, T: Field<'a>>(
    reader: &mut Reader<'a>,
    context: Context,
    what: &'static str,
) -> Result<Option<T>, DecodeError> {
    T::read(reader, context, what).map(Some)
}

/// Appends a value that must not be null in this version although it may be in others.
///
/// # Errors
/// [`EncodeErrorKind::Null`], besides those of [`Field::write`].
#[inline]
pub(crate) fn write_some<'a, T: Field<'a>>(
    value: &Option<T>,
    writer: &mut Writer,
    context: Context,
    what: &'static str,
) -> Result<(), EncodeError> {
    match value {
        Some(value) => value.write(writer, context, what),
        None => Err(EncodeError { what, kind: EncodeErrorKind::Null { version: context.version } }),
    }
}

/// Reads the byte that says whether a nullable structure is there.
///
/// # Errors
/// [`DecodeErrorKind::Presence`] when it is neither -1 nor 1.
pub(crate) fn read_presence(reader: &mut Reader<'_>, what: &'static str) -> Result<bool, DecodeError> {
    let at = reader.position();
    match i8::from_be_bytes(reader.array(what)?) {
        -1 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError { what, at, kind: DecodeErrorKind::Presence(other) }),
    }
}

/// Refuses a field that this version lacks, unless it is at its default.
///
/// # Errors
/// [`EncodeErrorKind::Absent`].
#[inline]
pub(crate) fn absent(is_default: bool, context: Context, what: &'static str) -> Result<(), EncodeError> {
    let kind = EncodeErrorKind::Absent { version: context.version };
    if is_default { Ok(()) } else { Err(EncodeError { what, kind }) }
}

/// Makes a generated structure nullable: one byte goes before it, 1 if it is there, -1 if it is null.
macro_rules! nullable_struct {
    ($structure:ty) => {
        impl<'a> Nullable<'a> for $structure {
            fn read_nullable(
                reader: &mut Reader<'a>,
                context: Context,
                what: &'static str,
            ) -> Result<Option<Self>, DecodeError> {
                if read_presence(reader, what)? { Self::read(reader, context, what).map(Some) } else { Ok(None) }
            }

            fn skip_nullable(reader: &mut Reader<'a>, context: Context) -> Option<()> {
                if read_presence(reader, "").ok()? { Self::skip(reader, context) } else { Some(()) }
            }

            fn write_present(
                &self,
                writer: &mut Writer,
                context: Context,
                what: &'static str,
            ) -> Result<(), EncodeError> {
                writer.slice(&[1]);
                self.write(writer, context, what)
            }

            fn write_null(writer: &mut Writer, _: Context) {
                writer.slice(&[0xff]);
            }
        }
    };
}
pub(crate) use nullable_struct;

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl<'a> Field<'a> for $number {
            const SIZE_MIN: usize = size_of::<$number>();
            const FIXED: bool = true;

            #[inline]
            fn read(reader: &mut Reader<'a>, _: Context, what: &'static str) -> Result<Self, DecodeError> {
                reader.array(what).map(<$number>::from_be_bytes)
            }

            #[inline]
            fn skip(reader: &mut Reader<'a>, _: Context) -> Option<()> {
                reader.advance(Self::SIZE_MIN)
            }

            #[inline]
            fn write(&self, writer: &mut Writer, _: Context, _: &'static str) -> Result<(), EncodeError> {
                writer.slice(&self.to_be_bytes());
                Ok(())
            }
        }
    )*};
}

numbers!(i8, i16, u16, i32, i64, f64);

/// Any byte but zero is true.
impl<'a> Field<'a> for bool {
    const SIZE_MIN: usize = 1;
    const FIXED: bool = true;

    #[inline]
    fn read(reader: &mut Reader<'a>, _: Context, what: &'static str) -> Result<Self, DecodeError> {
        reader.array::<1>(what).map(|byte| byte != [0])
    }

    #[inline]
    fn write(&self, writer: &mut Writer, _: Context, _: &'static str) -> Result<(), EncodeError> {
        writer.slice(&[u8::from(*self)]);
        Ok(())
    }
}

impl<'a> Field<'a> for Uuid {
    const SIZE_MIN: usize = 16;
    const FIXED: bool = true;

    #[inline]
    fn read(reader: &mut Reader<'a>, _: Context, what: &'static str) -> Result<Self, DecodeError> {
        reader.array(what).map(Uuid)
    }

    #[inline]
    fn write(&self, writer: &mut Writer, _: Context, _: &'static str) -> Result<(), EncodeError> {
        writer.slice(&self.0);
        Ok(())
    }
}

/// A string. Bytes that are not UTF-8 are refused: Kafka reads U+FFFD in their place, but no client sends any.
impl<'a> Field<'a> for &'a str {
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError> {
        let at = reader.position();
        Self::read_nullable(reader, context, what)?.ok_or(DecodeError { what, at, kind: DecodeErrorKind::Null })
    }

    #[inline]
    fn skip(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        let length = reader.string_length(context.flexible, "").ok()??;
        reader.skip_text(length)
    }

    #[inline]
    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        writer.string_length(Some(self.len()), context.flexible, what)?;
        writer.slice(self.as_bytes());
        Ok(())
    }
}

impl<'a> Nullable<'a> for &'a str {
    #[inline]
    fn read_nullable(
        reader: &mut Reader<'a>,
        context: Context,
        what: &'static str,
    ) -> Result<Option<Self>, DecodeError> {
        let Some(length) = reader.string_length(context.flexible, what)? else { return Ok(None) };
        let at = reader.position();
        match core::str::from_utf8(reader.slice(length, what)?) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(DecodeError { what, at: at + error.valid_up_to(), kind: DecodeErrorKind::Utf8 }),
        }
    }

    #[inline]
    fn skip_nullable(reader: &mut Reader<'a>, context: Context) -> Option<()> {
        match reader.string_length(context.flexible, "").ok()? {
            Some(length) => reader.skip_text(length),
            None => Some(()),
        }
    }

    #[inline]
    fn write_null(writer: &mut Writer, context: Context) {
        writer.slice(if context.flexible { &[0] } else { &[0xff; 2] });
    }
}

impl<'a> Field<'a> for &'a [u8] {
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError> {
        let at = reader.position();
        Self::read_nullable(reader, context, what)?.ok_or(DecodeError { what, at, kind: DecodeErrorKind::Null })
    }

    #[inline]
    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        writer.length(Some(self.len()), context.flexible, what)?;
        writer.slice(self);
        Ok(())
    }
}

impl<'a> Nullable<'a> for &'a [u8] {
    #[inline]
    fn read_nullable(
        reader: &mut Reader<'a>,
        context: Context,
        what: &'static str,
    ) -> Result<Option<Self>, DecodeError> {
        match reader.length(context.flexible, what)? {
            Some(length) => reader.slice(length, what).map(Some),
            None => Ok(None),
        }
    }

    #[inline]
    fn write_null(writer: &mut Writer, context: Context) {
        writer.slice(if context.flexible { &[0] } else { &[0xff; 4] });
    }
}

/// Record batches inside a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records<'a> {
    /// The bytes themselves.
    Bytes(&'a [u8]),
    /// That many bytes, at most 2³¹−1, which the sender puts where [`Writer::gaps`] says. Never decoded.
    External {
        /// Bytes of records.
        length: usize,
    },
}

impl<'a> Records<'a> {
    /// No records.
    pub const EMPTY: Records<'static> = Records::Bytes(&[]);

    /// Bytes of records.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Records::Bytes(bytes) => bytes.len(),
            Records::External { length } => *length,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are here. Always so in a decoded message.
    #[must_use]
    pub const fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Records::Bytes(bytes) => Some(bytes),
            Records::External { .. } => None,
        }
    }
}

impl Default for Records<'_> {
    fn default() -> Self {
        Records::EMPTY
    }
}

impl<'a> From<&'a [u8]> for Records<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Records::Bytes(bytes)
    }
}

impl<'a> Field<'a> for Records<'a> {
    const SIZE_MIN: usize = 1;

    #[inline]
    fn read(reader: &mut Reader<'a>, context: Context, what: &'static str) -> Result<Self, DecodeError> {
        <&[u8]>::read(reader, context, what).map(Records::Bytes)
    }

    #[inline]
    fn write(&self, writer: &mut Writer, context: Context, what: &'static str) -> Result<(), EncodeError> {
        match self {
            Records::Bytes(bytes) => bytes.write(writer, context, what),
            Records::External { length } => {
                writer.length(Some(*length), context.flexible, what)?;
                writer.gap(*length);
                Ok(())
            }
        }
    }
}

impl<'a> Nullable<'a> for Records<'a> {
    #[inline]
    fn read_nullable(
        reader: &mut Reader<'a>,
        context: Context,
        what: &'static str,
    ) -> Result<Option<Self>, DecodeError> {
        Ok(<&[u8]>::read_nullable(reader, context, what)?.map(Records::Bytes))
    }

    #[inline]
    fn write_null(writer: &mut Writer, context: Context) {
        <&[u8]>::write_null(writer, context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGID: Context = Context { version: 0, flexible: false };
    const FLEXIBLE: Context = Context { version: 9, flexible: true };

    #[test]
    fn any_negative_length_is_null() {
        for bytes in [[0xff, 0xff], [0x80, 0x00]] {
            assert_eq!(Option::<&str>::read(&mut Reader::new(&bytes), RIGID, "x"), Ok(None));
            let error = <&str>::read(&mut Reader::new(&bytes), RIGID, "x").unwrap_err();
            assert_eq!(error.kind, DecodeErrorKind::Null);
        }
        let bytes = [0x80, 0, 0, 0];
        assert_eq!(Option::<&[u8]>::read(&mut Reader::new(&bytes), RIGID, "x"), Ok(None));
    }

    #[test]
    fn bool_two_is_true() {
        assert_eq!(bool::read(&mut Reader::new(&[2]), RIGID, "x"), Ok(true));
        assert_eq!(bool::read(&mut Reader::new(&[0]), RIGID, "x"), Ok(false));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_at_its_byte() {
        let error = <&str>::read(&mut Reader::new(&[0, 3, b'a', 0xff, b'b']), RIGID, "x").unwrap_err();
        assert_eq!((error.kind, error.at), (DecodeErrorKind::Utf8, 3));
    }

    #[test]
    fn external_records_write_their_length_and_a_gap() {
        let mut writer = Writer::new();
        let records = Records::External { length: 300 };
        records.write(&mut writer, FLEXIBLE, "x").unwrap();
        Some(records).write(&mut writer, RIGID, "x").unwrap();
        assert_eq!(writer.bytes(), [0xad, 0x02, 0, 0, 1, 0x2c]);
        let positions: alloc::vec::Vec<_> = writer.gaps().iter().map(|gap| gap.position).collect();
        assert_eq!(positions, [2, 6]);
        assert_eq!(writer.total_length(), 606);
    }
}
