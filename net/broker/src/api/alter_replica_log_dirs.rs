//! AlterReplicaLogDirs (key 34): wishes for another directory. There is one, where everything is already.
//!
//! Owns the answer.

use std::collections::BTreeMap;

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::alter_replica_log_dirs::{
    AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult, AlterReplicaLogDirsRequest,
    AlterReplicaLogDirsResponse,
};

use super::{Answer, Call, Refusal};
use crate::routing::{self, TopicRef};

/// Serves a request to move logs.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: AlterReplicaLogDirsRequest<'_> = call.decode()?;
    let topics = request.dirs.iter().flat_map(|dir| dir.topics);
    call.check_count("partitions", topics.map(|topic| 1 + topic.partitions.len()).sum())?;
    let (own, _) = call.core.partitions().data_dir();
    let own = own.to_string_lossy();
    // A partition that is named twice goes where it is said last.
    let mut topics: BTreeMap<&str, BTreeMap<i32, bool>> = BTreeMap::new();
    for dir in request.dirs.iter() {
        for topic in dir.topics.iter() {
            let partitions = topics.entry(topic.name).or_default();
            partitions.extend(topic.partitions.iter().map(|partition| (partition, dir.path == own)));
        }
    }
    let image = call.core.image();
    let check = |topic: &str, partition: i32, is_here: bool| match is_here {
        false => ErrorCode::LogDirNotFound,
        true => routing::find(&image, call.core.broker_id(), TopicRef::Name(topic), partition)
            .map_or_else(|misrouted| misrouted.error, |_| ErrorCode::None),
    };
    let results = topics.iter().map(|(name, partitions)| AlterReplicaLogDirTopicResult {
        topic_name: name,
        partitions: partitions
            .iter()
            .map(|(index, is_here)| AlterReplicaLogDirPartitionResult {
                partition_index: *index,
                error_code: check(name, *index, *is_here).code(),
            })
            .collect(),
    });
    call.answer(&AlterReplicaLogDirsResponse { results: results.collect(), ..Default::default() })
}
