//! The whole broker on simulated hosts, with our own client: its power is cut and its process killed again and again under
//! load. What was acknowledged is there, at its offset; what a consumer has read is there; idempotent producers wrote nothing
//! twice and in order; the same seed is the same run.
//!
//! `HEDDLE_SIMULATION_SEEDS=n` runs n seeds instead of a few; `HEDDLE_SIMULATION_SEED=s` runs only that one. A failure names
//! its seed.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use heddle_client::{
    Acks, Client, ClientConfig, Consumer, ConsumerConfig, Error, Isolation, Mode, NewTopic, OffsetQuery, Position,
    Producer, ProducerConfig, ProducerRecord,
};
use heddle_engine::PlantedBug;
use heddle_io::Io;
use heddle_io::sim::{CutPoint, Effect, Fault, FaultModel, Host, Metadata, NetworkTiming, OperationKind, Simulator};
use heddle_record::PartitionIndex;
use heddle_tests::ledger::{Ledger, Mark, Place};
use heddle_tests::simulated_broker::SimulatedBroker;

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;
const RECORDS_PER_PRODUCER: u32 = 80;
const CRASHES: u32 = 4;
/// The producers: the last does without idempotence, and is answered before the flush.
const IDEMPOTENT: [u32; 2] = [0, 1];
const HASTY: u32 = 2;

type SharedLedger = Rc<RefCell<Ledger>>;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
struct Ending {
    trace: u64,
    acknowledged: usize,
    read: usize,
}

/// Chance from a core's dice, so that the seed decides.
fn below(io: &Io, end: u64) -> u64 {
    io.random_u64() % end
}

struct World {
    simulator: Simulator,
    broker: SimulatedBroker,
    clients: Host,
    /// The core of the clients.
    io: Io,
    ledger: SharedLedger,
}

impl World {
    fn new(seed: u64, bug: PlantedBug) -> World {
        let simulator = Simulator::new(seed);
        let broker = SimulatedBroker::new(&simulator, bug);
        let metadata = if seed.is_multiple_of(2) { Metadata::OnlySynced } else { Metadata::Journaled };
        broker.host().set_fault_model(FaultModel { metadata, ..FaultModel::default() });
        simulator.set_network(NetworkTiming {
            resets_per_mille: if seed.is_multiple_of(3) { 2 } else { 0 },
            silent_power_cuts: seed.is_multiple_of(5),
            ..NetworkTiming::default()
        });
        let clients = simulator.host("clients");
        let io = clients.start_core();
        World { simulator, broker, clients, io, ledger: SharedLedger::default() }
    }

