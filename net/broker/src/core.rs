//! One core: what it owns, and how it answers the other cores.
//!
//! Owns the core's partitions, its copy of the metadata image and its ends of the mailbox. Never shares anything but
//! letters. A core is a value: it takes its [`Io`] from outside, so that the simulator can run all cores of all brokers
//! on one thread.
//!
//! Whatever changes a partition or the engine runs in [`Core::serve`], behind a guard: a panic there ends the process
//! (docs/decisions/0005-panics.md).

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::MetadataImage;
use heddle_engine::{DataDir, Engine, EngineConfig, Identity};
use heddle_io::{Io, Listener, Task};
use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, LogId};

use crate::admission::{Admission, AdmissionLimits};
use crate::change::Change;
use crate::concurrently::poll_once;
use crate::config::{BrokerConfig, PlantedPanic};
use crate::controller::Controller;
use crate::coordinator::Coordinators;
use crate::fetch_sessions::FetchSessions;
use crate::guard;
use crate::listener::{self, Listening};
use crate::mailbox::{CoreIndex, Inbox, Mailbox, Ticket, Wake, Wiring};
use crate::message::{Ask, OpenRequest, PrepareRequest, PublishRequest, Reply, Request, SurrenderRequest};
use crate::metrics::Stage;
use crate::partition::Partition;
use crate::partitions::Partitions;
use crate::peer_log::PeerLog;
use crate::producer_ids::ProducerIds;
use crate::receive_budget::ReceiveBudget;
use crate::requests::Requests;
use crate::sessions::Sessions;
use crate::traffic::Traffic;
use crate::waiters::Polls;

/// A handle to the core that the caller runs on. Cheap to clone; never leaves its thread.
#[derive(Clone)]
pub(crate) struct Core {
    inner: Rc<Inner>,
}

/// A handle that keeps nothing alive.
pub(crate) struct WeakCore {
    inner: Weak<Inner>,
}

impl WeakCore {
    /// The core, while it lives.
    pub(crate) fn upgrade(&self) -> Option<Core> {
        self.inner.upgrade().map(|inner| Core { inner })
    }
}

struct Inner {
    io: Io,
    config: Arc<BrokerConfig>,
    mailbox: Rc<Mailbox>,
    image: RefCell<Arc<MetadataImage>>,
    identity: OnceCell<Identity>,
    partitions: Partitions,
    coordinators: Coordinators,
    /// On the first core only.
    controller: OnceCell<Controller>,
    admission: Admission,
    sessions: Sessions,
    polls: Polls,
    fetch_sessions: FetchSessions,
    requests: Requests,
    traffic: Traffic,
    stage: Cell<Stage>,
    peer_log: PeerLog,
    producer_ids: ProducerIds,
    receive_budget: Rc<ReceiveBudget>,
    /// The loops that accept connections, until the core drains; on the first core only.
    accepting: RefCell<Vec<Task<()>>>,
}

/// A question on its way: asked, and in its place behind the questions asked before it.
pub(crate) enum Asked {
    Answered(Reply),
    Here(Task<Reply>),
    There(Ticket),
}

impl Asked {
    /// The answer to a question of kind `A`.
    pub(crate) async fn answer<A: Ask>(self) -> A::Answer {
        let reply = match self {
            Self::Answered(reply) => reply,
            Self::Here(task) => task.await,
            Self::There(ticket) => ticket.reply().await,
        };
        A::answer(reply).expect("a question is answered in kind")
    }
}

impl Core {
    /// A core without engine and partitions, and the inboxes that [`Core::answer_letters`] is to be run for.
    pub(crate) fn new(io: Io, config: Arc<BrokerConfig>, wiring: Wiring) -> (Self, Vec<Inbox>) {
        let (mailbox, inboxes) = Mailbox::new(wiring);
        let limits = AdmissionLimits { total: config.connections_max, per_address: config.connections_per_address_max };
        let inner = Inner {
            image: RefCell::new(Arc::new(MetadataImage::default())),
            identity: OnceCell::new(),
            partitions: Partitions::default(),
            coordinators: Coordinators::new(io.now()),
            controller: OnceCell::new(),
            admission: Admission::new(limits, mailbox.cores()),
            sessions: Sessions::default(),
            polls: Polls::default(),
            fetch_sessions: FetchSessions::new(config.fetch_sessions_max.div_ceil(mailbox.cores())),
            requests: Requests::default(),
            traffic: Traffic::new(config.metrics.topics_max),
            stage: Cell::new(Stage::Starting),
            peer_log: PeerLog::new(io.clone()),
            producer_ids: ProducerIds::default(),
            receive_budget: ReceiveBudget::new(config.receive_bytes_max / mailbox.cores()),
            accepting: RefCell::default(),
            mailbox,
            config,
            io,
        };
        (Self { inner: Rc::new(inner) }, inboxes)
    }

