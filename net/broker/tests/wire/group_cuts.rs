//! Power cuts at moments all over the life of groups: while members join, wait for their assignments, work, commit and leave,
//! and while a group is deleted. What was answered holds, and everybody goes on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::Io;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::delete_groups::{DeleteGroupsRequest, DeleteGroupsResponse};
use heddle_protocol::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};
use heddle_protocol::messages::join_group::{JoinGroupRequest, JoinGroupRequestProtocol, JoinGroupResponse};
use heddle_protocol::messages::leave_group::{LeaveGroupRequest, LeaveGroupResponse};
use heddle_protocol::messages::offset_commit::{
    OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use heddle_protocol::messages::offset_fetch::{OffsetFetchRequest, OffsetFetchRequestTopic, OffsetFetchResponse};
use heddle_protocol::messages::sync_group::{SyncGroupRequest, SyncGroupRequestAssignment, SyncGroupResponse};

use super::groups::{committing, find, outcome};
use super::world::{Connection, World, create_topic};

const SETTINGS: [(&str, &str); 4] = [
    ("group.initial.rebalance.delay.ms", "20"),
    ("group.min.session.timeout.ms", "100"),
    ("offsets.topic.num.partitions", "4"),
    ("num.partitions", "4"),
];
const PARTITIONS: u8 = 4;
const MEMBERS: usize = 3;
/// Commits of each partition after which a conversation has seen all phases.
const COMMITS: i64 = 12;
/// Cuts in each conversation.
const CUTS: usize = 24;

/// What everybody was told, and how far they are.
#[derive(Default)]
struct Ledger {
    /// The largest offset whose commit was answered, by partition.
    committed: RefCell<BTreeMap<u8, i64>>,
    /// Who has a partition in a generation.
    owners: RefCell<BTreeMap<(i32, u8), String>>,
    /// How often somebody left.
    left: Cell<usize>,
    /// Groups whose deletion was answered, and groups that nobody tried to delete.
    deleted: RefCell<BTreeSet<String>>,
    kept: RefCell<BTreeSet<String>>,
    /// How often the silent group was told that all is well.
    beats: Cell<usize>,
    ends: Cell<bool>,
}

impl Ledger {
    fn own(&self, generation: i32, partition: u8, id: &str) {
        let before = self.owners.borrow_mut().insert((generation, partition), id.to_owned());
        let alone = before.as_deref().is_none_or(|before| before == id);
        assert!(alone, "generation {generation}: partition {partition} is {before:?}'s and {id}'s");
    }

    /// What every partition has reached at least, and how much else has happened.
    fn progress(&self) -> [i64; 4] {
        let committed = self.committed.borrow();
        let least = if committed.len() < usize::from(PARTITIONS) { None } else { committed.values().min().copied() };
        let count = |count: usize| i64::try_from(count).expect("a small number");
        let deleted = count(self.deleted.borrow().len());
        [least.unwrap_or(0), count(self.left.get()), deleted, count(self.beats.get())]
    }
}

/// A client, and where the broker is.
struct Client {
    io: Io,
    address: SocketAddr,
    ledger: Rc<Ledger>,
}

impl Client {
    async fn connect(&self) -> Option<Connection> {
        World::try_connect(self.io.clone(), self.address).await
    }

    /// Joins, works, leaves now and then; whatever goes wrong, it starts again.
    async fn work(self, leaves: bool) {
        let mut id = String::new();
        while !self.ledger.ends.get() {
            let error = self.generation(&mut id, leaves).await;
            if error == Some(ErrorCode::UnknownMemberId.code()) {
                id.clear();
            }
            self.io.sleep(Duration::from_millis(5)).await;
        }
    }

    /// One generation; the error that it ended with, if there was one.
    async fn generation(&self, id: &mut String, leaves: bool) -> Option<i16> {
        let mut connection = self.connect().await?;
        let (generation, others) = match join(&mut connection, "weavers", id).await? {
            Ok(joined) => joined,
            Err(error) => return Some(error),
        };
        let given = match sync(&mut connection, "weavers", generation, id, &others).await? {
            Ok(given) => given,
            Err(error) => return Some(error),
        };
        given.iter().for_each(|partition| self.ledger.own(generation, *partition, id));
        for round in 0.. {
            for partition in &given {
                let floor = self.ledger.committed.borrow().get(partition).copied().unwrap_or(0);
                let found = match committed(&mut connection, "weavers", *partition).await? {
                    Ok(found) => found,
                    Err(error) => return Some(error),
                };
                assert!(found.max(0) >= floor, "partition {partition}: {floor} was answered, {found} is there");
                let next = found.max(0) + 1;
                let request = commit_of(generation, id, *partition, next);
                let error = outcome(&connection.try_call(7, &request).await?);
                if error != 0 {
                    return Some(error);
                }
                self.ledger.committed.borrow_mut().insert(*partition, next);
            }
            let error = beat(&mut connection, "weavers", generation, id).await?;
            if error != 0 || self.ledger.ends.get() {
                return Some(error);
            }
            if leaves && round == 3 {
                let request = LeaveGroupRequest { group_id: "weavers", member_id: id, ..Default::default() };
                let answer = connection.try_call(1, &request).await?;
                let error = answer.decode::<LeaveGroupResponse<'_>>().error_code;
                self.ledger.left.set(self.ledger.left.get() + 1);
                id.clear();
                return Some(error);
            }
            self.io.sleep(Duration::from_millis(2)).await;
        }
        None
    }

    /// Commits for groups that nobody is in, and deletes every other one.
    async fn delete(self) {
        for number in 0.. {
            if self.ledger.ends.get() {
                return;
            }
            let _ended = self.make_and_delete(&format!("doomed-{number}"), number % 2 == 0).await;
            self.io.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn make_and_delete(&self, group: &str, is_kept: bool) -> Option<()> {
        let mut connection = self.connect().await?;
        if outcome(&connection.try_call(8, &committing(group, (-1, ""), "loom", 7)).await?) != 0 {
            return None;
        }
        if is_kept {
            self.ledger.kept.borrow_mut().insert(group.to_owned());
            return Some(());
        }
        let request = DeleteGroupsRequest { groups_names: vec![group].into() };
        let answer = connection.try_call(1, &request).await?;
        let response: DeleteGroupsResponse<'_> = answer.decode();
        if response.results.first().expect("a group").error_code == 0 {
            self.ledger.deleted.borrow_mut().insert(group.to_owned());
        }
        Some(())
    }

    /// A group of one that must not notice anything but that the broker was away.
    async fn stay_calm(self) {
        let mut id = String::new();
        let mut joined = None;
        while !self.ledger.ends.get() {
            let _ended = self.beat_calmly(&mut id, &mut joined).await;
            self.io.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn beat_calmly(&self, id: &mut String, joined: &mut Option<i32>) -> Option<()> {
        let mut connection = self.connect().await?;
        if joined.is_none() {
            let (generation, others) = join(&mut connection, "calm", id).await?.ok()?;
            let given = sync(&mut connection, "calm", generation, id, &others).await?;
            *joined = given.is_ok().then_some(generation);
        }
        let generation = (*joined)?;
        while !self.ledger.ends.get() {
            match beat(&mut connection, "calm", generation, id).await? {
                0 => self.ledger.beats.set(self.ledger.beats.get() + 1),
                error if is_away(error) => {}
                error => panic!("a group that nobody touches is told {error}"),
            }
            self.io.sleep(Duration::from_millis(10)).await;
        }
        Some(())
    }
}

/// Whether the coordinator is still loading, or the broker stopping.
fn is_away(error: i16) -> bool {
    [ErrorCode::CoordinatorLoadInProgress, ErrorCode::NotCoordinator].iter().any(|away| away.code() == error)
}

/// The generation, and all members for their leader; or the error.
async fn join(connection: &mut Connection, group: &str, id: &mut String) -> Option<Result<(i32, Vec<String>), i16>> {
    let protocol = JoinGroupRequestProtocol { name: "range", metadata: b"m" };
    let request = JoinGroupRequest {
        group_id: group,
        session_timeout_ms: 3_000,
        rebalance_timeout_ms: 300,
        member_id: id,
        protocol_type: "consumer",
        protocols: vec![protocol].into(),
        ..Default::default()
    };
    let answer = connection.try_call(3, &request).await?;
    let response: JoinGroupResponse<'_> = answer.decode();
    if response.error_code != 0 {
        return Some(Err(response.error_code));
    }
    response.member_id.clone_into(id);
    let members = response.members.iter().map(|member| member.member_id.to_owned());
    Some(Ok((response.generation_id, members.collect())))
}

/// The partitions that this member gets; its leader gives each its share.
async fn sync(
    connection: &mut Connection,
    group: &str,
    generation: i32,
    id: &str,
    others: &[String],
) -> Option<Result<Vec<u8>, i16>> {
    let share = |place: usize| (0..PARTITIONS).filter(|it| usize::from(*it) % others.len() == place).collect();
    let shares: Vec<Vec<u8>> = (0..others.len()).map(share).collect();
    let gives = others.iter().zip(&shares);
    let gives = gives.map(|(member_id, assignment)| SyncGroupRequestAssignment { member_id, assignment });
    let request = SyncGroupRequest {
        group_id: group,
        generation_id: generation,
        member_id: id,
        assignments: gives.collect::<Vec<_>>().into(),
        ..Default::default()
    };
    let answer = connection.try_call(2, &request).await?;
    let response: SyncGroupResponse<'_> = answer.decode();
    Some(if response.error_code == 0 { Ok(response.assignment.to_vec()) } else { Err(response.error_code) })
}

async fn beat(connection: &mut Connection, group: &str, generation: i32, id: &str) -> Option<i16> {
    let request = HeartbeatRequest { group_id: group, generation_id: generation, member_id: id, ..Default::default() };
    let answer = connection.try_call(2, &request).await?;
    Some(answer.decode::<HeartbeatResponse>().error_code)
}

fn commit_of(generation: i32, id: &str, partition: u8, offset: i64) -> OffsetCommitRequest<'_> {
    let partition = OffsetCommitRequestPartition {
        partition_index: i32::from(partition),
        committed_offset: offset,
        ..Default::default()
    };
    let topic = OffsetCommitRequestTopic { name: "loom", partitions: vec![partition].into(), ..Default::default() };
    OffsetCommitRequest {
        group_id: "weavers",
        generation_id_or_member_epoch: generation,
        member_id: id,
        topics: vec![topic].into(),
        ..Default::default()
    }
}

/// What is committed for a partition, or -1; or the error.
async fn committed(connection: &mut Connection, group: &str, partition: u8) -> Option<Result<i64, i16>> {
    let wanted = OffsetFetchRequestTopic { name: "loom", partition_indexes: vec![i32::from(partition)].into() };
    let request = OffsetFetchRequest { group_id: group, topics: Some(vec![wanted].into()), ..Default::default() };
    let answer = connection.try_call(5, &request).await?;
    let response: OffsetFetchResponse<'_> = answer.decode();
    if response.error_code != 0 {
        return Some(Err(response.error_code));
    }
    let topic = response.topics.first().expect("a topic");
    Some(Ok(topic.partitions.first().expect("a partition").committed_offset))
}

/// Steps the world until all has come as far as `goal`; how many steps that took.
fn run_to(world: &World, ledger: &Ledger, goal: [i64; 4]) -> usize {
    let end = world.simulator.now() + Duration::from_secs(120);
    let mut steps = 0;
    while ledger.progress().iter().zip(goal).any(|(reached, wanted)| *reached < wanted) {
        assert!(world.simulator.now() < end, "at {:?} of {goal:?} after two minutes", ledger.progress());
        assert!(world.simulator.step(), "somebody always has something to do");
        steps += 1;
    }
    steps
}

/// A world with groups at work.
fn begin(seed: u64, cores: usize) -> (World, Rc<Ledger>) {
    let world = World::new(seed, cores, &SETTINGS);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        find(&mut connection, "weavers").await;
    });
    let ledger = Rc::new(Ledger::default());
    let client = || Client { io: world.io.clone(), address, ledger: Rc::clone(&ledger) };
    for number in 0..MEMBERS {
        drop(world.io.spawn(client().work(number == 1)));
    }
    drop(world.io.spawn(client().delete()));
    drop(world.io.spawn(client().stay_calm()));
    (world, ledger)
}

/// What was answered holds at the end, too.
fn check_end(world: &World, ledger: &Rc<Ledger>) {
    ledger.ends.set(true);
    let (io, address, ledger) = (world.io.clone(), world.address, Rc::clone(ledger));
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        let deleted = ledger.deleted.borrow().iter().map(|group| (group.clone(), -1)).collect::<Vec<_>>();
        let kept = ledger.kept.borrow().iter().map(|group| (group.clone(), 7)).collect::<Vec<_>>();
        for (group, expected) in deleted.into_iter().chain(kept) {
            assert_eq!(committed(&mut connection, &group, 0).await, Some(Ok(expected)), "{group}");
        }
    });
}

#[test]
fn a_power_cut_in_any_phase_loses_nothing_and_stops_nobody() {
    for cores in [1, 2] {
        let (world, ledger) = begin(1, cores);
        let whole = run_to(&world, &ledger, [COMMITS, 2, 2, 3]);
        check_end(&world, &ledger);
        for cut in 0..CUTS {
            let (mut world, ledger) = begin(1 + cut as u64, cores);
            // Not at the same distance from each other: some phases come again and again.
            for _ in 0..whole * cut / CUTS + cut * cut % 17 {
                assert!(world.simulator.step(), "somebody always has something to do");
            }
            world.broker.power_cut();
            world.broker.restart();
            world.start(cores, &SETTINGS);
            let [commits, left, deleted, beats] = ledger.progress();
            run_to(&world, &ledger, [commits + 3, left + 1, deleted + 1, beats + 3]);
            check_end(&world, &ledger);
        }
    }
}