    async fn client(io: Io, bootstrap: String) -> Client {
        // The broker may just be down: a client that is told so at its first connection is started again.
        loop {
            match Client::connect(&io, &bootstrap, ClientConfig::default()).await {
                Ok(client) => return client,
                Err(_) => io.sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn bootstrap(&self) -> String {
        self.broker.address().to_string()
    }

    fn run<T: 'static>(&self, what: &str, client: impl Future<Output = T> + 'static) -> Result<T, String> {
        let limit = Duration::from_secs(600);
        self.simulator.run_within(limit, &self.io, client).map_err(|stopped| format!("{what}: {stopped}"))
    }

    /// Everything, from the first start to the last check.
    fn live(&self) -> Result<Ending, String> {
        self.broker.start(1 + below(&self.io, 3) as usize)?;
        let (io, bootstrap) = (self.io.clone(), self.bootstrap());
        let made = self.run("making the topic", async move {
            let client = World::client(io, bootstrap).await;
            let settings = vec![("segment.ms".to_owned(), "100".to_owned())];
            let topic = NewTopic {
                name: TOPIC.to_owned(),
                partition_count: Some(PARTITIONS),
                replication_factor: Some(1),
                settings,
            };
            make(&client, &topic).await
        });
        made??;
        let producers = self.start_producers();
        let founder = self.io.spawn(found_topics(self.io.clone(), self.bootstrap(), Rc::clone(&self.ledger)));
        let reader = self.io.spawn(read_along(self.io.clone(), self.bootstrap(), Rc::clone(&self.ledger)));
        for _ in 0..CRASHES {
            self.disturb();
            self.crash_and_restart()?;
        }
        self.run("the producers", async move {
            for producer in producers {
                producer.await;
            }
            founder.await;
        })?;
        reader.cancel();
        self.broker.stop()?;
        self.broker.start(1 + below(&self.io, 3) as usize)?;
        self.check()
    }

    fn start_producers(&self) -> Vec<heddle_io::Task<()>> {
        let producers = IDEMPOTENT.into_iter().chain([HASTY]);
        let produce = |number| produce(self.io.clone(), self.bootstrap(), Rc::clone(&self.ledger), number);
        producers.map(|number| self.io.spawn(produce(number))).collect()
    }

    /// Holds the network or the process up for less than a client's patience.
    fn disturb(&self) {
        let span = Duration::from_millis(below(&self.io, 800));
        self.simulator.run_for(Duration::from_millis(below(&self.io, 100)));
        match below(&self.io, 4) {
            0 => self.broker.host().pause(span),
            1 => {
                self.simulator.partition(self.broker.host(), &self.clients);
                self.simulator.run_for(span);
                self.simulator.heal();
            }
            2 => self.broker.host().plant(Fault::next(OperationKind::Flush, Effect::Hang(span))),
            _ => {}
        }
    }

    /// Runs for a while, then cuts the power (at once, or at a point of the disk's work) or kills the process.
    fn crash_and_restart(&self) -> Result<(), String> {
        let host = self.broker.host();
        self.simulator.run_for(Duration::from_millis(20 + below(&self.io, 400)));
        match below(&self.io, 3) {
            0 => host.kill(),
            1 => host.power_cut(),
            _ => {
                host.cut_at(CutPoint::Step(host.counters().steps + below(&self.io, 60)));
                let end = self.simulator.now() + Duration::from_secs(2);
                while host.is_up() && self.simulator.now() < end && self.simulator.step() {}
                if host.is_up() {
                    host.power_cut();
                }
            }
        }
        if let Some(end) = self.broker.ended() {
            return Err(format!("the broker ended by itself: {end:?}"));
        }
        self.simulator.run_for(Duration::from_millis(below(&self.io, 1500)));
        if !host.is_up() {
            host.restart();
        }
        self.broker.start(1 + below(&self.io, 3) as usize)
    }

    /// Reads the topic from its beginning to its end, and holds it against the ledger.
    fn check(&self) -> Result<Ending, String> {
        let last = self.run("the last reader", read_all(self.io.clone(), self.bootstrap()))??;
        let ledger = self.ledger.borrow();
        ledger.check(&last, &BTreeSet::from(IDEMPOTENT))?;
        for producer in IDEMPOTENT {
            let written = last.values().filter(|mark| mark.producer == producer).count();
            if written != RECORDS_PER_PRODUCER as usize || ledger.failed.contains_key(&producer) {
                let failed = ledger.failed.get(&producer);
                return Err(format!("idempotent producer {producer} wrote {written} records; failures: {failed:?}"));
            }
        }
        let topics = self.run("the list of topics", topic_names(self.io.clone(), self.bootstrap()))??;
        ledger.check_topics(&topics)?;
        let (acknowledged, read) = ledger.counts();
        Ok(Ending { trace: self.simulator.trace(), acknowledged, read })
    }
}

/// How often a call is made again whose answer never came: the client's own patience may go on one silent power cut.
const ATTEMPTS: u32 = 5;

/// Makes a topic. One that is there already was made by an attempt whose answer was lost.
async fn make(client: &Client, topic: &NewTopic) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match client.admin().create_topic(topic, Mode::Apply).await {
            Ok(_) => return Ok(()),
            Err(error) if error.to_string().contains("TOPIC_ALREADY_EXISTS") => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("topic {} is not made: {last}", topic.name))
}

/// Deletes a topic. One that is not there was deleted by an attempt whose answer was lost.
async fn delete(client: &Client, name: &str) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match client.admin().delete_topic(name).await {
            Ok(()) | Err(Error::UnknownTopic { .. }) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("topic {name} is not deleted: {last}"))
}