    pub(crate) fn downgrade(&self) -> WeakCore {
        WeakCore { inner: Rc::downgrade(&self.inner) }
    }

    pub(crate) fn io(&self) -> &Io {
        &self.inner.io
    }

    /// A partition that this core owns, or why it is not served.
    pub(crate) fn partition(&self, log: LogId) -> Result<Rc<Partition>, ErrorCode> {
        self.inner.partitions.find(log)
    }

    pub(crate) fn config(&self) -> &BrokerConfig {
        &self.inner.config
    }

    /// This core's number.
    pub(crate) fn index(&self) -> CoreIndex {
        self.inner.mailbox.own()
    }

    /// This broker's number.
    ///
    /// # Panics
    /// Before the data directory is open; nobody is served before that.
    pub(crate) fn broker_id(&self) -> BrokerId {
        self.identity().broker_id
    }

    /// Whose data this broker keeps.
    ///
    /// # Panics
    /// As [`Core::broker_id`].
    pub(crate) fn identity(&self) -> &Identity {
        self.inner.identity.get().expect("a core serves once its engine is open")
    }

    /// What the cluster looks like, as of now.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        Arc::clone(&self.inner.image.borrow())
    }

    /// The partitions that this core owns.
    pub(crate) fn partitions(&self) -> &Partitions {
        &self.inner.partitions
    }

    /// The coordinators of groups on this core.
    pub(crate) fn coordinators(&self) -> &Coordinators {
        &self.inner.coordinators
    }

    /// The count of connections: that of the first core counts.
    pub(crate) fn admission(&self) -> &Admission {
        &self.inner.admission
    }

    /// What this core's connections have asked.
    pub(crate) fn requests(&self) -> &Requests {
        &self.inner.requests
    }

    /// What went in and out of topics, as far as this core was asked.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.inner.traffic
    }

    /// How far the broker is. On the first core.
    pub(crate) fn stage(&self) -> Stage {
        self.inner.stage.get()
    }

    /// The broker has come further. On the first core.
    pub(crate) fn set_stage(&self, stage: Stage) {
        self.inner.stage.set(stage);
    }

    pub(crate) fn peer_log(&self) -> &PeerLog {
        &self.inner.peer_log
    }

    pub(crate) fn producer_ids(&self) -> &ProducerIds {
        &self.inner.producer_ids
    }

    pub(crate) fn receive_budget(&self) -> &Rc<ReceiveBudget> {
        &self.inner.receive_budget
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(crate) fn polls(&self) -> &Polls {
        &self.inner.polls
    }

    /// The fetch sessions of this core's connections.
    pub(crate) fn fetch_sessions(&self) -> &FetchSessions {
        &self.inner.fetch_sessions
    }

    /// The core that owns a log: this broker's own choice, and another one when it starts with more or fewer cores.
    /// Neighbouring partitions of a topic go to neighbouring cores.
    pub(crate) fn owner(&self, log: LogId) -> CoreIndex {
        let topic = u128::from_be_bytes(log.topic.0);
        // The bits of a topic id are random, but for the six that say so.
        let start = (topic >> 64) as u64 ^ topic as u64;
        let partition = u64::try_from(log.partition.0).expect("partitions are numbered from 0");
        let cores = self.inner.mailbox.cores() as u64;
        CoreIndex(((start % cores + partition) % cores) as usize)
    }

    /// Asks a core, this one included, and waits for the answer.
    pub(crate) async fn ask<A: Ask>(&self, to: CoreIndex, question: A) -> A::Answer {
        self.post(to, question).await.answer::<A>().await
    }

    /// Asks a core, and returns as soon as the question has its place: questions that are posted one after the other
    /// are served in that order.
    pub(crate) async fn post<A: Ask>(&self, to: CoreIndex, question: A) -> Asked {
        let request = question.into_request();
        if to != self.index() {
            return Asked::There(self.inner.mailbox.post(to, request).await);
        }
        let mut serving = self.serve(request);
        match poll_once(&mut serving).await {
            Some(reply) => Asked::Answered(reply),
            None => Asked::Here(self.inner.io.spawn(serving)),
        }
    }

    /// Tells a long poll, here or on another core, that one of its partitions changed.
    pub(crate) fn wake(&self, to: CoreIndex, wake: Wake) {
        if to == self.index() {
            self.inner.polls.tell(wake);
        } else {
            self.inner.mailbox.wake(&self.inner.io, to, wake);
        }
    }

    /// Serves the questions of one other core, for as long as that core lives. Each is polled once before the next is
    /// taken, so that they take their places in the order in which they came.
    pub(crate) async fn answer_letters(self, mut inbox: Inbox) {
        let mailbox = Rc::clone(&self.inner.mailbox);
        while let Some((ticket, request)) = inbox.next(&mailbox).await {
            let from = inbox.from;
            let mut serving = self.serve(request);
            match poll_once(&mut serving).await {
                Some(reply) => mailbox.reply(from, ticket, reply),
                None => {
                    let mailbox = Rc::clone(&mailbox);
                    drop(self.inner.io.spawn(async move { mailbox.reply(from, ticket, serving.await) }));
                }
            }
        }
    }

    /// Kicks other cores that have letters, for as long as this one lives.
    pub(crate) async fn deliver_letters(self) {
        self.inner.mailbox.deliver(&self.inner.io).await;
    }

    /// Starts a task without which the core is nothing: a panic in it ends the process.
    pub(crate) fn spawn_vital(&self, future: impl Future<Output = ()> + 'static) -> Task<()> {
        self.inner.io.spawn(guard::vital(future))
    }

    /// Answers a question, whoever asked it.
    fn serve(&self, request: Request) -> guard::Vital<Reply> {
        let core = self.clone();
        guard::vital(async move { core.handle(request).await })
    }

    async fn handle(&self, request: Request) -> Reply {
        if self.config().planted_panic == PlantedPanic::Core && matches!(request, Request::ListOffsets(_)) {
            panic!("planted in a core");
        }
        match request {
            Request::Append(request) => Reply::Append(self.inner.partitions.append(self, request).await),
            Request::Read(request) => Reply::Read(self.inner.partitions.read(self, request).await),
            Request::ListOffsets(request) => Reply::ListOffsets(self.inner.partitions.list_offsets(request).await),
            Request::DeleteRecords(request) => {
                Reply::DeleteRecords(self.inner.partitions.delete_records(request).await)
            }
            Request::EpochEnds(request) => Reply::EpochEnds(self.inner.partitions.epoch_ends(&request)),
            Request::Producers(request) => Reply::Producers(self.inner.partitions.producers(&request)),
            Request::Sizes(request) => Reply::Sizes(self.inner.partitions.sizes(&request)),
            Request::Group(request) => Reply::Group(self.inner.coordinators.serve(self, *request)),
            Request::GroupAnswers(request) => {
                self.inner.coordinators.tell(request.0);
                Reply::GroupAnswers(())
            }
            Request::GroupList(filter) => Reply::GroupList(self.inner.coordinators.list(self, filter).await),
            Request::Disarm(request) => {
                self.inner.partitions.disarm(&request);
                Reply::Disarm(())
            }
            Request::Surrender(SurrenderRequest(id)) => Reply::Surrender(self.inner.fetch_sessions.surrender(self, id)),
            Request::Wake(request) => {
                request.0.into_iter().for_each(|wake| self.inner.polls.tell(wake));
                Reply::Wake(())
            }
            Request::Serve(request) => {
                listener::welcome(self, request.socket, request.listening);
                Reply::Serve(())
            }
            Request::Release(request) => {
                self.inner.admission.release(request.address, request.core);
                Reply::Release(())
            }
            Request::Open(request) => Reply::Open(self.open(request).await),
            Request::Prepare(request) => Reply::Prepare(self.inner.partitions.open(self, &request.0).await),
            Request::Publish(request) => {
                let image = Arc::clone(request.0.image());
                let before = self.inner.image.replace(Arc::clone(&image));
                self.follow_settings(&image);
                self.inner.coordinators.follow(self, &before, &image);
                self.inner.partitions.follow_cleaner(self, &image);
                self.inner.partitions.drop_gone(self, &request.0).await;
                Reply::Publish(())
            }
            Request::Control(command) => {
                let controller = self.inner.controller.get().expect("commands go to the first core");
                Reply::Control(controller.execute(self, command).await)
            }
            Request::Drain(request) => {
                self.inner.accepting.take().into_iter().for_each(Task::cancel);
                self.inner.sessions.drain(&self.inner.io, request.patience).await;
                Reply::Drain(())
            }
            Request::Close(_) => {
                self.inner.coordinators.close(self);
                Reply::Close(self.inner.partitions.close(self).await)
            }
        }
    }
}

