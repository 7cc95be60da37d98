//! What groups promise over the wire: members share, what is committed stays, and nobody else waits for them.

use std::time::Duration;

use heddle_protocol::messages::delete_groups::{DeleteGroupsRequest, DeleteGroupsResponse};
use heddle_protocol::messages::delete_topics::{DeleteTopicsRequest, DeleteTopicsResponse};
use heddle_protocol::messages::describe_groups::{DescribeGroupsRequest, DescribeGroupsResponse};
use heddle_protocol::messages::find_coordinator::{FindCoordinatorRequest, FindCoordinatorResponse};
use heddle_protocol::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};
use heddle_protocol::messages::join_group::{JoinGroupRequest, JoinGroupRequestProtocol, JoinGroupResponse};
use heddle_protocol::messages::leave_group::{LeaveGroupRequest, LeaveGroupResponse};
use heddle_protocol::messages::list_groups::{ListGroupsRequest, ListGroupsResponse};
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic, OffsetCommitResponse,
};
use heddle_protocol::messages::offset_fetch::{
    OffsetFetchRequest, OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchResponse,
};
use heddle_protocol::messages::sync_group::{SyncGroupRequest, SyncGroupRequestAssignment, SyncGroupResponse};
use heddle_protocol::{ApiKey, ErrorCode};

use super::world::{Answer, Connection, World, batch, create_topic, produce, produced};

const SETTINGS: [(&str, &str); 2] =
    [("group.initial.rebalance.delay.ms", "100"), ("offsets.topic.num.partitions", "8")];

/// Finds the coordinator, which makes the offsets topic; waits until it has loaded.
pub(crate) async fn find(connection: &mut Connection, group: &str) {
    let request = FindCoordinatorRequest { coordinator_keys: vec![group].into(), ..Default::default() };
    let answer = connection.call(4, &request).await;
    let response: FindCoordinatorResponse<'_> = answer.decode();
    let found = response.coordinators.first().expect("one key, one answer");
    assert_eq!((found.error_code, found.node_id, found.port), (0, 1, 9092));
    for _ in 0..100 {
        let answer = connection.call(4, &ListGroupsRequest::default()).await;
        let response: ListGroupsResponse<'_> = answer.decode();
        if response.error_code == 0 {
            return;
        }
        assert_eq!(response.error_code, ErrorCode::CoordinatorLoadInProgress.code());
        connection.io.sleep(Duration::from_millis(5)).await;
    }
    panic!("the coordinators never load");
}

fn join<'a>(group: &'a str, member: &'a str) -> JoinGroupRequest<'a> {
    let protocol = JoinGroupRequestProtocol { name: "range", metadata: b"\0\0\0\0\0\x01\0\x04loom\xff\xff\xff\xff" };
    JoinGroupRequest {
        group_id: group,
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 10_000,
        member_id: member,
        protocol_type: "consumer",
        protocols: vec![protocol].into(),
        ..Default::default()
    }
}

/// Error, member id, generation, leader, number of members that the leader is told of.
type Joined = (i16, String, i32, String, usize);

async fn joined(connection: &mut Connection, version: i16) -> Joined {
    let answer = connection.answer(ApiKey::JoinGroup, version).await;
    let it: JoinGroupResponse<'_> = answer.decode();
    (it.error_code, it.member_id.to_owned(), it.generation_id, it.leader.to_owned(), it.members.len())
}

async fn sync(
    connection: &mut Connection,
    group: &str,
    generation: i32,
    member: &str,
    gives: &[(&str, &[u8])],
) -> (i16, Vec<u8>) {
    let gives: Vec<_> =
        gives.iter().map(|&(member_id, assignment)| SyncGroupRequestAssignment { member_id, assignment }).collect();
    let request = SyncGroupRequest {
        group_id: group,
        generation_id: generation,
        member_id: member,
        protocol_type: Some("consumer"),
        protocol_name: Some("range"),
        assignments: gives.into(),
        ..Default::default()
    };
    let answer = connection.call(5, &request).await;
    let response: SyncGroupResponse<'_> = answer.decode();
    (response.error_code, response.assignment.to_vec())
}

