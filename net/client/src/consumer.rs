//! The consumer: reads the partitions that it is told to, from where it is told to, ahead of its user by a bounded number
//! of bytes. Groups are not its business.
//!
//! One task plans ([`drive`]): it finds out where readers start, who leads their partitions, and starts one fetch for each
//! leader that has none in flight. Fetches run as tasks of their own; what they bring waits in a queue for
//! [`Consumer::next`].

mod batch;
mod fetch;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use heddle_io::sync::Notify;
use heddle_io::{Io, Monotonic};
use heddle_protocol::ErrorCode;
use heddle_record::{Offset, PartitionIndex, Timestamp};

use crate::admin::{ListedOffset, OffsetQuery};
use crate::brokers::{Address, Purpose};
use crate::client::{Client, Creation};
use crate::config::{ConsumerConfig, OutOfRange};
use crate::error::{Error, Result};

use fetch::Wanted;

pub use batch::{ConsumerRecord, FetchedBatch};

/// Where a partition is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first readable record.
    Beginning,
    /// What arrives from now on.
    End,
    /// This offset.
    Offset(Offset),
    /// The first record with this timestamp or a later one; the end if there is none.
    Time(Timestamp),
}

/// Reads records. Made by [`Client::consumer`]; reading starts with [`Consumer::assign`] and ends when it drops.
pub struct Consumer {
    inner: Rc<Inner>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().closed = true;
        self.inner.plan_again.notify_all();
        self.inner.client.forget(self.inner.purpose());
    }
}

struct Inner {
    client: Client,
    io: Io,
    number: u32,
    config: ConsumerConfig,
    state: RefCell<State>,
    /// The plan may have changed.
    plan_again: Notify,
    /// Something came for the user.
    arrived: Notify,
}

type Key = (Rc<str>, PartitionIndex);

#[derive(Default)]
struct State {
    readers: BTreeMap<Key, Reader>,
    ready: VecDeque<(Key, Result<FetchedBatch>)>,
    ready_bytes: usize,
    /// Leaders that a fetch is waiting for.
    fetching: BTreeSet<Address>,
    closed: bool,
    /// Tells successive assignments of one partition apart.
    next_assignment: u64,
    /// Grows with each plan, so that no partition is always first.
    turn: usize,
}

/// One assigned partition.
struct Reader {
    assignment: u64,
    place: Place,
    /// Being resolved or fetched.
    busy: bool,
    ready_bytes: usize,
    retry_at: Monotonic,
    failures: u32,
    failing_since: Option<Monotonic>,
}

#[derive(Clone, Copy)]
enum Place {
    /// Not a number yet.
    Unresolved(Position),
    /// The next record to fetch.
    At(Offset),
}

impl Consumer {
    pub(crate) fn new(client: Client, number: u32, config: ConsumerConfig) -> Self {
        let io = client.io().clone();
        let state = RefCell::default();
        let (plan_again, arrived) = (Notify::new(), Notify::new());
        let inner = Rc::new(Inner { client, io, number, config, state, plan_again, arrived });
        inner.io.spawn(drive(Rc::clone(&inner))).detach();
        Self { inner }
    }

    /// Reads a partition from `position` on. What was fetched for an earlier assignment of it is dropped.
    pub fn assign(&self, topic: &str, partition: PartitionIndex, position: Position) {
        let mut state = self.inner.state.borrow_mut();
        let key: Key = (Rc::from(topic), partition);
        state.forget(&key);
        let place = match position {
            Position::Offset(offset) => Place::At(offset),
            other => Place::Unresolved(other),
        };
        let assignment = state.next_assignment;
        state.next_assignment += 1;
        let retry_at = self.inner.io.now();
        let reader =
            Reader { assignment, place, busy: false, ready_bytes: 0, retry_at, failures: 0, failing_since: None };
        state.readers.insert(key, reader);
        self.inner.plan_again.notify_all();
    }

    /// Reads a partition no more.
    pub fn unassign(&self, topic: &str, partition: PartitionIndex) {
        self.inner.state.borrow_mut().forget(&(Rc::from(topic), partition));
        self.inner.plan_again.notify_all();
    }

