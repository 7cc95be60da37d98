//! The reads of one fetch, and its wait for more.
//!
//! Owns min bytes, max bytes, max wait and the long poll. A fetch without a session reads all its partitions; one with a
//! session reads those that are due, and what it hears of while it waits. Never builds an answer.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::MetadataImage;
use heddle_engine::FirstBatch;
use heddle_io::Monotonic;
use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest};
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::{BrokerId, LeaderEpoch, Offset};

use super::isolation;
use crate::api::Call;
use crate::concurrently::{Either, either};
use crate::fetch_sessions::{Live, TopicKey};
use crate::mailbox::CoreIndex;
use crate::message::{Arm, Isolation, Poll, ReadEntry, ReadFault, ReadOutcome, ReadRequest};
use crate::routing::{self, Scatter, TopicRef};
use crate::waiters::{Listed, News, Turn};

/// How long a poll waits at one go: a poll that nobody listens to any more stays armed no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A fetch on its way: what was asked, and what has been read so far.
pub(super) struct Gathering<'a> {
    call: &'a Call,
    slots: Vec<Slot<'a>>,
    source: Source,
    isolation: Isolation,
    bytes_min: usize,
    bytes_max: usize,
    deadline: Monotonic,
    /// Whether it is known that there is not enough: then all reads arm the poll.
    waits: bool,
}

/// Where a fetch has its partitions from, and what they wake.
enum Source {
    /// Its request; the slots' places are their indices.
    Request(Listed),
    Session(Visit),
}

/// A request's use of a session.
pub(super) struct Visit {
    live: Rc<Live>,
    /// The session's epoch while nobody else goes on with it.
    epoch: i32,
    turn: Turn,
    /// Which slot has the partition of a place.
    slots: BTreeMap<usize, usize>,
    /// Partitions of the session.
    len: usize,
}

/// One partition that is read.
pub(super) struct Slot<'a> {
    /// What it is called in wake-ups.
    pub(super) place: usize,
    pub(super) topic: Topic<'a>,
    pub(super) partition: i32,
    /// Which core to ask, and what; nothing where the partition cannot be reached.
    pub(super) question: Option<(CoreIndex, ReadEntry)>,
    pub(super) outcome: ReadOutcome,
    pub(super) leader: Option<(BrokerId, LeaderEpoch)>,
}

/// The topic of a slot, as it was named.
pub(super) enum Topic<'a> {
    Name(&'a str),
    Kept(Arc<str>),
    Id(Uuid),
}

impl Visit {
    /// A use of the session from now on. Whoever waits with it stops waiting.
    pub(super) fn new(live: &Rc<Live>) -> Self {
        let session = live.session.borrow();
        let turn = live.news().hand_over();
        Self { live: Rc::clone(live), epoch: session.epoch, turn, slots: BTreeMap::new(), len: session.len() }
    }

    /// The epoch that the session has as long as this is its last use.
    pub(super) fn epoch(&self) -> i32 {
        self.epoch
    }
}

impl Slot<'_> {
    fn bytes(&self) -> usize {
        self.outcome.as_ref().map_or(0, |data| data.bytes)
    }

    /// Whether there is something to tell at once, whatever the number of bytes. A partition that nobody has is no such
    /// thing, as with Kafka: its client learns of it when the wait is over.
    fn is_urgent(&self) -> bool {
        self.question.is_some() && self.outcome.as_ref().map_or(true, |data| data.diverging.is_some())
    }

    /// Whether it found that there is nothing to read.
    pub(super) fn is_at_end(&self, isolation: Isolation) -> bool {
        match (&self.question, &self.outcome) {
            (Some((_, entry)), Ok(data)) => {
                data.diverging.is_none() && entry.from >= data.limits.readable_end(isolation)
            }
            _ => false,
        }
    }
}

impl<'a> Gathering<'a> {
    /// A fetch of what its request names.
    pub(super) fn of_request(call: &'a Call, request: &FetchRequest<'a>) -> Self {
        let image = call.core.image();
        let mut slots = Vec::new();
        for topic in request.topics.iter() {
            for partition in topic.partitions.iter() {
                let named = if call.version >= 13 { Topic::Id(topic.topic_id) } else { Topic::Name(topic.topic) };
                slots.push(slot(call, &image, named, &partition, slots.len()));
            }
        }
        Self::new(call, request, slots, Source::Request(Listed::new(&call.core)))
    }

