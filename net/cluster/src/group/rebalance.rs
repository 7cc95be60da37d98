//! The rebalance: when it starts, whom it waits for, and how it ends. What Kafka does, in Kafka's order.
//!
//! Owns [`Turn`], one step's hold on one group. Whoever waits is answered exactly once: tickets are taken from members
//! where they are answered, and nowhere else.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use heddle_protocol::ErrorCode;

use super::command::{GroupSettings, Joined, JoinedGeneration, Now, Outcome, Response, Synced, SyncedMember, Ticket};
use super::members::Member;
use super::record::{GroupRecord, StoredGroup, StoredMember};
use super::state::{FirstWait, Group, Phase, Preparing};

/// One step's hold on one group.
pub(super) struct Turn<'a> {
    pub(super) name: Arc<str>,
    pub(super) group: &'a mut Group,
    pub(super) settings: &'a GroupSettings,
    pub(super) now: Now,
    pub(super) outcome: &'a mut Outcome,
}

impl Turn<'_> {
    pub(super) fn answer(&mut self, ticket: Ticket, response: Response) {
        self.outcome.answers.push((ticket, response));
    }

    /// Has a record appended; the group goes by it from now on.
    pub(super) fn store(&mut self, record: GroupRecord) {
        self.group.replay(record.clone());
        self.outcome.records.push(record);
    }

    fn store_group(&mut self, members: Vec<StoredMember>) {
        let stored = self.to_store(members);
        self.store(GroupRecord::Group { group: Arc::clone(&self.name), stored: Some(stored) });
    }

    fn to_store(&self, members: Vec<StoredMember>) -> StoredGroup {
        StoredGroup {
            protocol_type: self.group.protocol_type.clone().unwrap_or_default(),
            generation: self.group.generation,
            protocol: self.group.protocol.clone(),
            leader: self.group.leader.clone(),
            changed_at: self.now.wall,
            members,
        }
    }

    /// Stores the members with these assignments, if a record can hold them.
    pub(super) fn try_store_members(
        &mut self,
        assignment: impl Fn(&Arc<str>, &Member) -> Arc<[u8]>,
    ) -> Result<(), ErrorCode> {
        let protocol = self.group.protocol.clone().unwrap_or_default();
        let members = self.group.members.to_store(&protocol, assignment);
        let record = GroupRecord::Group { group: Arc::clone(&self.name), stored: Some(self.to_store(members)) };
        if record.size() > self.settings.step_bytes_max {
            return Err(ErrorCode::UnknownServerError);
        }
        self.store(record);
        Ok(())
    }

    /// Starts a rebalance, unless one is under way: then sees whether it is complete.
    pub(super) fn rebalance(&mut self) {
        match self.group.phase {
            Phase::Preparing(_) => self.complete_if_all_joined(),
            _ => self.prepare(),
        }
    }

    /// Starts a rebalance. Who waits for an assignment joins again.
    pub(super) fn prepare(&mut self) {
        if self.group.phase == Phase::Completing {
            self.refuse_assignments(ErrorCode::RebalanceInProgress);
        }
        self.group.unsynced.clear();
        self.group.sync_deadline = None;
        if self.group.phase == Phase::Empty {
            let delay = self.settings.initial_rebalance_delay;
            let left = self.group.members.rebalance_timeout().saturating_sub(delay);
            let first = FirstWait { delay, left, has_grown: false };
            let deadline = self.now.elapsed + delay;
            self.group.phase = Phase::Preparing(Preparing { first: Some(first), deadline: Some(deadline) });
            self.group.wake_by(deadline);
        } else {
            self.group.phase = Phase::Preparing(Preparing { first: None, deadline: None });
            self.complete_if_all_joined();
        }
    }

    /// Ends the wait for members if all are there, or nobody is; a group that was empty waits its time.
    pub(super) fn complete_if_all_joined(&mut self) {
        let is_deserted = self.group.members.is_empty();
        let has_all = self.group.members.joining() >= self.group.members.len() && self.group.pending.is_empty();
        let deadline = self.now.elapsed + self.group.members.rebalance_timeout();
        let Some(preparing) = self.group.preparing() else { return };
        if is_deserted {
            self.become_empty();
        } else if has_all && preparing.first.is_none() {
            self.complete();
        } else if preparing.deadline.is_none() {
            preparing.deadline = Some(deadline);
            self.group.wake_by(deadline);
        }
    }

    /// The wait for members is over.
    pub(super) fn waited(&mut self) {
        let now = self.now.elapsed;
        let delay_max = self.settings.initial_rebalance_delay;
        let Some(preparing) = self.group.preparing() else { return };
        if let Some(first) = &mut preparing.first
            && first.has_grown
            && !first.left.is_zero()
        {
            let delay = delay_max.min(first.left);
            *first = FirstWait { delay, left: first.left.saturating_sub(first.delay), has_grown: false };
            let deadline = now + delay;
            preparing.deadline = Some(deadline);
            self.group.wake_by(deadline);
            return;
        }
        self.complete();
    }

    /// Begins the next generation, of those that have joined. Static members that have not stay members.
    fn complete(&mut self) {
        let missing: Vec<Arc<str>> = self
            .group
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance.is_none())
            .map(|(id, _)| Arc::clone(id))
            .collect();
        for id in missing {
            self.remove(&id, ErrorCode::UnknownMemberId);
        }
        if self.group.members.is_empty() {
            self.become_empty();
        } else if self.elect_leader() {
            self.begin_generation();
        } else {
            // Nobody is here: those that stay members have until their sessions end.
            let deadline = self.now.elapsed + self.group.members.rebalance_timeout().max(WAIT_MIN);
            let preparing = self.group.preparing().expect("only a rebalance completes");
            preparing.deadline = Some(deadline);
            self.group.wake_by(deadline);
        }
    }

    fn become_empty(&mut self) {
        self.group.generation = next_generation(self.group.generation);
        self.group.protocol = None;
        self.group.leader = None;
        self.store_group(Vec::new());
    }

    /// Makes sure that the leader is one that has joined; whether there is any.
    fn elect_leader(&mut self) -> bool {
        let has_joined = |(_, member): &(&Arc<str>, &Member)| member.joining.is_some();
        let leader = self.group.leader.as_ref().and_then(|leader| self.group.members.find(leader));
        if leader.is_some_and(|leader| leader.joining.is_some()) {
            return true;
        }
        let next = self.group.members.iter().find(has_joined).map(|(id, _)| Arc::clone(id));
        let found = next.is_some();
        if found {
            self.group.leader = next;
        }
        found
    }

    fn begin_generation(&mut self) {
        self.group.generation = next_generation(self.group.generation);
        self.group.protocol = self.group.members.choose();
        assert!(self.group.protocol.is_some(), "nobody joins without an assignor that all members know");
        self.group.phase = Phase::Completing;
        let ids: Vec<Arc<str>> = self.group.members.ids().cloned().collect();
        for id in ids {
            let member = self.group.members.find_mut(&id).expect("a member that was listed");
            member.is_new = false;
            let ticket = member.joining.take();
            self.extend_session(&id);
            if let Some(ticket) = ticket {
                let joined = self.joined(&id);
                self.answer(ticket, joined);
            }
            self.group.unsynced.insert(id);
        }
        let deadline = self.now.elapsed + self.group.members.rebalance_timeout();
        self.group.sync_deadline = Some(deadline);
        self.group.wake_by(deadline);
    }

    /// The generation that is there, as one of its members is told.
    pub(super) fn joined(&self, id: &Arc<str>) -> Response {
        let members = match &self.group.protocol {
            Some(protocol) if self.group.is_leader(id) => self.group.members.for_leader(protocol),
            _ => Vec::new(),
        };
        let generation = JoinedGeneration {
            generation: self.group.generation,
            protocol_type: self.group.protocol_type.clone(),
            protocol: self.group.protocol.clone(),
            leader: self.group.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            members,
        };
        Response::Join(Box::new(Joined { member: Arc::clone(id), result: Ok(generation) }))
    }

    /// The assignment of a member.
    pub(super) fn synced(&self, member: &Member) -> Response {
        Response::Sync(Synced {
            result: Ok(SyncedMember {
                protocol_type: self.group.protocol_type.clone(),
                protocol: self.group.protocol.clone(),
                assignment: Arc::clone(&member.assignment),
            }),
        })
    }

    /// Answers everybody who waits for an assignment; who was told one has its session prolonged.
    pub(super) fn give_assignments(&mut self) {
        let waiting = self.group.members.iter_mut();
        let waiting: Vec<(Arc<str>, Ticket)> =
            waiting.filter_map(|(id, member)| Some((Arc::clone(id), member.syncing.take()?))).collect();
        for (id, ticket) in waiting {
            let synced = self.synced(self.group.members.find(&id).expect("a member that was listed"));
            self.answer(ticket, synced);
            self.extend_session(&id);
        }
    }

    /// Tells everybody who waits for an assignment that there is none.
    pub(super) fn refuse_assignments(&mut self, error: ErrorCode) {
        let waiting = self.group.members.iter_mut();
        let waiting: Vec<(Arc<str>, Ticket)> =
            waiting.filter_map(|(id, member)| Some((Arc::clone(id), member.syncing.take()?))).collect();
        for (id, ticket) in waiting {
            self.answer(ticket, Response::Sync(Synced { result: Err(error) }));
            self.extend_session(&id);
        }
    }

    /// Gives a member the whole of its session again.
    pub(super) fn extend_session(&mut self, id: &str) {
        let now = self.now.elapsed;
        if let Some(member) = self.group.members.find_mut(id) {
            let deadline = now + member.session_timeout();
            member.deadline = Some(deadline);
            self.group.wake_by(deadline);
        }
    }

    /// Takes a member out of the group; if it waits for anything, that is its answer.
    pub(super) fn remove(&mut self, id: &str, error: ErrorCode) {
        let Some(member) = self.group.members.remove(id) else { return };
        self.group.unsynced.remove(id);
        self.dismiss(Arc::default(), &member, error);
        if self.group.is_leader(id) {
            self.group.leader = self.group.members.ids().next().cloned();
        }
    }

    /// Answers whatever a member waits for; `told` is the id that goes with it.
    pub(super) fn dismiss(&mut self, told: Arc<str>, member: &Member, error: ErrorCode) {
        if let Some(ticket) = member.joining {
            self.answer(ticket, Response::Join(Box::new(Joined { member: told, result: Err(error) })));
        }
        if let Some(ticket) = member.syncing {
            self.answer(ticket, Response::Sync(Synced { result: Err(error) }));
        }
    }

    /// Members have gone: the others share what they had.
    pub(super) fn members_left(&mut self) {
        match self.group.phase {
            Phase::Empty => {}
            Phase::Preparing(_) => self.complete_if_all_joined(),
            Phase::Completing | Phase::Stable => self.prepare(),
        }
    }
}