pub(crate) fn committing<'a>(
    group: &'a str,
    of: (i32, &'a str),
    topic: &'a str,
    offset: i64,
) -> OffsetCommitRequest<'a> {
    let partition = OffsetCommitRequestPartition {
        partition_index: 0,
        committed_offset: offset,
        committed_metadata: Some("words"),
        ..Default::default()
    };
    let topic = OffsetCommitRequestTopic { name: topic, partitions: vec![partition].into(), ..Default::default() };
    OffsetCommitRequest {
        group_id: group,
        generation_id_or_member_epoch: of.0,
        member_id: of.1,
        topics: vec![topic].into(),
        ..Default::default()
    }
}

/// What a commit of one partition came to.
pub(crate) fn outcome(answer: &Answer) -> i16 {
    let response: OffsetCommitResponse<'_> = answer.decode();
    response.topics.first().expect("a topic").partitions.first().expect("a partition").error_code
}

async fn commit(connection: &mut Connection, group: &str, of: (i32, &str), topic: &str, offset: i64) -> i16 {
    outcome(&connection.call(8, &committing(group, of, topic, offset)).await)
}

/// The committed offset of a topic's first partition and its words, as version 1 and version 8 tell them.
async fn committed(connection: &mut Connection, group: &str, topic: &str) -> (i64, String) {
    let wanted = OffsetFetchRequestTopic { name: topic, partition_indexes: vec![0].into() };
    let request = OffsetFetchRequest { group_id: group, topics: Some(vec![wanted].into()), ..Default::default() };
    let answer = connection.call(1, &request).await;
    let response: OffsetFetchResponse<'_> = answer.decode();
    let old = response.topics.first().expect("a topic").partitions.first().expect("a partition");
    assert_eq!(old.error_code, 0);
    let group = OffsetFetchRequestGroup { group_id: group, topics: None, ..Default::default() };
    let request = OffsetFetchRequest { groups: vec![group].into(), ..Default::default() };
    let answer = connection.call(8, &request).await;
    let response: OffsetFetchResponse<'_> = answer.decode();
    let group = response.groups.first().expect("a group");
    assert_eq!(group.error_code, 0);
    let new = group.topics.iter().find(|it| it.name == topic).and_then(|it| it.partitions.first());
    assert_eq!(new.map_or(-1, |it| it.committed_offset), old.committed_offset);
    (old.committed_offset, old.metadata.unwrap_or_default().to_owned())
}

