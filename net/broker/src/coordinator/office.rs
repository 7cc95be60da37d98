//! One coordinator at work: load, decide, append, wait for the disk, answer.
//!
//! ```text
//!   request ─▶ step ─▶ gathered ─▶ records to the log, in the order of the steps ─▶ committed ─▶ answers
//!                                          │ fails
//!                                          ▼
//!         everybody who waits is told; the coordinator is loaded anew from the log
//! ```
//!
//! Owns the order: the records of a step are appended before those of any later step, and no answer goes out before all
//! that was appended until then is committed. What is decided in one turn of the core, or while the log takes no appends,
//! is appended together. Never decides: [`Coordinator`] does, which goes by records from the moment they are decided on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::group::{Command, Coordinator, GroupSettings, Now, Outcome, Response, Ticket};
use heddle_engine::{FirstBatch, Log, Piece, ReadLimit};
use heddle_io::sync::{Notify, OneshotReceiver, OneshotSender, Semaphore, oneshot};
use heddle_io::{Lease, Monotonic};
use heddle_protocol::ErrorCode;
use heddle_record::{Batches, Offset, PartitionIndex, RecordBatch, Timestamp, TopicId};

use super::gathered::Gathered;
use super::{Asker, CommitSample, Coordinators, GroupsSample};
use crate::core::Core;
use crate::partition::Partition;

/// Bytes that are replayed before others get their turn.
const LOAD_BYTES: usize = 1 << 20;
/// Bytes that one batch may have once it is decompressed; ours never are compressed.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// How long a coordinator that could not be loaded stays away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A partition of the offsets topic, and the coordinator of its groups.
pub(super) struct Office {
    partition: Rc<Partition>,
    settings: GroupSettings,
    /// The zero of all timeouts.
    started: Monotonic,
    state: RefCell<State>,
    /// Grows with each state: what a step has decided dies with the state that it was decided on.
    incarnation: Cell<u64>,
    waiting: RefCell<BTreeMap<Ticket, Waiting>>,
    next_ticket: Cell<u64>,
    /// What was decided and is not in the log.
    gathered: RefCell<Option<Gathered>>,
    /// The last record that was appended; what is answered has to wait for it.
    last_offset: Cell<Option<Offset>>,
    /// Appends go one after the other.
    turn: Semaphore,
    /// When the clock looks again.
    wakes_at: Cell<Duration>,
    /// The clock has to look earlier.
    earlier: Notify,
}

enum State {
    Loading,
    Active(Box<Coordinator>),
    /// The log could not be written or read. A later request has it loaded again.
    Lost {
        since: Duration,
    },
    Closed,
}

/// Who waits for an answer.
enum Waiting {
    /// A request of this core.
    Here(OneshotSender<Response>),
    /// A request of another core.
    Away(Asker),
}

impl Office {
    /// Opens the coordinator of a partition that is led here, and starts to load it.
    pub(super) fn open(core: &Core, partition: Rc<Partition>, settings: GroupSettings, started: Monotonic) -> Rc<Self> {
        let office = Rc::new(Self {
            partition,
            settings,
            started,
            state: RefCell::new(State::Loading),
            incarnation: Cell::new(0),
            waiting: RefCell::default(),
            next_ticket: Cell::new(0),
            gathered: RefCell::new(None),
            last_offset: Cell::new(None),
            turn: Semaphore::new(1),
            wakes_at: Cell::new(Duration::MAX),
            earlier: Notify::new(),
        });
        office.begin_load(core);
        office
    }

    /// Decides a request of this core.
    ///
    /// # Errors
    /// The answer, where there is nothing to wait for.
    pub(super) fn ask(self: &Rc<Self>, core: &Core, command: Command) -> Result<OneshotReceiver<Response>, Response> {
        let (sender, receiver) = oneshot();
        self.take(core, Waiting::Here(sender), command).map(|()| receiver)
    }

    /// Decides a request of another core, to which its answer is sent.
    ///
    /// # Errors
    /// As [`Office::ask`].
    pub(super) fn serve(self: &Rc<Self>, core: &Core, asker: Asker, command: Command) -> Result<(), Response> {
        self.take(core, Waiting::Away(asker), command)
    }

