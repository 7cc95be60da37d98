//! What a client knows of its cluster: brokers, topics, and who leads each partition.
//!
//! Owns the cache and the rule for what a newer answer may replace. Does no IO: [`crate::Client`] asks, this remembers.

use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_io::Monotonic;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::metadata::{MetadataResponse, MetadataResponsePartition, MetadataResponseTopic};
use heddle_record::{BrokerId, LeaderEpoch, PartitionIndex, TopicId};

use crate::brokers::Address;

/// One broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its id.
    pub id: BrokerId,
    /// Where clients reach it.
    pub address: Address,
    /// Where it stands, if it says so.
    pub rack: Option<String>,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: Rc<str>,
    /// Its id; [`TopicId::ZERO`] from brokers that have none.
    pub id: TopicId,
    /// Whether the cluster keeps it for itself.
    pub internal: bool,
    /// Its partitions, in order; their indices are `0..len`.
    pub partitions: Vec<Partition>,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its index.
    pub index: PartitionIndex,
    /// Who leads it, if anybody does.
    pub leader: Option<BrokerId>,
    /// The leadership that this was; [`LeaderEpoch::NONE`] from brokers that do not say.
    pub leader_epoch: LeaderEpoch,
    /// The brokers that keep a copy, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those whose copy is complete.
    pub in_sync_replicas: Vec<BrokerId>,
    /// Those that cannot be reached or whose disk failed.
    pub offline_replicas: Vec<BrokerId>,
}

impl Topic {
    /// How many partitions there are.
    pub fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.len()).expect("partitions are counted with 31 bits")
    }

    /// The partition with this index.
    pub fn partition(&self, index: PartitionIndex) -> Option<&Partition> {
        usize::try_from(index.get()).ok().and_then(|index| self.partitions.get(index))
    }
}

/// What an answer said about one topic.
pub(crate) type TopicAnswer = std::result::Result<Rc<Topic>, ErrorCode>;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) cluster_id: Option<String>,
    pub(crate) controller: Option<BrokerId>,
    brokers: BTreeMap<BrokerId, Broker>,
    topics: BTreeMap<Rc<str>, Cached>,
}

#[derive(Debug)]
struct Cached {
    topic: Rc<Topic>,
    at: Monotonic,
    /// A leader turned out to be wrong: ask again before the next use.
    doubted: bool,
}

impl Metadata {
    /// All brokers, by id.
    pub(crate) fn brokers(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.values()
    }

    /// One broker.
    pub(crate) fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(&id)
    }

    /// The topic, if it was asked for after `not_before` and nobody doubts it since.
    pub(crate) fn fresh(&self, name: &str, not_before: Monotonic) -> Option<Rc<Topic>> {
        let cached = self.topics.get(name)?;
        (!cached.doubted && cached.at >= not_before).then(|| Rc::clone(&cached.topic))
    }

    /// Something failed that a change in the cluster explains.
    pub(crate) fn doubt(&mut self, name: &str) {
        if let Some(cached) = self.topics.get_mut(name) {
            cached.doubted = true;
        }
    }

    /// Takes an answer in, and gives what it said about each topic. A topic that the cluster no longer knows is
    /// forgotten.
    pub(crate) fn update(&mut self, response: &MetadataResponse<'_>, now: Monotonic) -> BTreeMap<String, TopicAnswer> {
        if let Some(cluster_id) = response.cluster_id {
            self.cluster_id = Some(cluster_id.to_owned());
        }
        self.controller = Some(BrokerId::new(response.controller_id)).filter(|it| it.get() >= 0);
        // A broker that is starting may answer with an empty list: what is known stays.
        if !response.brokers.is_empty() {
            self.brokers = response.brokers.iter().map(|it| (BrokerId::new(it.node_id), broker(&it))).collect();
        }
        let topics = response.topics.iter().filter_map(|it| Some((it.name?.to_owned(), it)));
        topics.map(|(name, it)| (name.clone(), self.update_topic(&name, &it, now))).collect()
    }

    fn update_topic(&mut self, name: &str, answer: &MetadataResponseTopic<'_>, now: Monotonic) -> TopicAnswer {
        let code = ErrorCode::from_i16(answer.error_code).unwrap_or(ErrorCode::UnknownServerError);
        if code != ErrorCode::None {
            if matches!(code, ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId) {
                self.topics.remove(name);
            }
            return Err(code);
        }
        let known = self.topics.get(name).map(|cached| Rc::clone(&cached.topic));
        let topic = Rc::new(topic(name, answer, known.as_deref()).ok_or(ErrorCode::LeaderNotAvailable)?);
        let cached = Cached { topic: Rc::clone(&topic), at: now, doubted: false };
        self.topics.insert(Rc::clone(&topic.name), cached);
        Ok(topic)
    }
}

fn broker(answer: &heddle_protocol::messages::metadata::MetadataResponseBroker<'_>) -> Broker {
    // A port above 65,535 cannot be connected to; 0 fails with a clear error.
    let port = u16::try_from(answer.port).unwrap_or(0);
    Broker {
        id: BrokerId::new(answer.node_id),
        address: Address { host: answer.host.to_owned(), port },
        rack: answer.rack.map(str::to_owned),
    }
}

