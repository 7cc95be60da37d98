//! Offsets: where a record is in its log, and the limits of a log as types of their own.
//!
//! Owns the arithmetic of offsets. It never orders the limits among themselves (log start ≤ last stable ≤ high
//! watermark ≤ log end): that is asserted by whoever holds them all.

use core::fmt;

/// The position of a record in its log. Valid ones are `0..=i64::MAX`; Kafka uses negative ones as markers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of every log.
    pub const ZERO: Offset = Offset(0);
    /// What the protocol writes for "no offset".
    pub const NONE: Offset = Offset(-1);
    /// The largest offset.
    pub const MAX: Offset = Offset(i64::MAX);

    /// The offset with this number; any `i64` is accepted, because peers may send any.
    pub const fn new(offset: i64) -> Self {
        Offset(offset)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The offset `count` records further on, or `None` on overflow.
    pub const fn checked_add(self, count: i64) -> Option<Offset> {
        match self.0.checked_add(count) {
            Some(sum) => Some(Offset(sum)),
            None => None,
        }
    }

    /// How many offsets lie from `earlier` to `self` (negative if `self` is the earlier), or `None` on overflow.
    pub const fn distance_from(self, earlier: Offset) -> Option<i64> {
        self.0.checked_sub(earlier.0)
    }

    /// The offset after this one.
    ///
    /// # Panics
    /// If this is [`Offset::MAX`]; no log gets there (292,000 years at a million records a second).
    #[inline]
    pub const fn next(self) -> Offset {
        self.checked_add(1).expect("no log reaches the largest offset")
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({})", self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<i64> for Offset {
    fn from(offset: i64) -> Self {
        Offset(offset)
    }
}

impl From<Offset> for i64 {
    fn from(offset: Offset) -> Self {
        offset.0
    }
}

/// One kind of offset: a newtype over [`Offset`] that converts only by name.
macro_rules! offset_kind {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(Offset);

        impl $name {
            /// Offset zero, where every log starts.
            pub const ZERO: Self = Self(Offset::ZERO);

            /// This limit at `offset`.
            pub const fn at(offset: Offset) -> Self {
                Self(offset)
            }

            /// The offset of this limit.
            pub const fn offset(self) -> Offset {
                self.0
            }

            /// The number, as the protocol writes it.
            pub const fn get(self) -> i64 {
                self.0.get()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.get())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<Offset> for $name {
            fn from(offset: Offset) -> Self {
                Self(offset)
            }
        }

        impl From<$name> for Offset {
            fn from(limit: $name) -> Self {
                limit.0
            }
        }
    };
}

offset_kind! {
    /// The first offset that can still be read (inclusive).
    LogStartOffset
}
offset_kind! {
    /// Everything below it belongs to no open transaction (exclusive).
    LastStableOffset
}
offset_kind! {
    /// Everything below it is committed and may be read by consumers (exclusive).
    HighWatermark
}
offset_kind! {
    /// The offset that the next record gets (exclusive end of the log).
    LogEndOffset
}
offset_kind! {
    /// Everything below it survives a power cut (exclusive).
    FlushedEndOffset
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn arithmetic_refuses_to_overflow() {
        assert_eq!(Offset::new(5).checked_add(7), Some(Offset::new(12)));
        assert_eq!(Offset::MAX.checked_add(1), None);
        assert_eq!(Offset::new(9).distance_from(Offset::new(4)), Some(5));
        assert_eq!(Offset::MAX.distance_from(Offset::NONE), None);
        assert_eq!(Offset::ZERO.next().get(), 1);
    }

    #[test]
    #[should_panic(expected = "largest offset")]
    fn next_of_the_largest_panics() {
        let _ = Offset::MAX.next();
    }

    #[test]
    fn kinds_keep_their_names() {
        let end = LogEndOffset::at(Offset::new(42));
        assert_eq!(format!("{end:?} {end}"), "LogEndOffset(42) 42");
        assert_eq!(Offset::from(end), Offset::new(42));
        assert!(HighWatermark::ZERO < HighWatermark::from(Offset::new(1)));
        assert_eq!(end.get(), i64::from(end.offset()));
    }
}
