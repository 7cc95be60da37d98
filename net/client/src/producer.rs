//! The producer: records in, batches out, a future for each record's fate.
//!
//! [`Producer::send`] picks the partition and appends to that partition's lane (`producer/lane.rs`), which decides about
//! order, sequences and retries. One task drives each lane; one courier for each broker (`producer/courier.rs`) puts the
//! batches of many lanes into one request.

mod courier;
mod delivery;
mod lane;
mod split;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sync::{Notify, Semaphore};
use heddle_io::{Io, Monotonic};
use heddle_protocol::ApiKey;
use heddle_protocol::messages::init_producer_id::{InitProducerIdRequest, InitProducerIdResponse};
use heddle_record::{PartitionIndex, ProducerEpoch, ProducerId, RecordHeader, Timestamp};

use crate::brokers::{Address, Purpose};
use crate::client::{Client, Creation};
use crate::config::{Acks, ProducerConfig};
use crate::error::{Error, Result};
use crate::metadata::Topic;
use crate::partitioner::{Sticky, partition_for_key};

use courier::{Courier, Parcel};
use lane::{Action, Answer, Identity, Lane, LaneConfig, NewRecord};

pub use delivery::{Delivery, RecordMetadata};

/// The most batches of one producer and partition that a broker remembers, and so the most in flight.
const IN_FLIGHT_MAX: usize = 5;

/// A record to be written, borrowed: the producer copies it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProducerRecord<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition; without one the key decides, and without a key the producer.
    pub partition: Option<PartitionIndex>,
    /// Milliseconds since 1970; now, without one.
    pub timestamp: Option<Timestamp>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; none is a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Headers, in order; names may repeat.
    pub headers: &'a [RecordHeader<'a>],
}

/// Writes records. Clones are the same producer. Made by [`Client::producer`].
///
/// Records of one partition are written in the order of the calls to [`Producer::send`]. Call [`Producer::close`] in the
/// end: what is not written when the last clone drops is given up.
#[derive(Clone)]
pub struct Producer {
    inner: Rc<Inner>,
    _open: Rc<Open>,
}

/// Gives up what is left when the last clone of the producer drops.
struct Open(Rc<Inner>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// What the producer's handles and tasks share.
pub(crate) struct Inner {
    client: Client,
    io: Io,
    number: u32,
    config: ProducerConfig,
    /// Bytes of records that were taken and are not settled.
    memory: Semaphore,
    topics: RefCell<BTreeMap<Rc<str>, TopicLanes>>,
    couriers: RefCell<BTreeMap<Address, Rc<Courier>>>,
    /// The producer id that lanes start with; one request for it at a time.
    identity: Cell<Option<Identity>>,
    identifying: Semaphore,
    closed: Cell<bool>,
}

#[derive(Default)]
struct TopicLanes {
    sticky: Sticky,
    lanes: BTreeMap<PartitionIndex, Rc<SharedLane>>,
}

/// A lane and the bell for the task that drives it.
pub(crate) struct SharedLane {
    topic: Rc<str>,
    partition: PartitionIndex,
    lane: RefCell<Lane>,
    changed: Notify,
}

impl Producer {
    pub(crate) fn new(client: Client, number: u32, config: ProducerConfig) -> Result<Self> {
        check(&config)?;
        let inner = Rc::new(Inner {
            io: client.io().clone(),
            client,
            number,
            memory: Semaphore::new(config.buffer_bytes_max),
            config,
            topics: RefCell::default(),
            couriers: RefCell::default(),
            identity: Cell::new(None),
            identifying: Semaphore::new(1),
            closed: Cell::new(false),
        });
        Ok(Self { _open: Rc::new(Open(Rc::clone(&inner))), inner })
    }

    /// Takes a record, waiting for the topic's metadata and for memory where needed. The record is written once the
    /// returned future says so.
    ///
    /// # Errors
    /// The topic or partition does not exist, the record is too large, memory stays short for
    /// [`ProducerConfig::delivery_timeout`], the producer is closed.
    pub async fn send(&self, record: &ProducerRecord<'_>) -> Result<Delivery> {
        let inner = &self.inner;
        if inner.closed.get() {
            return Err(Error::Closed);
        }
        let timestamp = record.timestamp.unwrap_or_else(|| Timestamp::new(inner.io.wall_clock()));
        let ProducerRecord { key, value, headers, .. } = *record;
        let new = NewRecord { timestamp, key, value, headers };
        let bytes = inner.check_size(new.size_max())?;
        let creation = if inner.config.create_topics { Creation::Allowed } else { Creation::Forbidden };
        let topic = inner.client.topic(record.topic, creation).await?;
        let after = inner.config.delivery_timeout;
        let Ok(permits) = inner.io.timeout(after, inner.memory.acquire(bytes)).await else {
            return Err(Error::TimedOut { what: "waiting for buffer memory", after });
        };
        if inner.closed.get() {
            return Err(Error::Closed);
        }
        let partition = inner.choose(&topic, record, bytes as u64)?;
        let lane = inner.lane(&topic, partition);
        let (outcome, place) = lane.lane.borrow_mut().append(&new, &inner.memory, permits, inner.io.now())?;
        lane.changed.notify_all();
        Ok(Delivery::new(outcome, partition, place, timestamp))
    }

    /// Waits until every record that was taken before this call is written or has failed.
    ///
    /// # Errors
    /// The first failure among those that were not settled yet.
    pub async fn flush(&self) -> Result<()> {
        let lanes = self.inner.lanes();
        let outcomes: Vec<_> = lanes.iter().flat_map(|lane| lane.lane.borrow_mut().hurry()).collect();
        lanes.iter().for_each(|lane| lane.changed.notify_all());
        let mut result = Ok(());
        for outcome in outcomes {
            result = result.and(outcome.wait().await);
        }
        result
    }

    /// Takes no more records, and waits until those that were taken are written or have failed.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.set(true);
        let result = self.flush().await;
        self.inner.abandon();
        result
    }
}

