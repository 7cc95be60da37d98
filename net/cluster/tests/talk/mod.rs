//! The language of the transcripts of groups: words to commands, answers to lines, and the log in between.
//!
//! Times are in milliseconds. An id that a coordinator makes, a name and random bits, is shown as `name~N`: the member of
//! that name that was the Nth to be born.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::group::command::{
    Command, Commit, CommitEntry, DeleteOffsets, Filter, Join, Joined, Leave, Leaving, Membership, Offsets, Protocol,
    Sync,
};
use heddle_cluster::group::{
    CommittedOffset, Coordinator, GroupRecord, GroupSettings, KeyValue, Now, Outcome, Response, StoredGroup, Ticket,
};
use heddle_protocol::records::consumer_protocol_subscription::ConsumerProtocolSubscription;
use heddle_protocol::{ErrorCode, Writer, encode_versioned};
use heddle_record::{LeaderEpoch, Timestamp, TopicId};

/// What is stored of all groups.
pub(crate) type Durables = Vec<(String, Option<StoredGroup>, Vec<(String, i32, CommittedOffset)>)>;

/// What is stored in a coordinator.
pub(crate) fn durables(coordinator: &Coordinator) -> Durables {
    let groups = coordinator.durable().map(|group| {
        let offsets =
            group.offsets.into_iter().map(|(topic, index, offset)| (topic.to_string(), index, offset.clone()));
        (group.group.to_string(), group.stored.cloned(), offsets.collect())
    });
    groups.collect()
}

/// The settings that conversations start with.
pub(crate) fn settings() -> GroupSettings {
    GroupSettings {
        initial_rebalance_delay: Duration::from_millis(3_000),
        session_timeout_min_ms: 6_000,
        session_timeout_max_ms: 1_800_000,
        members_max: 5,
        metadata_max: 10,
        offsets_retention_ms: 600_000,
        expiry_interval: Duration::from_millis(60_000),
        step_bytes_max: 4_096,
    }
}

/// A conversation.
pub(crate) struct Talk {
    pub(crate) coordinator: Coordinator,
    pub(crate) log: Vec<KeyValue>,
    /// Questions without an answer.
    pub(crate) waiting: BTreeSet<u64>,
    settings: GroupSettings,
    elapsed: Duration,
    asked: u64,
    /// The members and generations that anybody was told of, by group.
    told: BTreeMap<u64, String>,
    /// How many members of a name there have been.
    born: BTreeMap<String, u64>,
    members: BTreeMap<String, BTreeMap<String, i32>>,
}

impl Default for Talk {
    fn default() -> Self {
        let settings = settings();
        let mut coordinator = Coordinator::new(settings.clone());
        let elapsed = Duration::ZERO;
        coordinator.start(Now { elapsed, wall: Timestamp::new(WALL) });
        Self {
            coordinator,
            log: Vec::new(),
            waiting: BTreeSet::new(),
            settings,
            elapsed,
            asked: 0,
            told: BTreeMap::new(),
            born: BTreeMap::new(),
            members: BTreeMap::new(),
        }
    }
}

/// The time of day at which conversations start.
const WALL: i64 = 1_000_000;

impl Talk {
    /// Members that were told of a generation or an id, with the last generation.
    pub(crate) fn members_of(&self, group: &str) -> Vec<(String, i32)> {
        self.members.get(group).into_iter().flatten().map(|(id, generation)| (id.clone(), *generation)).collect()
    }

    fn now(&self) -> Now {
        let elapsed = i64::try_from(self.elapsed.as_millis()).unwrap();
        Now { elapsed: self.elapsed, wall: Timestamp::new(WALL + elapsed) }
    }

