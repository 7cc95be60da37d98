//! The client in the simulator: brokers that answer late, wrongly or not at all, connections that break, leaders that
//! move. Time is virtual; the same seed gives the same run.
#![forbid(unsafe_code)]

mod fake;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fake::{Cluster, PORT, TOPIC, Trouble, read_frame};
use heddle_client::{
    Acks, Client, ClientConfig, ConsumerConfig, Creation, Error, Position, ProducerConfig, ProducerRecord,
};
use heddle_io::sim::{Host, NetworkTiming, Simulator};
use heddle_io::{Io, Lease, ListenOptions, Socket};
use heddle_record::PartitionIndex;

/// Seeds to run: `HEDDLE_THOROUGH` asks for many more.
fn seeds(count: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("HEDDLE_THOROUGH").is_some() { count * 30 } else { count }
}

/// Runs `body` on a client's host.
fn run<T: 'static>(simulator: &Simulator, body: impl AsyncFnOnce(Io) -> T + 'static) -> T {
    run_on(&simulator.host("client"), body)
}

fn run_on<T: 'static>(host: &Host, body: impl AsyncFnOnce(Io) -> T + 'static) -> T {
    let io = host.start_core();
    host.simulator().run(&io.clone(), body(io)).expect("it ends")
}

/// The values that the client was told were written, and those that it could not say of.
#[derive(Default)]
struct Told {
    written: Vec<(String, Option<i64>)>,
    unknown: Vec<String>,
}

/// Writes `count` numbers through a producer, a few at a time, and keeps what becomes of each.
async fn write(client: &Client, config: ProducerConfig, count: u64) -> Told {
    let producer = client.producer(config).expect("the settings agree");
    let mut deliveries = Vec::new();
    for number in 0..count {
        let value = number.to_string();
        let record = ProducerRecord { topic: TOPIC, value: Some(value.as_bytes()), ..ProducerRecord::default() };
        deliveries.push((value.clone(), producer.send(&record).await.expect("it is taken")));
        if client.io().random_u64().is_multiple_of(4) {
            client.io().sleep(Duration::from_micros(client.io().random_u64() % 3_000)).await;
        }
    }
    // Each record's own fate says more.
    let _ = producer.flush().await;
    let mut told = Told::default();
    for (value, delivery) in deliveries {
        match delivery.await {
            Ok(metadata) => told.written.push((value, metadata.offset.map(|offset| offset.get()))),
            Err(Error::OutcomeUnknown { .. } | Error::TimedOut { .. }) => told.unknown.push(value),
            Err(error) => panic!("{value}: {error}"),
        }
    }
    producer.close().await.expect("nothing is left");
    told
}

async fn connect(io: &Io, bootstrap: &str) -> Client {
    let config = ClientConfig { request_timeout: Duration::from_secs(2), ..ClientConfig::default() };
    loop {
        // The network may break the first attempts, too.
        if let Ok(client) = Client::connect(io, bootstrap, config.clone()).await {
            return client;
        }
        io.sleep(Duration::from_millis(10)).await;
    }
}

/// Holds what a client was told against what the log holds: nothing lost, nothing twice, nothing out of order.
fn check(seed: u64, told: &Told, log: &[String]) {
    let numbers: Vec<u64> = log.iter().map(|value| value.parse().expect("a number")).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "seed {seed}: in order and once each: {numbers:?}");
    for (value, offset) in &told.written {
        match offset {
            Some(offset) => {
                let place = usize::try_from(*offset).expect("an offset");
                assert_eq!(log.get(place), Some(value), "seed {seed}: at the offset that was told");
            }
            None => assert!(log.contains(value), "seed {seed}: {value} was told to be written"),
        }
    }
    let others = log.len() - told.written.len();
    assert!(others <= told.unknown.len(), "seed {seed}: nothing but what was told");
}

/// Case 54.
#[test]
fn an_idempotent_producer_loses_doubles_and_moves_nothing() {
    for seed in seeds(60) {
        let simulator = Simulator::new(seed);
        simulator.set_network(NetworkTiming { resets_per_mille: seed % 3 * 10, ..NetworkTiming::default() });
        let (cluster, _hosts) = Cluster::start(&simulator, 2);
        let trouble = Trouble { leader_moves: 20, refused: 50, answer_lost: 50, request_lost: 30 };
        cluster.borrow_mut().trouble = trouble;
        let bootstrap = cluster.borrow().bootstrap();
        let told = run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            let config =
                ProducerConfig { linger: Duration::from_millis(1), batch_bytes_max: 120, ..ProducerConfig::default() };
            write(&client, config, 400).await
        });
        assert!(told.unknown.is_empty(), "seed {seed}: every record gets through in time: {:?}", told.unknown);
        check(seed, &told, &cluster.borrow().values());
    }
}

