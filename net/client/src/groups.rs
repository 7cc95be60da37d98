//! Consumer groups, as an administrator sees them: which there are, who is in them, how far they have got, and how to
//! change that.
//!
//! Owns the way to a group's coordinator. Never joins a group.

use std::time::Duration;

use heddle_protocol::messages::delete_groups::{DeleteGroupsRequest, DeleteGroupsResponse};
use heddle_protocol::messages::describe_groups::{DescribeGroupsRequest, DescribeGroupsResponse, DescribedGroupMember};
use heddle_protocol::messages::find_coordinator::{FindCoordinatorRequest, FindCoordinatorResponse};
use heddle_protocol::messages::list_groups::{ListGroupsRequest, ListGroupsResponse};
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic, OffsetCommitResponse,
};
use heddle_protocol::messages::offset_delete::{
    OffsetDeleteRequest, OffsetDeleteRequestPartition, OffsetDeleteRequestTopic, OffsetDeleteResponse,
};
use heddle_protocol::messages::offset_fetch::{OffsetFetchRequest, OffsetFetchResponse};
use heddle_protocol::records::consumer_protocol_assignment::ConsumerProtocolAssignment;
use heddle_protocol::{ApiKey, ErrorCode, Message, Reader, decode_prefix};
use heddle_record::{LeaderEpoch, Offset, PartitionIndex};

use crate::brokers::{Address, Purpose};
use crate::client::Client;
use crate::connection::Connection;
use crate::error::{Error, Result};

/// From this version on FindCoordinator has many keys.
const MANY_KEYS: i16 = 4;

/// A group of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub group: String,
    /// What its members are: `consumer`, `connect`, …; empty where it has only committed offsets.
    pub protocol_type: String,
    /// Kafka's name of its state, where the broker says.
    pub state: Option<String>,
}

/// A group and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// Kafka's name of its state.
    pub state: String,
    /// What its members are.
    pub protocol_type: String,
    /// The assignor that was chosen; empty unless the group is stable.
    pub protocol: String,
    /// The broker that coordinates it, as `host:port`.
    pub coordinator: String,
    /// Its members.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its name over restarts, if it has one.
    pub instance: Option<String>,
    /// What its client calls itself.
    pub client_id: String,
    /// Where it connected from.
    pub client_host: String,
    /// The partitions that it has, of a group of consumers.
    pub partitions: Vec<(String, PartitionIndex)>,
}

/// How far a group has got in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The next record that it will read.
    pub offset: Offset,
    /// The leader epoch of the last record that it has read, or none.
    pub leader_epoch: LeaderEpoch,
    /// The consumer's own words.
    pub metadata: String,
}

/// Calls about groups. Each is tried again while that can help.
#[derive(Clone)]
pub struct Groups {
    client: Client,
}

impl Groups {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Every group of the cluster, by name.
    ///
    /// # Errors
    /// A broker cannot be reached, or does not say.
    pub async fn list(&self) -> Result<Vec<GroupListing>> {
        self.client.topics().await?;
        let mut groups = Vec::new();
        for broker in self.client.brokers() {
            groups.extend(self.client.retry(async || self.list_of(&broker.address).await).await?);
        }
        groups.sort_by(|a: &GroupListing, b| a.group.cmp(&b.group));
        Ok(groups)
    }