    /// Acts on one line, and tells what came of it.
    pub(crate) fn command(&mut self, line: &str, told: &mut String) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "wait" => self.wait(Duration::from_millis(rest.parse().unwrap()), told),
            "restart" => self.restart(told),
            "set" => self.set(rest),
            "gone" => {
                let outcome = self.coordinator.forget_topics(self.now(), |topic, _| topic == rest);
                self.tell(outcome, told);
            }
            _ => {
                self.asked += 1;
                self.waiting.insert(self.asked);
                let command = self.parse(verb, rest);
                let group = rest.split(' ').next().unwrap().to_string();
                self.told.insert(self.asked, group);
                let outcome = self.coordinator.step(self.now(), Ticket(self.asked), command);
                self.tell(outcome, told);
                if self.waiting.contains(&self.asked) {
                    writeln!(told, "  #{} waits", self.asked).unwrap();
                }
            }
        }
    }

    fn parse(&mut self, verb: &str, rest: &str) -> Command {
        let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
        match verb {
            "join" => Command::Join(Box::new(self.join(&words))),
            "sync" => Command::Sync(sync(&words)),
            "heartbeat" => Command::Heartbeat(membership(&words)),
            "leave" => {
                Command::Leave(Leave { group: name(words[0]), members: words[1..].iter().map(leaving).collect() })
            }
            "commit" => Command::Commit(commit(&words)),
            "fetch" => Command::Offsets(Offsets { group: name(words[0]), wanted: wanted(&words[1..]) }),
            "delete-offsets" => {
                let entries = words[1..].iter().map(|word| partition(word)).collect();
                Command::DeleteOffsets(DeleteOffsets { group: name(words[0]), entries })
            }
            "delete" => Command::DeleteGroups(words.iter().map(|word| name(word)).collect()),
            "describe" => Command::Describe(name(words[0])),
            "list" => Command::List(filter(&words)),
            unknown => panic!("no command {unknown}"),
        }
    }

    fn join(&mut self, words: &[&str]) -> Join {
        let mut join = join(words);
        if join.member.is_empty() {
            let name = join.instance.as_ref().unwrap_or(&join.client_id).to_string();
            let number = self.born.entry(name).or_default();
            *number += 1;
            join.fresh = bits(*number);
        }
        join
    }

    fn wait(&mut self, span: Duration, told: &mut String) {
        let until = self.elapsed + span;
        while self.coordinator.next_deadline() <= until {
            self.elapsed = self.elapsed.max(self.coordinator.next_deadline());
            let mut here = String::new();
            let outcome = self.coordinator.tick(self.now());
            self.tell(outcome, &mut here);
            if !here.is_empty() {
                write!(told, "  at {}\n{here}", self.elapsed.as_millis()).unwrap();
            }
        }
        self.elapsed = until;
    }

    fn restart(&mut self, told: &mut String) {
        let mut coordinator = Coordinator::new(self.settings.clone());
        for KeyValue { key, value } in &self.log {
            coordinator.replay_bytes(key, value.as_deref()).unwrap();
        }
        let outcome = coordinator.start(self.now());
        let before = std::mem::replace(&mut self.coordinator, coordinator);
        let answers = before.abandon(ErrorCode::NotCoordinator);
        self.tell(Outcome { answers, records: Vec::new() }, told);
        self.tell(outcome, told);
    }

    fn set(&mut self, rest: &str) {
        let (name, value) = rest.split_once('=').unwrap();
        match name {
            "members_max" => self.settings.members_max = value.parse().unwrap(),
            "delay" => self.settings.initial_rebalance_delay = Duration::from_millis(value.parse().unwrap()),
            unknown => panic!("no setting {unknown}"),
        }
        self.restart(&mut String::new());
    }

    fn tell(&mut self, outcome: Outcome, told: &mut String) {
        for record in &outcome.records {
            let bytes = record.encode();
            assert_eq!(GroupRecord::decode(&bytes.key, bytes.value.as_deref()).as_ref(), Ok(record));
            self.log.push(bytes);
            writeln!(told, "  + {}", short(&describe(record))).unwrap();
        }
        for (Ticket(ticket), response) in outcome.answers {
            assert!(self.waiting.remove(&ticket), "#{ticket} is answered twice, or was never asked");
            if let Response::Join(joined) = &response
                && !joined.member.is_empty()
            {
                let members = self.members.entry(self.told[&ticket].clone()).or_default();
                let generation = joined.result.as_ref().map_or(-1, |joined| joined.generation);
                members.insert(short(&joined.member), generation);
                while members.len() > 12 {
                    members.pop_first();
                }
            }
            writeln!(told, "  #{ticket} {}", short(&respond(&response))).unwrap();
        }
    }
}