/// Two members of a group, each on a connection of its own, on however many cores.
#[test]
fn two_members_share_a_group_and_what_they_commit_survives() {
    for cores in [1, 3] {
        let mut world = World::new(7, cores, &SETTINGS);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut one = World::connect(io.clone(), address).await;
            let mut two = World::connect(io.clone(), address).await;
            let mut other = World::connect(io.clone(), address).await;
            create_topic(&mut one, "loom").await;
            find(&mut one, "g").await;
            one.send(4, &join("g", "")).await;
            let (error, id, ..) = joined(&mut one, 4).await;
            assert_eq!(error, ErrorCode::MemberIdRequired.code());
            assert!(id.starts_with("test-"), "{id}");
            one.send(4, &join("g", &id)).await;
            io.sleep(Duration::from_millis(20)).await;
            two.send(0, &join("g", "")).await;
            // While both wait, nobody else does.
            assert_eq!(commit(&mut other, "simple", (-1, ""), "loom", 3).await, 0);
            let first = joined(&mut one, 4).await;
            let second = joined(&mut two, 0).await;
            let (leader, follower) = (&first.1, &second.1);
            assert_eq!((first.0, first.2, &first.3, first.4), (0, 1, leader, 2));
            assert_eq!((second.0, second.2, &second.3, second.4), (0, 1, leader, 0));
            let (told, given) = {
                let waiting = sync(&mut two, "g", 1, follower, &[]);
                let giving = async {
                    io.sleep(Duration::from_millis(20)).await;
                    sync(&mut one, "g", 1, leader, &[(leader, b"A"), (follower, b"B")]).await
                };
                both(waiting, giving).await
            };
            assert_eq!((told, given), ((0, b"B".to_vec()), (0, b"A".to_vec())));
            assert_eq!(commit(&mut two, "g", (1, follower), "loom", 41).await, 0);
            assert_eq!(
                commit(&mut two, "g", (1, follower), "nosuch", 41).await,
                ErrorCode::UnknownTopicOrPartition.code()
            );
            assert_eq!(commit(&mut two, "g", (0, follower), "loom", 99).await, ErrorCode::IllegalGeneration.code());
            let beat = HeartbeatRequest { group_id: "g", generation_id: 1, member_id: leader, ..Default::default() };
            let answer = one.call(3, &beat).await;
            assert_eq!(answer.decode::<HeartbeatResponse>().error_code, 0);
        });
        if cores == 1 {
            world.stop().expect("it stops");
        }
        world.broker.power_cut();
        world.broker.restart();
        world.start(cores + 1, &SETTINGS);
        let io = world.io.clone();
        world.run(async move {
            let mut connection = World::connect(io, address).await;
            find(&mut connection, "g").await;
            assert_eq!(committed(&mut connection, "g", "loom").await, (41, "words".into()));
            assert_eq!(committed(&mut connection, "simple", "loom").await, (3, "words".into()));
            let request = DescribeGroupsRequest { groups: vec!["g", "none"].into(), ..Default::default() };
            let answer = connection.call(6, &request).await;
            let response: DescribeGroupsResponse<'_> = answer.decode();
            let groups: Vec<_> = response.groups.iter().collect();
            assert_eq!(
                (groups[0].group_state, groups[0].protocol_data, groups[0].members.len()),
                ("Stable", "range", 2)
            );
            assert_eq!(groups[1].error_code, ErrorCode::GroupIdNotFound.code());
            // Whoever was a member before still is.
            let member = groups[0].members.first().expect("a member").member_id;
            let leave = LeaveGroupRequest { group_id: "g", member_id: member, ..Default::default() };
            let answer = connection.call(0, &leave).await;
            assert_eq!(answer.decode::<LeaveGroupResponse<'_>>().error_code, 0);
        });
        world.stop().expect("it stops");
    }
}

/// Runs two futures side by side.
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let (mut one, mut two) = (None, None);
    std::future::poll_fn(move |context| {
        if one.is_none()
            && let std::task::Poll::Ready(output) = first.as_mut().poll(context)
        {
            one = Some(output);
        }
        if two.is_none()
            && let std::task::Poll::Ready(output) = second.as_mut().poll(context)
        {
            two = Some(output);
        }
        if one.is_none() || two.is_none() {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(one.take().zip(two.take()).expect("both are there"))
    })
    .await
}

/// Commits of one connection do not wait for each other, whichever core has their groups; answers and other requests keep
/// their places.
#[test]
fn commits_overlap_and_keep_their_order() {
    const COMMITS: i64 = 60;
    for cores in [1, 3] {
        let world = World::new(11, cores, &SETTINGS);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            create_topic(&mut connection, "loom").await;
            find(&mut connection, "g").await;
            for group in ["g", "h", "i"] {
                assert_eq!(commit(&mut connection, group, (-1, ""), "loom", 0).await, 0);
            }
            let began = io.now();
            assert_eq!(commit(&mut connection, "g", (-1, ""), "loom", 1).await, 0);
            let one = io.now().since(began);
            let began = io.now();
            for offset in 2..COMMITS {
                for group in ["g", "h", "i"] {
                    connection.send(8, &committing(group, (-1, ""), "loom", offset)).await;
                }
                connection.send(8, &committing("g", (7, "nobody"), "loom", offset)).await;
                connection.send(8, &committing("g", (-1, ""), "nosuch", offset)).await;
            }
            let beat = HeartbeatRequest { group_id: "g", generation_id: 1, member_id: "x", ..Default::default() };
            let last = connection.send(3, &beat).await;
            for _ in 2..COMMITS {
                let expected = [0, 0, 0, ErrorCode::UnknownMemberId.code(), ErrorCode::UnknownTopicOrPartition.code()];
                for expected in expected {
                    assert_eq!(outcome(&connection.answer(ApiKey::OffsetCommit, 8).await), expected);
                }
            }
            assert_eq!(connection.answer(ApiKey::Heartbeat, 3).await.correlation_id(), last);
            let all = io.now().since(began);
            assert!(all < one * 20, "one commit took {one:?}, {} in flight together {all:?}", 5 * COMMITS);
            for group in ["g", "h", "i"] {
                assert_eq!(committed(&mut connection, group, "loom").await.0, COMMITS - 1, "the last one counts");
            }
        });
        world.stop().expect("it stops");
    }
}