    /// A fetch of what is due in a session.
    pub(super) fn of_session(call: &'a Call, request: &FetchRequest<'_>, visit: Visit) -> Self {
        let news = visit.live.news().take();
        let due = {
            let mut session = visit.live.session.borrow_mut();
            session.heard(&news);
            session.due()
        };
        let mut gathering = Self::new(call, request, Vec::with_capacity(due.len()), Source::Session(visit));
        gathering.add(&due);
        gathering
    }

    fn new(call: &'a Call, request: &FetchRequest<'_>, slots: Vec<Slot<'a>>, source: Source) -> Self {
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        let bytes_max = usize::try_from(request.max_bytes).unwrap_or(0).min(call.core.config().fetch_bytes_max);
        Self {
            call,
            slots,
            source,
            isolation: isolation(request),
            bytes_min: usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max),
            bytes_max,
            deadline: call.core.io().now() + wait,
            waits: false,
        }
    }

    /// Reads, and waits until there is enough to answer, or the client's patience ends, or the connection does.
    pub(super) async fn work(&mut self) {
        self.read_all().await;
        if self.is_enough() || self.call.core.io().now() >= self.deadline {
            return;
        }
        self.waits = true;
        self.read_all().await;
        while !self.is_enough() && self.wait().await {}
    }

    /// What was read, in the order in which it was to be read.
    pub(super) fn into_slots(self) -> Vec<Slot<'a>> {
        self.slots
    }

    /// Makes slots for partitions of the session, and gives their indices. What it has a slot for is looked up again: it
    /// may be elsewhere.
    fn add(&mut self, places: &[usize]) -> Vec<usize> {
        let Source::Session(visit) = &mut self.source else { return places.to_vec() };
        let image = self.call.core.image();
        let session = visit.live.session.borrow();
        let mut indices = Vec::with_capacity(places.len());
        for place in places {
            let Some(kept) = session.get(*place) else { continue };
            let topic = match &kept.topic {
                TopicKey::Name(name) => Topic::Kept(Arc::clone(name)),
                TopicKey::Id(id) => Topic::Id(*id),
            };
            let mut slot = slot(self.call, &image, topic, &kept.wanted, *place);
            if kept.was_found && matches!(&slot.outcome, Err(ReadFault { error: ErrorCode::UnknownTopicId })) {
                slot.outcome = Err(ErrorCode::UnknownTopicOrPartition.into());
            }
            let index = *visit.slots.entry(*place).or_insert(self.slots.len());
            match self.slots.get_mut(index) {
                Some(known) => *known = slot,
                None => self.slots.push(slot),
            }
            indices.push(index);
        }
        indices
    }

    /// Reads every partition, each core's in one question. Those of a session that sleep are left alone.
    async fn read_all(&mut self) {
        let sleeps = |slot: &Slot<'_>| matches!(self.source, Source::Session(_)) && slot.is_at_end(self.isolation);
        let all: Vec<usize> = (0..self.slots.len()).filter(|index| !sleeps(&self.slots[*index])).collect();
        self.read(&all).await;
    }

    /// Reads some partitions again. What the others have found stays.
    async fn read(&mut self, indices: &[usize]) {
        let kept: usize = self.slots.iter().map(Slot::bytes).sum();
        let kept = kept - indices.iter().map(|index| self.slots[*index].bytes()).sum::<usize>();
        let bytes_max = self.bytes_max.saturating_sub(kept);
        let first_batch = if kept == 0 { FirstBatch::AtLeastOne } else { FirstBatch::WithinLimit };
        let mut scatter = Scatter::new();
        let mut outcomes: Vec<Option<ReadOutcome>> = Vec::new();
        for index in indices {
            if let Some((core, entry)) = self.slots[*index].question {
                scatter.push(core, outcomes.len(), entry);
                outcomes.push(None);
            }
        }
        self.note_arming(indices);
        let (isolation, arm) = (self.isolation, self.arm());
        let question = |entries| ReadRequest { entries, isolation, bytes_max, first_batch, arm };
        let gather = scatter.post(&self.call.core, question).await;
        gather.collect::<ReadRequest, _>(&mut outcomes).await;
        let mut outcomes = outcomes.into_iter();
        for index in indices {
            if self.slots[*index].question.is_some() {
                let outcome = outcomes.next().flatten();
                self.slots[*index].outcome = outcome.expect("every log was asked and has answered");
            }
        }
        self.trim();
    }

    /// Cores read without knowing of each other: what they found together beyond the limit is left for the next fetch.
    /// The first partition that has anything keeps it.
    fn trim(&mut self) {
        let mut bytes_left = self.bytes_max;
        let mut is_first = true;
        for slot in &mut self.slots {
            let Ok(data) = &mut slot.outcome else { continue };
            if data.bytes == 0 {
                continue;
            }
            if data.bytes > bytes_left && !is_first {
                data.pieces.clear();
                data.bytes = 0;
            }
            bytes_left = bytes_left.saturating_sub(data.bytes);
            is_first = false;
        }
    }
}

