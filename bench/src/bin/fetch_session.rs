//! What an empty incremental fetch costs, by the size of its session: CPU time and allocations of the whole program.
//!
//! Owns a broker of two cores on a simulated disk and network, and one client. The codec of both sides and the simulator are in
//! the numbers; the question is whether they grow with the session. They must not: it fails if they do.
//!
//! ```text
//! fetch_session          50, 500 and 5,000 idle partitions
//! ```
#![expect(clippy::print_stdout, reason = "what it finds is for reading")]

#[path = "../allocations.rs"]
mod allocations;

use std::cell::Cell;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use allocations::CountingAllocator;
use heddle_bench::now;
use heddle_bench::wire::Connection;
use heddle_broker::config::{Machine, StartSettings};
use heddle_broker::seats;
use heddle_io::Io;
use heddle_io::sim::Simulator;
use heddle_protocol::messages::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic};

/// Sizes of sessions.
const PARTITIONS: [i32; 3] = [50, 500, 5_000];
/// Fetches that are counted.
const FETCHES: u32 = 2_000;
/// The largest session may need so much more than the smallest.
const GROWTH_MAX: f64 = 1.1;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// What one empty fetch costs.
struct Cost {
    time: Duration,
    allocations: f64,
}

fn main() -> ExitCode {
    let costs: Vec<Cost> = PARTITIONS.into_iter().map(measure).collect();
    for (partitions, cost) in PARTITIONS.iter().zip(&costs) {
        let micros = cost.time.as_secs_f64() * 1e6;
        println!("{partitions:6} partitions: {micros:6.2} µs, {:6.1} allocations", cost.allocations);
    }
    let [Cost { allocations: smallest, .. }, .., Cost { allocations: largest, .. }] = costs.as_slice() else {
        unreachable!("there are three sizes");
    };
    if *largest > smallest * GROWTH_MAX {
        println!("an empty fetch costs more in a larger session");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(partitions: i32) -> Cost {
    let simulator = Simulator::new(7);
    let host = simulator.host("broker");
    let address = SocketAddr::new(host.address(), 9092);
    let mut settings = StartSettings::default();
    let listener = address.to_string();
    for (name, value) in [("log.dirs", "/data"), ("listeners", listener.as_str()), ("insecure", "true")] {
        settings.set(name, value, "here").expect("the setting is known");
    }
    let config = settings.check(Machine { cores: 2, memory_bytes: 1 << 30 }).expect("the settings go together");
    let (first, others) = seats(config);
    for seat in others {
        let io = host.start_core();
        drop(io.spawn(seat.run(io.clone())));
    }
    let io = host.start_core();
    let serves = Rc::new(Cell::new(false));
    let serving = Rc::clone(&serves);
    let run = first.run(io.clone(), move |_| serving.set(true), std::future::pending());
    drop(io.spawn(async move { run.await.expect("the simulated disk works") }));
    while !serves.get() {
        assert!(simulator.step(), "the broker starts");
    }
    let client = simulator.host("client").start_core();
    let story = fetch_often(client.clone(), address, partitions);
    simulator.run(&client, story).expect("the client's machine lives")
}

async fn fetch_often(io: Io, address: SocketAddr, partitions: i32) -> Cost {
    let connection = Connection::open(&io, address).await;
    create(&connection, "loom", partitions).await;
    let wanted = (0..partitions).map(|partition| FetchPartition {
        partition,
        current_leader_epoch: -1,
        last_fetched_epoch: -1,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    });
    let topic = FetchTopic { topic: "loom", partitions: wanted.collect::<Vec<_>>().into(), ..Default::default() };
    let mut request = FetchRequest { replica_id: -1, max_bytes: 1 << 20, min_bytes: 1, ..Default::default() };
    request.topics = vec![topic].into();
    request.session_epoch = 0;
    let (id, told) = fetch(&connection, &request).await;
    assert_eq!(told, usize::try_from(partitions).expect("a count"), "a full answer");
    request.topics = Vec::new().into();
    request.session_id = id;
    for epoch in 1..10 {
        request.session_epoch = epoch;
        fetch(&connection, &request).await;
    }
    let (began, allocations) = (now(), ALLOCATOR.count());
    for _ in 0..FETCHES {
        request.session_epoch += 1;
        let (_, told) = fetch(&connection, &request).await;
        assert_eq!(told, 0, "nothing changed");
    }
    let allocations = ALLOCATOR.count() - allocations;
    Cost { time: (now() - began) / FETCHES, allocations: allocations as f64 / f64::from(FETCHES) }
}

async fn create(connection: &Connection, name: &str, num_partitions: i32) {
    let topic = CreatableTopic { name, num_partitions, replication_factor: 1, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic].into(), timeout_ms: 60_000, ..Default::default() };
    let answer = connection.call(4, &request).await;
    let response: CreateTopicsResponse<'_> = answer.decode();
    assert_eq!(response.topics.first().expect("a topic").error_code, 0);
}

/// The session's id, and how many partitions the answer names.
async fn fetch(connection: &Connection, request: &FetchRequest<'_>) -> (i32, usize) {
    let answer = connection.call(11, request).await;
    let response: FetchResponse<'_> = answer.decode();
    assert_eq!(response.error_code, 0);
    (response.session_id, response.responses.iter().map(|topic| topic.partitions.len()).sum())
}
