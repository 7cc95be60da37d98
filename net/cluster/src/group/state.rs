//! One group: what its records say, and the rebalance that is under way.
//!
//! ```text
//!            a member joins                 all joined, or time is up           the leader's assignment
//!   Empty ──────────────────▶ Preparing ────────────────────────────▶ Completing ─────────────────────▶ Stable
//!     ▲                         ▲  │                                       │  a member joins anew,        │
//!     │      nobody is left     │  │                                       │  changes, leaves, is silent  │
//!     └─────────────────────────┼──┘                                       │                              │
//!                               └──────────────────────────────────────────┴──────────────────────────────┘
//! ```
//!
//! Owns the two halves of a group. What is *stored* (the last generation that was written down, its members, their
//! assignment, the offsets) changes in [`Group::replay`] alone, and what that calls. What is *under way* (who has joined, who waits, until
//! when) lives in memory: after a restart the members find their sessions still running, or join again.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use core::time::Duration;

use heddle_record::Timestamp;

use super::members::Members;
use super::record::{CommittedOffset, GroupRecord, StoredGroup};
use super::subscription;

/// The type of groups whose members are consumers.
pub(super) const CONSUMER: &str = "consumer";

/// A group.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Group {
    /// What the last record says.
    pub(super) stored: Option<StoredGroup>,
    /// By topic and partition.
    pub(super) offsets: BTreeMap<Arc<str>, BTreeMap<i32, CommittedOffset>>,

    pub(super) phase: Phase,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<Arc<str>>,
    pub(super) protocol: Option<Arc<str>>,
    pub(super) leader: Option<Arc<str>>,
    pub(super) members: Members,
    /// Ids that were given to members which have not come back with them, and until when they may (KIP-394).
    pub(super) pending: BTreeMap<Arc<str>, Duration>,
    /// Members that have joined this generation and not asked for its assignment.
    pub(super) unsynced: BTreeSet<Arc<str>>,
    /// When those count as gone.
    pub(super) sync_deadline: Option<Duration>,
    /// When the group is looked at next, at the latest: what the coordinator's list of timers says.
    pub(super) wakes_at: Option<Duration>,
    /// A deadline that was set since, where it is earlier.
    pub(super) wanted_at: Option<Duration>,
}

/// Where a group is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Empty,
    Preparing(Preparing),
    Completing,
    Stable,
}

/// A rebalance that waits for members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Preparing {
    /// The group was empty before: members are waited for, whether known ones are missing or not.
    pub(super) first: Option<FirstWait>,
    /// When the wait ends; none while it has not been set.
    pub(super) deadline: Option<Duration>,
}

/// The wait of a group that was empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FirstWait {
    /// How long the wait that is under way was meant to be.
    pub(super) delay: Duration,
    /// How much longer it may be made.
    pub(super) left: Duration,
    /// A member has come since it was last made longer.
    pub(super) has_grown: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            stored: None,
            offsets: BTreeMap::new(),
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: Members::default(),
            pending: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            sync_deadline: None,
            wakes_at: None,
            wanted_at: None,
        }
    }
}

impl Group {
    /// Takes over what a record of this group says. The only way in which what is stored changes.
    pub(super) fn replay(&mut self, record: GroupRecord) {
        match record {
            GroupRecord::Group { stored: Some(stored), .. } => {
                self.adopt(&stored);
                self.stored = Some(stored);
            }
            GroupRecord::Group { stored: None, .. } => {
                let offsets = core::mem::take(&mut self.offsets);
                *self = Self { offsets, wakes_at: self.wakes_at, ..Self::default() };
            }
            GroupRecord::Offset { topic, partition, committed: Some(committed), .. } => {
                self.remember(topic, partition, committed);
            }
            GroupRecord::Offset { topic, partition, committed: None, .. } => {
                if let Some(partitions) = self.offsets.get_mut(&topic) {
                    partitions.remove(&partition);
                    if partitions.is_empty() {
                        self.offsets.remove(&topic);
                    }
                }
            }
        }
    }

    /// Takes over the offset that a record of this group says.
    pub(super) fn remember(
        &mut self,
        topic: impl AsRef<str> + Into<Arc<str>>,
        partition: i32,
        committed: CommittedOffset,
    ) {
        match self.offsets.get_mut(topic.as_ref()) {
            Some(partitions) => drop(partitions.insert(partition, committed)),
            None => drop(self.offsets.insert(topic.into(), BTreeMap::from([(partition, committed)]))),
        }
    }

