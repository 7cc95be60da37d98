//! What one core's connections ask, how long the answers take, and what errors are in them.
//!
//! Owns the counts, one row for each row of the table of APIs. Plain numbers, written and read on the core itself.

use std::array;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use heddle_io::{Latencies, LatencyCounts, Monotonic};
use heddle_protocol::ApiKey;

use crate::api::TABLE;

/// Versions of an API that are counted: no API has more yet.
const VERSIONS: usize = 24;

/// The requests of one core.
pub(crate) struct Requests {
    by_api: [Meter; TABLE.len()],
}

/// The requests for one API.
#[derive(Default)]
struct Meter {
    /// Requests that were taken, by version.
    taken: [Cell<u64>; VERSIONS],
    /// From a request's last byte to its answer.
    latencies: Latencies,
    /// Errors in answers, by code.
    errors: RefCell<BTreeMap<i16, u64>>,
}

/// Where a request's API stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ApiIndex(pub(crate) usize);

/// What was counted of one API.
#[derive(Debug, Clone)]
pub(crate) struct ApiSample {
    pub(crate) key: ApiKey,
    /// Requests by version, those that never came left out.
    pub(crate) taken: Vec<(usize, u64)>,
    pub(crate) latencies: LatencyCounts,
    /// Errors by code.
    pub(crate) errors: BTreeMap<i16, u64>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { by_api: array::from_fn(|_| Meter::default()) }
    }
}

impl Requests {
    /// Counts a request in a version that is served.
    pub(crate) fn taken(&self, ApiIndex(api): ApiIndex, version: i16) {
        if let Some(count) = usize::try_from(version).ok().and_then(|version| self.by_api[api].taken.get(version)) {
            count.set(count.get() + 1);
        }
    }

    /// Counts an answer to a request that came at `began`.
    pub(crate) fn answered(&self, ApiIndex(api): ApiIndex, began: Monotonic, now: Monotonic) {
        self.by_api[api].latencies.record(now.since(began));
    }

    /// Counts errors in an answer, each code with its number.
    pub(crate) fn failed(&self, ApiIndex(api): ApiIndex, errors: Vec<(i16, u32)>) {
        if errors.is_empty() {
            return;
        }
        let mut counts = self.by_api[api].errors.borrow_mut();
        for (code, count) in errors {
            *counts.entry(code).or_default() += u64::from(count);
        }
    }

    /// What was counted so far, of the APIs that anybody has asked for.
    pub(crate) fn sample(&self) -> Vec<ApiSample> {
        let all = TABLE.iter().zip(&self.by_api).map(|(api, meter)| ApiSample {
            key: api.key,
            taken: meter.taken.iter().map(Cell::get).enumerate().filter(|(_, count)| *count > 0).collect(),
            latencies: meter.latencies.counts(),
            errors: meter.errors.borrow().clone(),
        });
        all.filter(|api| !api.taken.is_empty() || !api.errors.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::find;

    #[test]
    fn every_version_of_every_api_has_its_count() {
        for api in &TABLE {
            assert!(usize::try_from(*api.versions.end()).is_ok_and(|version| version < VERSIONS), "{:?}", api.key);
        }
    }

    #[test]
    fn requests_are_counted_by_api_version_and_error() {
        let requests = Requests::default();
        let index = |key: ApiKey| find(key.code()).unwrap().0;
        let (fetch, produce) = (index(ApiKey::Fetch), index(ApiKey::Produce));
        let now = Monotonic::from_nanos(0);
        requests.taken(produce, 9);
        requests.taken(fetch, 13);
        requests.taken(fetch, 13);
        requests.answered(fetch, now, now + Duration::from_millis(3));
        requests.failed(fetch, vec![(3, 2), (6, 1)]);
        requests.failed(fetch, vec![(3, 1)]);
        let sample = requests.sample();
        assert_eq!(sample.iter().map(|api| api.key).collect::<Vec<_>>(), [ApiKey::Produce, ApiKey::Fetch]);
        assert_eq!((&sample[0].taken[..], &sample[1].taken[..]), (&[(9, 1)][..], &[(13, 2)][..]));
        assert_eq!(sample[1].latencies.sum(), Duration::from_millis(3));
        assert_eq!(sample[1].errors, BTreeMap::from([(3, 3), (6, 1)]));
    }
}
