//! What a panic ends: one connection, or the process, and nothing in between (docs/decisions/0005-panics.md).

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use heddle_broker::config::PlantedPanic;
use heddle_protocol::ApiKey;
use heddle_protocol::messages::describe_cluster::DescribeClusterRequest;
use heddle_protocol::messages::list_offsets::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic};

use super::world::{World, batch, create_topic, produce, produced};

/// Set in the process that is to end.
const CHILD: &str = "HEDDLE_WALLS_CHILD";
/// What the kernel calls an abort, the same on every Linux.
const SIGABRT: i32 = 6;

fn world(seed: u64, cores: usize, planted: PlantedPanic) -> World {
    let mut world = World::empty(seed);
    world.try_start(cores, &[("num.partitions", "4")], planted).expect("it starts");
    world
}

#[test]
fn a_panic_in_a_connection_ends_that_connection_and_no_other() {
    let world = world(1, 2, PlantedPanic::Connection);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut other = World::connect(io.clone(), address).await;
        create_topic(&mut other, "loom").await;
        for round in 0..5 {
            let mut struck = World::connect(io.clone(), address).await;
            // What came before the panic is answered.
            struck.send(7, &produce("loom", 0, -1, &batch(&["before"]))).await;
            struck.send(0, &DescribeClusterRequest::default()).await;
            struck.send(7, &produce("loom", 0, -1, &batch(&["after"]))).await;
            assert_eq!(produced(&struck.answer(ApiKey::Produce, 7).await), (0, round));
            assert!(struck.is_closed().await, "round {round}");
        }
        for partition in 1..4 {
            assert_eq!(produced(&other.call(7, &produce("loom", partition, -1, &batch(&["a"]))).await), (0, 0));
        }
    });
    world.stop().expect("a broker that met such a panic still stops cleanly");
}

/// Runs this test once more, in a process of its own, where [`CHILD`] is set.
fn again(test: &str) -> Output {
    let binary = std::env::current_exe().expect("a test knows its own path");
    let mut child = Command::new(binary);
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    child.output().expect("a test can be run again")
}

fn assert_aborted(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGABRT), "it said:\n{said}");
    assert!(said.contains(words), "it said:\n{said}");
    let last = "a core panicked while it changed its state; the process ends here, a restart recovers";
    assert_eq!(said.matches(last).count(), 1, "it said:\n{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("served on"));
}

/// The lines that a broker logs, on this process' stderr.
fn log_to_stderr() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
}

#[test]
fn a_panic_where_a_partition_is_asked_ends_the_process_with_a_line_that_says_so() {
    if std::env::var_os(CHILD).is_none() {
        let name = "wire::walls::a_panic_where_a_partition_is_asked_ends_the_process_with_a_line_that_says_so";
        return assert_aborted(&again(name), "planted in a core");
    }
    log_to_stderr();
    let world = world(2, 2, PlantedPanic::Core);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        // Both cores own one of these; whoever is asked, on whatever core, the process ends.
        let partition = |partition_index| ListOffsetsPartition { partition_index, timestamp: -1, ..Default::default() };
        let topic = ListOffsetsTopic { name: "loom", partitions: vec![partition(0), partition(1)].into() };
        let request = ListOffsetsRequest { replica_id: -1, topics: vec![topic].into(), ..Default::default() };
        connection.send(5, &request).await;
        connection.receive().await;
        println!("served on");
    });
}

#[test]
fn a_panic_in_a_vital_task_ends_the_process_with_a_line_that_says_so() {
    if std::env::var_os(CHILD).is_none() {
        let name = "wire::walls::a_panic_in_a_vital_task_ends_the_process_with_a_line_that_says_so";
        return assert_aborted(&again(name), "planted in a vital task");
    }
    log_to_stderr();
    world(3, 2, PlantedPanic::VitalTask);
    println!("served on");
}
