//! What one fetch session knows: its partitions, what its client was told of each, and which are due to be read.
//!
//! Owns the epoch and the rules of an incremental answer (KIP-227): a partition is told of when it has records, an error,
//! or limits that its client has not heard of. Plain data that may cross cores; never reads a log.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_protocol::Uuid;
use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest};
use heddle_record::LogId;

use crate::message::Isolation;

/// The epoch of a request that opens a session.
pub(crate) const EPOCH_INITIAL: i32 = 0;
/// The epoch of a request without a session, which ends the one that it names.
pub(crate) const EPOCH_FINAL: i32 = -1;
/// No request has this epoch and goes on with a session: that of one which was taken elsewhere.
const EPOCH_GONE: i32 = i32::MIN;
/// What limits are to a client that was told none, or whose last answer was an error.
const UNTOLD: i64 = -1;

/// How the requests of a session name topics. It never changes: Kafka refuses the other kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    Names,
    Ids,
}

/// A topic as a session's requests name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TopicKey {
    Name(Arc<str>),
    Id(Uuid),
}

/// The partitions of one client's fetches.
#[derive(Debug)]
pub(crate) struct FetchSession {
    /// What requests name it by; 0 until it is kept.
    pub(crate) id: i32,
    /// The epoch of the request that may come next.
    pub(crate) epoch: i32,
    topics: Topics,
    /// By place: a number that is never used again, so that late news of a partition that was forgotten is nobody's.
    kept: BTreeMap<usize, Kept>,
    place_next: usize,
    turn_next: u64,
    /// The places of what is to be read, each once, in no order; those of forgotten partitions among them.
    due: Vec<usize>,
    /// Partitions that were forgotten while a wake-up was armed.
    forgotten: Vec<(LogId, usize)>,
    isolation: Isolation,
}

/// Places by topic and partition.
#[derive(Debug)]
enum Topics {
    Names(BTreeMap<Arc<str>, BTreeMap<i32, usize>>),
    Ids(BTreeMap<Uuid, BTreeMap<i32, usize>>),
}

/// What is known of one partition.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) topic: TopicKey,
    /// What its client asks for, as it said it last.
    pub(crate) wanted: FetchPartition,
    /// Whether it ever was there: its topic's id is no longer unknown then.
    pub(crate) was_found: bool,
    /// What the client was told last.
    high_watermark: i64,
    log_start_offset: i64,
    /// Where a wake-up may be armed.
    armed: Option<LogId>,
    is_due: bool,
    /// The lower, the earlier it is read: whoever gave records goes behind the others.
    turn: u64,
}

/// What a read found of a partition, as far as the session must know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) has_records: bool,
    pub(crate) is_error: bool,
    pub(crate) diverges: bool,
    pub(crate) high_watermark: i64,
    pub(crate) log_start_offset: i64,
    /// There was nothing to read, and a wake-up is armed for when there is.
    pub(crate) sleeps: bool,
}

impl FetchSession {
    /// A session without partitions.
    pub(crate) fn new(naming: Naming, isolation: Isolation) -> Self {
        let topics = match naming {
            Naming::Names => Topics::Names(BTreeMap::new()),
            Naming::Ids => Topics::Ids(BTreeMap::new()),
        };
        Self {
            id: 0,
            epoch: next_epoch(EPOCH_INITIAL),
            topics,
            kept: BTreeMap::new(),
            place_next: 0,
            turn_next: 0,
            due: Vec::new(),
            forgotten: Vec::new(),
            isolation,
        }
    }

    /// How its requests name topics.
    pub(crate) fn naming(&self) -> Naming {
        match &self.topics {
            Topics::Names(_) => Naming::Names,
            Topics::Ids(_) => Naming::Ids,
        }
    }

    /// How many partitions it has.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Takes over what a request changes: partitions that are new or asked for in another way, and those to forget.
    pub(crate) fn apply(&mut self, request: &FetchRequest<'_>) {
        for topic in request.topics.iter() {
            for partition in topic.partitions.iter() {
                self.want(topic.topic, topic.topic_id, partition);
            }
        }
        for topic in request.forgotten_topics_data.iter() {
            for partition in topic.partitions.iter() {
                self.forget(topic.topic, topic.topic_id, partition);
            }
        }
    }

