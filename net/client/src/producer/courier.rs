//! Carries the batches of one producer to one broker: as many as fit in each request, a few requests at a time.
//!
//! Requests leave in the order in which their parcels came. While as many are in flight as may be, parcels gather, so a
//! busy broker gets few and large requests.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use heddle_io::Lease;
use heddle_io::sync::{Notify, Permits, Semaphore};
use heddle_protocol::messages::produce::{
    PartitionProduceData, PartitionProduceResponse, ProduceRequest, ProduceResponse, TopicProduceData,
};
use heddle_protocol::{ApiKey, Records, Uuid};
use heddle_record::{Compression, Offset, PartitionIndex, Timestamp, TopicId};

use crate::brokers::Address;
use crate::config::Acks;
use crate::connection::{Connection, PendingReply, Reply};
use crate::error::{Error, Result};
use crate::metadata::Topic;
use crate::producer::Inner;
use crate::producer::SharedLane;
use crate::producer::delivery::Written;
use crate::producer::lane::Answer;

/// The first version of Produce that names topics by id.
const FIRST_WITH_TOPIC_IDS: i16 = 13;
/// The first version of Produce that may carry zstd.
const FIRST_WITH_ZSTD: i16 = 7;

/// One batch and where it goes.
pub(crate) struct Parcel {
    pub(crate) lane: Rc<SharedLane>,
    pub(crate) topic: Rc<Topic>,
    /// The lane's number of the batch.
    pub(crate) number: u64,
    pub(crate) batch: Lease,
}

/// See the head of the file.
pub(crate) struct Courier {
    parcels: RefCell<VecDeque<Parcel>>,
    changed: Notify,
    closed: Cell<bool>,
}

impl Courier {
    /// A courier whose task runs until [`Courier::close`].
    pub(crate) fn start(producer: Rc<Inner>, address: Address) -> Rc<Self> {
        let courier = Rc::new(Self { parcels: RefCell::default(), changed: Notify::new(), closed: Cell::new(false) });
        let io = producer.io.clone();
        io.spawn(carry(producer, Rc::clone(&courier), address)).detach();
        courier
    }

    /// Takes a parcel; its lane hears what became of it.
    pub(crate) fn take(&self, parcel: Parcel) {
        self.parcels.borrow_mut().push_back(parcel);
        self.changed.notify_all();
    }

    /// Ends the task. Parcels that are left are forgotten: their lanes were given up.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.parcels.borrow_mut().clear();
        self.changed.notify_all();
    }

    /// The parcels of the next request: one for each partition, in the order in which they came, until it is full.
    fn load(&self, bytes_max: usize) -> Vec<Parcel> {
        let mut parcels = self.parcels.borrow_mut();
        let mut loaded: Vec<Parcel> = Vec::new();
        let mut bytes = 0;
        let mut left = VecDeque::new();
        while let Some(parcel) = parcels.pop_front() {
            let fits = loaded.is_empty() || bytes + parcel.batch.len() <= bytes_max;
            // Whatever stays behind keeps its lane's later batches behind it, too.
            let waits = left.iter().chain(&loaded).any(|it: &Parcel| Rc::ptr_eq(&it.lane, &parcel.lane));
            if fits && !waits {
                bytes += parcel.batch.len();
                loaded.push(parcel);
            } else {
                left.push_back(parcel);
            }
        }
        *parcels = left;
        loaded
    }
}

/// The courier's task.
async fn carry(producer: Rc<Inner>, courier: Rc<Courier>, address: Address) {
    let room = Semaphore::new(producer.config.in_flight_max);
    while !courier.closed.get() {
        if courier.parcels.borrow().is_empty() {
            courier.changed.wait().await;
            continue;
        }
        let permit = room.acquire(1).await;
        let connection = producer.client.connection(&address, producer.purpose()).await;
        let parcels = courier.load(producer.config.request_bytes_max);
        match connection {
            Ok(connection) => deliver(&producer, &connection, parcels, permit).await,
            Err(error) => fail_all(&producer, &parcels, &error, Sent::No),
        }
    }
}

/// Whether bytes of a failed request may have reached the broker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    No,
    Perhaps,
}

fn fail_all(producer: &Inner, parcels: &[Parcel], error: &Error, sent: Sent) {
    for parcel in parcels {
        let answer = Answer::Failed { error: error.clone(), sent: sent == Sent::Perhaps };
        parcel.lane.settle(&producer.client, parcel.number, answer);
    }
}

/// Queues one request; a task of its own waits for the answer.
async fn deliver(producer: &Rc<Inner>, connection: &Connection, parcels: Vec<Parcel>, permit: Permits) {
    let version = match version(producer, connection, &parcels) {
        Ok(version) => version,
        Err(error) => return fail_all(producer, &parcels, &error, Sent::No),
    };
    let (request, records) = request(producer, &parcels, version);
    let patience = producer.config.replication_timeout;
    if producer.config.acks == Acks::None {
        match connection.tell(&request, version, records).await {
            Ok(()) => settle_unacknowledged(producer, &parcels),
            Err(error) => fail_all(producer, &parcels, &error, Sent::Perhaps),
        }
        return;
    }
    match connection.enqueue(&request, version, records, patience).await {
        Ok(reply) => {
            let answer = await_answer(Rc::clone(producer), parcels, reply, version, permit);
            producer.io.spawn(answer).detach();
        }
        Err(error) => fail_all(producer, &parcels, &error, Sent::No),
    }
}