/// The Nth id in full and in short.
fn bits(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

const UUID_START: &str = "-00000000-0000-4000-8000-";

fn short(text: &str) -> String {
    let mut parts = text.split(UUID_START);
    let mut out = parts.next().unwrap().to_string();
    for part in parts {
        let (number, rest) = part.split_at(12);
        write!(out, "~{}{rest}", u64::from_str_radix(number, 16).unwrap()).unwrap();
    }
    out
}

fn id(text: &str) -> Arc<str> {
    match text.split_once('~') {
        _ if text == "-" => Arc::default(),
        Some((name, number)) => format!("{name}{UUID_START}{:012x}", number.parse::<u64>().unwrap()).into(),
        None => text.into(),
    }
}

fn name(text: &str) -> Arc<str> {
    let text = if text == "''" { "" } else { text };
    match text.split_once('*') {
        Some((letter, count)) => letter.repeat(count.parse().unwrap()).into(),
        None => text.into(),
    }
}

/// Words of the form `name=value`.
fn pairs<'a>(words: &'a [&'a str]) -> impl Iterator<Item = (&'a str, &'a str)> {
    words.iter().filter_map(|word| word.split_once('='))
}

fn join(words: &[&str]) -> Join {
    let mut join = Join {
        group: name(words[0]),
        member: Arc::default(),
        instance: None,
        client_id: "c".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: Vec::new(),
        needs_known_id: true,
        may_skip_assignment: true,
        fresh: [0; 16],
    };
    for (key, value) in pairs(&words[1..]) {
        match key {
            "member" => join.member = id(value),
            "instance" => join.instance = Some(value.into()),
            "client" => join.client_id = value.into(),
            "session" => join.session_timeout_ms = value.parse().unwrap(),
            "rebalance" => join.rebalance_timeout_ms = value.parse().unwrap(),
            "type" => join.protocol_type = name(value),
            "v" => {
                let version: i16 = value.parse().unwrap();
                (join.needs_known_id, join.may_skip_assignment) = (version >= 4, version >= 9);
            }
            assignor => join.protocols.push(Protocol { name: assignor.into(), metadata: subscription(value) }),
        }
    }
    join
}

/// What a consumer of these topics tells its assignor; after `raw:`, bytes that are no such thing.
fn subscription(topics: &str) -> Arc<[u8]> {
    if let Some(raw) = topics.strip_prefix("raw:") {
        return name(raw).as_bytes().into();
    }
    let topics: Vec<&str> = topics.split(',').collect();
    let subscription = ConsumerProtocolSubscription { topics: topics.into(), ..Default::default() };
    let mut writer = Writer::new();
    encode_versioned(&subscription, &mut writer, 0).unwrap();
    writer.into_bytes().into()
}

fn membership(words: &[&str]) -> Membership {
    let instance = pairs(words).find(|(key, _)| *key == "instance").map(|(_, value)| value.into());
    Membership { group: name(words[0]), generation: words[1].parse().unwrap(), member: id(words[2]), instance }
}

fn sync(words: &[&str]) -> Sync {
    let mut sync = Sync { of: membership(words), protocol_type: None, protocol: None, assignments: Vec::new() };
    for (key, value) in pairs(&words[3..]) {
        match key {
            "type" => sync.protocol_type = Some(value.into()),
            "protocol" => sync.protocol = Some(value.into()),
            "instance" => {}
            give => sync.assignments.push((id(give.strip_prefix("give:").unwrap()), name(value).as_bytes().into())),
        }
    }
    sync
}

fn leaving(word: &&str) -> Leaving {
    let (member, instance) = word.split_once('/').map_or((*word, None), |(member, instance)| (member, Some(instance)));
    Leaving { member: id(member), instance: instance.map(Arc::from) }
}

fn partition(word: &str) -> (Arc<str>, i32) {
    let (topic, index) = word.rsplit_once(':').unwrap();
    (name(topic), index.parse().unwrap())
}

fn commit(words: &[&str]) -> Commit {
    let mut commit =
        Commit { of: membership(words), no_group: ErrorCode::GroupIdNotFound, retention_ms: None, entries: Vec::new() };
    for (key, value) in pairs(&words[3..]) {
        match key {
            "retention" => commit.retention_ms = Some(value.parse().unwrap()),
            "instance" => {}
            at => {
                let (topic, index) = partition(at);
                let (offset, metadata) = value.split_once('/').unwrap_or((value, ""));
                commit.entries.push(CommitEntry {
                    topic_id: TopicId::new([topic.as_bytes()[0]; 16]),
                    topic,
                    partition: index,
                    offset: offset.parse().unwrap(),
                    leader_epoch: LeaderEpoch::new(1),
                    metadata: (*name(metadata)).into(),
                });
            }
        }
    }
    commit
}

fn wanted(words: &[&str]) -> Option<Vec<(Arc<str>, Vec<i32>)>> {
    let wanted = words.iter().map(|word| partition(word)).map(|(topic, index)| (topic, vec![index]));
    (words != ["all"]).then(|| wanted.collect())
}

fn filter(words: &[&str]) -> Filter {
    let mut filter = Filter::default();
    for (key, value) in pairs(words) {
        match key {
            "state" => filter.states.push(value.into()),
            "type" => filter.types.push(value.into()),
            unknown => panic!("no filter {unknown}"),
        }
    }
    filter
}

fn result(result: Result<(), ErrorCode>) -> &'static str {
    result.map_or_else(ErrorCode::name, |()| "ok")
}