#[test]
fn a_deleted_topic_takes_its_offsets_along() {
    let mut world = World::new(3, 2, &SETTINGS);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        create_topic(&mut connection, "loom").await;
        create_topic(&mut connection, "yarn").await;
        find(&mut connection, "g").await;
        for group in ["g", "h", "i"] {
            assert_eq!(commit(&mut connection, group, (-1, ""), "loom", 5).await, 0);
        }
        assert_eq!(commit(&mut connection, "g", (-1, ""), "yarn", 6).await, 0);
        let request = DeleteTopicsRequest { topic_names: vec!["loom"].into(), timeout_ms: 5_000, ..Default::default() };
        let answer = connection.call(5, &request).await;
        assert_eq!(answer.decode::<DeleteTopicsResponse<'_>>().responses.first().expect("a topic").error_code, 0);
        create_topic(&mut connection, "loom").await;
        for group in ["g", "h", "i"] {
            assert_eq!(committed(&mut connection, group, "loom").await.0, -1, "{group}");
        }
        assert_eq!(committed(&mut connection, "g", "yarn").await.0, 6);
        let request = DeleteGroupsRequest { groups_names: vec!["g", "h", "nosuch"].into() };
        let answer = connection.call(2, &request).await;
        let response: DeleteGroupsResponse<'_> = answer.decode();
        let errors: Vec<i16> = response.results.iter().map(|it| it.error_code).collect();
        let missing = ErrorCode::GroupIdNotFound.code();
        assert_eq!(errors, [0, missing, missing], "a group that had nothing else went with the topic");
    });
    world.broker.power_cut();
    world.broker.restart();
    world.start(2, &SETTINGS);
    let io = world.io.clone();
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        find(&mut connection, "g").await;
        assert_eq!(committed(&mut connection, "g", "yarn").await.0, -1);
        assert_eq!(committed(&mut connection, "i", "loom").await.0, -1);
    });
    world.stop().expect("it stops");
}

#[test]
fn clients_do_not_write_where_brokers_keep_their_state() {
    let world = World::new(5, 2, &SETTINGS);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        find(&mut connection, "g").await;
        let records = batch(&["mine"]);
        let answer = connection.call(9, &produce("__consumer_offsets", 0, -1, &records)).await;
        assert_eq!(produced(&answer).0, ErrorCode::InvalidTopicException.code());
        // There are no transactions: every client takes this for final.
        let request = FindCoordinatorRequest { key: "t", key_type: 1, ..Default::default() };
        let answer = connection.call(1, &request).await;
        let response: FindCoordinatorResponse<'_> = answer.decode();
        assert_eq!(response.error_code, ErrorCode::TransactionalIdAuthorizationFailed.code());
        assert!(response.error_message.is_some());
    });
    world.stop().expect("it stops");
}

/// A member that waits when the broker stops, or whose connection goes, holds up nothing (case 60).
#[test]
fn who_waits_for_others_keeps_no_broker_from_stopping() {
    let world = World::new(9, 2, &[("group.initial.rebalance.delay.ms", "100000")]);
    let (io, address) = (world.io.clone(), world.address);
    let mut gone = world.run({
        let io = io.clone();
        async move {
            let mut connection = World::connect(io.clone(), address).await;
            find(&mut connection, "g").await;
            let mut gone = World::connect(io.clone(), address).await;
            gone.send(0, &join("g", "")).await;
            let mut waits = World::connect(io.clone(), address).await;
            waits.send(0, &join("g", "")).await;
            io.sleep(Duration::from_millis(100)).await;
            drop(gone);
            waits
        }
    });
    world.stop().expect("it stops");
    let error = world.run(async move { joined(&mut gone, 0).await.0 });
    assert_eq!(error, ErrorCode::NotCoordinator.code());
}
