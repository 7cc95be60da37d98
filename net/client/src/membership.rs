//! One member of a consumer group, by the classic protocol: joins, shares topics with the others, keeps its place, commits.
//!
//! Owns the member's id and generation, and the way to the coordinator. Never reads a record: whoever holds it reads the
//! partitions that it names, and calls [`Membership::heartbeat`] every few seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use heddle_protocol::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};
use heddle_protocol::messages::join_group::{JoinGroupRequest, JoinGroupRequestProtocol, JoinGroupResponse};
use heddle_protocol::messages::leave_group::{LeaveGroupRequest, LeaveGroupResponse, MemberIdentity};
use heddle_protocol::messages::offset_commit::{OffsetCommitRequest, OffsetCommitResponse};
use heddle_protocol::messages::sync_group::{SyncGroupRequest, SyncGroupRequestAssignment, SyncGroupResponse};
use heddle_protocol::records::consumer_protocol_assignment::{ConsumerProtocolAssignment, TopicPartition};
use heddle_protocol::records::consumer_protocol_subscription::ConsumerProtocolSubscription;
use heddle_protocol::{ApiKey, ErrorCode, Message, Reader, Writer, decode_prefix, encode_versioned};
use heddle_record::{Offset, PartitionIndex};

use crate::brokers::Purpose;
use crate::client::{Client, Creation};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::groups;

/// What the members of a group of consumers are.
const CONSUMER: &str = "consumer";
/// The assignor that this member knows: neighbouring partitions of each topic, as evenly as they can be shared.
const RANGE: &str = "range";
/// How long a member may be silent.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// How long others wait for a member to join again.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often joining starts over before that is an error: each time, somebody else came or went.
const ATTEMPTS: u32 = 50;
/// The last version of LeaveGroup in which one member leaves.
const LEAVES_ALONE: i16 = 2;

/// A member of a group.
pub struct Membership {
    client: Client,
    number: u32,
    group: String,
    topics: Vec<String>,
    member: String,
    generation: i32,
    partitions: Vec<(String, PartitionIndex)>,
}

/// Whether a member still has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It has.
    Kept,
    /// The group shares anew: commit what was read, then [`Membership::join`] again.
    Lost,
}

impl Membership {
    pub(crate) fn new(client: Client, number: u32, group: String, topics: Vec<String>) -> Self {
        Self { client, number, group, topics, member: String::new(), generation: -1, partitions: Vec::new() }
    }

    /// The partitions that this member has.
    pub fn partitions(&self) -> &[(String, PartitionIndex)] {
        &self.partitions
    }

    /// Joins, or joins again, and waits until it is known who gets what.
    ///
    /// # Errors
    /// What the coordinator says: the group has members of another kind, is full, …; [`Error::UnknownTopic`].
    pub async fn join(&mut self) -> Result<()> {
        let client = self.client.clone();
        client.retry(async || self.join_once().await).await
    }