impl Core {
    /// Opens the engine and the logs that this core owns.
    async fn open(&self, request: OpenRequest) -> Result<(), String> {
        self.open_engine(&request.data_dir).await.map_err(|error| error.to_string())?;
        self.open_logs(&request.image).await
    }

    /// Opens the logs of `image` that this core owns, and answers from it.
    pub(crate) async fn open_logs(&self, image: &Arc<MetadataImage>) -> Result<(), String> {
        self.inner.partitions.open(self, &Change::whole(Arc::clone(image))).await?;
        let before = self.inner.image.replace(Arc::clone(image));
        self.follow_settings(image);
        self.inner.coordinators.follow(self, &before, image);
        self.inner.partitions.follow_cleaner(self, image);
        Ok(())
    }

    /// Takes over settings of this broker that may change while it runs; those of topics reach their logs by themselves.
    fn follow_settings(&self, image: &MetadataImage) {
        let layers = image.layers(self.broker_id(), &self.config().settings);
        let number = |name| {
            let value = layers.broker_value(name).and_then(|value| value.trim().parse::<u64>().ok());
            usize::try_from(value.expect("a setting with a default is checked before it is kept")).unwrap_or(usize::MAX)
        };
        let (total, per_address) = (number("max.connections").max(1), number("max.connections.per.ip").max(1));
        self.inner.admission.set_limits(AdmissionLimits { total, per_address });
        let expiration = Duration::from_millis(number("producer.id.expiration.ms") as u64);
        self.inner.partitions.set_producer_id_expiration(expiration);
    }