    fn take(self: &Rc<Self>, core: &Core, waiting: Waiting, command: Command) -> Result<(), Response> {
        self.refusal(core, &command).map_or(Ok(()), Err)?;
        let ticket = Ticket(self.next_ticket.get());
        self.next_ticket.set(ticket.0 + 1);
        let mut outcome = self
            .decide(core, |coordinator, now| coordinator.step(now, ticket, command))
            .ok_or(Response::Gone(ErrorCode::NotCoordinator))?;
        if outcome.records.is_empty() && self.is_settled() {
            let own = outcome.answers.iter().position(|(answered, _)| *answered == ticket);
            let own = own.map(|own| outcome.answers.remove(own).1);
            self.answer(core, outcome.answers);
            if let Some(response) = own {
                return Err(response);
            }
            self.waiting.borrow_mut().insert(ticket, waiting);
        } else {
            self.waiting.borrow_mut().insert(ticket, waiting);
            self.settle(core, outcome);
        }
        Ok(())
    }

    /// Why nothing can be decided now, or not this.
    fn refusal(self: &Rc<Self>, core: &Core, command: &Command) -> Option<Response> {
        let now = self.now(core).elapsed;
        let is_due = matches!(*self.state.borrow(), State::Lost { since } if now.saturating_sub(since) >= RETRY_AFTER);
        if is_due {
            self.begin_load(core);
        }
        match &*self.state.borrow() {
            State::Active(_) => {}
            State::Loading => return Some(Response::Gone(ErrorCode::CoordinatorLoadInProgress)),
            State::Lost { .. } | State::Closed => return Some(Response::Gone(ErrorCode::NotCoordinator)),
        }
        // Its topic may have gone while the request was on its way: nothing is committed for what is not there.
        let image = core.image();
        match command {
            Command::Commit(commit) if commit.entries.iter().any(|entry| image.topic(entry.topic_id).is_none()) => {
                Some(Response::Commit(Err(ErrorCode::UnknownTopicOrPartition)))
            }
            _ => None,
        }
    }

    fn now(&self, core: &Core) -> Now {
        let elapsed = core.io().now().since(self.started);
        Now { elapsed, wall: Timestamp::new(core.io().wall_clock()) }
    }

    /// Has the coordinator decide, if there is one, and sees to it that the clock looks in time.
    fn decide(&self, core: &Core, decide: impl FnOnce(&mut Coordinator, Now) -> Outcome) -> Option<Outcome> {
        let now = self.now(core);
        let mut state = self.state.borrow_mut();
        let State::Active(coordinator) = &mut *state else { return None };
        let outcome = decide(coordinator, now);
        if coordinator.next_deadline() < self.wakes_at.get() {
            self.earlier.notify_all();
        }
        Some(outcome)
    }

    /// Whether all that was decided is committed.
    fn is_settled(&self) -> bool {
        let log = self.partition.log();
        let is_committed = |last: Offset| last < log.offsets().committable_end;
        let is_appended = self.gathered.borrow().is_none() && self.turn.available() > 0;
        is_appended && self.last_offset.get().is_none_or(is_committed) && log.offline().is_none()
    }

    /// Gives the records of an outcome their place behind all that were decided on before, and has its answers sent once
    /// they may be.
    fn settle(self: &Rc<Self>, core: &Core, outcome: Outcome) {
        if outcome == Outcome::default() {
            return;
        }
        let now = Timestamp::new(core.io().wall_clock());
        let mut gathered = self.gathered.borrow_mut();
        if gathered.is_none() {
            drop(core.spawn_vital(Rc::clone(self).carry_out(core.clone(), self.incarnation.get())));
        }
        let gathered = gathered.get_or_insert_with(|| Gathered::new(self.settings.step_bytes_max));
        gathered.add(outcome, now);
    }

