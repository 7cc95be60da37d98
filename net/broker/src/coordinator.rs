//! The coordinators of groups that live on this core: one for each partition of `__consumer_offsets` that it owns.
//!
//! Owns their list, and the way of an answer that has to wait for other members back to the core that asked. Decides
//! nothing: [`heddle_cluster::group`] does.
//!
//! A request of this core is decided by a call, one of another core as a letter. What waits for the disk or for other
//! members is only noted, so that the letter's credit is free again; answers that come at the same time go to the core that
//! asked in one letter of their own.

mod gathered;
mod office;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use heddle_cluster::MetadataImage;
use heddle_cluster::group::command::{Command, Filter, Listed};
use heddle_cluster::group::{GroupSettings, OFFSETS_TOPIC, Response};
use heddle_io::Monotonic;
use heddle_io::sync::{OneshotReceiver, OneshotSender, oneshot};
use heddle_protocol::ErrorCode;
use heddle_record::{LogId, PartitionIndex, TopicId};

use crate::core::Core;
use crate::guard;
use crate::mailbox::CoreIndex;
use crate::message::{GroupAnswersRequest, GroupReply, GroupRequest};
use crate::partition::Partition;
use office::Office;

/// One core's coordinators, and what its connections wait for.
pub(crate) struct Coordinators {
    /// When this core started: the zero of the coordinators' timeouts.
    started: Monotonic,
    offices: RefCell<BTreeMap<PartitionIndex, Rc<Office>>>,
    /// The offsets topic that they belong to.
    topic: Cell<TopicId>,
    /// Requests of this core's connections to coordinators of other cores, by number.
    held: RefCell<BTreeMap<u64, OneshotSender<Response>>>,
    next: Cell<u64>,
}

/// The groups of one core, at a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupsSample {
    /// How many are in each state, in Kafka's words.
    pub(crate) states: BTreeMap<&'static str, u64>,
    /// Some of the offsets that are committed.
    pub(crate) commits: Vec<CommitSample>,
    /// How many there are in all.
    pub(crate) commit_count: usize,
}

/// An offset that is committed.
#[derive(Debug, Clone)]
pub(crate) struct CommitSample {
    pub(crate) group: Arc<str>,
    pub(crate) topic: Arc<str>,
    /// The topic's id; zero where it was committed without.
    pub(crate) topic_id: TopicId,
    pub(crate) partition: PartitionIndex,
    /// The next record to be read, as the client wrote it.
    pub(crate) offset: i64,
}

/// Who waits for an answer that comes in a letter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) core: CoreIndex,
    /// The core's number for the request.
    pub(crate) number: u64,
}

/// A request to a coordinator on another core; forgotten when this drops.
pub(crate) struct Held {
    core: Core,
    pub(crate) asker: Asker,
    answer: OneshotReceiver<Response>,
}

impl Held {
    /// A new request of this core.
    pub(crate) fn new(core: &Core) -> Self {
        let coordinators = core.coordinators();
        let number = coordinators.next.get();
        coordinators.next.set(number + 1);
        let (sender, answer) = oneshot();
        coordinators.held.borrow_mut().insert(number, sender);
        Self { core: core.clone(), asker: Asker { core: core.index(), number }, answer }
    }

    /// The answer.
    pub(crate) async fn answer(&mut self) -> Response {
        let answer = (&mut self.answer).await;
        answer.expect("a request is on the list for as long as somebody waits for it")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.coordinators().held.borrow_mut().remove(&self.asker.number);
    }
}

