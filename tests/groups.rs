//! Consumer groups of the binary under fire: `kill -9` while members commit, storms of members, requests larger than they
//! should be. No committed offset goes back, no partition has two owners in a generation, no record is left out, and other
//! groups go on.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use heddle_protocol::ApiKey;
use heddle_tests::group_member::{Ledger, Member, committed, list, number, ok, text};
use heddle_tests::process::Broker;
use heddle_tests::wire::talk::Connection;
use heddle_tests::wire::value::Cursor;
use heddle_tests::{pause, thread};

const PARTITIONS: i64 = 4;

/// `true` runs longer versions of what is random here.
fn thorough() -> bool {
    std::env::var_os("HEDDLE_THOROUGH").is_some()
}

fn start(data: &Path, port: u16) -> Broker {
    let listen = format!("127.0.0.1:{port}");
    let settings = ["group.initial.rebalance.delay.ms=0", "group.min.session.timeout.ms=100"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    Broker::start(data, &[&["--listen", &listen, "--cores", "2"], settings.as_slice()].concat())
}

/// A free port that no outgoing connection is given while the broker is down: one below the kernel's range for those.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).expect("a small number");
    (0..1_000)
        .map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port is free")
}

/// Tries until it works; the broker may be gone, or loading.
fn insist<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..500 {
        match attempt() {
            Ok(done) => return done,
            Err(error) => last = error,
        }
        pause(Duration::from_millis(20));
    }
    panic!("{what}: {last}");
}

fn create(address: &str, topic: &str, partitions: i64) {
    let fields =
        format!("{{topics: [{{name: {topic}, numPartitions: {partitions}, replicationFactor: 1}}], timeoutMs: 9000}}");
    let answer = Connection::open(address).and_then(|mut it| it.call(ApiKey::CreateTopics, 4, &fields));
    assert_eq!(text(&answer.expect("an answer"), "topics.0.errorCode"), "");
    insist("the coordinator", || {
        Connection::open(address)?.call(ApiKey::FindCoordinator, 4, "{coordinatorKeys: [any]}")?;
        committed(&mut Connection::open(address)?, "any", topic, &[0])
    });
}

/// Produces until the ledger ends; gives the end of what was answered, by partition.
fn produce(address: &str, ledger: &Ledger) -> Vec<i64> {
    let mut ends = vec![0; usize::try_from(PARTITIONS).expect("a few")];
    while !ledger.ending.load(Ordering::Relaxed) {
        let Ok(mut connection) = Connection::open(address) else {
            pause(Duration::from_millis(20));
            continue;
        };
        while !ledger.ending.load(Ordering::Relaxed) {
            let sent: Result<(), String> = ends.iter_mut().enumerate().try_for_each(|(partition, end)| {
                let fields = format!(
                    "{{acks: -1, timeoutMs: 9000, topicData: [{{name: loom, partitionData: [{{index: {partition}, \
                     records: batch{{values: [a, b, c]}}}}]}}]}}"
                );
                let answer = connection.call(ApiKey::Produce, 7, &fields)?;
                if !text(&answer, "responses.0.partitionResponses.0.errorCode").is_empty() {
                    return Err("refused".to_owned());
                }
                *end = number(&answer, "responses.0.partitionResponses.0.baseOffset") + 3;
                Ok(())
            });
            if sent.is_err() {
                break;
            }
            pause(Duration::from_millis(2));
        }
    }
    ends
}