    async fn join_once(&mut self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let connection = self.connection().await?;
            match self.enter(&connection).await {
                Ok(()) => return Ok(()),
                Err(Error::Broker { code: ErrorCode::MemberIdRequired | ErrorCode::RebalanceInProgress, .. }) => {}
                Err(Error::Broker { code: ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration, .. }) => {
                    self.member.clear();
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Broker {
            code: ErrorCode::RebalanceInProgress,
            subject: self.subject(),
            message: Some("the group never comes to rest".to_owned()),
        })
    }

    fn subject(&self) -> String {
        format!("group {:?}", self.group)
    }

    async fn connection(&self) -> Result<Connection> {
        groups::coordinator(&self.client, &self.group, Purpose::Group(self.number)).await
    }

    async fn enter(&mut self, connection: &Connection) -> Result<()> {
        let version = connection.pick(ApiKey::JoinGroup, i16::MAX)?;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let subscription = ConsumerProtocolSubscription { topics: topics.into(), ..Default::default() };
        let metadata = versioned(&subscription)?;
        let request = JoinGroupRequest {
            group_id: &self.group,
            session_timeout_ms: milliseconds(SESSION_TIMEOUT),
            rebalance_timeout_ms: milliseconds(REBALANCE_TIMEOUT),
            member_id: &self.member,
            protocol_type: CONSUMER,
            protocols: vec![JoinGroupRequestProtocol { name: RANGE, metadata: &metadata }].into(),
            ..JoinGroupRequest::default()
        };
        let reply = connection.call(&request, version, REBALANCE_TIMEOUT).await?;
        let response: JoinGroupResponse<'_> = reply.decode()?;
        if !response.member_id.is_empty() {
            response.member_id.clone_into(&mut self.member);
        }
        Error::check(response.error_code, None, || self.subject())?;
        self.generation = response.generation_id;
        let assignments = if response.leader == self.member { self.assign(&response).await? } else { BTreeMap::new() };
        self.sync(connection, &assignments).await
    }

    /// Shares the topics of all members among them.
    async fn assign(&self, response: &JoinGroupResponse<'_>) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for member in &response.members {
            for topic in subscribed(member.metadata).unwrap_or_default() {
                readers.entry(topic.to_owned()).or_default().push(member.member_id.to_owned());
            }
        }
        let mut shares: BTreeMap<String, BTreeMap<String, Vec<i32>>> = BTreeMap::new();
        for (topic, mut members) in readers {
            let Ok(found) = self.client.topic(&topic, Creation::Forbidden).await else { continue };
            members.sort();
            let count = members.len();
            let total = found.partition_count();
            for (member, partitions) in members.into_iter().zip(ranges(total, count)) {
                shares.entry(member).or_default().insert(topic.clone(), partitions);
            }
        }
        let mut assignments = BTreeMap::new();
        for member in &response.members {
            let share = shares.remove(member.member_id).unwrap_or_default();
            let topics = share
                .iter()
                .filter(|(_, partitions)| !partitions.is_empty())
                .map(|(topic, partitions)| TopicPartition { topic, partitions: partitions.clone().into() });
            let assignment = ConsumerProtocolAssignment { assigned_partitions: topics.collect(), ..Default::default() };
            assignments.insert(member.member_id.to_owned(), versioned(&assignment)?);
        }
        Ok(assignments)
    }

    async fn sync(&mut self, connection: &Connection, assignments: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let version = connection.pick(ApiKey::SyncGroup, i16::MAX)?;
        let assignments = assignments.iter();
        let request = SyncGroupRequest {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.member,
            protocol_type: Some(CONSUMER),
            protocol_name: Some(RANGE),
            assignments: assignments
                .map(|(member_id, assignment)| SyncGroupRequestAssignment { member_id, assignment })
                .collect(),
            ..SyncGroupRequest::default()
        };
        let reply = connection.call(&request, version, REBALANCE_TIMEOUT).await?;
        let response: SyncGroupResponse<'_> = reply.decode()?;
        Error::check(response.error_code, None, || self.subject())?;
        self.partitions = groups::partitions(response.assignment).unwrap_or_default();
        Ok(())
    }

    /// Says that this member lives; whether it still has its place.
    ///
    /// # Errors
    /// The coordinator cannot be reached, or says something else.
    pub async fn heartbeat(&self) -> Result<Place> {
        self.client.retry(async || self.heartbeat_once().await).await
    }