#[test]
fn a_delivery_timeout_leaves_no_doubt_about_the_others() {
    let mut unknown = 0;
    for seed in seeds(40) {
        let simulator = Simulator::new(seed);
        let (cluster, _hosts) = Cluster::start(&simulator, 2);
        let trouble = Trouble { leader_moves: 50, refused: 100, answer_lost: 300, request_lost: 100 };
        cluster.borrow_mut().trouble = trouble;
        let bootstrap = cluster.borrow().bootstrap();
        let told = run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            let config = ProducerConfig {
                linger: Duration::ZERO,
                batch_bytes_max: 120,
                delivery_timeout: Duration::from_millis(200),
                ..ProducerConfig::default()
            };
            write(&client, config, 200).await
        });
        check(seed, &told, &cluster.borrow().values());
        unknown += told.unknown.len();
    }
    assert!(unknown > 0, "the test means nothing if all is written in time");
}

#[test]
fn without_idempotence_records_keep_their_order() {
    for seed in seeds(20) {
        let simulator = Simulator::new(seed);
        let (cluster, _hosts) = Cluster::start(&simulator, 2);
        cluster.borrow_mut().trouble = Trouble { leader_moves: 20, refused: 100, ..Trouble::default() };
        let bootstrap = cluster.borrow().bootstrap();
        let told = run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            let config = ProducerConfig {
                acks: Acks::Leader,
                idempotence: false,
                linger: Duration::ZERO,
                batch_bytes_max: 120,
                ..ProducerConfig::default()
            };
            write(&client, config, 200).await
        });
        check(seed, &told, &cluster.borrow().values());
        assert_eq!(cluster.borrow().values().len(), 200, "no answer was lost, so nothing is there twice");
    }
}

#[test]
fn a_consumer_reads_everything_once_through_broken_connections() {
    for seed in seeds(20) {
        let simulator = Simulator::new(seed);
        let (cluster, _hosts) = Cluster::start(&simulator, 2);
        cluster.borrow_mut().versions_max = [13, if seed % 2 == 0 { 18 } else { 11 }, 13];
        let bootstrap = cluster.borrow().bootstrap();
        let network = simulator.clone();
        let read = run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            let config = ProducerConfig { batch_bytes_max: 200, ..ProducerConfig::default() };
            write(&client, config, 300).await;
            network.set_network(NetworkTiming { resets_per_mille: 30, ..NetworkTiming::default() });
            // Cut inside of batches: an answer ends where its limit is.
            let consumer = client.consumer(ConsumerConfig { partition_bytes_max: 333, ..ConsumerConfig::default() });
            consumer.assign(TOPIC, PartitionIndex::new(0), Position::Beginning);
            let mut read = Vec::new();
            while read.len() < 300 {
                for record in consumer.next().await.expect("a batch").records() {
                    let value = record.expect("a record").value.expect("a value").to_vec();
                    read.push(String::from_utf8(value).expect("text"));
                }
            }
            read
        });
        assert_eq!(read, cluster.borrow().values(), "seed {seed}");
    }
}

#[test]
fn versions_are_agreed_on_with_brokers_old_and_new() {
    for (api_versions_max, versions_max) in
        [(4, [13, 18, 13]), (3, [12, 12, 12]), (2, [8, 11, 8]), (0, [3, 4, 1]), (7, [99, 99, 99])]
    {
        let simulator = Simulator::new(1);
        let (cluster, _hosts) = Cluster::start(&simulator, 1);
        cluster.borrow_mut().api_versions_max = api_versions_max;
        cluster.borrow_mut().versions_max = versions_max;
        let bootstrap = cluster.borrow().bootstrap();
        let told = run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            write(&client, ProducerConfig::default(), 3).await
        });
        assert_eq!(told.written.len(), 3, "{versions_max:?}");
    }
}