    /// Appends what has gathered, and answers when it is committed.
    async fn carry_out(self: Rc<Self>, core: Core, incarnation: u64) {
        let turn = self.turn.acquire(1).await;
        if self.incarnation.get() != incarnation {
            return;
        }
        let Some(gathered) = self.gathered.take() else { return };
        let (batches, answers) = gathered.finish();
        if let Err(error) = self.append(batches).await {
            drop(turn);
            return self.lose(&core, incarnation, error);
        }
        let last_offset = self.last_offset.get();
        drop(turn);
        let committed = match last_offset {
            Some(last_offset) => self.partition.settled(last_offset).await,
            None => Ok(()),
        };
        match committed {
            Ok(()) => self.answer(&core, answers),
            Err(fault) => self.lose(&core, incarnation, fault.error),
        }
    }

    async fn append(&self, batches: Vec<Vec<u8>>) -> Result<(), ErrorCode> {
        for batch in batches {
            let last = self.partition.append_own(Lease::from_vec(batch)).await.map_err(|fault| fault.error)?;
            self.last_offset.set(Some(last));
        }
        Ok(())
    }

    /// Sends answers to those who still wait for them.
    fn answer(&self, core: &Core, answers: Vec<(Ticket, Response)>) {
        let mut away = Vec::new();
        for (ticket, response) in answers {
            match self.waiting.borrow_mut().remove(&ticket) {
                Some(Waiting::Here(sender)) => {
                    let _ = sender.send(response);
                }
                Some(Waiting::Away(asker)) => away.push((asker, response)),
                None => {}
            }
        }
        Coordinators::send(core, away);
    }

    /// What was decided is not in the log: the coordinator knows what nobody else does, so it goes.
    fn lose(self: &Rc<Self>, core: &Core, incarnation: u64, error: ErrorCode) {
        if self.incarnation.get() == incarnation {
            tracing::error!(log = %self.partition.log().name(), "groups are loaded again: {}", error.name());
            self.begin_load(core);
        }
    }

    /// Replaces the state; whoever waits for the one before is told to look for the coordinator again.
    fn replace(&self, core: &Core, state: State) {
        self.incarnation.set(self.incarnation.get() + 1);
        self.state.replace(state);
        self.gathered.take();
        let waiting: Vec<Ticket> = self.waiting.borrow().keys().copied().collect();
        let gone = |ticket| (ticket, Response::Gone(ErrorCode::NotCoordinator));
        self.answer(core, waiting.into_iter().map(gone).collect());
        self.earlier.notify_all();
    }

    /// Stops deciding for good.
    pub(super) fn close(&self, core: &Core) {
        self.replace(core, State::Closed);
    }

    /// Adds what the groups here are and have committed, as long as no more than `commits_max` offsets are named.
    pub(super) fn sample(&self, sample: &mut GroupsSample, commits_max: usize) {
        let state = self.state.borrow();
        let State::Active(coordinator) = &*state else { return };
        for (_, state) in coordinator.states() {
            *sample.states.entry(state).or_default() += 1;
        }
        sample.commit_count += coordinator.commit_count();
        let room = commits_max.saturating_sub(sample.commits.len());
        sample.commits.extend(coordinator.commits().take(room).map(|commit| CommitSample {
            group: Arc::clone(commit.group),
            topic: Arc::clone(commit.topic),
            topic_id: commit.committed.topic_id,
            partition: PartitionIndex::new(commit.partition),
            offset: commit.committed.offset,
        }));
    }

    /// Forgets offsets of topics that the image no longer has.
    pub(super) fn forget_topics(self: &Rc<Self>, core: &Core) {
        let image = core.image();
        let is_gone = |name: &str, id: TopicId| match id {
            TopicId::ZERO => image.topic_named(name).is_none(),
            id => image.topic(id).is_none(),
        };
        if let Some(outcome) = self.decide(core, |coordinator, now| coordinator.forget_topics(now, is_gone)) {
            self.settle(core, outcome);
        }
    }
}

/// Loading, and the clock.
impl Office {
    fn begin_load(self: &Rc<Self>, core: &Core) {
        self.replace(core, State::Loading);
        let (office, incarnation) = (Rc::clone(self), self.incarnation.get());
        let core_of_task = core.clone();
        drop(core.spawn_vital(async move { office.load(&core_of_task, incarnation).await }));
    }