/// Refuses settings that contradict each other.
fn check(config: &ProducerConfig) -> Result<()> {
    let invalid = |what: &str| Err(Error::Invalid { what: what.to_owned() });
    if config.idempotence && config.acks != Acks::All {
        return invalid("an idempotent producer needs acks=all");
    }
    if !(1..=IN_FLIGHT_MAX).contains(&config.in_flight_max) {
        return invalid("a producer has one to five requests in flight to each broker");
    }
    if config.request_bytes_max == 0 || config.buffer_bytes_max < config.request_bytes_max {
        return invalid("the producer's buffer memory must hold at least its largest request");
    }
    Ok(())
}

impl Inner {
    /// What a record takes of the memory.
    fn check_size(&self, bytes: usize) -> Result<usize> {
        let bytes_max = self.config.request_bytes_max;
        if bytes > bytes_max {
            return Err(Error::RecordTooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 });
        }
        Ok(bytes)
    }

    /// The partition that a record goes to.
    fn choose(&self, topic: &Topic, record: &ProducerRecord<'_>, bytes: u64) -> Result<PartitionIndex> {
        let partition_count = topic.partition_count();
        match (record.partition, record.key) {
            (Some(partition), _) if topic.partition(partition).is_some() => Ok(partition),
            (Some(partition), _) => {
                Err(Error::UnknownPartition { topic: topic.name.to_string(), partition, partition_count })
            }
            (None, Some(key)) => Ok(partition_for_key(key, partition_count)),
            (None, None) => {
                let led = topic.partitions.iter().filter(|it| it.leader.is_some()).map(|it| it.index);
                let mut available: Vec<_> = led.collect();
                if available.is_empty() {
                    available.extend(topic.partitions.iter().map(|it| it.index));
                }
                let mut topics = self.topics.borrow_mut();
                let sticky = &mut topics.entry(Rc::clone(&topic.name)).or_default().sticky;
                Ok(sticky.choose(&available, bytes, self.config.batch_bytes_max as u64, || self.io.random_u64()))
            }
        }
    }

    /// The lane of a partition; with the first record comes the task that drives it.
    fn lane(self: &Rc<Self>, topic: &Topic, partition: PartitionIndex) -> Rc<SharedLane> {
        let mut topics = self.topics.borrow_mut();
        let lanes = &mut topics.entry(Rc::clone(&topic.name)).or_default().lanes;
        let lane = lanes.entry(partition).or_insert_with(|| {
            let lane = RefCell::new(Lane::new(self.lane_config(&topic.name, partition)));
            let lane = SharedLane { topic: Rc::clone(&topic.name), partition, lane, changed: Notify::new() };
            let lane = Rc::new(lane);
            self.io.spawn(drive(Rc::clone(self), Rc::clone(&lane))).detach();
            lane
        });
        Rc::clone(lane)
    }

    fn lane_config(&self, topic: &str, partition: PartitionIndex) -> LaneConfig {
        LaneConfig {
            subject: format!("{topic}-{partition}"),
            compression: self.config.compression,
            compression_level: self.config.compression_level,
            batch_bytes_max: self.config.batch_bytes_max,
            linger: self.config.linger,
            delivery_timeout: self.config.delivery_timeout,
            window_max: if self.config.idempotence { self.config.in_flight_max } else { 1 },
            idempotence: self.config.idempotence,
        }
    }

    fn lanes(&self) -> Vec<Rc<SharedLane>> {
        self.topics.borrow().values().flat_map(|topic| topic.lanes.values().cloned()).collect()
    }

    /// The producer is gone: ends its tasks and connections.
    fn abandon(&self) {
        self.closed.set(true);
        for lane in self.lanes() {
            lane.lane.borrow_mut().abandon(&Error::Closed);
            lane.changed.notify_all();
        }
        let couriers = self.couriers.take();
        couriers.values().for_each(|courier| courier.close());
        self.client.forget(self.purpose());
    }

    pub(crate) fn purpose(&self) -> Purpose {
        Purpose::Produce(self.number)
    }

    /// The courier to a broker; the first parcel for it starts its task.
    fn courier(self: &Rc<Self>, address: &Address) -> Rc<Courier> {
        let mut couriers = self.couriers.borrow_mut();
        let courier =
            couriers.entry(address.clone()).or_insert_with(|| Courier::start(Rc::clone(self), address.clone()));
        Rc::clone(courier)
    }

    /// A producer id for a lane: the producer's own, or a new one for a lane that used its epochs up.
    async fn identify(&self, spent: bool) -> Result<Identity> {
        if spent {
            return self.ask_identity().await;
        }
        let _one_request = self.identifying.acquire(1).await;
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let identity = self.ask_identity().await?;
        self.identity.set(Some(identity));
        Ok(identity)
    }

    async fn ask_identity(&self) -> Result<Identity> {
        let connection = self.client.any_connection().await?;
        let version = connection.pick(ApiKey::InitProducerId, i16::MAX)?;
        let request = InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: i32::MAX,
            producer_id: ProducerId::NONE.get(),
            producer_epoch: ProducerEpoch::NONE.get(),
            ..InitProducerIdRequest::default()
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: InitProducerIdResponse = reply.decode()?;
        Error::check(response.error_code, None, || "producer id".to_owned())?;
        let id = ProducerId::new(response.producer_id);
        Ok(Identity { id, epoch: ProducerEpoch::new(response.producer_epoch) })
    }
}

