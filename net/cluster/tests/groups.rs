//! Conversations with the coordinator of groups: commands in `testdata/group_*.txt`, the whole answer below each,
//! reviewed as a diff. `HEDDLE_REWRITE_TRANSCRIPTS=1 cargo test -p heddle-cluster` writes the answers anew.
//!
//! After each command every record so far is replayed from its bytes into an empty coordinator, which must hold what
//! the first one holds. Random conversations are cut after every record besides.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a transcript that does not parse fails its test")]

mod talk;
mod transcript;

use std::collections::BTreeMap;

use heddle_cluster::group::{Coordinator, KeyValue};
use talk::{Durables, Talk, durables, settings};

#[test]
fn members_join_and_share_as_written() {
    run("group_join.txt");
}

#[test]
fn static_members_come_back_as_written() {
    run("group_static.txt");
}

#[test]
fn silence_ends_as_written() {
    run("group_silence.txt");
}

#[test]
fn offsets_are_kept_as_written() {
    run("group_offsets.txt");
}

#[test]
fn every_phase_is_survived_as_written() {
    run("group_phases.txt");
}

#[test]
fn groups_are_shown_and_deleted_as_written() {
    run("group_views.txt");
}

fn run(name: &str) {
    let mut talk = Talk::default();
    transcript::run(name, |command, told| {
        talk.command(command, told);
        check(&talk);
    });
}

fn check(talk: &Talk) {
    talk.coordinator.check_invariants();
    assert_eq!(replayed(&talk.log), durables(&talk.coordinator), "the records say something else");
}

fn replayed(log: &[KeyValue]) -> Durables {
    let mut coordinator = Coordinator::new(settings());
    for KeyValue { key, value } in log {
        coordinator.replay_bytes(key, value.as_deref()).unwrap();
    }
    durables(&coordinator)
}

/// Any conversation, cut anywhere: what a coordinator loads is what the records say, each key's last one; it is what the
/// live one held where the cut is at the end of a step; and compaction changes nothing.
#[test]
fn any_conversation_cut_anywhere_replays_to_what_was_stored() {
    let mut records = 0;
    for seed in 1..=30_u64 {
        let mut talk = Talk::default();
        let mut random = Random(seed);
        let mut ends: BTreeMap<usize, Durables> = BTreeMap::new();
        for _ in 0..400 {
            let command = random.command(&talk);
            talk.command(&command, &mut String::new());
            talk.coordinator.check_invariants();
            ends.insert(talk.log.len(), durables(&talk.coordinator));
        }
        records += talk.log.len();
        for cut in 0..=talk.log.len() {
            let log = &talk.log[..cut];
            let loaded = replayed(log);
            if let Some(live) = ends.get(&cut) {
                assert_eq!(&loaded, live, "seed {seed}, cut at {cut}");
            }
            let last: BTreeMap<&[u8], &KeyValue> = log.iter().map(|record| (&*record.key, record)).collect();
            let compacted: Vec<KeyValue> =
                last.into_values().filter(|record| record.value.is_some()).cloned().collect();
            assert_eq!(replayed(&compacted), loaded, "seed {seed}, cut at {cut}, compacted");
        }
        talk.command("restart", &mut String::new());
        talk.command("wait 2000000", &mut String::new());
        check(&talk);
        assert!(talk.waiting.is_empty(), "seed {seed}: {:?} wait for ever", talk.waiting);
    }
    assert!(records > 1_000, "{records} records are hardly a conversation");
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn command(&mut self, talk: &Talk) -> String {
        let group = self.of(&["g", "h"]);
        let known = talk.members_of(group);
        let (member, generation) = match known.len() {
            0 => ("c~1".to_string(), 1),
            count => known[self.below(count)].clone(),
        };
        let instance = self.of(&["", "", " instance=i", " instance=j"]);
        let shape = self.of(&["range=a,b", "range=a sticky=b", "sticky=b range=a", "range=a", "range=c"]);
        match self.below(16) {
            0..=2 => format!("join {group} client=c{} {shape} session=10000 rebalance=20000{instance}", self.below(3)),
            3..=5 => format!("join {group} member={member} client=c {shape} session=8000 rebalance=15000"),
            6..=8 => {
                let gives: String = known.iter().map(|(id, _)| format!(" give:{id}=of-{id}")).collect();
                format!("sync {group} {generation} {member}{gives}")
            }
            9 => format!("heartbeat {group} {generation} {member}"),
            10 => format!("leave {group} {member}"),
            11 => format!("commit {group} {generation} {member} a:{}={} b:1=7/words", self.below(3), self.below(90)),
            12 => format!("commit {group} -1 - {}:0={}", self.of(&["a", "b", "c"]), self.below(90)),
            13 => format!("delete-offsets {group} a:0 b:1"),
            14 => self.of(&["delete g", "delete h", "gone a", "gone b", "restart"]).to_string(),
            _ => format!("wait {}", [1, 500, 3_000, 9_000, 40_000][self.below(5)]),
        }
    }
}