/// Makes topics and deletes every other one, through all crashes, and notes what was confirmed.
async fn found_topics(io: Io, bootstrap: String, ledger: SharedLedger) {
    let client = World::client(io.clone(), bootstrap).await;
    for number in 0..10 {
        let topic = NewTopic { name: format!("topic-{number}"), partition_count: Some(2), ..NewTopic::default() };
        match make(&client, &topic).await {
            Ok(()) => ledger.borrow_mut().topic_made(&topic.name),
            Err(what) => return ledger.borrow_mut().contradict(what),
        }
        io.sleep(Duration::from_millis(below(&io, 200))).await;
        if number % 2 == 0 {
            ledger.borrow_mut().topic_deletion_asked(&topic.name);
            match delete(&client, &topic.name).await {
                Ok(()) => ledger.borrow_mut().topic_deleted(&topic.name),
                Err(what) => return ledger.borrow_mut().contradict(what),
            }
        }
    }
}

async fn topic_names(io: Io, bootstrap: String) -> Result<BTreeSet<String>, String> {
    let client = World::client(io.clone(), bootstrap).await;
    let mut attempts = 0;
    loop {
        attempts += 1;
        match client.topics().await {
            Ok(topics) => return Ok(topics.iter().map(|topic| topic.name.to_string()).collect()),
            // The network of some seeds resets connections.
            Err(_) if attempts < 20 => io.sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(format!("topics cannot be listed: {error}")),
        }
    }
}

/// Sends a producer's records, one after the other without waiting for answers, and notes the answers.
async fn produce(io: Io, bootstrap: String, ledger: SharedLedger, number: u32) {
    let client = World::client(io.clone(), bootstrap).await;
    let hasty = ProducerConfig { acks: Acks::Leader, idempotence: false, ..ProducerConfig::default() };
    let config = if number == HASTY { hasty } else { ProducerConfig::default() };
    let producer: Producer = client.producer(config).expect("the settings of a test are right");
    let mut deliveries = Vec::new();
    for count in 0..RECORDS_PER_PRODUCER {
        let mark = Mark { producer: number, number: count };
        let value = mark.to_value();
        let partition = PartitionIndex::new(below(&io, PARTITIONS as u64) as i32);
        let record = ProducerRecord {
            topic: TOPIC,
            partition: Some(partition),
            value: Some(value.as_bytes()),
            ..ProducerRecord::default()
        };
        match producer.send(&record).await {
            Ok(delivery) => deliveries.push(io.spawn(settle(delivery, Rc::clone(&ledger), mark))),
            Err(error) => ledger.borrow_mut().failed.entry(number).or_default().push(error.to_string()),
        }
        io.sleep(Duration::from_millis(below(&io, 40))).await;
    }
    for delivery in deliveries {
        delivery.await;
    }
}

async fn settle(delivery: heddle_client::Delivery, ledger: SharedLedger, mark: Mark) {
    match delivery.await {
        // An answer before the flush promises nothing about power cuts.
        Ok(_) if mark.producer == HASTY => {}
        Ok(written) => {
            let offset = written.offset.expect("a broker that answers says where").get();
            ledger.borrow_mut().acknowledge((written.partition.get(), offset), mark);
        }
        Err(error) => ledger.borrow_mut().failed.entry(mark.producer).or_default().push(error.to_string()),
    }
}

fn assigned(client: &Client) -> Consumer {
    let consumer = client.consumer(ConsumerConfig::default());
    for partition in 0..PARTITIONS {
        consumer.assign(TOPIC, PartitionIndex::new(partition), Position::Beginning);
    }
    consumer
}

/// Reads everything as it comes, through all crashes.
async fn read_along(io: Io, bootstrap: String, ledger: SharedLedger) {
    let client = World::client(io, bootstrap).await;
    let consumer = assigned(&client);
    loop {
        let noted = match consumer.next().await {
            Ok(batch) => note(&batch, |place, mark| ledger.borrow_mut().read(place, mark)),
            Err(error) => Err(format!("a consumer cannot go on: {error}")),
        };
        if let Err(what) = noted {
            return ledger.borrow_mut().contradict(what);
        }
    }
}

fn note(batch: &heddle_client::FetchedBatch, mut each: impl FnMut(Place, Mark)) -> Result<(), String> {
    for record in batch.records() {
        let record = record.map_err(|error| format!("a record cannot be read: {error}"))?;
        let mark = Mark::from_value(record.value.unwrap_or_default())?;
        each((batch.partition().get(), record.offset.get()), mark);
    }
    Ok(())
}

