//! A member of a group: join, sync, beat; and the topics that they read.
//!
//! Owns what is said in which order. The assignment is a few bytes that only these members understand.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::Io;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use heddle_protocol::messages::find_coordinator::{FindCoordinatorRequest, FindCoordinatorResponse};
use heddle_protocol::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};
use heddle_protocol::messages::join_group::{JoinGroupRequest, JoinGroupRequestProtocol, JoinGroupResponse};
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use heddle_protocol::messages::sync_group::{SyncGroupRequest, SyncGroupRequestAssignment, SyncGroupResponse};

use heddle_bench::wire::{self, Connection};

/// Versions without tagged fields.
const JOIN: i16 = 5;
const SYNC: i16 = 3;
const BEAT: i16 = 3;
/// The version that commits are sent in.
pub(crate) const COMMIT: i16 = 7;
/// The topic of all members.
pub(crate) const TOPIC: &str = "loom";

/// How long a member may be silent, and how long a rebalance may take, in milliseconds.
const TIMEOUT_MS: i32 = 60_000;

/// Makes the topic, and waits until groups are served.
pub(crate) async fn prepare(io: &Io, connection: &Connection, num_partitions: i32) {
    let topic = CreatableTopic { name: TOPIC, num_partitions, replication_factor: 1, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic].into(), timeout_ms: TIMEOUT_MS, ..Default::default() };
    let answer = connection.call(4, &request).await;
    let made = answer.decode::<CreateTopicsResponse<'_>>().topics.first().map(|it| it.error_code);
    assert!(matches!(made, Some(0 | 36)), "the topic is there: {made:?}");
    let request = FindCoordinatorRequest { key: "any", ..Default::default() };
    while connection.call(2, &request).await.decode::<FindCoordinatorResponse<'_>>().error_code != 0 {
        io.sleep(Duration::from_millis(50)).await;
    }
}

/// A member, and its connection.
pub(crate) struct Member {
    pub(crate) connection: Rc<Connection>,
    pub(crate) group: String,
    pub(crate) id: String,
    pub(crate) generation: i32,
}

impl Member {
    pub(crate) fn new(connection: Rc<Connection>, group: String) -> Self {
        Self { connection, group, id: String::new(), generation: -1 }
    }

    /// Joins and gets an assignment, however often that takes.
    pub(crate) async fn settle(&mut self, io: &Io) {
        while let Err(error) = self.try_settle().await {
            match error {
                ErrorCode::MemberIdRequired | ErrorCode::RebalanceInProgress => {}
                ErrorCode::UnknownMemberId => self.id.clear(),
                ErrorCode::CoordinatorLoadInProgress
                | ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorNotAvailable => {
                    io.sleep(Duration::from_millis(50)).await;
                }
                other => panic!("a member cannot join: {other:?}"),
            }
        }
    }

    async fn try_settle(&mut self) -> Result<(), ErrorCode> {
        let others = self.join().await?;
        let assignments = others.iter().map(|id| SyncGroupRequestAssignment { member_id: id, assignment: &[0; 40] });
        let request = SyncGroupRequest {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.id,
            assignments: assignments.collect::<Vec<_>>().into(),
            ..Default::default()
        };
        let answer = self.connection.call(SYNC, &request).await;
        checked(answer.decode::<SyncGroupResponse<'_>>().error_code)
    }

    /// The ids of all members, if this one leads.
    async fn join(&mut self) -> Result<Vec<String>, ErrorCode> {
        let protocol = JoinGroupRequestProtocol { name: "range", metadata: &[0; 60] };
        let request = JoinGroupRequest {
            group_id: &self.group,
            session_timeout_ms: TIMEOUT_MS,
            rebalance_timeout_ms: TIMEOUT_MS,
            member_id: &self.id,
            protocol_type: "consumer",
            protocols: vec![protocol].into(),
            ..Default::default()
        };
        let answer = self.connection.call(JOIN, &request).await;
        let response: JoinGroupResponse<'_> = answer.decode();
        if !response.member_id.is_empty() {
            response.member_id.clone_into(&mut self.id);
        }
        checked(response.error_code)?;
        self.generation = response.generation_id;
        Ok(response.members.iter().map(|it| it.member_id.to_owned()).collect())
    }

    /// Whether the generation still stands.
    pub(crate) async fn beat(&self) -> Result<(), ErrorCode> {
        let request = HeartbeatRequest {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.id,
            ..Default::default()
        };
        let answer = self.connection.call(BEAT, &request).await;
        checked(answer.decode::<HeartbeatResponse>().error_code)
    }

    /// Takes part in the group until all its members are of one generation.
    pub(crate) async fn gather(&mut self, io: &Io, gathering: &Gathering, beat: Duration) {
        loop {
            while self.beat().await.is_ok() {
                gathering.here(&self.id, self.generation);
                if gathering.is_complete() {
                    return;
                }
                io.sleep(beat).await;
            }
            self.settle(io).await;
            gathering.here(&self.id, self.generation);
        }
    }

    /// The bytes of a commit of `partitions`, as this member.
    pub(crate) fn commit(&self, partitions: impl Iterator<Item = i32>) -> heddle_io::Lease {
        commit(&self.group, self.generation, &self.id, partitions)
    }
}

/// The bytes of a commit.
pub(crate) fn commit(
    group: &str,
    generation: i32,
    id: &str,
    partitions: impl Iterator<Item = i32>,
) -> heddle_io::Lease {
    let partitions = partitions.map(|partition_index| OffsetCommitRequestPartition {
        partition_index,
        committed_offset: 1 << 40,
        committed_leader_epoch: 0,
        committed_metadata: Some(""),
    });
    let topic = OffsetCommitRequestTopic {
        name: TOPIC,
        partitions: partitions.collect::<Vec<_>>().into(),
        ..Default::default()
    };
    let request = OffsetCommitRequest {
        group_id: group,
        generation_id_or_member_epoch: generation,
        member_id: id,
        topics: vec![topic].into(),
        ..Default::default()
    };
    wire::encoded(COMMIT, &request)
}

fn checked(code: i16) -> Result<(), ErrorCode> {
    match ErrorCode::from_i16(code).expect("a code that is known") {
        ErrorCode::None => Ok(()),
        error => Err(error),
    }
}

/// Members that wait for each other: in which generation each was seen last.
#[derive(Clone)]
pub(crate) struct Gathering {
    wanted: usize,
    seen: Rc<RefCell<BTreeMap<String, i32>>>,
}

impl Gathering {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { wanted, seen: Rc::default() }
    }

    fn here(&self, id: &str, generation: i32) {
        self.seen.borrow_mut().insert(id.to_owned(), generation);
    }

    /// Whether all are here, in one generation.
    pub(crate) fn is_complete(&self) -> bool {
        let seen = self.seen.borrow();
        let mut generations = seen.values();
        let first = generations.next();
        seen.len() == self.wanted && generations.all(|generation| Some(generation) == first)
    }
}