#[test]
fn kill_nine_takes_no_committed_offset_back_and_leaves_no_record_out() {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut broker = start(data.path(), port);
    create(&address, "loom", PARTITIONS);
    let ledger = Arc::new(Ledger::default());
    let members: Vec<_> = (0..3)
        .map(|_| {
            let (address, ledger) = (address.clone(), Arc::clone(&ledger));
            thread(move || Member { address, group: "weavers", topic: ("loom", PARTITIONS), ledger: &ledger }.run())
        })
        .collect();
    let producer = {
        let (address, ledger) = (address.clone(), Arc::clone(&ledger));
        thread(move || produce(&address, &ledger))
    };
    let rounds = if thorough() { 30 } else { 4 };
    for round in 0..rounds {
        let before = ledger.committed().values().sum::<i64>();
        insist("members commit", || {
            if ledger.committed().values().sum::<i64>() > before { Ok(()) } else { Err("nothing new".to_owned()) }
        });
        // At another moment of the members' lives each time.
        pause(Duration::from_millis(37 * (round % 11)));
        let floor = ledger.committed();
        broker.kill();
        broker = start(data.path(), port);
        let partitions: Vec<i64> = (0..PARTITIONS).collect();
        let found =
            insist("committed offsets", || committed(&mut Connection::open(&address)?, "weavers", "loom", &partitions));
        found.iter().for_each(|(partition, offset)| ledger.check(&floor, *partition, *offset));
    }
    // What was answered until now must be read by somebody before the end.
    let end = insist("the end of each partition", || {
        let mut connection = Connection::open(&address)?;
        (0..PARTITIONS)
            .map(|partition| {
                let fields = format!(
                    "{{replicaId: -1, topics: [{{name: loom, partitions: [{{partitionIndex: {partition}, timestamp: -1}}]}}]}}"
                );
                let answer = connection.call(ApiKey::ListOffsets, 4, &fields)?;
                Ok(number(&answer, "topics.0.partitions.0.offset"))
            })
            .collect::<Result<Vec<i64>, String>>()
    });
    insist("every record is delivered", || {
        let missing: usize = (0..PARTITIONS).zip(&end).map(|(partition, end)| ledger.missing(partition, *end)).sum();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} records are not")) }
    });
    ledger.ending.store(true, Ordering::Relaxed);
    members.into_iter().for_each(|member| member.join().expect("what a member saw holds"));
    let produced = producer.join().expect("the producer does not panic");
    assert!(produced.iter().all(|end| *end > 0), "the load was no load: {produced:?}");
    assert!(ledger.generations() >= 2, "members met in {} generations only", ledger.generations());
}

/// A group of one member, and what it committed.
struct Alone {
    group: &'static str,
    id: String,
    connection: Connection,
}

impl Alone {
    fn new(address: &str, group: &'static str) -> Self {
        let mut alone = Self { group, id: String::new(), connection: Connection::open(address).expect("it listens") };
        assert_eq!(alone.join().expect("a member joins"), 1);
        alone.connection.call(ApiKey::OffsetCommit, 7, &alone.commit(5)).expect("an answer");
        alone
    }

    /// Joins, again or for the first time, and gives itself everything; the generation.
    fn join(&mut self) -> Result<i64, String> {
        let joined = ok(self.connection.call(ApiKey::JoinGroup, 3, &join(self.group, &self.id))?)?;
        text(&joined, "memberId").clone_into(&mut self.id);
        let generation = number(&joined, "generationId");
        let sync = format!(
            "{{groupId: {}, generationId: {generation}, memberId: {:?}, assignments: [{{memberId: {:?}, \
             assignment: b\"all\"}}]}}",
            self.group, self.id, self.id
        );
        ok(self.connection.call(ApiKey::SyncGroup, 3, &sync)?)?;
        Ok(generation)
    }

    fn commit(&self, offset: i64) -> String {
        format!(
            "{{groupId: {}, generationIdOrMemberEpoch: 1, memberId: {:?}, topics: [{{name: loom, partitions: \
             [{{partitionIndex: 0, committedOffset: {offset}}}]}}]}}",
            self.group, self.id
        )
    }

    fn beat(&mut self, address: &str) -> Result<(), String> {
        self.connection = Connection::open(address)?;
        let beat = format!("{{groupId: {}, generationId: 1, memberId: {:?}}}", self.group, self.id);
        ok(self.connection.call(ApiKey::Heartbeat, 3, &beat)?).map(drop)
    }