/// Shortest wait for members of which none is here: a rebalance timeout of 0 must not make a loop.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// Generations start again at 0 after the largest number.
fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(0)
}

impl Turn<'_> {
    /// Does whatever is due, until nothing is.
    pub(super) fn expire(&mut self) {
        let now = self.now.elapsed;
        while self.group.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.expire_pending();
            self.expire_sessions();
            if self.group.preparing().is_some_and(|it| it.deadline.is_some_and(|deadline| deadline <= now)) {
                self.waited();
            }
            if self.group.sync_deadline.is_some_and(|deadline| deadline <= now) {
                self.expire_unsynced();
            }
        }
    }

    fn expire_pending(&mut self) {
        let before = self.group.pending.len();
        let now = self.now.elapsed;
        self.group.pending.retain(|_, deadline| *deadline > now);
        if self.group.pending.len() < before {
            self.complete_if_all_joined();
        }
    }

    fn expire_sessions(&mut self) {
        let now = self.now.elapsed;
        let is_over = |member: &Member| member.can_expire() && member.deadline.is_some_and(|deadline| deadline <= now);
        let over: Vec<Arc<str>> =
            self.group.members.iter().filter(|(_, member)| is_over(member)).map(|(id, _)| Arc::clone(id)).collect();
        if !over.is_empty() {
            for id in over {
                self.remove(&id, ErrorCode::UnknownMemberId);
            }
            self.members_left();
        }
    }

    /// Members that joined and never asked what they got are gone.
    fn expire_unsynced(&mut self) {
        self.group.sync_deadline = None;
        let unsynced = core::mem::take(&mut self.group.unsynced);
        if !unsynced.is_empty() {
            for id in unsynced {
                self.remove(&id, ErrorCode::UnknownMemberId);
            }
            self.members_left();
        }
    }
}
