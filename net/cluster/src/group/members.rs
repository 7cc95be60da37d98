//! The members of a group, and what they agree on.
//!
//! Owns the list, the names over restarts (KIP-345) and the choice of the assignor. Knows no state and no time but the
//! deadlines that it keeps for others.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::command::{JoinedMember, Protocol, Ticket};
use super::record::StoredMember;

/// A member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) instance: Option<Arc<str>>,
    pub(super) client_id: Arc<str>,
    pub(super) client_host: Arc<str>,
    pub(super) session_timeout_ms: i32,
    pub(super) rebalance_timeout_ms: i32,
    pub(super) protocols: Vec<Protocol>,
    pub(super) assignment: Arc<[u8]>,
    /// Its JoinGroup that waits for the group to be complete.
    pub(super) joining: Option<Ticket>,
    /// Its SyncGroup that waits for the assignment.
    pub(super) syncing: Option<Ticket>,
    /// It has never been told its id: no heartbeat can come from it yet.
    pub(super) is_new: bool,
    /// When it counts as gone.
    pub(super) deadline: Option<Duration>,
}

impl Member {
    /// What it tells an assignor.
    pub(super) fn metadata(&self, protocol: &str) -> Arc<[u8]> {
        let known = self.protocols.iter().find(|known| &*known.name == protocol);
        known.map(|known| Arc::clone(&known.metadata)).unwrap_or_default()
    }

    pub(super) fn session_timeout(&self) -> Duration {
        milliseconds(self.session_timeout_ms)
    }

    /// Whether the end of its session counts: who waits for others cannot be silent, unless it has no id yet.
    pub(super) fn can_expire(&self) -> bool {
        self.is_new || (self.joining.is_none() && self.syncing.is_none())
    }
}

/// A number of milliseconds from a client; negative ones are none.
pub(super) fn milliseconds(number: i32) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

/// The members of a group, by id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<Arc<str>, Member>,
    instances: BTreeMap<Arc<str>, Arc<str>>,
    /// How many members know each assignor.
    votes: BTreeMap<Arc<str>, usize>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Member)> {
        self.members.iter()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.keys()
    }

    pub(super) fn find(&self, id: &str) -> Option<&Member> {
        self.members.get(id)
    }

    /// A member to be changed; its protocols and instance only change through [`Members::change`] and
    /// [`Members::rename`].
    pub(super) fn find_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.members.get_mut(id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Member)> {
        self.members.iter_mut()
    }

    /// The id of the member with this name over restarts.
    pub(super) fn with_instance(&self, instance: &str) -> Option<&Arc<str>> {
        self.instances.get(instance)
    }

    pub(super) fn insert(&mut self, id: Arc<str>, member: Member) {
        self.vote(&member.protocols);
        if let Some(instance) = &member.instance {
            self.instances.insert(Arc::clone(instance), Arc::clone(&id));
        }
        let before = self.members.insert(id, member);
        assert!(before.is_none(), "ids of members are their own");
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.withdraw(&member.protocols);
        if let Some(instance) = &member.instance {
            self.instances.remove(instance);
        }
        Some(member)
    }

    /// Gives a static member another id; the member as it was.
    pub(super) fn rename(&mut self, from: &str, to: Arc<str>) -> Option<Member> {
        let before = self.remove(from)?;
        let member = Member { joining: None, syncing: None, deadline: None, ..before.clone() };
        self.insert(to, member);
        Some(before)
    }

    /// Replaces the assignors that a member knows.
    pub(super) fn change(&mut self, id: &str, protocols: Vec<Protocol>) {
        self.vote(&protocols);
        let member = self.members.get_mut(id).expect("a member that changes is there");
        let before = core::mem::replace(&mut member.protocols, protocols);
        self.withdraw(&before);
    }

    fn vote(&mut self, protocols: &[Protocol]) {
        for protocol in protocols {
            *self.votes.entry(Arc::clone(&protocol.name)).or_default() += 1;
        }
    }

    fn withdraw(&mut self, protocols: &[Protocol]) {
        for protocol in protocols {
            let votes = self.votes.get_mut(&protocol.name).expect("who withdraws has voted");
            *votes -= 1;
            if *votes == 0 {
                self.votes.remove(&protocol.name);
            }
        }
    }

    /// Whether every member knows this assignor.
    pub(super) fn all_know(&self, protocol: &str) -> bool {
        self.votes.get(protocol).copied().unwrap_or(0) >= self.members.len()
    }

    /// The assignor that most members like best of those that all know; of equals the first by name.
    pub(super) fn choose(&self) -> Option<Arc<str>> {
        let mut liked: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for member in self.members.values() {
            let best = member.protocols.iter().find(|protocol| self.all_know(&protocol.name));
            if let Some(best) = best {
                *liked.entry(&best.name).or_default() += 1;
            }
        }
        let most = liked.values().copied().max()?;
        liked.into_iter().find(|(_, votes)| *votes == most).map(|(name, _)| Arc::clone(name))
    }

    /// How many members have joined and wait for the others.
    pub(super) fn joining(&self) -> usize {
        self.members.values().filter(|member| member.joining.is_some()).count()
    }

    /// The longest time that any member may take to join again.
    pub(super) fn rebalance_timeout(&self) -> Duration {
        milliseconds(self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0))
    }

    /// All members, as their leader is told of them.
    pub(super) fn for_leader(&self, protocol: &str) -> Vec<JoinedMember> {
        let told = self.members.iter().map(|(id, member)| JoinedMember {
            id: Arc::clone(id),
            instance: member.instance.clone(),
            metadata: member.metadata(protocol),
        });
        told.collect()
    }

    /// All members, as they are stored; `assignment` says what each has.
    pub(super) fn to_store(
        &self,
        protocol: &str,
        assignment: impl Fn(&Arc<str>, &Member) -> Arc<[u8]>,
    ) -> Vec<StoredMember> {
        let stored = self.members.iter().map(|(id, member)| StoredMember {
            id: Arc::clone(id),
            instance: member.instance.clone(),
            client_id: Arc::clone(&member.client_id),
            client_host: Arc::clone(&member.client_host),
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            session_timeout_ms: member.session_timeout_ms,
            subscription: member.metadata(protocol),
            assignment: assignment(id, member),
        });
        stored.collect()
    }

    /// Becomes what a record says: a member that is known keeps all but its assignment.
    pub(super) fn adopt(&mut self, stored: &[StoredMember], protocol: Option<&Arc<str>>) {
        let ids: alloc::collections::BTreeSet<&Arc<str>> = stored.iter().map(|member| &member.id).collect();
        let gone: Vec<Arc<str>> = self.members.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        for id in gone {
            self.remove(&id);
        }
        for member in stored {
            match self.members.get_mut(&member.id) {
                Some(known) => known.assignment = Arc::clone(&member.assignment),
                None => self.insert(Arc::clone(&member.id), Member::stored(member, protocol)),
            }
        }
    }

    /// # Panics
    /// When the parts contradict each other.
    pub(super) fn check_invariants(&self) {
        let mut votes: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for protocol in self.members.values().flat_map(|member| &member.protocols) {
            *votes.entry(Arc::clone(&protocol.name)).or_default() += 1;
        }
        assert_eq!(votes, self.votes);
        let static_members =
            self.members.iter().filter_map(|(id, member)| Some((member.instance.clone()?, id.clone())));
        assert_eq!(static_members.collect::<BTreeMap<_, _>>(), self.instances);
    }
}

