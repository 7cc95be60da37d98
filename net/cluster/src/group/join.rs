//! JoinGroup: how a member comes into a group, again or for the first time.
//!
//! Owns the refusals and what a join changes. Whether it completes a rebalance is decided in [`super::rebalance`].

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write as _;
use core::time::Duration;

use heddle_protocol::ErrorCode;

use super::command::{Join, Joined, Response, Ticket};
use super::members::{Member, milliseconds};
use super::rebalance::Turn;
use super::state::{Group, Phase};

/// How long a new member may wait for its first answer: clients that went away meanwhile are not waited for for ever.
const NEW_MEMBER_TIMEOUT: Duration = Duration::from_secs(300);

/// Ids of a group that may be given out and not used. A new one takes the place of the one that would expire next, whose
/// client starts over.
const PENDING_MAX: usize = 8_192;

/// A refusal before any group is looked at.
pub(super) fn refusal(settings: &super::GroupSettings, join: &Join) -> Option<ErrorCode> {
    let timeouts = settings.session_timeout_min_ms..=settings.session_timeout_max_ms;
    if join.group.is_empty() {
        Some(ErrorCode::InvalidGroupId)
    } else if !timeouts.contains(&join.session_timeout_ms) {
        Some(ErrorCode::InvalidSessionTimeout)
    } else {
        None
    }
}

pub(super) fn refused(member: Arc<str>, error: ErrorCode) -> Response {
    Response::Join(Box::new(Joined { member, result: Err(error) }))
}

