//! Consumer groups: one [`Coordinator`] for each partition of `__consumer_offsets`, decided by one function.
//!
//! [`Coordinator::step`] takes a command and the time and gives an [`Outcome`]: records to append and answers to send
//! once they are committed. The records are replayed into the coordinator before `step` returns, so that the next step
//! decides on them; what is stored of a group changes in no other way. So any log that a coordinator wrote, cut
//! anywhere, loads into the groups as they were then.
//!
//! What is not stored is the rebalance under way: who has joined and who waits. A coordinator that starts from its log
//! ([`Coordinator::replay_bytes`], then [`Coordinator::start`]) gives the members it finds their whole session to come back.
//!
//! - [`mod@command`]: what can be asked, and the answers.
//! - [`record`]: the records, and their bytes.
//! - `state`, `members`, `rebalance`, `join`, `membership`, `offsets`: the classic protocol (JoinGroup and SyncGroup,
//!   with KIP-345, KIP-394 and KIP-429), and committed offsets.
//!
//! No clock and no randomness: the time and random bits are arguments.

pub mod command;
mod join;
mod members;
mod membership;
mod offsets;
mod place;
mod rebalance;
pub mod record;
mod state;
mod subscription;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use heddle_protocol::ErrorCode;
use heddle_record::TopicId;

pub use command::{Command, GroupSettings, Now, Outcome, Response, Ticket};
pub use place::partition_of;
pub use record::{BadRecord, CommittedOffset, GroupRecord, KeyValue, StoredGroup, StoredMember};

use command::{Described, DescribedMember, Filter, Join, Listed};
use rebalance::Turn;
use record::{OffsetRecord, Read};
use state::{Group, Phase};

/// The name of the topic whose partitions coordinators write to.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// What a group of the classic protocol is called where types are listed.
pub const CLASSIC: &str = "classic";

/// All groups of one partition of `__consumer_offsets`.
#[derive(Debug)]
pub struct Coordinator {
    settings: GroupSettings,
    groups: BTreeMap<Arc<str>, Group>,
    /// When each group is to be looked at: no later than its earliest deadline.
    timers: BTreeSet<(Duration, Arc<str>)>,
    /// When expired offsets are looked for.
    expiry_at: Duration,
}

/// What is stored of a group: the same after a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Durable<'a> {
    /// The group.
    pub group: &'a str,
    /// Its last record.
    pub stored: Option<&'a StoredGroup>,
    /// What it has committed.
    pub offsets: Vec<(&'a str, i32, &'a CommittedOffset)>,
}

/// An offset that is committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    /// By whom.
    pub group: &'a Arc<str>,
    /// In which topic.
    pub topic: &'a Arc<str>,
    /// And partition.
    pub partition: i32,
    /// What.
    pub committed: &'a CommittedOffset,
}

impl Coordinator {
    /// A coordinator without groups: replay its partition's log, then start it.
    pub fn new(settings: GroupSettings) -> Self {
        Self { settings, groups: BTreeMap::new(), timers: BTreeSet::new(), expiry_at: Duration::MAX }
    }

    /// Takes over a record of the log.
    pub fn replay(&mut self, record: GroupRecord) {
        let (GroupRecord::Group { group: name, .. } | GroupRecord::Offset { group: name, .. }) = &record;
        if !self.groups.contains_key(name) {
            self.groups.insert(Arc::clone(name), Group::default());
        }
        let name = Arc::clone(name);
        let group = self.groups.get_mut(&name).expect("it was just put there");
        group.replay(record);
        if group.is_vacant() {
            self.drop_group(&name);
        }
    }