/// The topic as `answer` says, but for partitions whose leadership is older than what is `known` of the same topic: a
/// broker that lags behind must not send us back to an old leader (KIP-320). `None` if partitions are missing.
fn topic(name: &str, answer: &MetadataResponseTopic<'_>, known: Option<&Topic>) -> Option<Topic> {
    let id = TopicId::new(answer.topic_id.0);
    let known = known.filter(|known| known.id == id);
    let mut partitions: Vec<_> = answer.partitions.iter().map(|it| partition(&it)).collect();
    partitions.sort_by_key(|it| it.index);
    for partition in &mut partitions {
        if let Some(newer) = known
            .and_then(|it| it.partition(partition.index))
            .filter(|it| it.leader_epoch > partition.leader_epoch && partition.leader_epoch != LeaderEpoch::NONE)
        {
            *partition = newer.clone();
        }
    }
    let complete = !partitions.is_empty() && partitions.iter().zip(0..).all(|(it, index)| it.index.get() == index);
    let name = known.map_or_else(|| Rc::from(name), |known| Rc::clone(&known.name));
    complete.then_some(Topic { name, id, internal: answer.is_internal, partitions })
}

fn partition(answer: &MetadataResponsePartition<'_>) -> Partition {
    let brokers = |ids: &heddle_protocol::Array<'_, i32>| ids.iter().map(BrokerId::new).collect();
    Partition {
        index: PartitionIndex::new(answer.partition_index),
        leader: Some(BrokerId::new(answer.leader_id)).filter(|it| it.get() >= 0),
        leader_epoch: LeaderEpoch::new(answer.leader_epoch),
        replicas: brokers(&answer.replica_nodes),
        in_sync_replicas: brokers(&answer.isr_nodes),
        offline_replicas: brokers(&answer.offline_replicas),
    }
}

/// The name among `known` that `wrong` most looks like, if one is near enough to be a typing error.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1);
    let distances = known.into_iter().map(|it| (edits(wrong, it), it));
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, name)| name)
}

/// How many letters must be added, removed, changed or swapped with their neighbour to get from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(swap)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use heddle_protocol::Uuid;

    use super::*;

    fn answer(leader: i32, epoch: i32, id: u8, error_code: i16) -> MetadataResponse<'static> {
        let partition = MetadataResponsePartition {
            partition_index: 0,
            leader_id: leader,
            leader_epoch: epoch,
            ..MetadataResponsePartition::default()
        };
        let topic = MetadataResponseTopic {
            error_code,
            name: Some("t"),
            topic_id: Uuid([id; 16]),
            partitions: vec![partition].into(),
            ..MetadataResponseTopic::default()
        };
        MetadataResponse { topics: vec![topic].into(), controller_id: -1, ..MetadataResponse::default() }
    }

    fn leader(metadata: &Metadata) -> Option<i32> {
        let topic = metadata.fresh("t", Monotonic::default())?;
        topic.partition(PartitionIndex::new(0))?.leader.map(BrokerId::get)
    }

    #[test]
    fn an_older_leadership_does_not_replace_a_newer_one() {
        let mut metadata = Metadata::default();
        metadata.update(&answer(1, 5, 1, 0), Monotonic::default());
        metadata.update(&answer(2, 4, 1, 0), Monotonic::default());
        assert_eq!(leader(&metadata), Some(1));
        metadata.update(&answer(2, 6, 1, 0), Monotonic::default());
        assert_eq!(leader(&metadata), Some(2));
        metadata.update(&answer(3, 0, 9, 0), Monotonic::default());
        assert_eq!(leader(&metadata), Some(3), "another topic of the same name starts anew");
    }

    #[test]
    fn what_is_doubted_or_old_or_gone_is_not_used() {
        let mut metadata = Metadata::default();
        metadata.update(&answer(1, 0, 1, 0), Monotonic::from_nanos(10));
        assert!(metadata.fresh("t", Monotonic::from_nanos(10)).is_some());
        assert!(metadata.fresh("t", Monotonic::from_nanos(11)).is_none());
        metadata.doubt("t");
        assert!(metadata.fresh("t", Monotonic::default()).is_none());
        let said = metadata.update(&answer(1, 0, 1, 3), Monotonic::from_nanos(12));
        assert_eq!(said["t"], Err(ErrorCode::UnknownTopicOrPartition));
        assert!(metadata.fresh("t", Monotonic::default()).is_none());
    }

    #[test]
    fn a_partition_without_leader_has_none() {
        let mut metadata = Metadata::default();
        metadata.update(&answer(-1, 0, 1, 0), Monotonic::default());
        assert_eq!(leader(&metadata), None);
    }

    #[test]
    fn typing_errors_are_recognised() {
        let topics = ["orders", "payments", "t"];
        assert_eq!(nearest("ordres", topics), Some("orders"));
        assert_eq!(nearest("payment", topics), Some("payments"));
        assert_eq!(nearest("clicks", topics), None);
        assert_eq!(nearest("", topics), Some("t"));
    }
}