    async fn load(self: Rc<Self>, core: &Core, incarnation: u64) {
        // Whatever was on its way to the log before this is there, or never will be.
        let turn = self.turn.acquire(1).await;
        let loaded = self.replay(core).await;
        drop(turn);
        if self.incarnation.get() != incarnation {
            return;
        }
        match loaded {
            Ok(coordinator) => {
                self.state.replace(State::Active(Box::new(coordinator)));
                if let Some(outcome) = self.decide(core, Coordinator::start) {
                    self.settle(core, outcome);
                }
                self.forget_topics(core);
                self.keep_time(core, incarnation).await;
            }
            Err(reason) => {
                tracing::error!(log = %self.partition.log().name(), "groups cannot be loaded: {reason}");
                self.state.replace(State::Lost { since: self.now(core).elapsed });
            }
        }
    }

    /// What the log says.
    async fn replay(&self, core: &Core) -> Result<Coordinator, String> {
        let mut coordinator = Coordinator::new(self.settings.clone());
        let log = self.partition.log();
        let offsets = log.offsets();
        let (mut next, end) = (offsets.log_start.offset(), offsets.log_end.offset());
        self.last_offset.set(end.checked_add(-1).filter(|last| *last >= next));
        while next < end {
            let limit = ReadLimit { end, bytes_max: LOAD_BYTES, first_batch: FirstBatch::AtLeastOne };
            let read = log.read(next, limit).await.map_err(|error| error.to_string())?;
            for piece in read.pieces {
                let bytes = match piece {
                    Piece::Memory(bytes) => bytes,
                    Piece::File { file, position, len } => {
                        core.io().read_lease(&file, position, len).await.map_err(|error| error.to_string())?
                    }
                };
                replay_batches(&mut coordinator, log, &bytes)?;
            }
            // Compaction may have left nothing before the end (case 57).
            next = if read.next_offset > next { read.next_offset } else { end };
            core.io().yield_now().await;
        }
        // A log that is offline may still show what never reached the disk, and what will be cut off when it comes back.
        log.offline().map_or(Ok(coordinator), |error| Err(error.to_string()))
    }

    /// Does what is due, for as long as this incarnation lives.
    async fn keep_time(self: &Rc<Self>, core: &Core, incarnation: u64) {
        while self.incarnation.get() == incarnation {
            let next = match &*self.state.borrow() {
                State::Active(coordinator) => coordinator.next_deadline(),
                _ => return,
            };
            self.wakes_at.set(next);
            let left = next.saturating_sub(self.now(core).elapsed);
            if !left.is_zero() {
                // Either it is time, or there is an earlier one.
                let _ = core.io().timeout(left, self.earlier.wait()).await;
            } else if let Some(outcome) = self.decide(core, Coordinator::tick) {
                self.settle(core, outcome);
            }
        }
    }
}

fn replay_batches(coordinator: &mut Coordinator, log: &Log, bytes: &[u8]) -> Result<(), String> {
    for batch in Batches::new(bytes) {
        let batch = batch.map_err(|error| error.to_string())?;
        if batch.attributes().is_control() || batch.is_transactional() {
            passed_over(log, &batch, &"it belongs to a transaction, and there are none here");
            continue;
        }
        let mut room = Vec::new();
        let body = batch.uncompressed_body(BATCH_BYTES_MAX, &mut room).map_err(|error| error.to_string())?;
        for record in batch.records_in(body) {
            let record = record.map_err(|error| error.to_string())?;
            match record.key.map(|key| coordinator.replay_bytes(key, record.value)) {
                Some(Ok(())) => {}
                Some(Err(bad)) => passed_over(log, &batch, &bad),
                None => passed_over(log, &batch, &"it has no key"),
            }
        }
    }
    Ok(())
}

fn passed_over(log: &Log, batch: &RecordBatch<'_>, reason: &dyn Display) {
    tracing::warn!(log = %log.name(), batch = batch.base_offset().get(), "a record is passed over: {reason}");
}