    async fn list_of(&self, broker: &Address) -> Result<Vec<GroupListing>> {
        let connection = self.client.connection(broker, Purpose::Control).await?;
        let version = connection.pick(ApiKey::ListGroups, i16::MAX)?;
        let reply = connection.call(&ListGroupsRequest::default(), version, Duration::ZERO).await?;
        let response: ListGroupsResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || "groups".to_owned())?;
        let groups = response.groups.iter().map(|it| GroupListing {
            group: it.group_id.to_owned(),
            protocol_type: it.protocol_type.to_owned(),
            state: Some(it.group_state).filter(|state| !state.is_empty()).map(str::to_owned),
        });
        Ok(groups.collect())
    }

    /// A group and its members; nothing where there is no such group.
    ///
    /// # Errors
    /// Its coordinator cannot be reached, or does not say.
    pub async fn describe(&self, group: &str) -> Result<Option<GroupDescription>> {
        self.client.retry(async || self.describe_once(group).await).await
    }

    async fn describe_once(&self, name: &str) -> Result<Option<GroupDescription>> {
        let connection = self.coordinator(name).await?;
        let version = connection.pick(ApiKey::DescribeGroups, i16::MAX)?;
        let request = DescribeGroupsRequest { groups: vec![name].into(), ..DescribeGroupsRequest::default() };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: DescribeGroupsResponse<'_> = reply.decode()?;
        let found = response.groups.first().ok_or_else(|| left_out(&connection, name))?;
        if found.error_code == ErrorCode::GroupIdNotFound.code() || found.group_state == "Dead" {
            return Ok(None);
        }
        Error::check(found.error_code, found.error_message, || format!("group {name:?}"))?;
        Ok(Some(GroupDescription {
            group: name.to_owned(),
            state: found.group_state.to_owned(),
            protocol_type: found.protocol_type.to_owned(),
            protocol: found.protocol_data.to_owned(),
            coordinator: connection.broker().to_owned(),
            members: found.members.iter().map(|it| member(&it)).collect(),
        }))
    }

    /// All that a group has committed, by topic and partition.
    ///
    /// # Errors
    /// Its coordinator cannot be reached, or does not say.
    pub async fn offsets(&self, group: &str) -> Result<Vec<GroupOffset>> {
        self.client.retry(async || self.offsets_once(group).await).await
    }

    async fn offsets_once(&self, name: &str) -> Result<Vec<GroupOffset>> {
        let connection = self.coordinator(name).await?;
        let version = connection.pick(ApiKey::OffsetFetch, i16::MAX)?;
        let request = OffsetFetchRequest { group_id: name, topics: None, ..OffsetFetchRequest::default() };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: OffsetFetchResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || format!("group {name:?}"))?;
        let mut offsets = Vec::new();
        for topic in &response.topics {
            for partition in &topic.partitions {
                let subject = || format!("group {name:?}, {}-{}", topic.name, partition.partition_index);
                Error::check(partition.error_code, None, subject)?;
                offsets.push(GroupOffset {
                    topic: topic.name.to_owned(),
                    partition: PartitionIndex::new(partition.partition_index),
                    offset: Offset::new(partition.committed_offset),
                    leader_epoch: LeaderEpoch::new(partition.committed_leader_epoch),
                    metadata: partition.metadata.unwrap_or_default().to_owned(),
                });
            }
        }
        offsets.retain(|it| it.offset.get() >= 0);
        offsets.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(offsets)
    }

    /// Sets how far a group without members has got.
    ///
    /// # Errors
    /// What the coordinator says: the group has members, a partition does not exist, …
    pub async fn commit(&self, group: &str, offsets: &[(&str, PartitionIndex, Offset)]) -> Result<()> {
        self.client.retry(async || self.commit_once(group, offsets).await).await
    }

    async fn commit_once(&self, name: &str, offsets: &[(&str, PartitionIndex, Offset)]) -> Result<()> {
        let connection = self.coordinator(name).await?;
        let version = connection.pick(ApiKey::OffsetCommit, i16::MAX)?;
        let topics = offsets_to_commit(offsets).collect();
        let request = OffsetCommitRequest { group_id: name, topics, ..OffsetCommitRequest::default() };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: OffsetCommitResponse<'_> = reply.decode()?;
        for topic in &response.topics {
            for partition in &topic.partitions {
                let subject = || format!("group {name:?}, {}-{}", topic.name, partition.partition_index);
                check_unused(partition.error_code, subject)?;
            }
        }
        Ok(())
    }

    /// Forgets how far a group has got in some partitions.
    ///
    /// # Errors
    /// What the coordinator says: there is no such group, a member reads the topic, …
    pub async fn delete_offsets(&self, group: &str, partitions: &[(&str, PartitionIndex)]) -> Result<()> {
        self.client.retry(async || self.delete_offsets_once(group, partitions).await).await
    }

    async fn delete_offsets_once(&self, name: &str, partitions: &[(&str, PartitionIndex)]) -> Result<()> {
        let connection = self.coordinator(name).await?;
        let version = connection.pick(ApiKey::OffsetDelete, i16::MAX)?;
        let topics = partitions.iter().map(|(topic, partition)| {
            let partition = OffsetDeleteRequestPartition { partition_index: partition.get() };
            OffsetDeleteRequestTopic { name: topic, partitions: vec![partition].into() }
        });
        let request = OffsetDeleteRequest { group_id: name, topics: topics.collect() };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: OffsetDeleteResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || format!("group {name:?}"))?;
        for topic in &response.topics {
            for partition in &topic.partitions {
                let subject = || format!("group {name:?}, {}-{}", topic.name, partition.partition_index);
                Error::check(partition.error_code, None, subject)?;
            }
        }
        Ok(())
    }

    /// Forgets a group without members, and all that it has committed.
    ///
    /// # Errors
    /// What the coordinator says: there is no such group, it has members, …
    pub async fn delete(&self, group: &str) -> Result<()> {
        self.client.retry(async || self.delete_once(group).await).await
    }

    async fn delete_once(&self, name: &str) -> Result<()> {
        let connection = self.coordinator(name).await?;
        let version = connection.pick(ApiKey::DeleteGroups, i16::MAX)?;
        let request = DeleteGroupsRequest { groups_names: vec![name].into() };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: DeleteGroupsResponse<'_> = reply.decode()?;
        let result = response.results.first().ok_or_else(|| left_out(&connection, name))?;
        Error::check(result.error_code, None, || format!("group {name:?}"))
    }

    async fn coordinator(&self, group: &str) -> Result<Connection> {
        coordinator(&self.client, group, Purpose::Control).await
    }
}