/// The newest common version; one without topic ids where a topic has none.
fn version(producer: &Inner, connection: &Connection, parcels: &[Parcel]) -> Result<i16> {
    let all_have_ids = parcels.iter().all(|parcel| !parcel.topic.id.is_zero());
    let cap = if all_have_ids { i16::MAX } else { FIRST_WITH_TOPIC_IDS - 1 };
    let version = connection.pick(ApiKey::Produce, cap)?;
    if producer.config.compression == Compression::Zstd && version < FIRST_WITH_ZSTD {
        return Err(Error::Unsupported { api: ApiKey::Produce, offered: format!("{version}, which knows no zstd") });
    }
    Ok(version)
}

/// The request, and the batches that fill its gaps.
fn request<'a>(producer: &Inner, parcels: &'a [Parcel], version: i16) -> (ProduceRequest<'a>, Vec<Lease>) {
    let mut topics: BTreeMap<(&str, TopicId), Vec<&Parcel>> = BTreeMap::new();
    for parcel in parcels {
        topics.entry((&parcel.topic.name, parcel.topic.id)).or_default().push(parcel);
    }
    let mut records = Vec::with_capacity(parcels.len());
    let mut topic_data = Vec::with_capacity(topics.len());
    for ((name, id), parcels) in topics {
        let partitions = parcels.iter().map(|parcel| PartitionProduceData {
            index: parcel.lane.partition.get(),
            records: Some(Records::External { length: parcel.batch.len() }),
        });
        let partition_data = partitions.collect();
        records.extend(parcels.iter().map(|parcel| parcel.batch.clone()));
        let (name, topic_id) = on_wire(name, id, version);
        topic_data.push(TopicProduceData { name, topic_id, partition_data });
    }
    let timeout_ms = i32::try_from(producer.config.replication_timeout.as_millis()).unwrap_or(i32::MAX);
    let acks = producer.config.acks.to_wire();
    (ProduceRequest { transactional_id: None, acks, timeout_ms, topic_data: topic_data.into() }, records)
}

/// How a version names a topic: by name or by id.
fn on_wire(name: &str, id: TopicId, version: i16) -> (&str, Uuid) {
    if version < FIRST_WITH_TOPIC_IDS { (name, Uuid::ZERO) } else { ("", Uuid(id.bytes())) }
}

fn settle_unacknowledged(producer: &Inner, parcels: &[Parcel]) {
    for parcel in parcels {
        let written = Answer::Written(Written { base_offset: None, log_append_time: None });
        parcel.lane.settle(&producer.client, parcel.number, written);
    }
}

async fn await_answer(producer: Rc<Inner>, parcels: Vec<Parcel>, reply: PendingReply, version: i16, permit: Permits) {
    let reply = reply.wait().await;
    drop(permit);
    let settled = reply.and_then(|reply| settle(&producer, &parcels, &reply, version));
    if let Err(error) = settled {
        fail_all(&producer, &parcels, &error, Sent::Perhaps);
    }
}

/// Tells each lane what the answer says about its batch.
///
/// # Errors
/// The answer cannot be read; nothing was told then.
fn settle(producer: &Inner, parcels: &[Parcel], reply: &Reply, version: i16) -> Result<()> {
    let response: ProduceResponse<'_> = reply.decode()?;
    let mut answers = BTreeMap::new();
    for topic in &response.responses {
        for partition in &topic.partition_responses {
            answers.insert((topic.name, topic.topic_id, partition.index), answer(&partition, topic.name));
        }
    }
    for parcel in parcels {
        let (name, id) = on_wire(&parcel.topic.name, parcel.topic.id, version);
        let missing = || Answer::Failed {
            error: Error::Malformed {
                from: format!("the leader of {}-{}", parcel.topic.name, parcel.lane.partition),
                what: "an answer that leaves the partition out".to_owned(),
            },
            sent: true,
        };
        let answer = answers.remove(&(name, id, parcel.lane.partition.get())).unwrap_or_else(missing);
        parcel.lane.settle(&producer.client, parcel.number, named(answer, parcel));
    }
    Ok(())
}

fn answer(partition: &PartitionProduceResponse<'_>, topic: &str) -> Answer {
    let message =
        partition.record_errors.first().and_then(|it| it.batch_index_error_message).or(partition.error_message);
    let subject = || format!("{topic}-{}", partition.index);
    match Error::check(partition.error_code, message, subject) {
        Ok(()) => Answer::Written(Written {
            base_offset: (partition.base_offset >= 0).then(|| Offset::new(partition.base_offset)),
            log_append_time: Some(Timestamp::new(partition.log_append_time_ms)).filter(|it| it.get() >= 0),
        }),
        Err(error) => Answer::Failed { error, sent: true },
    }
}

/// From version 13 on the answer does not name the topic; its error shall.
fn named(answer: Answer, parcel: &Parcel) -> Answer {
    match answer {
        Answer::Failed { error: Error::Broker { code, message, .. }, sent } => {
            let subject = subject(&parcel.topic.name, parcel.lane.partition);
            Answer::Failed { error: Error::Broker { code, subject, message }, sent }
        }
        other => other,
    }
}

fn subject(topic: &str, partition: PartitionIndex) -> String {
    format!("{topic}-{partition}")
}