fn text(bytes: &[u8]) -> String {
    let text: String =
        bytes.iter().map(|byte| char::from(*byte)).map(|c| if (' '..='~').contains(&c) { c } else { '.' }).collect();
    if text.len() > 40 { format!("{} bytes", text.len()) } else { format!("'{text}'") }
}

fn respond(response: &Response) -> String {
    match response {
        Response::Join(joined) => respond_join(joined),
        Response::Sync(synced) => match &synced.result {
            Err(error) => error.name().to_string(),
            Ok(synced) => {
                format!("synced {:?} {:?} {}", synced.protocol_type, synced.protocol, text(&synced.assignment))
            }
        },
        Response::Heartbeat(heard) => result(*heard).to_string(),
        Response::Leave(members) => {
            let member = |it: &heddle_cluster::group::command::LeftMember| {
                format!("'{}' {:?} {}", it.who.member, it.who.instance, result(it.result))
            };
            members.iter().map(member).collect::<Vec<_>>().join("; ")
        }
        Response::Commit(results) | Response::DeleteOffsets(results) => match results {
            Err(error) => format!("all {}", error.name()),
            Ok(results) => results.iter().map(|it| result(*it)).collect::<Vec<_>>().join(" "),
        },
        Response::Offsets(topics) => {
            let all = topics.iter().flat_map(|topic| topic.partitions.iter().map(move |it| (&topic.topic, it)));
            let one = |(topic, (index, found)): (&Arc<str>, &(i32, Option<CommittedOffset>))| match found {
                None => format!("{topic}:{index} none"),
                Some(it) => format!("{topic}:{index} {} epoch {} '{}'", it.offset, it.leader_epoch, it.metadata),
            };
            format!("offsets {}", all.map(one).collect::<Vec<_>>().join("; "))
        }
        Response::DeleteGroups(results) => results.iter().map(|it| result(*it)).collect::<Vec<_>>().join(" "),
        Response::Describe(None) => "no such group".to_string(),
        Response::Describe(Some(group)) => {
            let mut out = format!("{} '{}' {:?}", group.state, group.protocol_type, group.protocol);
            for it in &group.members {
                let (metadata, assignment) = (text(&it.metadata), text(&it.assignment));
                let who = format!("{} {:?} of {} at {}", it.id, it.instance, it.client_id, it.client_host);
                write!(out, "\n     {who}: {metadata} {assignment}").unwrap();
            }
            out
        }
        Response::List(groups) => {
            let group = |it: &heddle_cluster::group::command::Listed| {
                format!("{} '{}' {}", it.group, it.protocol_type, it.state)
            };
            format!("groups {}", groups.iter().map(group).collect::<Vec<_>>().join("; "))
        }
        Response::Gone(error) => format!("gone {}", error.name()),
    }
}

fn respond_join(joined: &Joined) -> String {
    match &joined.result {
        Err(error) => format!("'{}' {}", joined.member, error.name()),
        Ok(it) => {
            let mut out = format!(
                "{} joins generation {} {:?} {:?}",
                joined.member, it.generation, it.protocol_type, it.protocol
            );
            write!(out, " led by {}", it.leader).unwrap();
            if it.skip_assignment {
                out.push_str(", assigns nothing");
            }
            for member in &it.members {
                write!(out, "\n     {} {:?} {}", member.id, member.instance, text(&member.metadata)).unwrap();
            }
            out
        }
    }
}

fn describe(record: &GroupRecord) -> String {
    match record {
        GroupRecord::Group { group, stored: None } => format!("group {group} is gone"),
        GroupRecord::Group { group, stored: Some(it) } => {
            let mut out =
                format!("group {group} '{}' generation {} {:?}", it.protocol_type, it.generation, it.protocol);
            write!(out, " led by {:?} since {}", it.leader, it.changed_at).unwrap();
            for member in &it.members {
                let timeouts = format!("{}/{}", member.session_timeout_ms, member.rebalance_timeout_ms);
                write!(out, "\n     {} {:?} {timeouts} {}", member.id, member.instance, text(&member.assignment))
                    .unwrap();
            }
            out
        }
        GroupRecord::Offset { group, topic, partition, committed: None } => {
            format!("{group} {topic}:{partition} is gone")
        }
        GroupRecord::Offset { group, topic, partition, committed: Some(it) } => {
            let expiry =
                if it.expires_at == Timestamp::NONE { String::new() } else { format!(" until {}", it.expires_at) };
            format!(
                "{group} {topic}:{partition} = {} epoch {} '{}' at {}{expiry}",
                it.offset, it.leader_epoch, it.metadata, it.committed_at
            )
        }
    }
}