    async fn heartbeat_once(&self) -> Result<Place> {
        let connection = self.connection().await?;
        let version = connection.pick(ApiKey::Heartbeat, i16::MAX)?;
        let request = HeartbeatRequest {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.member,
            ..HeartbeatRequest::default()
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: HeartbeatResponse = reply.decode()?;
        self.place(response.error_code)
    }

    /// What a code says of this member's place.
    fn place(&self, code: i16) -> Result<Place> {
        match ErrorCode::from_i16(code) {
            Some(ErrorCode::RebalanceInProgress | ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration) => {
                Ok(Place::Lost)
            }
            _ => Error::check(code, None, || self.subject()).map(|()| Place::Kept),
        }
    }

    /// Remembers where to read on, if this member still has its place.
    ///
    /// # Errors
    /// What the coordinator says, or that it cannot be reached.
    pub async fn commit(&self, offsets: &[(&str, PartitionIndex, Offset)]) -> Result<Place> {
        if offsets.is_empty() {
            return Ok(Place::Kept);
        }
        self.client.retry(async || self.commit_once(offsets).await).await
    }

    async fn commit_once(&self, offsets: &[(&str, PartitionIndex, Offset)]) -> Result<Place> {
        let connection = self.connection().await?;
        let version = connection.pick(ApiKey::OffsetCommit, i16::MAX)?;
        let request = OffsetCommitRequest {
            group_id: &self.group,
            generation_id_or_member_epoch: self.generation,
            member_id: &self.member,
            topics: groups::offsets_to_commit(offsets).collect(),
            ..OffsetCommitRequest::default()
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: OffsetCommitResponse<'_> = reply.decode()?;
        for topic in &response.topics {
            for partition in &topic.partitions {
                if self.place(partition.error_code)? == Place::Lost {
                    return Ok(Place::Lost);
                }
            }
        }
        Ok(Place::Kept)
    }

    /// Leaves the group, so that the others need not wait for this member's session to end.
    ///
    /// # Errors
    /// The coordinator cannot be reached; then the session ends by itself.
    pub async fn leave(self) -> Result<()> {
        let connection = self.connection().await?;
        let version = connection.pick(ApiKey::LeaveGroup, i16::MAX)?;
        let member = MemberIdentity { member_id: &self.member, ..MemberIdentity::default() };
        let request = if version > LEAVES_ALONE {
            LeaveGroupRequest { group_id: &self.group, members: vec![member].into(), ..LeaveGroupRequest::default() }
        } else {
            LeaveGroupRequest { group_id: &self.group, member_id: &self.member, ..LeaveGroupRequest::default() }
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: LeaveGroupResponse<'_> = reply.decode()?;
        self.client.forget(Purpose::Group(self.number));
        self.place(response.error_code).map(|_| ())
    }
}

/// `total` partitions in as many neighbouring runs as there are members, the first ones longer by one.
fn ranges(total: i32, members: usize) -> Vec<Vec<i32>> {
    let members = i32::try_from(members.max(1)).unwrap_or(i32::MAX);
    let (each, more) = (total / members, total % members);
    let start = |member: i32| member * each + member.min(more);
    (0..members).map(|member| (start(member)..start(member + 1)).collect()).collect()
}

fn subscribed(metadata: &[u8]) -> Option<Vec<&str>> {
    let mut reader = Reader::new(metadata);
    let version = decode_prefix(&mut reader).ok()?.clamp(0, ConsumerProtocolSubscription::VERSIONS.max);
    Some(ConsumerProtocolSubscription::decode(&mut reader, version).ok()?.topics.iter().collect())
}

/// What members tell each other, in the version that every client knows.
fn versioned<'a>(message: &impl Message<'a>) -> Result<Vec<u8>> {
    let mut writer = Writer::new();
    let encoded = encode_versioned(message, &mut writer, 0);
    encoded.map_err(|error| Error::Invalid { what: error.to_string() })?;
    Ok(writer.into_bytes())
}

fn milliseconds(span: Duration) -> i32 {
    i32::try_from(span.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_share_evenly_and_leave_some_idle() {
        assert_eq!(ranges(7, 3), [vec![0, 1, 2], vec![3, 4], vec![5, 6]]);
        assert_eq!(ranges(1, 3), [vec![0], vec![], vec![]]);
        assert_eq!(ranges(0, 2), [vec![], vec![]] as [Vec<i32>; 2]);
    }
}