impl Coordinators {
    pub(crate) fn new(started: Monotonic) -> Self {
        Self {
            started,
            offices: RefCell::default(),
            topic: Cell::new(TopicId::ZERO),
            held: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// Takes over what `image` says: coordinators for the partitions that are led here, none for others, and no offsets
    /// of topics that are gone since `before`.
    pub(crate) fn follow(&self, core: &Core, before: &MetadataImage, image: &MetadataImage) {
        let led = led_here(core, image);
        if let Some((topic, _)) = &led
            && self.topic.replace(*topic) != *topic
        {
            self.close(core);
        }
        let led: BTreeMap<PartitionIndex, Rc<Partition>> = led.map(|(_, led)| led).unwrap_or_default();
        let lost: Vec<PartitionIndex> =
            self.offices.borrow().keys().filter(|index| !led.contains_key(index)).copied().collect();
        for index in lost {
            let office = self.offices.borrow_mut().remove(&index);
            office.expect("it was just listed").close(core);
        }
        let settings = GroupSettings::new(&image.layers(core.broker_id(), &core.config().settings));
        for (index, partition) in led {
            if !self.offices.borrow().contains_key(&index) {
                let office = Office::open(core, partition, settings.clone(), self.started);
                self.offices.borrow_mut().insert(index, office);
            }
        }
        if before.topics().any(|topic| image.topic(topic.id).is_none()) {
            for office in self.all() {
                office.forget_topics(core);
            }
        }
    }

    fn all(&self) -> Vec<Rc<Office>> {
        self.offices.borrow().values().cloned().collect()
    }

    fn office(&self, partition: PartitionIndex) -> Result<Rc<Office>, Response> {
        self.offices.borrow().get(&partition).cloned().ok_or(Response::Gone(ErrorCode::NotCoordinator))
    }

    /// Decides a request of this core about a group of one partition.
    ///
    /// # Errors
    /// The answer, where there is nothing to wait for.
    pub(crate) fn ask(
        &self,
        core: &Core,
        partition: PartitionIndex,
        command: Command,
    ) -> Result<OneshotReceiver<Response>, Response> {
        guard::guarded_call(|| self.office(partition)?.ask(core, command))
    }

    /// Decides a request of another core.
    pub(crate) fn serve(&self, core: &Core, request: GroupRequest) -> GroupReply {
        let served =
            self.office(request.partition).and_then(|office| office.serve(core, request.asker, request.command));
        served.map_or_else(GroupReply::Answered, |()| GroupReply::Held)
    }

    /// The groups of all partitions here.
    pub(crate) async fn list(&self, core: &Core, filter: Filter) -> Result<Vec<Listed>, ErrorCode> {
        let mut groups = Vec::new();
        for office in self.all() {
            let answer = match office.ask(core, Command::List(filter.clone())) {
                Ok(answer) => answer.await.unwrap_or(Response::Gone(ErrorCode::NotCoordinator)),
                Err(response) => response,
            };
            match answer {
                Response::List(listed) => groups.extend(listed),
                Response::Gone(ErrorCode::CoordinatorLoadInProgress) => {
                    return Err(ErrorCode::CoordinatorLoadInProgress);
                }
                // Another broker has them now.
                Response::Gone(_) => {}
                _ => unreachable!("a list is answered in kind"),
            }
        }
        Ok(groups)
    }

    /// What the groups here are and have committed, at most `commits_max` offsets named.
    pub(crate) async fn sample(&self, core: &Core, commits_max: usize) -> GroupsSample {
        let mut sample = GroupsSample::default();
        for office in self.all() {
            office.sample(&mut sample, commits_max);
            core.io().yield_now().await;
        }
        sample
    }

    /// Hands answers to those of this core who wait for them; some may have gone away.
    pub(crate) fn tell(&self, answers: Vec<(u64, Response)>) {
        for (number, response) in answers {
            if let Some(waiting) = self.held.borrow_mut().remove(&number) {
                let _ = waiting.send(response);
            }
        }
    }

    /// Sends answers to the cores that asked.
    fn send(core: &Core, answers: Vec<(Asker, Response)>) {
        let mut by_core: BTreeMap<usize, Vec<(u64, Response)>> = BTreeMap::new();
        for (asker, response) in answers {
            by_core.entry(asker.core.0).or_default().push((asker.number, response));
        }
        for (to, answers) in by_core {
            if CoreIndex(to) == core.index() {
                core.coordinators().tell(answers);
            } else {
                let core_of_task = core.clone();
                drop(core.io().spawn(async move {
                    core_of_task.ask(CoreIndex(to), GroupAnswersRequest(answers)).await;
                }));
            }
        }
    }

    /// Nothing is decided here any more; whoever waits is told so.
    pub(crate) fn close(&self, core: &Core) {
        for office in std::mem::take(&mut *self.offices.borrow_mut()).into_values() {
            office.close(core);
        }
    }
}

/// The offsets topic, and those of its partitions that this core owns and this broker leads.
fn led_here(core: &Core, image: &MetadataImage) -> Option<(TopicId, BTreeMap<PartitionIndex, Rc<Partition>>)> {
    let topic = Arc::clone(image.topic_named(OFFSETS_TOPIC)?);
    let mut led = BTreeMap::new();
    for (index, state) in (0..).map(PartitionIndex::new).zip(&topic.partitions) {
        let log = LogId { topic: topic.id, partition: index };
        if state.leader == core.broker_id()
            && core.owner(log) == core.index()
            && let Ok(partition) = core.partitions().find(log)
        {
            led.insert(index, partition);
        }
    }
    Some((topic.id, led))
}
