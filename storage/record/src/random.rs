//! Numbers for tests that look random and are the same on every run (splitmix64). Only tests use them.

use alloc::vec::Vec;

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is above 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// Bytes of a few values, so that compressors find something.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| b'a' + self.below(6) as u8).collect()
    }

    /// Bytes that nothing compresses.
    pub(crate) fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    /// Up to `len_max` bytes, or none at all.
    pub(crate) fn optional_bytes(&mut self, len_max: usize) -> Option<Vec<u8>> {
        let len = self.below(len_max + 2);
        (len <= len_max).then(|| self.bytes(len))
    }
}