impl Gathering<'_> {
    /// Waits for news of some partition and reads it; false when the wait is over.
    async fn wait(&mut self) -> bool {
        let core = &self.call.core;
        let left = self.deadline.since(core.io().now());
        if left.is_zero() || self.call.session.is_leaving() {
            return false;
        }
        let (news, turn) = self.news();
        let patience = core.io().timeout(left.min(WAIT_MAX), news.next(turn));
        match either(self.call.session.left(), patience).await {
            Either::First(()) | Either::Second(Ok(None)) => false,
            Either::Second(Ok(Some(changed))) => {
                if let Source::Session(visit) = &self.source {
                    visit.live.session.borrow_mut().heard(&changed);
                }
                let changed = self.add(&changed);
                self.read(&changed).await;
                true
            }
            Either::Second(Err(_elapsed)) => {
                // Its own poll has expired; a session's does not.
                if matches!(self.source, Source::Request(_)) {
                    self.read_all().await;
                }
                true
            }
        }
    }

    fn news(&self) -> (Rc<News>, Turn) {
        match &self.source {
            Source::Request(listed) => (Rc::clone(&listed.news), Turn::default()),
            Source::Session(visit) => (Rc::clone(visit.live.news()), visit.turn),
        }
    }

    fn is_enough(&self) -> bool {
        let bytes: usize = self.slots.iter().map(Slot::bytes).sum();
        let unreachable = self.slots.iter().filter(|slot| slot.question.is_none()).count();
        let all = match &self.source {
            Source::Request(_) => self.slots.len(),
            Source::Session(visit) => visit.len,
        };
        unreachable == all || bytes >= self.bytes_min || self.slots.iter().any(Slot::is_urgent)
    }

    /// What is to be woken: a session wherever there is nothing to read; and whoever waits, wherever it reads.
    fn arm(&self) -> Arm {
        let core = &self.call.core;
        match (&self.source, self.waits) {
            (Source::Request(_), false) => Arm::Never,
            (Source::Request(listed), true) => {
                let expires = self.deadline.min(core.io().now() + WAIT_MAX);
                Arm::Always(Poll { core: core.index(), number: listed.number, expires })
            }
            (Source::Session(visit), false) => Arm::AtEnd(visit.live.poll(core)),
            (Source::Session(visit), true) => Arm::Always(visit.live.poll(core)),
        }
    }

    /// Tells the session where it may be armed from now on.
    fn note_arming(&self, indices: &[usize]) {
        let Source::Session(visit) = &self.source else { return };
        let mut session = visit.live.session.borrow_mut();
        for index in indices {
            let slot = &self.slots[*index];
            if let Some((_, entry)) = slot.question {
                session.arming(slot.place, entry.log);
            }
        }
    }
}

/// The slot of one partition.
fn slot<'a>(call: &Call, image: &MetadataImage, topic: Topic<'a>, wanted: &FetchPartition, place: usize) -> Slot<'a> {
    let epoch = |epoch: i32| (epoch >= 0).then_some(LeaderEpoch::new(epoch));
    let named = match &topic {
        Topic::Name(name) => TopicRef::Name(name),
        Topic::Kept(name) => TopicRef::Name(name),
        Topic::Id(id) => TopicRef::Id(*id),
    };
    let found = routing::find(image, call.core.broker_id(), named, wanted.partition);
    let (question, outcome, leader) = match found {
        Ok(log) => {
            let entry = ReadEntry {
                slot: place,
                log,
                from: Offset::new(wanted.fetch_offset),
                bytes_max: usize::try_from(wanted.partition_max_bytes).unwrap_or(0),
                current_leader_epoch: epoch(wanted.current_leader_epoch),
                last_fetched_epoch: epoch(wanted.last_fetched_epoch),
            };
            (Some((call.core.owner(log), entry)), Err(ErrorCode::UnknownServerError.into()), None)
        }
        Err(misrouted) => (None, Err(misrouted.error.into()), misrouted.leader),
    };
    Slot { place, topic, partition: wanted.partition, question, outcome, leader }
}