    /// Waits for the next batch. Batches of one partition come in order.
    ///
    /// A batch may be empty: its records are not for this reader, but its [`FetchedBatch::next_offset`] is progress.
    ///
    /// # Errors
    /// A partition cannot be read any further: it is no longer assigned. [`Error::Invalid`] if none is.
    pub async fn next(&self) -> Result<FetchedBatch> {
        loop {
            let arrived = self.inner.arrived.wait();
            if let Some(next) = self.try_next() {
                return next;
            }
            if self.inner.state.borrow().readers.is_empty() {
                return Err(Error::Invalid { what: "no partition is assigned to the consumer".to_owned() });
            }
            arrived.await;
        }
    }

    /// The next batch, if one has been fetched. Errors as [`Consumer::next`].
    pub fn try_next(&self) -> Option<Result<FetchedBatch>> {
        let mut state = self.inner.state.borrow_mut();
        let (key, next) = state.ready.pop_front()?;
        match &next {
            Ok(batch) => {
                let bytes = batch.bytes();
                state.ready_bytes -= bytes;
                let reader = state.readers.get_mut(&key).expect("what is ready belongs to a reader");
                reader.ready_bytes -= bytes;
                self.inner.plan_again.notify_all();
            }
            Err(_) => state.forget(&key),
        }
        Some(next)
    }
}

impl State {
    /// Drops a reader and what was fetched for it.
    fn forget(&mut self, key: &Key) {
        let Some(reader) = self.readers.remove(key) else { return };
        self.ready_bytes -= reader.ready_bytes;
        self.ready.retain(|(of, _)| of != key);
    }

    /// The reader, if it is still the one that `assignment` names.
    fn reader(&mut self, key: &Key, assignment: u64) -> Option<&mut Reader> {
        self.readers.get_mut(key).filter(|reader| reader.assignment == assignment)
    }

    /// Readers that need something now, those first whose turn it is: assignment and place of each.
    fn due(&mut self, now: Monotonic, config: &ConsumerConfig) -> Vec<(Key, u64, Place)> {
        let has_room = self.ready_bytes < config.prefetch_bytes_max;
        let due = self.readers.iter().filter(|(_, reader)| {
            !reader.busy && reader.retry_at <= now && has_room && reader.ready_bytes < config.partition_bytes_max
        });
        let mut due: Vec<_> = due.map(|(key, reader)| (key.clone(), reader.assignment, reader.place)).collect();
        if !due.is_empty() {
            let turn = self.turn % due.len();
            due.rotate_left(turn);
            self.turn = self.turn.wrapping_add(1);
        }
        due
    }

    /// When the first reader that waits out a failure is due.
    fn next_retry(&self, now: Monotonic) -> Option<Monotonic> {
        let waiting = self.readers.values().filter(|reader| !reader.busy && reader.retry_at > now);
        waiting.map(|reader| reader.retry_at).min()
    }
}

/// The planning task.
async fn drive(consumer: Rc<Inner>) {
    loop {
        let changed = consumer.plan_again.wait();
        if consumer.state.borrow().closed {
            return;
        }
        let now = consumer.io.now();
        let due = consumer.state.borrow_mut().due(now, &consumer.config);
        consumer.resolve(&due);
        consumer.start_fetches(&due).await;
        let retry_at = consumer.state.borrow().next_retry(now);
        match retry_at {
            Some(at) => {
                // Whichever comes first: the plan is made again in both cases.
                let _elapsed = consumer.io.timeout(at.since(consumer.io.now()), changed).await;
            }
            None => changed.await,
        }
    }
}

impl Inner {
    fn purpose(&self) -> Purpose {
        Purpose::Fetch(self.number)
    }

    /// Starts to find out the offsets where readers begin.
    fn resolve(self: &Rc<Self>, due: &[(Key, u64, Place)]) {
        let unresolved = due.iter().filter_map(|(key, assignment, place)| match place {
            Place::Unresolved(position) => Some((key.clone(), *assignment, *position)),
            Place::At(_) => None,
        });
        let unresolved: Vec<_> = unresolved.collect();
        if unresolved.is_empty() {
            return;
        }
        let mut state = self.state.borrow_mut();
        for (key, assignment, _) in &unresolved {
            if let Some(reader) = state.reader(key, *assignment) {
                reader.busy = true;
            }
        }
        self.io.spawn(resolve(Rc::clone(self), unresolved)).detach();
    }

