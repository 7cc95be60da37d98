//! Committed offsets: who may write them, who reads them, and when they are forgotten.
//!
//! Owns the rules of OffsetCommit, OffsetFetch and OffsetDelete, the retention of offsets, and what happens to them when
//! their topic goes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;
use heddle_record::{LeaderEpoch, Timestamp, TopicId};

use super::command::{Commit, CommitEntry, DeleteOffsets, Membership, Offsets, Response, Ticket, TopicOffsets};
use super::rebalance::Turn;
use super::record::{CommittedOffset, GroupRecord};
use super::state::{CONSUMER, Group, Phase};

impl Turn<'_> {
    pub(super) fn commit(&mut self, ticket: Ticket, commit: Commit) {
        if let Err(error) = self.group.check_commit(&commit.of) {
            return self.answer(ticket, Response::Commit(Err(error)));
        }
        // A commit is a sign of life, unless the group waits for the assignment.
        if matches!(self.group.phase, Phase::Stable | Phase::Preparing(_)) {
            self.extend_session(&commit.of.member);
        }
        let mut records = Vec::with_capacity(commit.entries.len());
        let results: Vec<Result<(), ErrorCode>> = commit
            .entries
            .into_iter()
            .map(|entry| self.remember(entry, commit.retention_ms).map(|record| records.push(record)))
            .collect();
        if records.iter().map(GroupRecord::size).sum::<usize>() > self.settings.step_bytes_max {
            return self.answer(ticket, Response::Commit(Err(ErrorCode::UnknownServerError)));
        }
        for record in records {
            self.store(record);
        }
        self.answer(ticket, Response::Commit(Ok(results)));
    }

    fn remember(&self, entry: CommitEntry, retention_ms: Option<i64>) -> Result<GroupRecord, ErrorCode> {
        if entry.metadata.encode_utf16().count() > self.settings.metadata_max {
            return Err(ErrorCode::OffsetMetadataTooLarge);
        }
        let wall = self.now.wall;
        let mut committed = CommittedOffset {
            offset: entry.offset,
            leader_epoch: entry.leader_epoch,
            metadata: entry.metadata,
            committed_at: wall,
            expires_at: Timestamp::NONE,
            topic_id: entry.topic_id,
        };
        if let Some(retention) = retention_ms {
            // The one version of the record that has an expiry has neither of the other two.
            committed.expires_at = Timestamp::new(wall.get().saturating_add(retention).max(0));
            (committed.leader_epoch, committed.topic_id) = (LeaderEpoch::NONE, TopicId::ZERO);
        }
        let (group, topic) = (Arc::clone(&self.name), entry.topic);
        Ok(GroupRecord::Offset { group, topic, partition: entry.partition, committed: Some(committed) })
    }

    pub(super) fn delete_offsets(&mut self, ticket: Ticket, delete: DeleteOffsets) {
        let is_in_use = !self.group.is_empty();
        if is_in_use && self.group.protocol_type.as_deref() != Some(CONSUMER) {
            return self.answer(ticket, Response::DeleteOffsets(Err(ErrorCode::NonEmptyGroup)));
        }
        let subscribed = self.group.subscribed_topics();
        let kept: Vec<bool> =
            delete.entries.iter().map(|(topic, _)| self.group.is_subscribed_to(topic, subscribed.as_ref())).collect();
        let mut results = Vec::with_capacity(kept.len());
        for ((topic, partition), kept) in delete.entries.into_iter().zip(kept) {
            if kept {
                results.push(Err(ErrorCode::GroupSubscribedToTopic));
            } else {
                if self.group.offsets.get(&topic).is_some_and(|offsets| offsets.contains_key(&partition)) {
                    self.forget(topic, partition);
                }
                results.push(Ok(()));
            }
        }
        self.answer(ticket, Response::DeleteOffsets(Ok(results)));
    }

    fn forget(&mut self, topic: Arc<str>, partition: i32) {
        let group = Arc::clone(&self.name);
        self.store(GroupRecord::Offset { group, topic, partition, committed: None });
    }

    /// Forgets the group and all that it has committed, if nobody is in it.
    pub(super) fn delete(&mut self) -> Result<(), ErrorCode> {
        if !self.group.is_empty() {
            return Err(ErrorCode::NonEmptyGroup);
        }
        self.forget_where(|_, _| true);
        self.bury();
        Ok(())
    }

    /// Forgets offsets of topics that are gone.
    pub(super) fn forget_topics(&mut self, is_gone: &impl Fn(&str, TopicId) -> bool) {
        self.forget_where(|topic, committed| is_gone(topic, committed.topic_id));
    }

    fn forget_where(&mut self, goes: impl Fn(&str, &CommittedOffset) -> bool) {
        let mut going = Vec::new();
        for (topic, partitions) in &self.group.offsets {
            let gone = partitions.iter().filter(|(_, committed)| goes(topic, committed));
            going.extend(gone.map(|(partition, _)| (Arc::clone(topic), *partition)));
        }
        for (topic, partition) in going {
            self.forget(topic, partition);
        }
    }

    fn bury(&mut self) {
        if self.group.stored.is_some() {
            self.store(GroupRecord::Group { group: Arc::clone(&self.name), stored: None });
        }
    }

    /// Forgets offsets that have been kept for as long as they are kept, and the group if nothing is left of it.
    pub(super) fn expire_offsets(&mut self) {
        let Some(since) = self.group.kept_since() else { return };
        let (wall, retention) = (self.now.wall.get(), self.settings.offsets_retention_ms);
        let mut expired = Vec::new();
        let subscribed = self.group.subscribed_topics();
        for (topic, partitions) in &self.group.offsets {
            if self.group.is_subscribed_to(topic, subscribed.as_ref()) {
                continue;
            }
            let is_over = |committed: &CommittedOffset| match committed.expires_at {
                Timestamp::NONE => wall.saturating_sub(since.of(committed).get()) >= retention,
                expiry => wall >= expiry.get(),
            };
            let over = partitions.iter().filter(|(_, committed)| is_over(committed));
            expired.extend(over.map(|(partition, _)| (Arc::clone(topic), *partition)));
        }
        drop(subscribed);
        for (topic, partition) in expired {
            self.forget(topic, partition);
        }
        if self.group.is_empty() && self.group.offsets.is_empty() && self.group.pending.is_empty() {
            self.bury();
        }
    }
}