    /// Opens this core's engine, without any log.
    pub(crate) async fn open_engine(&self, data_dir: &DataDir) -> Result<Engine, heddle_engine::Error> {
        let config = EngineConfig {
            core: self.index().0,
            cores: self.inner.mailbox.cores(),
            ..self.inner.config.engine.clone()
        };
        let engine = Engine::open(self.io(), data_dir.clone(), config).await?;
        assert!(self.inner.identity.set(data_dir.identity().clone()).is_ok(), "a core opens its engine once");
        self.inner.partitions.start(engine.clone());
        let maintained = engine.clone();
        drop(self.spawn_vital(async move { maintained.maintain().await }));
        let compacted = engine.clone();
        drop(self.spawn_vital(async move { compacted.keep_compacted().await }));
        Ok(engine)
    }

    /// Accepts connections on a listening socket until the core drains. On the first core.
    pub(crate) fn accept(&self, listener: Listener, listening: Listening) {
        let accepting = listener::accept(self.clone(), listener, Arc::new(listening));
        self.inner.accepting.borrow_mut().push(self.spawn_vital(accepting));
    }

    /// Makes this core the one that decides about metadata. Once, on the first core.
    pub(crate) fn set_controller(&self, controller: Controller) {
        assert!(self.inner.controller.set(controller).is_ok(), "there is one controller");
    }

    /// Has every core open the logs that `change` adds, so that they take writes before anybody is told of them.
    ///
    /// # Errors
    /// A log could not be opened, in words.
    pub(crate) async fn prepare(&self, change: &Arc<Change>) -> Result<(), String> {
        let mut outcome = Ok(());
        for asked in self.post_all(|| PrepareRequest(Arc::clone(change))).await {
            outcome = outcome.and(asked.answer::<PrepareRequest>().await);
        }
        outcome
    }

    /// Makes every core answer from the image of `change`. What is gone is gone for everybody before its logs are deleted.
    pub(crate) async fn publish(&self, change: &Arc<Change>) {
        for asked in self.post_all(|| PublishRequest(Arc::clone(change))).await {
            asked.answer::<PublishRequest>().await;
        }
    }

    /// The cores but this one.
    pub(crate) fn others(&self) -> impl Iterator<Item = CoreIndex> + use<> {
        let own = self.index();
        (0..self.inner.mailbox.cores()).map(CoreIndex).filter(move |core| *core != own)
    }

    /// Asks every core, this one included.
    pub(crate) async fn post_all<A: Ask>(&self, question: impl Fn() -> A) -> Vec<Asked> {
        let mut asked = Vec::new();
        for core in 0..self.inner.mailbox.cores() {
            asked.push(self.post(CoreIndex(core), question()).await);
        }
        asked
    }
}