    /// Starts a fetch from each leader that has due readers and no fetch in flight.
    async fn start_fetches(self: &Rc<Self>, due: &[(Key, u64, Place)]) {
        let mut fetches: BTreeMap<Address, Vec<(u64, Wanted)>> = BTreeMap::new();
        for (key, assignment, place) in due {
            let Place::At(offset) = *place else { continue };
            let (topic, partition) = key;
            match self.client.leader(topic, *partition, Creation::Forbidden).await {
                Ok(leader) => fetches.entry(leader.broker.address).or_default().push((
                    *assignment,
                    Wanted {
                        topic: Rc::clone(topic),
                        topic_id: leader.topic.id,
                        partition: *partition,
                        leader_epoch: leader.epoch,
                        offset,
                    },
                )),
                Err(error) => self.failed(key, *assignment, error),
            }
        }
        for (address, wanted) in fetches {
            self.start_fetch(address, wanted);
        }
    }

    fn start_fetch(self: &Rc<Self>, address: Address, mut wanted: Vec<(u64, Wanted)>) {
        let mut state = self.state.borrow_mut();
        // While leaders were looked up a reader may have been assigned anew.
        wanted.retain(|(assignment, it)| {
            let reader = state.reader(&it.key(), *assignment);
            reader.is_some_and(|it| !it.busy)
        });
        if wanted.is_empty() || !state.fetching.insert(address.clone()) {
            return;
        }
        for (assignment, it) in &wanted {
            if let Some(reader) = state.reader(&it.key(), *assignment) {
                reader.busy = true;
            }
        }
        self.io.spawn(run_fetch(Rc::clone(self), address, wanted)).detach();
    }

    /// Takes in what a fetch brought for one reader.
    fn take(&self, assignment: u64, wanted: &Wanted, fetched: &batch::Fetched, alone: bool) {
        let key = wanted.key();
        if self.state.borrow_mut().reader(&key, assignment).is_none() {
            return;
        }
        let batches = match batch::batches(&wanted.topic, wanted.partition, wanted.offset, fetched, &self.config) {
            Ok(batches) => batches,
            Err(error) => return self.end(&key, assignment, error),
        };
        // A broker gives at least one whole batch to a fetch of one partition.
        if batches.is_empty() && !fetched.records.is_empty() && alone {
            let from = format!("the leader of {}-{}", wanted.topic, wanted.partition);
            let what = format!("no whole batch at offset {}", wanted.offset);
            return self.end(&key, assignment, Error::Malformed { from, what });
        }
        let mut state = self.state.borrow_mut();
        let bytes: usize = batches.iter().map(FetchedBatch::bytes).sum();
        let Some(reader) = state.reader(&key, assignment) else { return };
        reader.busy = false;
        reader.failures = 0;
        reader.failing_since = None;
        reader.ready_bytes += bytes;
        if let Some(last) = batches.last() {
            reader.place = Place::At(last.next_offset());
        }
        state.ready_bytes += bytes;
        state.ready.extend(batches.into_iter().map(|batch| (key.clone(), Ok(batch))));
    }

    /// A reader could not go on: it tries again later, starts elsewhere, or ends.
    fn failed(&self, key: &Key, assignment: u64, error: Error) {
        if error.invalidates_metadata() {
            self.client.doubt(&key.0);
        }
        if error.code() == Some(ErrorCode::OffsetOutOfRange) {
            return self.out_of_range(key, assignment, error);
        }
        let now = self.io.now();
        let mut state = self.state.borrow_mut();
        let Some(reader) = state.reader(key, assignment) else { return };
        let since = *reader.failing_since.get_or_insert(now);
        // A wrong topic will not come right; a leader that is away comes back, however long it takes.
        let unknown = matches!(
            error.code(),
            Some(ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId | ErrorCode::InconsistentTopicId)
        );
        let given_up = unknown && now >= since + self.client.config().retry_timeout;
        if !error.retriable() || given_up {
            drop(state);
            return self.end(key, assignment, error);
        }
        reader.busy = false;
        reader.retry_at = now + self.client.backoff(reader.failures);
        reader.failures = reader.failures.saturating_add(1);
    }