    /// Sends a request whose answer nobody waits for.
    fn send(&mut self, api: ApiKey, version: i16, fields: &str) {
        let fields = Cursor::new(fields).value().expect("a request");
        self.connection.send(api, version, &fields).expect("it is taken");
    }
}

/// The process is killed while a group is in some phase: what was committed is there, the group goes on, another has not
/// noticed. `net/broker/tests/wire/group_cuts.rs` does so at more moments, on a simulated disk.
#[test]
fn kill_nine_in_each_phase_leaves_what_was_committed() {
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut broker = start(data.path(), port);
    create(&address, "loom", 1);
    let mut calm = Alone::new(&address, "calm");
    for phase in ["joining", "awaiting", "stable", "committing", "leaving", "deleting"] {
        let mut group = Alone::new(&address, phase);
        let mut other = Connection::open(&address).expect("it listens");
        let newcomer = Cursor::new(&join(phase, "")).value().expect("a request");
        match phase {
            "joining" => other.send(ApiKey::JoinGroup, 3, &newcomer).expect("it is taken"),
            "awaiting" => {
                other.send(ApiKey::JoinGroup, 3, &newcomer).expect("it is taken");
                let beat = format!("{{groupId: {phase}, generationId: 1, memberId: {:?}}}", group.id);
                insist("the rebalance", || match ok(group.connection.call(ApiKey::Heartbeat, 3, &beat)?) {
                    Err(error) if error == "REBALANCE_IN_PROGRESS" => Ok(()),
                    other => Err(format!("{other:?}")),
                });
                let again = group.connection.call(ApiKey::JoinGroup, 3, &join(phase, &group.id)).expect("an answer");
                assert_eq!(number(&again, "generationId"), 2);
            }
            "committing" => (6..40).for_each(|offset| group.send(ApiKey::OffsetCommit, 7, &group.commit(offset))),
            "leaving" | "deleting" => {
                let leave = format!("{{groupId: {phase}, memberId: {:?}}}", group.id);
                group.send(ApiKey::LeaveGroup, 1, &leave);
                if phase == "deleting" {
                    group.send(ApiKey::DeleteGroups, 1, "{groupsNames: [deleting]}");
                }
            }
            _ => {}
        }
        broker.kill();
        broker = start(data.path(), port);
        insist("the other group has not noticed", || calm.beat(&address));
        let found = insist("committed offsets", || committed(&mut Connection::open(&address)?, phase, "loom", &[0]));
        let [(0, found)] = found[..] else { panic!("one partition was asked for: {found:?}") };
        let is_gone = phase == "deleting" && found == -1;
        assert!(is_gone || found == 5 || (phase == "committing" && found < 40), "{phase}: {found} is committed");
        let generation = insist("the group goes on", || {
            group.connection = Connection::open(&address)?;
            let joined = group.join();
            if joined.as_ref().is_err_and(|error| error == "UNKNOWN_MEMBER_ID") {
                group.id.clear();
            }
            joined
        });
        assert!(generation >= 2 || is_gone, "{phase}: generation {generation} again");
    }
    broker.stop();
}