    fn want(&mut self, name: &str, id: Uuid, wanted: FetchPartition) {
        let partition = wanted.partition;
        if let Some(place) = self.find(name, id, partition) {
            self.kept.get_mut(&place).expect("every place in the index is kept").wanted = wanted;
            self.make_due(place);
            return;
        }
        let place = self.place_next;
        self.place_next += 1;
        let topic = match &mut self.topics {
            Topics::Names(topics) => {
                let known = topics.get_key_value(name).map(|(name, _)| Arc::clone(name));
                let name = known.unwrap_or_else(|| Arc::from(name));
                topics.entry(Arc::clone(&name)).or_default().insert(partition, place);
                TopicKey::Name(name)
            }
            Topics::Ids(topics) => {
                topics.entry(id).or_default().insert(partition, place);
                TopicKey::Id(id)
            }
        };
        let turn = self.take_turn();
        let (high_watermark, log_start_offset) = (UNTOLD, UNTOLD);
        let kept =
            Kept { topic, wanted, was_found: false, high_watermark, log_start_offset, armed: None, is_due: true, turn };
        self.kept.insert(place, kept);
        self.due.push(place);
    }

    fn forget(&mut self, name: &str, id: Uuid, partition: i32) {
        let place = match &mut self.topics {
            Topics::Names(topics) => remove(topics, name, partition),
            Topics::Ids(topics) => remove(topics, &id, partition),
        };
        let Some(place) = place else { return };
        let kept = self.kept.remove(&place).expect("every place in the index is kept");
        self.forgotten.extend(kept.armed.map(|log| (log, place)));
    }

    fn find(&self, name: &str, id: Uuid, partition: i32) -> Option<usize> {
        let partitions = match &self.topics {
            Topics::Names(topics) => topics.get(name),
            Topics::Ids(topics) => topics.get(&id),
        };
        partitions?.get(&partition).copied()
    }

    fn take_turn(&mut self) -> u64 {
        self.turn_next += 1;
        self.turn_next
    }

    /// A partition by its place, while it is kept.
    pub(crate) fn get(&self, place: usize) -> Option<&Kept> {
        self.kept.get(&place)
    }

    /// Another isolation sees other ends: all is to be read again.
    pub(crate) fn set_isolation(&mut self, isolation: Isolation) {
        if self.isolation != isolation {
            self.isolation = isolation;
            let all: Vec<usize> = self.kept.keys().copied().collect();
            all.into_iter().for_each(|place| self.make_due(place));
        }
    }

    fn make_due(&mut self, place: usize) {
        if let Some(kept) = self.kept.get_mut(&place)
            && !kept.is_due
        {
            kept.is_due = true;
            self.due.push(place);
        }
    }

    /// Notes that partitions changed; their wake-ups are spent.
    pub(crate) fn heard(&mut self, places: &[usize]) {
        for place in places {
            if let Some(kept) = self.kept.get_mut(place) {
                kept.armed = None;
            }
            self.make_due(*place);
        }
    }

    /// Notes that a read which may arm a wake-up is on its way.
    pub(crate) fn arming(&mut self, place: usize, log: LogId) {
        if let Some(kept) = self.kept.get_mut(&place) {
            kept.armed = Some(log);
            kept.was_found = true;
        }
    }

    /// The places of what is to be read, in the order of turns.
    pub(crate) fn due(&mut self) -> Vec<usize> {
        let kept = &self.kept;
        self.due.retain(|place| kept.contains_key(place));
        self.due.sort_unstable_by_key(|place| kept[place].turn);
        self.due.clone()
    }

    /// Takes down what the client is about to be told of a partition; whether an incremental answer names it.
    pub(crate) fn tell(&mut self, place: usize, found: Found) -> bool {
        let turn = self.take_turn();
        let Some(kept) = self.kept.get_mut(&place) else { return false };
        let limits = (found.high_watermark, found.log_start_offset);
        let is_news = limits != (kept.high_watermark, kept.log_start_offset);
        (kept.high_watermark, kept.log_start_offset) = limits;
        if found.is_error {
            // When the error is over, the client hears of it.
            kept.high_watermark = UNTOLD;
        }
        if found.has_records {
            kept.turn = turn;
        }
        kept.is_due = !found.sleeps;
        is_news || found.has_records || found.is_error || found.diverges
    }

    /// Drops from the list what [`FetchSession::tell`] found nothing more to read in.
    pub(crate) fn told(&mut self) {
        let kept = &self.kept;
        self.due.retain(|place| kept.get(place).is_some_and(|kept| kept.is_due));
    }