    fn out_of_range(&self, key: &Key, assignment: u64, error: Error) {
        let position = match self.config.out_of_range {
            OutOfRange::Fail => return self.end(key, assignment, error),
            OutOfRange::Beginning => Position::Beginning,
            OutOfRange::End => Position::End,
        };
        if let Some(reader) = self.state.borrow_mut().reader(key, assignment) {
            reader.busy = false;
            reader.place = Place::Unresolved(position);
        }
    }

    /// Ends a reader with an error for the user, behind what was fetched before.
    fn end(&self, key: &Key, assignment: u64, error: Error) {
        let mut state = self.state.borrow_mut();
        let Some(reader) = state.reader(key, assignment) else { return };
        // The reader stays until the user has seen what came before, but does nothing more.
        reader.busy = true;
        state.ready.push_back((key.clone(), Err(error)));
        drop(state);
        self.arrived.notify_all();
    }
}

impl Wanted {
    fn key(&self) -> Key {
        (Rc::clone(&self.topic), self.partition)
    }
}

/// One fetch, from request to what it brought.
async fn run_fetch(consumer: Rc<Inner>, address: Address, wanted: Vec<(u64, Wanted)>) {
    let (assignments, wanted): (Vec<u64>, Vec<Wanted>) = wanted.into_iter().unzip();
    let answers = fetch::fetch(&consumer.client, &address, consumer.purpose(), &consumer.config, &wanted).await;
    consumer.state.borrow_mut().fetching.remove(&address);
    if consumer.state.borrow().closed {
        return;
    }
    let alone = wanted.len() == 1;
    match answers {
        Err(error) => {
            for (assignment, it) in assignments.iter().zip(&wanted) {
                consumer.failed(&it.key(), *assignment, error.clone());
            }
        }
        Ok(answers) => {
            for ((assignment, it), answer) in assignments.iter().zip(&wanted).zip(answers) {
                match answer {
                    Ok(fetched) => consumer.take(*assignment, it, &fetched, alone),
                    Err(error) => consumer.failed(&it.key(), *assignment, error),
                }
            }
        }
    }
    consumer.arrived.notify_all();
    consumer.plan_again.notify_all();
}

/// Finds out where readers start: for all at once, or for each by itself if that fails.
async fn resolve(consumer: Rc<Inner>, readers: Vec<(Key, u64, Position)>) {
    if consumer.resolve_all(&readers).await.is_err() {
        for reader in readers {
            if let Err(error) = consumer.resolve_all(std::slice::from_ref(&reader)).await {
                consumer.failed(&reader.0, reader.1, error);
            }
        }
    }
    consumer.plan_again.notify_all();
}

impl Inner {
    async fn resolve_all(&self, readers: &[(Key, u64, Position)]) -> Result<()> {
        let admin = self.client.admin();
        let queries: Vec<_> =
            readers.iter().map(|((topic, partition), _, at)| (&**topic, *partition, query(*at))).collect();
        let listed = admin.list_offsets(&queries, self.config.isolation).await?;
        // No record is that young: what arrives from now on.
        let ends: Vec<_> =
            queries.iter().map(|(topic, partition, _)| (*topic, *partition, OffsetQuery::Latest)).collect();
        let need_ends = listed.iter().any(|it| it.offset.is_none());
        let ends = if need_ends { admin.list_offsets(&ends, self.config.isolation).await? } else { Vec::new() };
        let mut state = self.state.borrow_mut();
        for (index, (key, assignment, _)) in readers.iter().enumerate() {
            let found = |listed: &[ListedOffset]| listed.get(index).and_then(|it| it.offset);
            let (Some(offset), Some(reader)) = (found(&listed).or(found(&ends)), state.reader(key, *assignment)) else {
                continue;
            };
            reader.place = Place::At(offset);
            reader.busy = false;
            reader.failing_since = None;
        }
        Ok(())
    }
}

fn query(position: Position) -> OffsetQuery {
    match position {
        Position::Beginning => OffsetQuery::Earliest,
        Position::End => OffsetQuery::Latest,
        Position::Time(timestamp) => OffsetQuery::AtTime(timestamp),
        Position::Offset(_) => unreachable!("an offset needs no resolving"),
    }
}
