//! What a key is known by while a log is compacted: a hash under a secret.
//!
//! Owns SipHash. Two keys with one hash would make the earlier one's record disappear, so the secret is new for each pass:
//! nobody who writes keys can find two that collide, as anybody can for MD5, which Kafka takes. Nothing is ever stored on
//! disk by it.

/// 128 bits that stand for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyHash {
    pub(super) first: u64,
    pub(super) second: u64,
}

/// Hashes keys under one secret.
#[derive(Debug)]
pub(crate) struct KeyHasher {
    /// What every hash begins with.
    start: [u64; 4],
}

impl KeyHasher {
    pub(crate) fn new(secret: [u8; 16]) -> KeyHasher {
        let (low, high) = secret.split_at(8);
        let number = |half: &[u8]| u64::from_le_bytes(half.try_into().expect("half of sixteen bytes"));
        let (low, high) = (number(low), number(high));
        let start = [
            low ^ 0x736f_6d65_7073_6575,
            high ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            low ^ 0x6c79_6765_6e65_7261,
            high ^ 0x7465_6462_7974_6573,
        ];
        KeyHasher { start }
    }

    /// What a key is known by.
    #[inline(always)]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        sip_hash::<1, 3>(self.start, key)
    }
}

/// SipHash with 128 bits of output, `C` rounds for each word and `D` at the end (Aumasson and Bernstein, 2012).
#[inline(always)]
fn sip_hash<const C: usize, const D: usize>(mut state: [u64; 4], bytes: &[u8]) -> KeyHash {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        absorb::<C>(&mut state, u64::from_le_bytes(*word));
    }
    // The length takes the upper byte, what is left of the bytes the lower ones.
    let rest = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let last = (bytes.len() as u64) << 56 | rest;
    absorb::<C>(&mut state, last);
    state[2] ^= 0xee;
    let first = squeeze::<D>(&mut state);
    state[1] ^= 0xdd;
    KeyHash { first, second: squeeze::<D>(&mut state) }
}

#[inline]
fn absorb<const C: usize>(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    (0..C).for_each(|_| sip_round(state));
    state[0] ^= word;
}

#[inline]
fn squeeze<const D: usize>(state: &mut [u64; 4]) -> u64 {
    (0..D).for_each(|_| sip_round(state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline]
fn sip_round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vectors that the authors published for SipHash-2-4-128, with the key 00 01 .. 0f.
    #[test]
    fn the_hash_is_siphash() {
        let hasher = KeyHasher::new(std::array::from_fn(|place| place as u8));
        let bytes = |hash: KeyHash| [hash.first.to_le_bytes(), hash.second.to_le_bytes()].concat();
        let expected = [
            [0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93],
            [0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45],
        ];
        assert_eq!(bytes(sip_hash::<2, 4>(hasher.start, b"")), expected[0]);
        assert_eq!(bytes(sip_hash::<2, 4>(hasher.start, &[0])), expected[1]);
    }
}