    /// Where wake-ups may be armed for partitions that were forgotten.
    pub(crate) fn take_forgotten(&mut self) -> Vec<(LogId, usize)> {
        std::mem::take(&mut self.forgotten)
    }

    /// Where wake-ups may be armed. None is, from the session's view, afterwards: everything is due.
    pub(crate) fn take_armed(&mut self) -> Vec<(LogId, usize)> {
        let mut armed = self.take_forgotten();
        let places: Vec<usize> = self.kept.keys().copied().collect();
        for place in places {
            let kept = self.kept.get_mut(&place).expect("its place was just listed");
            armed.extend(kept.armed.take().map(|log| (log, place)));
            self.make_due(place);
        }
        armed
    }

    /// Leaves nothing behind: whoever still holds on to it finds that its epoch is over.
    pub(crate) fn leave(&mut self) -> Self {
        let gone = Self { epoch: EPOCH_GONE, ..Self::new(self.naming(), self.isolation) };
        std::mem::replace(self, gone)
    }

    /// # Panics
    /// If what it keeps contradicts its index or what is due.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        let count: usize = match &self.topics {
            Topics::Names(topics) => topics.values().map(BTreeMap::len).sum(),
            Topics::Ids(topics) => topics.values().map(BTreeMap::len).sum(),
        };
        assert_eq!(count, self.kept.len(), "each partition has one place");
        let mut due: Vec<usize> = self.due.iter().copied().filter(|place| self.kept.contains_key(place)).collect();
        due.sort_unstable();
        let flagged: Vec<usize> = self.kept.iter().filter(|(_, kept)| kept.is_due).map(|(place, _)| *place).collect();
        assert_eq!(due, flagged, "what is due is listed once");
    }
}

/// The epoch after this one; it never is one of the special ones.
pub(crate) fn next_epoch(epoch: i32) -> i32 {
    match epoch {
        i32::MAX => 1,
        epoch => epoch + 1,
    }
}

fn remove<K, Q>(topics: &mut BTreeMap<K, BTreeMap<i32, usize>>, topic: &Q, partition: i32) -> Option<usize>
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    let partitions = topics.get_mut(topic)?;
    let place = partitions.remove(&partition);
    if partitions.is_empty() {
        topics.remove(topic);
    }
    place
}

#[cfg(test)]
mod tests {
    use heddle_protocol::messages::fetch::{FetchTopic, ForgottenTopic};
    use heddle_record::{PartitionIndex, TopicId};

    use super::*;

    const LOG: LogId = LogId { topic: TopicId::new([7; 16]), partition: PartitionIndex::new(0) };
    const ASLEEP: Found = Found {
        has_records: false,
        is_error: false,
        diverges: false,
        high_watermark: 5,
        log_start_offset: 0,
        sleeps: true,
    };

    fn wanted(partition: i32, fetch_offset: i64) -> FetchPartition {
        FetchPartition { partition, fetch_offset, ..Default::default() }
    }