/// From when on the retention of an offset counts.
#[derive(Clone, Copy)]
enum KeptSince {
    /// Its commit.
    Commit,
    /// The group became empty.
    Empty(Timestamp),
}

impl KeptSince {
    fn of(self, committed: &CommittedOffset) -> Timestamp {
        match self {
            Self::Commit => committed.committed_at,
            Self::Empty(time) => time,
        }
    }
}

impl Group {
    /// From when on offsets are kept; nothing while they are in use.
    fn kept_since(&self) -> Option<KeptSince> {
        match (&self.protocol_type, &self.phase) {
            // A simple consumer, which has no group to be empty.
            (None, _) => Some(KeptSince::Commit),
            (Some(_), Phase::Empty) => Some(self.empty_since().map_or(KeptSince::Commit, KeptSince::Empty)),
            // Topics that a live group no longer subscribes to.
            (Some(_), Phase::Stable) if self.subscribed_topics().is_some() => Some(KeptSince::Commit),
            _ => None,
        }
    }

    /// Whether this one may commit: a member of the generation, or anybody while the group is empty.
    fn check_commit(&self, of: &Membership) -> Result<(), ErrorCode> {
        if of.generation < 0 && self.is_empty() {
            return Ok(());
        }
        if of.generation >= 0 || !of.member.is_empty() || of.instance.is_some() {
            self.check(of)?;
        } else {
            return Err(ErrorCode::UnknownMemberId);
        }
        if self.phase == Phase::Completing { Err(ErrorCode::RebalanceInProgress) } else { Ok(()) }
    }

    /// The offsets that are asked for.
    pub(super) fn committed(&self, wanted: Option<Vec<(Arc<str>, Vec<i32>)>>) -> Vec<TopicOffsets> {
        let Some(wanted) = wanted else {
            let all = self.offsets.iter().map(|(topic, partitions)| TopicOffsets {
                topic: Arc::clone(topic),
                partitions: partitions.iter().map(|(partition, found)| (*partition, Some(found.clone()))).collect(),
            });
            return all.collect();
        };
        let topics = wanted.into_iter().map(|(topic, partitions)| {
            let offsets = self.offsets.get(&topic);
            let find = |partition: i32| (partition, offsets.and_then(|offsets| offsets.get(&partition)).cloned());
            TopicOffsets { topic, partitions: partitions.into_iter().map(find).collect() }
        });
        topics.collect()
    }
}

/// What a request for offsets is told of a group that is not there: nothing is committed.
pub(super) fn nothing(offsets: Offsets) -> Response {
    Response::Offsets(Group::default().committed(offsets.wanted))
}
