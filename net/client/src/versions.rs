//! Which versions of which APIs this client can speak, and which of them to use with a broker.

use std::collections::BTreeMap;

use heddle_protocol::ApiKey;

use crate::error::{Error, Result};

/// The APIs that this client uses, each with the oldest and the newest version it understands. Of committed offsets those
/// that name topics, and one group at a time.
const SPOKEN: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 13),
    (ApiKey::Fetch, 4, 18),
    (ApiKey::ListOffsets, 1, 11),
    (ApiKey::Metadata, 1, 13),
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 2, 7),
    (ApiKey::FindCoordinator, 0, 6),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 6),
    (ApiKey::ListGroups, 0, 5),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::DescribeLogDirs, 1, 5),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeCluster, 0, 2),
];

/// What a broker said it accepts, with its own limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerVersions {
    ranges: BTreeMap<i16, (i16, i16)>,
}

impl BrokerVersions {
    /// What ApiVersions answered: key, oldest, newest.
    pub(crate) fn new(ranges: impl IntoIterator<Item = (i16, i16, i16)>) -> Self {
        Self { ranges: ranges.into_iter().map(|(key, min, max)| (key, (min, max))).collect() }
    }

    /// Every API that the broker accepts: number, oldest version, newest version, in the order of the numbers.
    pub fn iter(&self) -> impl Iterator<Item = (i16, i16, i16)> + '_ {
        self.ranges.iter().map(|(key, (min, max))| (*key, *min, *max))
    }

    /// The newest version of `api` that both sides speak, none above `cap`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none.
    pub(crate) fn pick(&self, api: ApiKey, cap: i16) -> Result<i16> {
        let (ours_min, ours_max) = spoken(api);
        let Some((theirs_min, theirs_max)) = self.ranges.get(&api.code()).copied() else {
            return Err(Error::Unsupported { api, offered: "none".to_owned() });
        };
        let version = ours_max.min(theirs_max).min(cap);
        if version < ours_min.max(theirs_min) {
            return Err(Error::Unsupported { api, offered: format!("{theirs_min} to {theirs_max}") });
        }
        Ok(version)
    }

    /// Whether the broker accepts `api` in a version that this client speaks.
    pub(crate) fn has(&self, api: ApiKey) -> bool {
        self.pick(api, i16::MAX).is_ok()
    }
}

/// The oldest and newest version of `api` that this client speaks.
pub(crate) fn spoken(api: ApiKey) -> (i16, i16) {
    SPOKEN
        .iter()
        .find(|(key, ..)| *key == api)
        .map(|(_, min, max)| (*min, *max))
        .expect("every API that the client uses is in the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_used() {
        let broker = BrokerVersions::new([(0, 0, 7), (1, 4, 30), (3, 12, 13)]);
        assert_eq!(broker.pick(ApiKey::Produce, i16::MAX), Ok(7));
        assert_eq!(broker.pick(ApiKey::Fetch, i16::MAX), Ok(18));
        assert_eq!(broker.pick(ApiKey::Fetch, 12), Ok(12));
        assert!(broker.pick(ApiKey::Metadata, 11).is_err());
        assert!(!broker.has(ApiKey::CreateTopics));
    }

    #[test]
    fn every_spoken_version_has_a_schema() {
        for (api, min, max) in SPOKEN {
            let known = api.versions();
            assert!(known.min <= *min && *max <= known.max, "{}", api.name());
        }
    }
}
