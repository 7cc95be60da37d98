//! Zigzag varints of a record: at most 5 bytes for 32 bits, 10 for 64.
//!
//! Owns their coding. Over-long forms within those limits are read, as Kafka reads them; it never reads beyond its input.

use alloc::vec::Vec;

/// Why a varint cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarintError {
    /// The input ends inside it.
    Truncated,
    /// It is longer than its type allows, or says more bits than its type has.
    TooLong,
}

/// Takes a zigzag varint of 32 bits off the front of `input`.
#[inline]
pub(crate) fn read_i32(input: &mut &[u8]) -> Result<i32, VarintError> {
    Ok(match read_short(input) {
        Some(raw) => signed(raw),
        // Kafka shifts the fifth byte's upper bits away; they are not refused here either.
        None => signed(read_raw(input, 5)? as u32),
    })
}

/// Takes a zigzag varint of 64 bits off the front of `input`.
#[inline]
pub(crate) fn read_i64(input: &mut &[u8]) -> Result<i64, VarintError> {
    let raw = match read_short(input) {
        Some(raw) => u64::from(raw),
        None => read_raw(input, 10)?,
    };
    Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

/// Takes a zigzag varint of up to three bytes off the front of `input`. `None`, and nothing is taken, if it is longer or cut.
#[inline(always)]
pub(crate) fn read_short_i32(input: &mut &[u8]) -> Option<i32> {
    read_short(input).map(signed)
}

/// What a zigzag number of 32 bits stands for.
#[inline(always)]
fn signed(raw: u32) -> i32 {
    (raw >> 1) as i32 ^ -((raw & 1) as i32)
}

/// Takes a varint of up to three bytes, as most of a record are. `None`, and nothing is taken, if it is longer or cut.
///
/// The length of the varints in one place is mostly the same from record to record, so branches cost nothing here and the
/// processor reads on before it knows where.
#[inline(always)]
fn read_short(input: &mut &[u8]) -> Option<u32> {
    let (first, mut rest) = input.split_first()?;
    let mut raw = u32::from(*first);
    if *first >= 0x80 {
        let (second, tail) = rest.split_first()?;
        (raw, rest) = (raw & 0x7f | u32::from(*second) << 7, tail);
        if *second >= 0x80 {
            let (third, tail) = rest.split_first()?;
            if *third >= 0x80 {
                return None;
            }
            (raw, rest) = (raw & 0x3fff | u32::from(*third) << 14, tail);
        }
    }
    *input = rest;
    Some(raw)
}

#[inline(never)]
fn read_raw(input: &mut &[u8], bytes_max: usize) -> Result<u64, VarintError> {
    let mut value = 0;
    let mut rest = *input;
    for place in 0..bytes_max {
        let (byte, tail) = rest.split_first().ok_or(VarintError::Truncated)?;
        rest = tail;
        // At place 9 only one bit is left of 64; the shift drops the others, as Java's does.
        value |= u64::from(byte & 0x7f) << (7 * place);
        if *byte < 0x80 {
            *input = rest;
            return Ok(value);
        }
    }
    Err(VarintError::TooLong)
}

/// Appends a zigzag varint of 32 bits in its shortest form.
pub(crate) fn write_i32(value: i32, out: &mut Vec<u8>) {
    write_i64(i64::from(value), out);
}

/// Appends a zigzag varint of 64 bits in its shortest form.
pub(crate) fn write_i64(value: i64, out: &mut Vec<u8>) {
    let mut raw = (value << 1 ^ value >> 63) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// How many bytes [`write_i64`] appends (and [`write_i32`]: zigzag keeps small numbers small).
pub(crate) fn len_i64(value: i64) -> usize {
    let raw = (value << 1 ^ value >> 63) as u64;
    (70 - (raw | 1).leading_zeros() as usize) / 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut values = alloc::vec![0, i64::MIN, i64::MAX];
        for bits in 0..63 {
            values.extend([1 << bits, -(1 << bits), (1 << bits) - 1, 1 - (1 << bits)]);
        }
        for value in values {
            let mut bytes = Vec::new();
            write_i64(value, &mut bytes);
            assert_eq!(bytes.len(), len_i64(value), "{value}");
            bytes.push(0xff);
            let mut input = bytes.as_slice();
            assert_eq!(read_i64(&mut input), Ok(value));
            assert_eq!(input, [0xff]);
            if let Ok(small) = i32::try_from(value) {
                let mut input = bytes.as_slice();
                assert_eq!(read_i32(&mut input), Ok(small));
                assert_eq!(input, [0xff]);
            }
        }
    }

    #[test]
    fn long_and_cut_ones_are_refused() {
        let mut input: &[u8] = &[0x80, 0x80, 0x80, 0x80, 0x80, 0x00];
        assert_eq!(read_i32(&mut input), Err(VarintError::TooLong));
        assert_eq!(input.len(), 6, "a refused varint is left where it is");
        assert_eq!(read_i64(&mut &[0x80; 11][..]), Err(VarintError::TooLong));
        assert_eq!(read_i64(&mut &[0x80; 9][..]), Err(VarintError::Truncated));
        assert_eq!(read_i32(&mut &[][..]), Err(VarintError::Truncated));
    }

    #[test]
    fn over_long_forms_are_read() {
        assert_eq!(read_i32(&mut &[0x82, 0x80, 0x80, 0x80, 0x00][..]), Ok(1));
        assert_eq!(read_i64(&mut &[0x81, 0x80, 0x00][..]), Ok(-1));
    }
}