/// Reads the topic from its beginning to where it ends now.
async fn read_all(io: Io, bootstrap: String) -> Result<BTreeMap<Place, Mark>, String> {
    let client = World::client(io, bootstrap).await;
    let queries: Vec<_> =
        (0..PARTITIONS).map(|partition| (TOPIC, PartitionIndex::new(partition), OffsetQuery::Latest)).collect();
    let ends =
        client.admin().list_offsets(&queries, Isolation::ReadUncommitted).await.map_err(|error| error.to_string())?;
    let mut open: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, end) in (0..).zip(&ends) {
        let end = end.offset.map_or(0, heddle_record::Offset::get);
        if end > 0 {
            open.insert(partition, end);
        }
    }
    let consumer = assigned(&client);
    let mut found = BTreeMap::new();
    while !open.is_empty() {
        let batch = consumer.next().await.map_err(|error| format!("the last reader cannot go on: {error}"))?;
        note(&batch, |place, mark| {
            found.insert(place, mark);
        })?;
        let partition = batch.partition().get();
        if open.get(&partition).is_some_and(|end| batch.next_offset().get() >= *end) {
            open.remove(&partition);
        }
    }
    Ok(found)
}

fn run(seed: u64, bug: PlantedBug) -> Result<Ending, String> {
    World::new(seed, bug).live().map_err(|broken| format!("seed {seed}: {broken}"))
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn crashes_take_nothing_back() {
    if let Some(seed) = number_from("HEDDLE_SIMULATION_SEED") {
        println!("{:?}", run(seed, PlantedBug::None).unwrap_or_else(|broken| panic!("{broken}")));
        return;
    }
    for seed in 0..number_from("HEDDLE_SIMULATION_SEEDS").unwrap_or(12) {
        let ending = run(seed, PlantedBug::None).unwrap_or_else(|broken| panic!("{broken}"));
        assert!(ending.acknowledged >= (IDEMPOTENT.len() as u32 * RECORDS_PER_PRODUCER) as usize, "{ending:?}");
        assert!(ending.read > 0, "somebody reads along");
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 4] {
        let ending = run(seed, PlantedBug::None).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(run(seed, PlantedBug::None), Ok(ending), "seed {seed}");
    }
}

#[test]
fn an_acknowledgement_before_the_flush_is_caught() {
    let lost = |broken: &String| broken.contains("where now is") || broken.contains("is damaged");
    let caught = (0..30).find_map(|seed| run(seed, PlantedBug::AckBeforeFlush).err().filter(lost));
    println!("{}", caught.expect("it is caught"));
}

#[test]
fn the_ledger_finds_what_is_lost_moved_repeated_or_swapped() {
    let topic = |marks: &[(i64, u32, u32)]| -> BTreeMap<Place, Mark> {
        marks
            .iter()
            .map(|(offset, producer, number)| ((0, *offset), Mark { producer: *producer, number: *number }))
            .collect()
    };
    let mut ledger = Ledger::default();
    ledger.acknowledge((0, 0), Mark { producer: 1, number: 0 });
    ledger.read((0, 1), Mark { producer: 1, number: 1 });
    let idempotent = BTreeSet::from([1]);
    assert_eq!(ledger.check(&topic(&[(0, 1, 0), (1, 1, 1)]), &idempotent), Ok(()));
    for broken in [
        topic(&[(0, 1, 0)]),
        topic(&[(1, 1, 1)]),
        topic(&[(0, 1, 1), (1, 1, 0)]),
        topic(&[(0, 1, 0), (1, 1, 1), (2, 1, 1)]),
    ] {
        assert!(ledger.check(&broken, &idempotent).is_err(), "{broken:?}");
    }
    assert_eq!(ledger.check(&topic(&[(0, 1, 0), (1, 1, 1), (2, 1, 1)]), &BTreeSet::new()), Ok(()));
    ledger.read((0, 1), Mark { producer: 2, number: 0 });
    assert!(ledger.check(&topic(&[(0, 1, 0), (1, 1, 1)]), &idempotent).is_err(), "another record at a place");
}