#[test]
fn a_broker_that_is_too_old_is_named() {
    let simulator = Simulator::new(1);
    let (cluster, _hosts) = Cluster::start(&simulator, 1);
    cluster.borrow_mut().versions_max = [2, 18, 13];
    let bootstrap = cluster.borrow().bootstrap();
    let error = run(&simulator, async move |io| {
        let client = connect(&io, &bootstrap).await;
        let producer = client.producer(ProducerConfig::default()).expect("the settings agree");
        let record = ProducerRecord { topic: TOPIC, ..ProducerRecord::default() };
        producer.send(&record).await.expect("it is taken").await.expect_err("there is no common version")
    });
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn an_unknown_topic_is_not_waited_for() {
    let simulator = Simulator::new(1);
    let (cluster, _hosts) = Cluster::start(&simulator, 1);
    let bootstrap = cluster.borrow().bootstrap();
    let (error, took) = run(&simulator, async move |io| {
        let client = connect(&io, &bootstrap).await;
        let before = io.now();
        let error = client.topic("nothing", Creation::Forbidden).await.expect_err("there is no such topic");
        (error, io.now().since(before))
    });
    assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");
    assert!(took < Duration::from_millis(10), "of virtual time: {took:?}");
}

#[test]
fn a_broker_that_starts_late_is_waited_for() {
    let simulator = Simulator::new(1);
    let (cluster, hosts) = Cluster::start(&simulator, 1);
    let bootstrap = cluster.borrow().bootstrap();
    let (network, broker) = (simulator.clone(), hosts[0].clone());
    let client_host = simulator.host("client");
    let away = client_host.clone();
    let took = run_on(&client_host, async move |io| {
        let client = connect(&io, &bootstrap).await;
        write(&client, ProducerConfig::default(), 1).await;
        network.partition(&away, &broker);
        let healing = network.clone();
        let other = io.clone();
        io.spawn(async move {
            other.sleep(Duration::from_secs(20)).await;
            healing.heal();
        })
        .detach();
        let before = io.now();
        write(&client, ProducerConfig::default(), 1).await;
        io.now().since(before)
    });
    assert!((Duration::from_secs(20)..Duration::from_secs(40)).contains(&took), "{took:?}");
}

/// Connects to a peer that does `peer` with each connection, and gives the error.
fn refused_by(peer: impl AsyncFn(&Io, &Socket) + 'static) -> Error {
    let simulator = Simulator::new(1);
    let host = simulator.host("peer");
    let io = host.start_core();
    let address = SocketAddr::new(host.address(), PORT);
    let peer = Rc::new(peer);
    let accepting = io.clone();
    let open = Rc::new(RefCell::new(Vec::new()));
    io.spawn(async move {
        let listener = accepting.listen(address, ListenOptions::default()).expect("the port is free");
        while let Ok((socket, _)) = accepting.accept(&listener).await {
            peer(&accepting, &socket).await;
            open.borrow_mut().push(socket);
        }
    })
    .detach();
    run(&simulator, async move |io| {
        Client::connect(&io, &address.to_string(), ClientConfig::default()).await.err().expect("that is no broker")
    })
}

async fn answer(io: &Io, socket: &Socket, bytes: &[u8]) {
    read_frame(io, socket).await.expect("a request comes");
    io.send(socket, vec![Lease::from_vec(bytes.to_vec())]).await.expect("it is sent");
}

#[track_caller]
fn assert_says(error: &Error, words: &[&str]) {
    let said = error.to_string();
    assert!(matches!(error, Error::Unreachable { .. }) && words.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn what_is_no_broker_is_refused_with_a_reason() {
    let http = refused_by(async |io, socket| answer(io, socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
    assert_says(&http, &["above the limit"]);
    let closing = refused_by(async |_, socket| socket.shutdown());
    assert_says(&closing, &["closed"]);
    let silent = refused_by(async |_, _| {});
    assert_says(&silent, &["no answer within 10"]);
    let other = refused_by(async |io, socket| answer(io, socket, &[0, 0, 0, 6, 0, 0, 0, 9, 0, 0]).await);
    assert_says(&other, &["answer to request 9"]);
    let short = refused_by(async |io, socket| answer(io, socket, &[0, 0, 0, 2, 0, 0]).await);
    assert_says(&short, &["without a header"]);
    let garbage = refused_by(async |io, socket| answer(io, socket, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 9, 9]).await);
    assert_says(&garbage, &["ApiVersionsResponse"]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = || {
        let simulator = Simulator::new(42);
        simulator.set_network(NetworkTiming { resets_per_mille: 20, ..NetworkTiming::default() });
        let (cluster, _hosts) = Cluster::start(&simulator, 2);
        cluster.borrow_mut().trouble = Trouble { leader_moves: 20, refused: 50, answer_lost: 50, request_lost: 30 };
        let bootstrap = cluster.borrow().bootstrap();
        run(&simulator, async move |io| {
            let client = connect(&io, &bootstrap).await;
            write(&client, ProducerConfig::default(), 100).await;
        });
        simulator.trace()
    };
    assert_eq!(trace(), trace());
}
