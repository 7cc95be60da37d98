//! One fetch: the request for many partitions of one broker, and what its answer says about each.

use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic, PartitionData};
use heddle_protocol::{ApiKey, Uuid};
use heddle_record::{LeaderEpoch, Offset, PartitionIndex, ProducerId, TopicId};

use crate::brokers::{Address, Purpose};
use crate::client::Client;
use crate::config::ConsumerConfig;
use crate::connection::Reply;
use crate::consumer::batch::{Fetched, part_of};
use crate::error::{Error, Result};

/// The first version of Fetch that names topics by id.
const FIRST_WITH_TOPIC_IDS: i16 = 13;

/// One partition to fetch.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) topic: Rc<str>,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: PartitionIndex,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) offset: Offset,
}

/// Fetches from one broker. Gives what was answered for each of `wanted`, in the same order.
///
/// # Errors
/// The request as a whole failed.
pub(crate) async fn fetch(
    client: &Client,
    address: &Address,
    purpose: Purpose,
    config: &ConsumerConfig,
    wanted: &[Wanted],
) -> Result<Vec<Result<Fetched>>> {
    let connection = client.connection(address, purpose).await?;
    let all_have_ids = wanted.iter().all(|it| !it.topic_id.is_zero());
    let version = connection.pick(ApiKey::Fetch, if all_have_ids { i16::MAX } else { FIRST_WITH_TOPIC_IDS - 1 })?;
    let request = request(config, wanted, version);
    let reply = connection.call(&request, version, config.wait_max).await?;
    read(&reply, wanted, version)
}

fn request<'a>(config: &ConsumerConfig, wanted: &'a [Wanted], version: i16) -> FetchRequest<'a> {
    // The order of the topics is that of their first partition: brokers fill answers in this order.
    let mut topics: Vec<FetchTopic<'a>> = Vec::new();
    let mut partitions: Vec<Vec<FetchPartition>> = Vec::new();
    let mut places: BTreeMap<(&str, Uuid), usize> = BTreeMap::new();
    for it in wanted {
        let (topic, topic_id) = on_wire(it, version);
        let place = *places.entry((topic, topic_id)).or_insert_with(|| {
            topics.push(FetchTopic { topic, topic_id, ..FetchTopic::default() });
            partitions.push(Vec::new());
            topics.len() - 1
        });
        partitions[place].push(FetchPartition {
            partition: it.partition.get(),
            current_leader_epoch: it.leader_epoch.get(),
            fetch_offset: it.offset.get(),
            partition_max_bytes: number(config.partition_bytes_max),
            ..FetchPartition::default()
        });
    }
    let topics = topics.into_iter().zip(partitions);
    FetchRequest {
        max_wait_ms: i32::try_from(config.wait_max.as_millis()).unwrap_or(i32::MAX),
        min_bytes: number(config.bytes_min),
        max_bytes: number(config.fetch_bytes_max),
        isolation_level: config.isolation.to_wire(),
        topics: topics.map(|(topic, partitions)| FetchTopic { partitions: partitions.into(), ..topic }).collect(),
        ..FetchRequest::default()
    }
}

/// How a version names a topic: by name or by id.
fn on_wire(wanted: &Wanted, version: i16) -> (&str, Uuid) {
    if version < FIRST_WITH_TOPIC_IDS { (&wanted.topic, Uuid::ZERO) } else { ("", Uuid(wanted.topic_id.bytes())) }
}

fn number(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

fn read(reply: &Reply, wanted: &[Wanted], version: i16) -> Result<Vec<Result<Fetched>>> {
    let response: FetchResponse<'_> = reply.decode()?;
    Error::check(response.error_code, None, || "fetch".to_owned())?;
    let mut answers = BTreeMap::new();
    for topic in &response.responses {
        for partition in &topic.partitions {
            answers.insert((topic.topic, topic.topic_id, partition.partition_index), partition);
        }
    }
    let read = wanted.iter().map(|it| {
        let (topic, topic_id) = on_wire(it, version);
        let answer = answers.remove(&(topic, topic_id, it.partition.get())).ok_or_else(|| Error::Malformed {
            from: format!("the leader of {}-{}", it.topic, it.partition),
            what: "an answer that leaves the partition out".to_owned(),
        })?;
        Error::check(answer.error_code, None, || format!("{}-{}, offset {}", it.topic, it.partition, it.offset))?;
        Ok(fetched(reply, &answer))
    });
    Ok(read.collect())
}

fn fetched(reply: &Reply, answer: &PartitionData<'_>) -> Fetched {
    let records = answer.records.and_then(|records| records.bytes()).unwrap_or_default();
    let aborted = answer.aborted_transactions.iter().flatten();
    let mut aborted: Vec<_> =
        aborted.map(|it| (ProducerId::new(it.producer_id), Offset::new(it.first_offset))).collect();
    aborted.sort_by_key(|(_, first_offset)| *first_offset);
    Fetched { records: part_of(reply.frame(), records), high_watermark: Offset::new(answer.high_watermark), aborted }
}