/// The connection to the broker that coordinates a group.
pub(crate) async fn coordinator(client: &Client, group: &str, purpose: Purpose) -> Result<Connection> {
    let connection = client.any_connection().await?;
    let version = connection.pick(ApiKey::FindCoordinator, i16::MAX)?;
    let request = if version < MANY_KEYS {
        FindCoordinatorRequest { key: group, ..FindCoordinatorRequest::default() }
    } else {
        FindCoordinatorRequest { coordinator_keys: vec![group].into(), ..FindCoordinatorRequest::default() }
    };
    let reply = connection.call(&request, version, Duration::ZERO).await?;
    let response: FindCoordinatorResponse<'_> = reply.decode()?;
    let subject = || format!("coordinator of group {group:?}");
    let (host, port) = if version < MANY_KEYS {
        Error::check(response.error_code, response.error_message, subject)?;
        (response.host, response.port)
    } else {
        let found = response.coordinators.first().ok_or_else(|| left_out(&connection, group))?;
        Error::check(found.error_code, found.error_message, subject)?;
        (found.host, found.port)
    };
    let port = u16::try_from(port).map_err(|_| left_out(&connection, group))?;
    client.connection(&Address { host: host.to_owned(), port }, purpose).await
}

/// A simple commit into a group with members is refused as if it came from a member of old.
fn check_unused(code: i16, subject: impl FnOnce() -> String) -> Result<()> {
    match ErrorCode::from_i16(code) {
        Some(ErrorCode::UnknownMemberId) => Err(Error::Broker {
            code: ErrorCode::UnknownMemberId,
            subject: subject(),
            message: Some("the group has members; stop them first".to_owned()),
        }),
        _ => Error::check(code, None, subject),
    }
}

fn member(member: &DescribedGroupMember<'_>) -> GroupMember {
    GroupMember {
        id: member.member_id.to_owned(),
        instance: member.group_instance_id.map(str::to_owned),
        client_id: member.client_id.to_owned(),
        client_host: member.client_host.trim_start_matches('/').to_owned(),
        partitions: partitions(member.member_assignment).unwrap_or_default(),
    }
}

/// The partitions in what a leader of consumers gives a member.
pub(crate) fn partitions(assignment: &[u8]) -> Option<Vec<(String, PartitionIndex)>> {
    let mut reader = Reader::new(assignment);
    let version = decode_prefix(&mut reader).ok()?.clamp(0, ConsumerProtocolAssignment::VERSIONS.max);
    let assignment = ConsumerProtocolAssignment::decode(&mut reader, version).ok()?;
    let mut partitions = Vec::new();
    for topic in &assignment.assigned_partitions {
        partitions.extend(topic.partitions.iter().map(|it| (topic.topic.to_owned(), PartitionIndex::new(it))));
    }
    partitions.sort();
    Some(partitions)
}

fn left_out(connection: &Connection, name: &str) -> Error {
    Error::Malformed { from: connection.broker().to_owned(), what: format!("an answer that leaves {name:?} out") }
}

/// What an OffsetCommit says of `offsets`: where to read on, by topic and partition.
pub(crate) fn offsets_to_commit<'a>(
    offsets: &'a [(&'a str, PartitionIndex, Offset)],
) -> impl Iterator<Item = OffsetCommitRequestTopic<'a>> {
    offsets.iter().map(|(topic, partition, offset)| {
        let partition = OffsetCommitRequestPartition {
            partition_index: partition.get(),
            committed_offset: offset.get(),
            ..OffsetCommitRequestPartition::default()
        };
        OffsetCommitRequestTopic { name: topic, partitions: vec![partition].into(), ..Default::default() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_read_from_an_assignment() {
        let bytes = b"\0\x01\0\0\0\x01\0\x04loom\0\0\0\x02\0\0\0\x03\0\0\0\x01\xff\xff\xff\xff";
        let partition = |index| ("loom".to_owned(), PartitionIndex::new(index));
        assert_eq!(partitions(bytes), Some(vec![partition(1), partition(3)]));
        assert_eq!(partitions(b""), None);
        assert_eq!(partitions(b"\0"), None);
    }
}
