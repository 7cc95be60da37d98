//! DescribeTopicPartitions (key 75): topics by name, a page at a time.
//!
//! Owns the paging: topics in the order of their names, so many partitions, and where the next page begins.

use heddle_cluster::MetadataImage;
use heddle_cluster::controller::check_topic_name;
use heddle_protocol::messages::describe_topic_partitions::{
    Cursor, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
};
use heddle_protocol::{ErrorCode, Uuid};

use super::topic_view::{PartitionView, TOPIC_OPERATIONS, is_internal};
use super::{Answer, Call, Refusal};

/// Serves a question for a page.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeTopicPartitionsRequest<'_> = call.decode()?;
    call.check_count("topics", request.topics.len())?;
    let image = call.core.image();
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let limit = layers.broker_value("max.request.partition.size.limit").expect("the setting has a default");
    let limit: usize = limit.parse().expect("a value is checked before it is kept");
    let asked = usize::try_from(request.response_partition_limit).unwrap_or(0);
    let mut listed: Vec<&str> = request.topics.iter().map(|topic| topic.name).collect();
    listed.sort_unstable();
    listed.dedup();
    let (topics, next_cursor) = match check_question(&listed, request.cursor.as_ref()) {
        Ok(()) => page(&image, &listed, request.cursor.as_ref(), asked.clamp(1, limit)),
        Err(error) => (listed.iter().map(|name| refused(name, error)).collect(), None),
    };
    call.answer(&DescribeTopicPartitionsResponse {
        topics: topics.into(),
        next_cursor,
        ..DescribeTopicPartitionsResponse::default()
    })
}

/// Every topic has a name, and a cursor is one that a page ended with: a topic of the list, if there is a list.
fn check_question(listed: &[&str], cursor: Option<&Cursor<'_>>) -> Result<(), ErrorCode> {
    match cursor {
        // Kafka fails on it as a whole.
        _ if listed.contains(&"") => Err(ErrorCode::UnknownServerError),
        Some(cursor) if cursor.partition_index < 0 => Err(ErrorCode::InvalidRequest),
        Some(cursor) if !listed.is_empty() && !listed.contains(&cursor.topic_name) => Err(ErrorCode::InvalidRequest),
        _ => Ok(()),
    }
}

/// `limit` partitions from the cursor on, of the topics that are listed, or of all when none is.
fn page<'a>(
    image: &'a MetadataImage,
    listed: &[&'a str],
    cursor: Option<&Cursor<'_>>,
    limit: usize,
) -> (Vec<DescribeTopicPartitionsResponseTopic<'a>>, Option<Cursor<'a>>) {
    let (from, first_partition) = cursor.map_or(("", 0), |cursor| (cursor.topic_name, cursor.partition_index));
    let names: Vec<&'a str> = if listed.is_empty() {
        image.topics_by_name(from).map(|topic| topic.name.as_ref()).collect()
    } else {
        listed.iter().copied().filter(|name| *name >= from).collect()
    };
    let mut left = limit;
    let mut topics = Vec::new();
    for name in names {
        if left == 0 {
            return (topics, Some(Cursor { topic_name: name, partition_index: 0 }));
        }
        let start = if name == from { first_partition } else { 0 };
        let topic = describe(image, name, start, left);
        let after = start + i32::try_from(topic.partitions.len()).expect("a page has few partitions");
        left -= topic.partitions.len();
        topics.push(topic);
        let count = image.topic_named(name).map_or(0, |topic| topic.partitions.len());
        if usize::try_from(after).is_ok_and(|after| after < count) {
            return (topics, Some(Cursor { topic_name: name, partition_index: after }));
        }
    }
    (topics, None)
}

fn describe<'a>(
    image: &'a MetadataImage,
    name: &'a str,
    start: i32,
    most: usize,
) -> DescribeTopicPartitionsResponseTopic<'a> {
    let Some(topic) = image.topic_named(name) else {
        let unknown = match check_topic_name(name) {
            Ok(()) => ErrorCode::UnknownTopicOrPartition,
            Err(_) => ErrorCode::InvalidTopicException,
        };
        return DescribeTopicPartitionsResponseTopic {
            topic_authorized_operations: TOPIC_OPERATIONS,
            ..refused(name, unknown)
        };
    };
    let partitions = (0..).zip(&topic.partitions).skip_while(|(index, _)| *index < start).take(most);
    DescribeTopicPartitionsResponseTopic {
        name: Some(name),
        topic_id: Uuid(topic.id.bytes()),
        is_internal: is_internal(name),
        partitions: partitions.map(|(index, state)| partition(PartitionView::new(image, state), index)).collect(),
        topic_authorized_operations: TOPIC_OPERATIONS,
        ..DescribeTopicPartitionsResponseTopic::default()
    }
}

fn partition(view: PartitionView, partition_index: i32) -> DescribeTopicPartitionsResponsePartition<'static> {
    DescribeTopicPartitionsResponsePartition {
        error_code: view.error.code(),
        partition_index,
        leader_id: view.leader,
        leader_epoch: view.leader_epoch,
        replica_nodes: view.replicas.into(),
        isr_nodes: view.in_sync_replicas.into(),
        eligible_leader_replicas: Some(Vec::new().into()),
        last_known_elr: Some(Vec::new().into()),
        offline_replicas: view.offline_replicas.into(),
    }
}

fn refused(name: &str, error: ErrorCode) -> DescribeTopicPartitionsResponseTopic<'_> {
    DescribeTopicPartitionsResponseTopic {
        error_code: error.code(),
        name: Some(name),
        is_internal: is_internal(name),
        ..DescribeTopicPartitionsResponseTopic::default()
    }
}