    fn adopt(&mut self, stored: &StoredGroup) {
        self.generation = stored.generation;
        self.protocol_type = Some(&stored.protocol_type).filter(|name| !name.is_empty()).cloned();
        self.protocol = stored.protocol.clone();
        self.leader = stored.leader.clone();
        self.members.adopt(&stored.members, stored.protocol.as_ref());
        self.phase = if stored.members.is_empty() { Phase::Empty } else { Phase::Stable };
    }

    /// Whether nothing would be lost if nobody remembered the group.
    pub(super) fn is_vacant(&self) -> bool {
        self.stored.is_none() && self.offsets.is_empty() && self.members.is_empty() && self.pending.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.phase == Phase::Empty
    }

    pub(super) fn preparing(&mut self) -> Option<&mut Preparing> {
        match &mut self.phase {
            Phase::Preparing(preparing) => Some(preparing),
            _ => None,
        }
    }

    /// Kafka's name of the group's state.
    pub(super) fn state(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "Empty",
            Phase::Preparing(_) => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }

    pub(super) fn is_leader(&self, member: &str) -> bool {
        self.leader.as_deref() == Some(member)
    }

    /// Whether a member with these assignors has one in common with all the others.
    pub(super) fn supports<'p>(
        &self,
        protocol_type: &str,
        mut protocols: impl ExactSizeIterator<Item = &'p str>,
    ) -> bool {
        if self.is_empty() {
            return !protocol_type.is_empty() && protocols.len() > 0;
        }
        self.protocol_type.as_deref() == Some(protocol_type) && protocols.any(|name| self.members.all_know(name))
    }

    /// The topics that the members read, where that can be known.
    pub(super) fn subscribed_topics(&self) -> Option<BTreeSet<&str>> {
        if self.protocol_type.as_deref() != Some(CONSUMER) {
            return None;
        } else if self.members.is_empty() {
            return Some(BTreeSet::new());
        }
        let protocol = self.protocol.as_deref()?;
        let mut topics = BTreeSet::new();
        for (_, member) in self.members.iter() {
            let known = member.protocols.iter().find(|known| &*known.name == protocol)?;
            topics.extend(subscription::topics(&known.metadata)?);
        }
        Some(topics)
    }

    /// Whether a topic's offsets are in use: where that cannot be known, they are.
    pub(super) fn is_subscribed_to(&self, topic: &str, topics: Option<&BTreeSet<&str>>) -> bool {
        topics.map_or_else(|| self.protocol_type.as_deref() == Some(CONSUMER), |topics| topics.contains(topic))
    }

    /// When the group became what it is, where it is empty.
    pub(super) fn empty_since(&self) -> Option<Timestamp> {
        self.stored.as_ref().map(|stored| stored.changed_at).filter(|time| *time != Timestamp::NONE)
    }

    /// Asks to be looked at by this time.
    pub(super) fn wake_by(&mut self, deadline: Duration) {
        self.wanted_at = Some(self.wanted_at.map_or(deadline, |wanted| wanted.min(deadline)));
    }

    /// The earliest of all deadlines.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let sessions = self.members.iter().filter(|(_, member)| member.can_expire());
        let sessions = sessions.filter_map(|(_, member)| member.deadline);
        let rebalance = match &self.phase {
            Phase::Preparing(preparing) => preparing.deadline,
            _ => None,
        };
        sessions.chain(self.pending.values().copied()).chain(rebalance).chain(self.sync_deadline).min()
    }

    /// # Panics
    /// When the parts contradict each other.
    pub(super) fn check_invariants(&self) {
        self.members.check_invariants();
        match &self.phase {
            Phase::Empty => assert!(self.members.is_empty() && self.unsynced.is_empty()),
            Phase::Preparing(preparing) => {
                assert!(preparing.deadline.is_some(), "no rebalance waits for ever");
                assert!(!self.members.is_empty(), "somebody is waited for");
            }
            Phase::Completing => {
                assert!(self.leader.as_ref().is_some_and(|leader| self.members.find(leader).is_some()));
                assert!(self.members.iter().all(|(_, member)| member.joining.is_none()));
                assert!(self.protocol.is_some());
                assert!(self.unsynced.is_empty() || self.sync_deadline.is_some());
            }
            Phase::Stable => {
                assert!(!self.members.is_empty());
                assert!(self.members.iter().all(|(_, member)| member.joining.is_none() && member.syncing.is_none()));
                let stored = self.stored.as_ref().expect("a stable group is written down");
                assert_eq!(stored.generation, self.generation);
            }
        }
        assert!(self.unsynced.iter().all(|id| self.members.find(id).is_some()));
        assert!(self.pending.keys().all(|id| self.members.find(id).is_none()));
    }
}
