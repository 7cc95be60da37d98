//! SyncGroup, Heartbeat and LeaveGroup: what members of a generation do.
//!
//! Owns the fencing: of who is no member, holds another's name, or belongs to another generation (case 59). What
//! follows for the group is decided in [`super::rebalance`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;

use super::command::{Leave, Leaving, LeftMember, Membership, Response, Sync, Synced, Ticket};
use super::rebalance::Turn;
use super::state::{Group, Phase};

/// What a SyncGroup is told that gets nothing.
pub(super) fn unsynced(error: ErrorCode) -> Response {
    Response::Sync(Synced { result: Err(error) })
}

impl Group {
    /// Whether this is a member of the generation that is there.
    pub(super) fn check(&self, of: &Membership) -> Result<(), ErrorCode> {
        self.check_member(&of.member, of.instance.as_deref())?;
        if of.generation == self.generation { Ok(()) } else { Err(ErrorCode::IllegalGeneration) }
    }

    fn check_sync(&self, sync: &Sync) -> Result<(), ErrorCode> {
        self.check(&sync.of)?;
        let differs = |told: &Option<Arc<str>>, own: &Option<Arc<str>>| told.is_some() && own.is_some() && told != own;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        match self.phase {
            Phase::Empty => Err(ErrorCode::UnknownMemberId),
            Phase::Preparing(_) => Err(ErrorCode::RebalanceInProgress),
            Phase::Completing | Phase::Stable => Ok(()),
        }
    }
}

impl Turn<'_> {
    pub(super) fn sync(&mut self, ticket: Ticket, sync: Sync) {
        if let Err(error) = self.group.check_sync(&sync) {
            return self.answer(ticket, unsynced(error));
        }
        let id = Arc::clone(&sync.of.member);
        self.group.unsynced.remove(&id);
        if self.group.unsynced.is_empty() {
            self.group.sync_deadline = None;
        }
        let member = self.group.members.find_mut(&id).expect("a member that was checked");
        if self.group.phase == Phase::Stable {
            let member = member.clone();
            let synced = self.synced(&member);
            return self.answer(ticket, synced);
        }
        // An older request of the same member waits in vain.
        if let Some(older) = member.syncing.replace(ticket) {
            self.answer(older, unsynced(ErrorCode::RebalanceInProgress));
        }
        if self.group.is_leader(&id) {
            self.assign(sync.assignments);
        }
    }

    /// The leader has decided: the group is stable as soon as this is written down.
    fn assign(&mut self, assignments: Vec<(Arc<str>, Arc<[u8]>)>) {
        let assignments: BTreeMap<Arc<str>, Arc<[u8]>> = assignments.into_iter().collect();
        match self.try_store_members(|id, _| assignments.get(id).cloned().unwrap_or_default()) {
            Ok(()) => self.give_assignments(),
            Err(error) => {
                self.refuse_assignments(error);
                self.prepare();
            }
        }
    }

    pub(super) fn heartbeat(&mut self, ticket: Ticket, of: &Membership) {
        let checked = self.group.check(of);
        let in_time = match self.group.phase {
            Phase::Empty => Err(ErrorCode::UnknownMemberId),
            Phase::Preparing(_) => Err(ErrorCode::RebalanceInProgress),
            Phase::Completing | Phase::Stable => Ok(()),
        };
        if checked.is_ok() {
            self.extend_session(&of.member);
        }
        self.answer(ticket, Response::Heartbeat(checked.and(in_time)));
    }

    pub(super) fn leave(&mut self, ticket: Ticket, leave: Leave) {
        let mut left = Vec::with_capacity(leave.members.len());
        for who in leave.members {
            let result = self.leave_one(&who);
            left.push(LeftMember { who, result });
        }
        let somebody = left.iter().any(|member| member.result.is_ok());
        self.answer(ticket, Response::Leave(left));
        if somebody {
            self.members_left();
        }
    }

    fn leave_one(&mut self, who: &Leaving) -> Result<(), ErrorCode> {
        let id = if who.member.is_empty() {
            let holder = who.instance.as_ref().and_then(|instance| self.group.members.with_instance(instance));
            Arc::clone(holder.ok_or(ErrorCode::UnknownMemberId)?)
        } else if self.group.pending.remove(&who.member).is_some() {
            return Ok(());
        } else {
            self.group.check_member(&who.member, who.instance.as_deref())?;
            Arc::clone(&who.member)
        };
        self.remove(&id, ErrorCode::UnknownMemberId);
        Ok(())
    }
}