    fn request<'a>(topic: &'a str, wants: &[(i32, i64)], forgets: &[i32]) -> FetchRequest<'a> {
        let partitions: Vec<FetchPartition> = wants.iter().map(|(index, offset)| wanted(*index, *offset)).collect();
        let topics = vec![FetchTopic { topic, partitions: partitions.into(), ..Default::default() }];
        let forgotten = ForgottenTopic { topic, partitions: forgets.to_vec().into(), ..Default::default() };
        FetchRequest { topics: topics.into(), forgotten_topics_data: vec![forgotten].into(), ..Default::default() }
    }

    fn session(wants: &[(i32, i64)]) -> FetchSession {
        let mut session = FetchSession::new(Naming::Names, Isolation::ReadUncommitted);
        session.apply(&request("loom", wants, &[]));
        session
    }

    fn tell_all(session: &mut FetchSession, found: Found) -> Vec<bool> {
        let told = session.due().into_iter().map(|place| session.tell(place, found)).collect();
        session.told();
        session.check_invariants();
        told
    }

    fn due_partitions(session: &mut FetchSession) -> Vec<i32> {
        session.due().into_iter().map(|place| session.get(place).unwrap().wanted.partition).collect()
    }

    #[test]
    fn what_sleeps_is_due_again_when_it_was_heard_of_or_is_asked_for() {
        let mut session = session(&[(0, 5), (1, 5), (2, 5)]);
        assert_eq!(tell_all(&mut session, ASLEEP), [true; 3], "limits that nobody was told of");
        assert_eq!(session.due(), []);
        session.heard(&[1, 1, 99]);
        assert_eq!(due_partitions(&mut session), [1]);
        assert_eq!(tell_all(&mut session, ASLEEP), [false], "nothing new");
        session.apply(&request("loom", &[(2, 5)], &[]));
        assert_eq!(due_partitions(&mut session), [2]);
        session.set_isolation(Isolation::ReadCommitted);
        assert_eq!(due_partitions(&mut session), [0, 1, 2]);
        session.check_invariants();
    }

    #[test]
    fn whoever_gave_records_goes_behind_the_others_and_stays_due() {
        let mut session = session(&[(0, 0), (1, 0), (2, 0)]);
        let records = Found { has_records: true, sleeps: false, ..ASLEEP };
        assert!(session.tell(0, records));
        assert!(session.tell(1, Found { sleeps: false, ..ASLEEP }));
        session.tell(2, ASLEEP);
        session.told();
        assert_eq!(due_partitions(&mut session), [1, 0]);
        assert!(session.tell(0, records), "records are told of however often they are read");
        session.check_invariants();
    }

    #[test]
    fn an_error_is_told_until_it_is_over_and_its_end_once() {
        let mut session = session(&[(0, 5)]);
        assert_eq!(tell_all(&mut session, ASLEEP), [true]);
        let error = Found { is_error: true, sleeps: false, high_watermark: UNTOLD, log_start_offset: UNTOLD, ..ASLEEP };
        session.heard(&[0]);
        assert_eq!(tell_all(&mut session, error), [true]);
        assert_eq!(tell_all(&mut session, error), [true], "still due");
        assert_eq!(tell_all(&mut session, ASLEEP), [true]);
        assert_eq!(tell_all(&mut session, ASLEEP), [] as [bool; 0]);
    }

    #[test]
    fn a_move_of_the_start_or_of_the_watermark_is_told_once() {
        let mut session = session(&[(0, 5)]);
        tell_all(&mut session, ASLEEP);
        for found in [Found { high_watermark: 6, ..ASLEEP }, Found { high_watermark: 6, log_start_offset: 2, ..ASLEEP }]
        {
            session.heard(&[0]);
            assert_eq!(tell_all(&mut session, found), [true]);
            session.heard(&[0]);
            assert_eq!(tell_all(&mut session, found), [false]);
        }
    }

    #[test]
    fn a_place_is_never_used_again() {
        let mut session = session(&[(0, 5), (1, 5)]);
        session.arming(0, LOG);
        tell_all(&mut session, ASLEEP);
        session.apply(&request("loom", &[], &[0, 7]));
        assert_eq!((session.len(), session.take_forgotten()), (1, vec![(LOG, 0)]));
        session.apply(&request("loom", &[(0, 5)], &[]));
        session.heard(&[0]);
        assert_eq!(session.due(), [2]);
        session.apply(&request("loom", &[(3, 0)], &[0, 1, 3]));
        assert_eq!((session.len(), session.due()), (0, vec![]), "what is added and forgotten at once is forgotten");
        session.check_invariants();
    }

    #[test]
    fn whoever_takes_a_session_over_reads_everything() {
        let mut session = session(&[(0, 5), (1, 5)]);
        session.arming(1, LOG);
        tell_all(&mut session, ASLEEP);
        let mut taken = session.leave();
        assert_eq!(taken.take_armed(), [(LOG, 1)]);
        assert_eq!((taken.due(), taken.epoch), (vec![0, 1], 1));
        assert_eq!((session.len(), session.epoch), (0, EPOCH_GONE));
        taken.check_invariants();
    }

    #[test]
    fn epochs_wrap_to_one() {
        assert_eq!([0, 1, i32::MAX - 1, i32::MAX].map(next_epoch), [1, 2, i32::MAX, 1]);
    }

    #[test]
    fn a_session_by_id_knows_no_names() {
        let mut session = FetchSession::new(Naming::Ids, Isolation::ReadUncommitted);
        for id in [1, 2, 1] {
            let topic_id = Uuid([id; 16]);
            let topic = FetchTopic { topic: "", topic_id, partitions: vec![wanted(0, 0)].into() };
            session.apply(&FetchRequest { topics: vec![topic].into(), ..Default::default() });
        }
        assert_eq!((session.len(), session.naming()), (2, Naming::Ids));
        assert_eq!(session.get(1).unwrap().topic, TopicKey::Id(Uuid([2; 16])));
        session.check_invariants();
    }
}