impl Turn<'_> {
    pub(super) fn join(&mut self, ticket: Ticket, join: Join) {
        let is_new = join.member.is_empty();
        if !self.has_room(&join) {
            self.group.pending.remove(&join.member);
            return self.answer(ticket, refused(Arc::default(), ErrorCode::GroupMaxSizeReached));
        }
        if !self.group.supports(&join.protocol_type, join.protocols.iter().map(|protocol| &*protocol.name)) {
            return self.answer(ticket, refused(join.member, ErrorCode::InconsistentGroupProtocol));
        }
        if is_new {
            self.join_new(ticket, join);
        } else if self.group.pending.contains_key(&join.member) && join.instance.is_none() {
            let id = Arc::clone(&join.member);
            self.add(ticket, id, join);
        } else {
            self.join_again(ticket, join);
        }
    }

    /// Whether the group can take this member; those that are in it may come back.
    fn has_room(&self, join: &Join) -> bool {
        let most = self.settings.members_max;
        let known = self.group.members.find(&join.member);
        match self.group.phase {
            Phase::Empty => true,
            // Counts those that are here: of a group that is too large, whoever comes first stays.
            Phase::Preparing(_) => {
                known.is_some_and(|member| member.joining.is_some()) || self.group.members.joining() < most
            }
            Phase::Completing | Phase::Stable => known.is_some() || self.group.members.len() < most,
        }
    }

    fn join_new(&mut self, ticket: Ticket, join: Join) {
        let name = join.instance.as_ref().unwrap_or(&join.client_id);
        let id = Arc::from(format!("{name}-{}", uuid(join.fresh)));
        if let Some(instance) = &join.instance {
            match self.group.members.with_instance(instance).cloned() {
                Some(before) => self.replace(ticket, &before, id, join),
                None => self.add(ticket, id, join),
            }
        } else if join.needs_known_id {
            self.hand_out(&id, join.session_timeout_ms);
            self.answer(ticket, refused(id, ErrorCode::MemberIdRequired));
        } else {
            self.add(ticket, id, join);
        }
    }

    fn hand_out(&mut self, id: &Arc<str>, session_timeout_ms: i32) {
        if self.group.pending.len() >= PENDING_MAX
            && let Some(next) = self.group.pending.iter().min_by_key(|(_, deadline)| **deadline)
        {
            let next = Arc::clone(next.0);
            self.group.pending.remove(&next);
        }
        let deadline = self.now.elapsed + milliseconds(session_timeout_ms);
        self.group.pending.insert(Arc::clone(id), deadline);
        self.group.wake_by(deadline);
    }

    /// Adds a member that the group has not had.
    fn add(&mut self, ticket: Ticket, id: Arc<str>, join: Join) {
        if let Some(first) = self.group.preparing().and_then(|preparing| preparing.first.as_mut()) {
            first.has_grown = true;
        }
        if self.group.members.is_empty() {
            self.group.protocol_type = Some(join.protocol_type);
        }
        if self.group.leader.as_ref().is_none_or(|leader| self.group.members.find(leader).is_none()) {
            self.group.leader = Some(Arc::clone(&id));
        }
        let deadline = self.now.elapsed + NEW_MEMBER_TIMEOUT;
        let member = Member {
            instance: join.instance,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout_ms: join.session_timeout_ms,
            rebalance_timeout_ms: join.rebalance_timeout_ms,
            protocols: join.protocols,
            assignment: Arc::default(),
            joining: Some(ticket),
            syncing: None,
            is_new: true,
            deadline: Some(deadline),
        };
        self.group.pending.remove(&id);
        self.group.members.insert(id, member);
        self.group.wake_by(deadline);
        self.rebalance();
    }

    fn join_again(&mut self, ticket: Ticket, join: Join) {
        if let Err(error) = self.group.check_member(&join.member, join.instance.as_deref()) {
            return self.answer(ticket, refused(join.member, error));
        }
        let member = self.group.members.find(&join.member).expect("a member that was checked");
        let is_unchanged = member.protocols == join.protocols;
        let stands = match self.group.phase {
            Phase::Empty | Phase::Preparing(_) => false,
            // It may have missed the answer to its first attempt.
            Phase::Completing => is_unchanged,
            // A leader that joins again wants a rebalance.
            Phase::Stable => is_unchanged && !self.group.is_leader(&join.member),
        };
        if stands {
            let joined = self.joined(&join.member);
            self.answer(ticket, joined);
        } else {
            let id = Arc::clone(&join.member);
            self.update(ticket, &id, join);
            self.rebalance();
        }
    }

    /// Takes over what a member says of itself; it waits from now on.
    fn update(&mut self, ticket: Ticket, id: &Arc<str>, join: Join) {
        self.group.members.change(id, join.protocols);
        let member = self.group.members.find_mut(id).expect("a member that was checked");
        member.session_timeout_ms = join.session_timeout_ms;
        member.rebalance_timeout_ms = join.rebalance_timeout_ms;
        // An older request of the same member waits in vain.
        if let Some(older) = member.joining.replace(ticket) {
            self.answer(older, refused(Arc::clone(id), ErrorCode::RebalanceInProgress));
        }
    }

    /// A static member comes back without its id (KIP-345): it has started anew. Its old id is nobody's from now on.
    fn replace(&mut self, ticket: Ticket, before: &str, id: Arc<str>, join: Join) {
        let led = self.group.leader.clone();
        let old = self.group.members.rename(before, Arc::clone(&id)).expect("an instance belongs to a member");
        self.dismiss(before.into(), &old, ErrorCode::FencedInstanceId);
        if self.group.unsynced.remove(before) {
            self.group.unsynced.insert(Arc::clone(&id));
        }
        if self.group.is_leader(before) {
            self.group.leader = Some(Arc::clone(&id));
        }
        let may_skip = join.may_skip_assignment;
        self.update(ticket, &id, join);
        self.extend_session(&id);
        match self.group.phase {
            Phase::Stable if self.group.members.choose() == self.group.protocol => {
                self.resume(ticket, &id, led, may_skip);
            }
            _ => self.rebalance(),
        }
    }

    /// Lets a static member that came back take its place in the generation that is there.
    fn resume(&mut self, ticket: Ticket, id: &Arc<str>, led: Option<Arc<str>>, may_skip: bool) {
        self.group.members.find_mut(id).expect("a member that came back").joining = None;
        if let Err(error) = self.try_store_members(|_, member| Arc::clone(&member.assignment)) {
            return self.answer(ticket, refused(Arc::default(), error));
        }
        let Response::Join(mut joined) = self.joined(id) else { unreachable!("a join is answered in kind") };
        if let Ok(generation) = &mut joined.result {
            if may_skip {
                generation.skip_assignment = self.group.is_leader(id);
            } else {
                // A client of old that believed itself the leader would assign anew.
                generation.members.clear();
                generation.leader = led.unwrap_or_default();
            }
        }
        self.answer(ticket, Response::Join(joined));
    }
}

impl Group {
    /// Whether this is a member, and holds its name.
    pub(super) fn check_member(&self, id: &str, instance: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance) = instance {
            match self.members.with_instance(instance) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(holder) if **holder != *id => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        self.members.find(id).map(|_| ()).ok_or(ErrorCode::UnknownMemberId)
    }
}

/// Random bits as a UUID of version 4, in its usual text.
fn uuid(mut bits: [u8; 16]) -> String {
    bits[6] = bits[6] & 0x0f | 0x40;
    bits[8] = bits[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bits.into_iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        write!(text, "{dash}{byte:02x}").expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_4() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
    }
}