    /// Takes over a record of the log from its bytes.
    ///
    /// # Errors
    /// As [`GroupRecord::decode`]; nothing has changed.
    pub fn replay_bytes(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), BadRecord> {
        let record = match Read::decode(key, value)? {
            Read::Offset(OffsetRecord { group, topic, partition, committed: Some(committed) }) => {
                // Nearly all records are these, and of groups and topics that are known: nothing is made anew of their names.
                if let Some(known) = self.groups.get_mut(group) {
                    known.remember(topic, partition, committed);
                    return Ok(());
                }
                GroupRecord::Offset { group: group.into(), topic: topic.into(), partition, committed: Some(committed) }
            }
            Read::Offset(OffsetRecord { group, topic, partition, committed: None }) => {
                GroupRecord::Offset { group: group.into(), topic: topic.into(), partition, committed: None }
            }
            Read::Group(record) => record,
        };
        self.replay(record);
        Ok(())
    }

    /// The log is replayed: sessions run from now on, and a group that is larger than allowed gives up members.
    pub fn start(&mut self, now: Now) -> Outcome {
        self.expiry_at = now.elapsed + self.settings.expiry_interval;
        let mut outcome = Outcome::default();
        for name in self.names() {
            self.with(&name, now, &mut outcome, |turn| {
                let ids: Vec<Arc<str>> = turn.group.members.ids().cloned().collect();
                let is_too_large = ids.len() > turn.settings.members_max;
                for id in ids {
                    turn.extend_session(&id);
                }
                if is_too_large {
                    turn.prepare();
                }
            });
        }
        outcome
    }

    /// When [`Coordinator::tick`] is due.
    pub fn next_deadline(&self) -> Duration {
        self.timers.first().map_or(self.expiry_at, |(deadline, _)| self.expiry_at.min(*deadline))
    }

