//! The seeded generator of the simulator.
//!
//! Owns every random choice of a simulated run, so that one seed is one run. Never reads the operating system's entropy
//! and is not meant for secrets.

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, passes BigCrush, and a fork of it is independent enough for
/// choosing latencies and surviving sectors.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// A generator whose whole future is decided by `seed`.
    pub(crate) fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number in `0..end`.
    ///
    /// # Panics
    /// If `end` is zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "an empty range holds no number");
        // The bias of a modulo is below 2^-40 for every range used here.
        self.next_u64() % end
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "a range runs upwards");
        low + self.below(high - low + 1)
    }

    /// True `per_mille` times of a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A generator that shares nothing with this one from here on.
    pub(crate) fn fork(&mut self) -> Random {
        Random::new(self.next_u64())
    }
}

/// The finaliser of SplitMix64: a bijection that spreads every input bit.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_sequence() {
        let words = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(words(7), words(7));
        assert_ne!(words(7), words(8));
    }

    #[test]
    fn ranges_are_kept_and_reached() {
        let mut random = Random::new(1);
        let seen: std::collections::BTreeSet<u64> = (0..1000).map(|_| random.between(3, 6)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert!((0..1000).all(|_| !random.chance(0) && random.chance(1000)));
    }
}