impl Member {
    fn stored(stored: &StoredMember, protocol: Option<&Arc<str>>) -> Self {
        let protocols =
            protocol.map(|name| Protocol { name: Arc::clone(name), metadata: Arc::clone(&stored.subscription) });
        Self {
            instance: stored.instance.clone(),
            client_id: Arc::clone(&stored.client_id),
            client_host: Arc::clone(&stored.client_host),
            session_timeout_ms: stored.session_timeout_ms,
            rebalance_timeout_ms: match stored.rebalance_timeout_ms {
                -1 => stored.session_timeout_ms,
                timeout => timeout,
            },
            protocols: protocols.into_iter().collect(),
            assignment: Arc::clone(&stored.assignment),
            joining: None,
            syncing: None,
            is_new: false,
            deadline: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn member(protocols: &[&str]) -> Member {
        let protocols =
            protocols.iter().map(|name| Protocol { name: Arc::from(*name), metadata: [1][..].into() }).collect();
        Member {
            instance: None,
            client_id: "c".into(),
            client_host: "/::1".into(),
            session_timeout_ms: 1,
            rebalance_timeout_ms: 1,
            protocols,
            assignment: Arc::default(),
            joining: None,
            syncing: None,
            is_new: false,
            deadline: None,
        }
    }

    #[test]
    fn the_assignor_is_the_one_that_all_know_and_most_like_best() {
        let mut members = Members::default();
        assert_eq!(members.choose(), None);
        members.insert("a".into(), member(&["sticky", "range", "roundrobin"]));
        members.insert("b".into(), member(&["roundrobin", "range"]));
        members.insert("c".into(), member(&["range", "roundrobin"]));
        assert_eq!(members.choose().as_deref(), Some("range"));
        members.check_invariants();
        members.remove("c");
        assert_eq!(members.choose().as_deref(), Some("range"), "one vote each: the first by name");
        members.change("a", vec![]);
        assert_eq!(members.choose(), None);
        members.check_invariants();
    }
}