    /// Does what is due by now.
    pub fn tick(&mut self, now: Now) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((deadline, _)) = self.timers.first()
            && *deadline <= now.elapsed
        {
            let (_, name) = self.timers.pop_first().expect("there is a first");
            self.groups.get_mut(&name).expect("timers are those of groups").wakes_at = None;
            self.with(&name, now, &mut outcome, |turn| {
                if let Some(next) = turn.group.next_deadline() {
                    turn.group.wake_by(next);
                }
            });
        }
        if self.expiry_at <= now.elapsed {
            self.expiry_at = now.elapsed + self.settings.expiry_interval;
            for name in self.names() {
                self.with(&name, now, &mut outcome, |turn| turn.expire_offsets());
            }
        }
        outcome
    }

    /// Forgets the offsets of topics that are gone, in all groups: those for which `is_gone` says so of the name and the
    /// id, which is zero where an offset of old has none.
    pub fn forget_topics(&mut self, now: Now, is_gone: impl Fn(&str, TopicId) -> bool) -> Outcome {
        let mut outcome = Outcome::default();
        for name in self.names() {
            self.with(&name, now, &mut outcome, |turn| turn.forget_topics(&is_gone));
        }
        outcome
    }

    /// Gives up: answers for everybody who waits. Nothing may be asked of this coordinator any more.
    pub fn abandon(self, error: ErrorCode) -> Vec<(Ticket, Response)> {
        let members = self.groups.values().flat_map(|group| group.members.iter());
        let waiting = members.flat_map(|(_, member)| [member.joining, member.syncing]);
        waiting.flatten().map(|ticket| (ticket, Response::Gone(error))).collect()
    }

    /// Decides one command.
    pub fn step(&mut self, now: Now, ticket: Ticket, command: Command) -> Outcome {
        let mut outcome = Outcome::default();
        let refusal = match command {
            Command::Join(join) => self.join(now, ticket, *join, &mut outcome),
            Command::Sync(sync) => {
                let name = Arc::clone(&sync.of.group);
                self.at_group(&name, now, &mut outcome, |turn| turn.sync(ticket, sync))
                    .then_some(membership::unsynced(absent(&name)))
            }
            Command::Heartbeat(of) => self
                .at_group(&of.group, now, &mut outcome, |turn| turn.heartbeat(ticket, &of))
                .then_some(Response::Heartbeat(Err(absent(&of.group)))),
            Command::Leave(leave) => {
                let strangers = leave
                    .members
                    .iter()
                    .map(|who| command::LeftMember { who: who.clone(), result: Err(ErrorCode::UnknownMemberId) });
                let strangers = strangers.collect();
                let name = Arc::clone(&leave.group);
                self.at_group(&name, now, &mut outcome, |turn| turn.leave(ticket, leave))
                    .then_some(Response::Leave(strangers))
            }
            Command::Commit(commit) => {
                let name = Arc::clone(&commit.of.group);
                if !self.groups.contains_key(&name) && commit.of.generation >= 0 {
                    Some(Response::Commit(Err(commit.no_group)))
                } else {
                    // A simple consumer needs no group that is there before.
                    self.groups.entry(Arc::clone(&name)).or_default();
                    self.with(&name, now, &mut outcome, |turn| turn.commit(ticket, commit));
                    None
                }
            }
            Command::Offsets(offsets) => Some(match self.groups.get(&offsets.group) {
                Some(group) => Response::Offsets(group.committed(offsets.wanted)),
                None => offsets::nothing(offsets),
            }),
            Command::DeleteOffsets(delete) => {
                let name = Arc::clone(&delete.group);
                self.at_group(&name, now, &mut outcome, |turn| turn.delete_offsets(ticket, delete))
                    .then_some(Response::DeleteOffsets(Err(ErrorCode::GroupIdNotFound)))
            }
            Command::DeleteGroups(names) => Some(self.delete_groups(now, names, &mut outcome)),
            Command::Describe(name) => Some(Response::Describe(self.groups.get(&name).map(|group| group.describe()))),
            Command::List(filter) => Some(Response::List(self.list(&filter))),
        };
        outcome.answers.extend(refusal.map(|response| (ticket, response)));
        outcome
    }

    fn join(&mut self, now: Now, ticket: Ticket, join: Join, outcome: &mut Outcome) -> Option<Response> {
        if let Some(error) = join::refusal(&self.settings, &join) {
            return Some(join::refused(join.member, error));
        }
        let name = Arc::clone(&join.group);
        if !self.groups.contains_key(&name) {
            if !join.member.is_empty() {
                return Some(join::refused(join.member, ErrorCode::UnknownMemberId));
            }
            self.groups.insert(Arc::clone(&name), Group::default());
        }
        self.with(&name, now, outcome, |turn| turn.join(ticket, join));
        None
    }

    fn delete_groups(&mut self, now: Now, names: Vec<Arc<str>>, outcome: &mut Outcome) -> Response {
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            let mut result = Err(ErrorCode::GroupIdNotFound);
            self.at_group(&name, now, outcome, |turn| result = turn.delete());
            results.push(result);
        }
        Response::DeleteGroups(results)
    }

    fn list(&self, filter: &Filter) -> Vec<Listed> {
        let takes = |words: &[Arc<str>], name: &str| {
            words.is_empty() || words.iter().any(|word| word.eq_ignore_ascii_case(name))
        };
        if !takes(&filter.types, CLASSIC) {
            return Vec::new();
        }
        let groups = self.groups.iter().filter(|(_, group)| takes(&filter.states, group.state()));
        let listed = groups.map(|(name, group)| Listed {
            group: Arc::clone(name),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            state: group.state(),
        });
        listed.collect()
    }

    /// What is stored, by group.
    pub fn durable(&self) -> impl Iterator<Item = Durable<'_>> {
        let groups = self.groups.iter().filter(|(_, group)| group.stored.is_some() || !group.offsets.is_empty());
        groups.map(|(name, group)| Durable {
            group: name,
            stored: group.stored.as_ref(),
            offsets: group
                .offsets
                .iter()
                .flat_map(|(topic, partitions)| {
                    partitions.iter().map(move |(index, offset)| (&**topic, *index, offset))
                })
                .collect(),
        })
    }

    /// The groups and their states, in Kafka's words, in the order of names.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<str>, &'static str)> {
        self.groups.iter().map(|(name, group)| (name, group.state()))
    }

    /// What is committed, in the order of groups, topics and partitions. Costs what is taken of it.
    pub fn commits(&self) -> impl Iterator<Item = Committed<'_>> {
        self.groups.iter().flat_map(|(group, state)| {
            state.offsets.iter().flat_map(move |(topic, partitions)| {
                partitions.iter().map(move |(partition, committed)| Committed {
                    group,
                    topic,
                    partition: *partition,
                    committed,
                })
            })
        })
    }

    /// How many offsets are committed. Costs a look at each topic of each group.
    pub fn commit_count(&self) -> usize {
        let topics = self.groups.values().flat_map(|group| group.offsets.values());
        topics.map(BTreeMap::len).sum()
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.groups.keys().cloned().collect()
    }

    /// Takes a turn at a group that is there; whether it is not.
    fn at_group(&mut self, name: &str, now: Now, outcome: &mut Outcome, act: impl FnOnce(&mut Turn<'_>)) -> bool {
        let Some((name, _)) = self.groups.get_key_value(name) else { return true };
        let name = Arc::clone(name);
        self.with(&name, now, outcome, act);
        false
    }

    /// Takes a turn at a group, does what is due after it, and sets its timer.
    fn with(&mut self, name: &Arc<str>, now: Now, outcome: &mut Outcome, act: impl FnOnce(&mut Turn<'_>)) {
        let group = self.groups.get_mut(name).expect("a turn is taken at a group that is there");
        let mut turn = Turn { name: Arc::clone(name), group, settings: &self.settings, now, outcome };
        act(&mut turn);
        if turn.group.wanted_at.is_some_and(|wanted| wanted <= now.elapsed) {
            turn.expire();
            turn.group.wanted_at = turn.group.next_deadline();
        }
        debug_assert_eq!((), group.check_invariants());
        if group.is_vacant() {
            return self.drop_group(&Arc::clone(name));
        }
        if let Some(wanted) = group.wanted_at.take()
            && group.wakes_at.is_none_or(|wakes| wanted < wakes)
        {
            if let Some(before) = group.wakes_at.replace(wanted) {
                self.timers.remove(&(before, Arc::clone(name)));
            }
            self.timers.insert((wanted, Arc::clone(name)));
        }
    }

    fn drop_group(&mut self, name: &Arc<str>) {
        if let Some(group) = self.groups.remove(name)
            && let Some(wakes) = group.wakes_at
        {
            self.timers.remove(&(wakes, Arc::clone(name)));
        }
    }

    /// Checks what must hold between the parts of a coordinator.
    ///
    /// # Panics
    /// When it does not: a fault of ours.
    pub fn check_invariants(&self) {
        for (name, group) in &self.groups {
            group.check_invariants();
            assert!(!group.is_vacant(), "nobody remembers {name} for nothing");
            match (group.wakes_at, group.next_deadline()) {
                (Some(wakes), next) => {
                    assert!(self.timers.contains(&(wakes, Arc::clone(name))));
                    assert!(next.is_none_or(|next| wakes <= next), "{name} is looked at too late");
                }
                (None, next) => assert_eq!(next, None, "{name} is never looked at"),
            }
        }
        assert_eq!(self.timers.len(), self.groups.values().filter(|group| group.wakes_at.is_some()).count());
    }
}

/// What a member is told of a group that is not there.
fn absent(group: &str) -> ErrorCode {
    if group.is_empty() { ErrorCode::InvalidGroupId } else { ErrorCode::UnknownMemberId }
}

impl Group {
    fn describe(&self) -> Box<Described> {
        // What members tell an assignor means something in a stable group alone; what they have they keep until they are
        // given something else.
        let protocol = self.protocol.as_ref().filter(|_| self.phase == Phase::Stable);
        let members = self.members.iter().map(|(id, member)| DescribedMember {
            id: Arc::clone(id),
            instance: member.instance.clone(),
            client_id: Arc::clone(&member.client_id),
            client_host: Arc::clone(&member.client_host),
            metadata: protocol.map(|protocol| member.metadata(protocol)).unwrap_or_default(),
            assignment: Arc::clone(&member.assignment),
        });
        Box::new(Described {
            state: self.state(),
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.cloned(),
            members: members.collect(),
        })
    }
}