impl SharedLane {
    /// Takes an answer in and wakes the task that drives the lane.
    pub(crate) fn settle(&self, client: &Client, number: u64, answer: Answer) {
        if let Answer::Failed { error, .. } = &answer
            && error.invalidates_metadata()
        {
            client.doubt(&self.topic);
        }
        let mut lane = self.lane.borrow_mut();
        let wait = client.backoff(lane.failures());
        lane.settle(number, answer, client.io().now(), wait);
        drop(lane);
        self.changed.notify_all();
    }

    async fn changed_or(&self, io: &Io, deadline: Monotonic) {
        let left = deadline.since(io.now());
        // Whichever comes first; the lane is asked again in both cases.
        let _elapsed = io.timeout(left, self.changed.wait()).await;
    }
}

/// The task of one lane: does what the lane says until it has ended.
async fn drive(producer: Rc<Inner>, lane: Rc<SharedLane>) {
    let mut identified = false;
    loop {
        let action = lane.lane.borrow_mut().next(producer.io.now());
        match action {
            Action::Wait => lane.changed.wait().await,
            Action::WaitUntil(deadline) => lane.changed_or(&producer.io, deadline).await,
            Action::Identify => match producer.identify(identified).await {
                Ok(identity) => {
                    identified = true;
                    lane.lane.borrow_mut().adopt(identity);
                }
                Err(error) => lane.identity_failed(&producer.client, &error, producer.io.now()),
            },
            Action::Send { number, batch } => match producer.leader(&lane).await {
                Ok((address, topic)) => {
                    producer.courier(&address).take(Parcel { lane: Rc::clone(&lane), topic, number, batch });
                }
                Err(error) => lane.settle(&producer.client, number, Answer::Failed { error, sent: false }),
            },
            Action::Ended => return,
        }
    }
}

impl Inner {
    async fn leader(&self, lane: &SharedLane) -> Result<(Address, Rc<Topic>)> {
        let creation = if self.config.create_topics { Creation::Allowed } else { Creation::Forbidden };
        let leader = self.client.leader(&lane.topic, lane.partition, creation).await?;
        Ok((leader.broker.address, leader.topic))
    }
}

impl SharedLane {
    fn identity_failed(&self, client: &Client, error: &Error, now: Monotonic) {
        let mut lane = self.lane.borrow_mut();
        if error.retriable() {
            let wait = client.backoff(lane.failures());
            lane.postpone(now, wait);
        } else {
            lane.identity_failed(error);
        }
    }
}
