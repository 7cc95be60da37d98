//! CRC-32C (Castagnoli), the checksum of a record batch.
//!
//! Owns which implementation computes it and the arithmetic on finished checksums. It never decides what is covered:
//! that is [`crate::batch`].

/// The CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The CRC-32C of what `crc` covers followed by `bytes`; 0 is the checksum of nothing.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The CRC-32C of two pieces of bytes, one after the other, from their checksums and the length of the second.
///
/// A checksum is linear: `crc32c_combine(old ^ new, whole, rest_len)` is the checksum of a whole whose first part
/// changed from one with checksum `old` to one of the same length with checksum `new`, while the `rest_len` bytes
/// behind it stayed; nobody needs to read them again.
pub fn crc32c_combine(first: u32, second: u32, second_len: usize) -> u32 {
    shift(first, second_len) ^ second
}

/// The polynomial of CRC-32C without its leading term, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x` to the power 2^n, modulo the polynomial.
const POWERS: [u32; 3 + usize::BITS as usize] = powers();

const fn powers() -> [u32; 3 + usize::BITS as usize] {
    let mut table = [1 << 30; 3 + usize::BITS as usize];
    let mut rest: &mut [u32] = &mut table;
    let mut power = 1 << 30;
    while let Some((slot, tail)) = rest.split_first_mut() {
        *slot = power;
        power = multiply(power, power);
        rest = tail;
    }
    table
}

/// The product of two polynomials over GF(2) modulo the polynomial of the checksum.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut place = 1 << 31;
    while place != 0 {
        if a & place != 0 {
            product ^= b;
        }
        place >>= 1;
        b = if b & 1 == 0 { b >> 1 } else { b >> 1 ^ POLYNOMIAL };
    }
    product
}

/// What a checksum contributes once `zeros` more bytes follow: times `x` to the power `8 * zeros`.
fn shift(crc: u32, zeros: usize) -> u32 {
    let bits_set = |power: &usize| zeros >> power & 1 == 1;
    (0..usize::BITS as usize).filter(bits_set).fold(crc, |crc, power| {
        let factor = POWERS.get(power + 3).expect("the table has a power for every bit of a length");
        multiply(crc, *factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn pieces_combine_to_the_whole() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i * 7 % 251) as u8).collect();
        for cut in [0, 1, 40, 1024, 2999, 3000] {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(crc32c_append(crc32c(first), second), crc32c(&bytes));
            assert_eq!(crc32c_combine(crc32c(first), crc32c(second), second.len()), crc32c(&bytes));
        }
        for len in [0, 1, 77, 1 << 20, (1 << 33) + 5] {
            assert_eq!(shift(0xdead_beef, len), crc32c::crc32c_combine(0xdead_beef, 0, len), "{len}");
        }
    }

    #[test]
    fn a_changed_start_needs_no_second_look_at_the_rest() {
        for rest_len in [0usize, 1, 500] {
            let rest: Vec<u8> = (0..rest_len).map(|i| i as u8).collect();
            let whole = |start: &[u8]| crc32c_append(crc32c(start), &rest);
            let (old, new) = (b"old start", b"new start");
            assert_eq!(crc32c_combine(crc32c(old) ^ crc32c(new), whole(old), rest_len), whole(new));
        }
    }
}
