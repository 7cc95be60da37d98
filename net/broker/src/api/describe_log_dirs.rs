//! DescribeLogDirs (key 35): how much each partition takes of the data directory, and what is left of its disk.
//!
//! Owns what a client is told. Never touches a log: its partition does.

use std::collections::BTreeMap;

use heddle_cluster::{MetadataImage, TopicImage};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_log_dirs::{
    DescribeLogDirsPartition, DescribeLogDirsRequest, DescribeLogDirsResponse, DescribeLogDirsResult,
    DescribeLogDirsTopic,
};
use heddle_record::{LogId, PartitionIndex, TopicId};

use super::{Answer, Call, Refusal};
use crate::message::SizesRequest;
use crate::routing::Scatter;

/// What stands for a number of bytes that nobody knows.
const UNKNOWN_BYTES: i64 = -1;

/// Serves a question for sizes.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeLogDirsRequest<'_> = call.decode()?;
    if let Some(topics) = &request.topics {
        call.check_count("partitions", topics.iter().map(|topic| 1 + topic.partitions.len()).sum())?;
    }
    let image = call.core.image();
    let wanted = wanted(&image, &request);
    let sizes = sizes(call, &wanted).await;
    let mut topics: BTreeMap<&str, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for ((topic, index), size) in wanted.keys().zip(sizes) {
        // What is not open has no size: Kafka does not tell of it either.
        if let Ok(bytes) = size {
            let partition_size = i64::try_from(bytes).expect("a log is smaller than its disk");
            let partition =
                DescribeLogDirsPartition { partition_index: index.get(), partition_size, ..Default::default() };
            topics.entry(topic).or_default().push(partition);
        }
    }
    let (path, is_offline) = call.core.partitions().data_dir();
    let space = call.core.io().disk_space(&path).await.ok();
    let bytes = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(UNKNOWN_BYTES);
    let path = path.to_string_lossy();
    let told = topics.into_iter().filter(|_| !is_offline);
    let result = DescribeLogDirsResult {
        error_code: if is_offline { ErrorCode::KafkaStorageError } else { ErrorCode::None }.code(),
        log_dir: &path,
        topics: told.map(|(name, partitions)| DescribeLogDirsTopic { name, partitions: partitions.into() }).collect(),
        total_bytes: bytes(space.map(|space| space.total_bytes)),
        usable_bytes: bytes(space.map(|space| space.usable_bytes)),
        is_cordoned: false,
    };
    call.answer(&DescribeLogDirsResponse { results: vec![result].into(), ..DescribeLogDirsResponse::default() })
}

/// Partitions by the names of their topics, with the topics' ids.
type Wanted<'a> = BTreeMap<(&'a str, PartitionIndex), TopicId>;

/// The partitions that are asked for and exist, each once; all of them where none is named.
fn wanted<'a>(image: &'a MetadataImage, request: &DescribeLogDirsRequest<'_>) -> Wanted<'a> {
    let index = |index: usize| PartitionIndex::new(i32::try_from(index).expect("partitions are counted in 31 bits"));
    let entry = |topic: &'a TopicImage, at| ((topic.name.as_ref(), at), topic.id);
    let Some(topics) = &request.topics else {
        let all = |topic: &'a TopicImage| (0..topic.partitions.len()).map(move |at| entry(topic, index(at)));
        return image.topics().flat_map(|topic| all(topic)).collect();
    };
    let mut wanted = Wanted::new();
    for asked in topics.iter() {
        let Some(topic) = image.topic_named(asked.topic) else { continue };
        let indexes = asked.partitions.iter().map(PartitionIndex::new);
        wanted.extend(indexes.filter(|at| topic.partition(*at).is_some()).map(|at| entry(topic, at)));
    }
    wanted
}

async fn sizes(call: &Call, wanted: &Wanted<'_>) -> Vec<Result<u64, ErrorCode>> {
    let mut scatter = Scatter::new();
    for (place, ((_, partition), topic)) in wanted.iter().enumerate() {
        let log = LogId { topic: *topic, partition: *partition };
        scatter.push(call.core.owner(log), place, log);
    }
    let mut answers: Vec<_> = wanted.iter().map(|_| None).collect();
    let gather = scatter.post(&call.core, |logs| SizesRequest { logs }).await;
    gather.collect::<SizesRequest, _>(&mut answers).await;
    answers.into_iter().map(|answer| answer.expect("every log was asked and has answered")).collect()
}
