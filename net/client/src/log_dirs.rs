//! How many bytes partitions take on their brokers' disks.

use std::collections::BTreeMap;
use std::time::Duration;

use heddle_protocol::messages::describe_log_dirs::{
    DescribableLogDirTopic, DescribeLogDirsRequest, DescribeLogDirsResponse,
};
use heddle_protocol::{ApiKey, ErrorCode};
use heddle_record::{BrokerId, PartitionIndex};

use crate::admin::Admin;
use crate::brokers::Purpose;
use crate::error::{Error, Result};
use crate::metadata::Topic;

/// Bytes by broker, topic and partition.
pub type LogSizes = BTreeMap<(BrokerId, String, PartitionIndex), u64>;

impl Admin {
    /// The bytes of every replica of these topics. A broker that does not know the question, or whose disk has failed,
    /// is left out.
    ///
    /// # Errors
    /// A broker that is there does not answer, or will not say.
    pub async fn log_sizes(&self, topics: &[&Topic]) -> Result<LogSizes> {
        let mut sizes = LogSizes::new();
        for broker in self.client().brokers() {
            let told = self.client().retry(async || self.log_sizes_of(broker.id, topics).await).await;
            match told {
                Ok(told) => sizes.extend(told),
                Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sizes)
    }

    async fn log_sizes_of(&self, broker: BrokerId, topics: &[&Topic]) -> Result<LogSizes> {
        let connection = self.client().connection_to(broker, Purpose::Control).await?;
        let version = connection.pick(ApiKey::DescribeLogDirs, i16::MAX)?;
        let wanted = topics.iter().map(|topic| DescribableLogDirTopic {
            topic: &topic.name,
            partitions: topic.partitions.iter().map(|partition| partition.index.get()).collect(),
        });
        let request = DescribeLogDirsRequest { topics: Some(wanted.collect()) };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: DescribeLogDirsResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || format!("the directories of broker {broker}"))?;
        let mut sizes = LogSizes::new();
        for directory in response.results.iter().filter(|it| it.error_code == ErrorCode::None.code()) {
            for topic in &directory.topics {
                // What moves to another directory is there twice until it has moved.
                for it in topic.partitions.iter().filter(|it| !it.is_future_key) {
                    let key = (broker, topic.name.to_owned(), PartitionIndex::new(it.partition_index));
                    sizes.insert(key, it.partition_size.max(0).unsigned_abs());
                }
            }
        }
        Ok(sizes)
    }
}
