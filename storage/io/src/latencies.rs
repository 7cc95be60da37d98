//! How long things took: a histogram of durations of one core.
//!
//! Owns the buckets, which double: no setting, no memory but the counts, and two cores' histograms add up. Plain numbers,
//! written and read on the core itself; what leaves it is a copy ([`LatencyCounts`]).
//!
//! ```text
//!   bucket      0       1        2       ...     21        22
//!   up to     16 µs   32 µs    64 µs           33.6 s    for ever
//! ```

use std::array;
use std::cell::Cell;
use std::time::Duration;

/// Buckets with an upper bound; one more takes what is above them all.
const BOUNDED: usize = 22;
/// The upper bound of the first bucket, in microseconds: a power of two.
const FIRST_MICROS: u64 = 16;

/// Durations that were counted, by how long they were.
#[derive(Debug)]
pub struct Latencies {
    counts: [Cell<u64>; BOUNDED + 1],
    nanos: Cell<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: array::from_fn(|_| Cell::new(0)), nanos: Cell::new(0) }
    }
}

impl Latencies {
    /// Counts one duration. A dozen instructions.
    pub fn record(&self, span: Duration) {
        let count = &self.counts[bucket(span)];
        count.set(count.get() + 1);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.set(self.nanos.get().saturating_add(nanos));
    }

    /// What was counted so far.
    pub fn counts(&self) -> LatencyCounts {
        LatencyCounts {
            counts: array::from_fn(|index| self.counts[index].get()),
            sum: Duration::from_nanos(self.nanos.get()),
        }
    }
}

/// What a [`Latencies`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyCounts {
    counts: [u64; BOUNDED + 1],
    sum: Duration,
}

impl LatencyCounts {
    /// How many durations there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All durations together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// For each bound, ascending: the bound, inclusive, and how many durations were not above it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let bounds = (0..BOUNDED).map(|index| Duration::from_micros(FIRST_MICROS << index));
        bounds.zip(self.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        }))
    }

    /// Adds what another core has counted.
    pub fn add(&mut self, other: &LatencyCounts) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }
}

/// Where a duration belongs: the first bucket whose bound it does not exceed.
fn bucket(span: Duration) -> usize {
    let micros = u64::try_from(span.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
    // Doublings of the first bound until it is not below.
    let doublings = u64::BITS - (micros.saturating_sub(1) / FIRST_MICROS).leading_zeros();
    (doublings as usize).min(BOUNDED)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn of(spans: &[Duration]) -> LatencyCounts {
        let latencies = Latencies::default();
        spans.iter().for_each(|span| latencies.record(*span));
        latencies.counts()
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let bounds: Vec<Duration> = LatencyCounts::default().cumulative().map(|(bound, _)| bound).collect();
        assert_eq!((bounds.len(), bounds[0], bounds[1]), (22, Duration::from_micros(16), Duration::from_micros(32)));
        assert!(bounds[21] > Duration::from_secs(33));
        for (index, bound) in bounds.iter().enumerate() {
            assert_eq!(bucket(*bound), index, "{bound:?}");
            assert_eq!(bucket(*bound + Duration::from_nanos(1)), index + 1, "just above {bound:?}");
        }
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BOUNDED));
    }

    #[test]
    fn counts_are_cumulative_and_add_up() {
        let (fast, slow, never) = (Duration::from_micros(10), Duration::from_micros(50), Duration::from_secs(100));
        let mut counts = of(&[fast, slow]);
        counts.add(&of(&[fast, never]));
        let cumulative: Vec<u64> = counts.cumulative().map(|(_, count)| count).collect();
        assert_eq!(cumulative[..4], [2, 2, 3, 3]);
        assert_eq!((cumulative[21], counts.count()), (3, 4), "what is above every bound counts in all alone");
        assert_eq!(counts.sum(), fast + slow + fast + never);
    }
}