/// 2,000 members join, and never come back: other groups do not notice, and memory stays bounded.
#[test]
fn a_storm_of_members_that_never_sync_disturbs_nobody() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let broker = start(data.path(), free_port());
    create(&broker.address, "loom", 1);
    let mut calm = Connection::open(&broker.address).expect("the broker listens");
    let joined = calm.call(ApiKey::JoinGroup, 3, &join("calm", "")).expect("an answer");
    let id = text(&joined, "memberId").to_owned();
    let sync = format!(
        "{{groupId: calm, generationId: 1, memberId: {id:?}, assignments: [{{memberId: {id:?}, assignment: b\"all\"}}]}}"
    );
    ok(calm.call(ApiKey::SyncGroup, 3, &sync).expect("an answer")).expect("the group is stable");
    let before = broker.memory_kib("VmRSS");
    let members = if thorough() { 2_000 } else { 400 };
    let mut storm: Vec<Connection> = Vec::new();
    for _ in 0..members {
        let mut connection = Connection::open(&broker.address).expect("the broker listens");
        let fields = Cursor::new(&join("storm", "")).value().expect("a request");
        connection.send(ApiKey::JoinGroup, 3, &fields).expect("a request");
        storm.push(connection);
        if storm.len().is_multiple_of(100) {
            let beat = format!("{{groupId: calm, generationId: 1, memberId: {id:?}}}");
            ok(calm.call(ApiKey::Heartbeat, 3, &beat).expect("an answer")).expect("the calm group stays");
        }
    }
    let commit = format!(
        "{{groupId: calm, generationIdOrMemberEpoch: 1, memberId: {id:?}, topics: [{{name: loom, partitions: \
         [{{partitionIndex: 0, committedOffset: 9}}]}}]}}"
    );
    let answer = calm.call(ApiKey::OffsetCommit, 7, &commit).expect("an answer");
    assert_eq!(text(&answer, "topics.0.partitions.0.errorCode"), "");
    let listed = calm.call(ApiKey::ListGroups, 2, "{}").expect("an answer");
    assert_eq!(list(&listed, "groups").len(), 2, "{}", listed.line());
    let grown = broker.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 200 * 1024, "{members} members cost {grown} KiB");
    drop(storm);
    insist("the storm is over", || {
        let answer = calm.call(ApiKey::DescribeGroups, 4, "{groups: [storm]}")?;
        let beat = format!("{{groupId: calm, generationId: 1, memberId: {id:?}}}");
        ok(calm.call(ApiKey::Heartbeat, 3, &beat)?)?;
        if list(&answer, "groups.0.members").is_empty() { Ok(()) } else { Err("members are left".to_owned()) }
    });
}

fn join(group: &str, id: &str) -> String {
    format!(
        "{{groupId: {group}, sessionTimeoutMs: 6000, rebalanceTimeoutMs: 3000, memberId: {id:?}, protocolType: consumer, \
         protocols: [{{name: range, metadata: b\"m\"}}]}}"
    )
}

/// A commit of 5,000 partitions is one record batch; one that is larger than a batch may be is refused whole.
#[test]
fn five_thousand_partitions_are_committed_at_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let port = free_port();
    let mut broker = start(data.path(), port);
    create(&broker.address, "loom", 100);
    let partitions = |metadata: usize| {
        let all = (0..5_000).map(|entry| {
            format!(
                "{{partitionIndex: {}, committedOffset: {}, committedMetadata: a*{metadata}}}",
                entry % 100,
                1_000 + entry
            )
        });
        all.collect::<Vec<_>>().join(", ")
    };
    let commit = |address: &str, metadata| {
        let fields = format!(
            "{{groupId: many, generationIdOrMemberEpoch: -1, memberId: \"\", topics: [{{name: loom, partitions: [{}]}}]}}",
            partitions(metadata)
        );
        let answer = Connection::open(address).and_then(|mut it| it.call(ApiKey::OffsetCommit, 7, &fields));
        let answer = answer.expect("an answer");
        let results = list(&answer, "topics.0.partitions");
        assert_eq!(results.len(), 5_000);
        let codes = results.iter().map(|result| text(result, "errorCode").to_owned());
        codes.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(commit(&broker.address, 1), [String::new()].into());
    let expected: Vec<(i64, i64)> = (0..100).map(|partition| (partition, 5_900 + partition)).collect();
    let every: Vec<i64> = (0..100).collect();
    let found = |address: &str| {
        insist("committed offsets", || committed(&mut Connection::open(address)?, "many", "loom", &every))
    };
    assert_eq!(found(&broker.address), expected, "of a partition that is named again the last offset counts");
    assert_eq!(commit(&broker.address, 4_000), ["UNKNOWN_SERVER_ERROR".to_owned()].into(), "20 MB: Kafka's answer");
    assert_eq!(found(&broker.address), expected, "nothing of a commit that was refused");
    broker.kill();
    broker = start(data.path(), port);
    assert_eq!(found(&broker.address), expected, "what was answered outlives the process");
}
