//! A start with many committed offsets: how long until every coordinator answers.
//!
//! Owns the story: offsets are committed, the broker is killed, and the start on what it left is watched beside a start
//! with nothing.

use std::time::Duration;

use heddle_bench::now;
use heddle_io::Io;
use heddle_protocol::messages::offset_fetch::{OffsetFetchRequest, OffsetFetchRequestTopic, OffsetFetchResponse};

use crate::member::{TOPIC, commit, prepare};
use crate::server::Server;
use crate::{Asked, run};
use heddle_bench::wire::Connection;

/// Commits in flight while the log is filled.
const DEPTH: usize = 64;
/// Groups that are asked for after the start: so many that every partition of the offsets topic has one.
const PROBES: usize = 1_000;

pub(crate) fn measure(asked: &Asked) {
    let (offsets, batch) = (asked.number("offsets", 1_000_000), asked.number("batch", 100));
    let partitions = i32::try_from(batch).expect("a few partitions");
    let server = Server::start(&[]);
    run(async |io| prepare(&io, &Connection::open(&io, server.address).await, partitions).await);
    let server = server.restart();
    let empty = run(|io| wait_for_all(io, &server, -1));
    let groups = offsets / batch;
    run(|io| fill(io, &server, groups, partitions));
    let server = server.restart();
    let full = run(|io| wait_for_all(io, &server, 1 << 40));
    say("no offsets", empty);
    say(&format!("{offsets} offsets of {groups} groups, {batch} a commit"), full);
}

fn say(what: &str, (time, cpu): (Duration, Duration)) {
    println!("a start with {what}: {:.2} s, {:.2} s of CPU", time.as_secs_f64(), cpu.as_secs_f64());
}

async fn fill(io: Io, server: &Server, groups: usize, partitions: i32) {
    let connection = Connection::open(&io, server.address).await;
    let mut open = 0;
    for group in 0..groups {
        connection.send(commit(&group_named(group), -1, "", 0..partitions)).await;
        open += 1;
        if open == DEPTH {
            connection.answer().await;
            open -= 1;
        }
    }
    for _ in 0..open {
        connection.answer().await;
    }
}

fn group_named(group: usize) -> String {
    format!("weavers-of-a-middling-name-{group}")
}

/// Asks until every partition's groups are loaded; `expected` is what the first of their offsets is.
async fn wait_for_all(io: Io, server: &Server, expected: i64) -> (Duration, Duration) {
    let began = now();
    let connection = Connection::open(&io, server.address).await;
    for group in 0..PROBES {
        let name = group_named(group);
        let topic = OffsetFetchRequestTopic { name: TOPIC, partition_indexes: vec![0].into() };
        let request = OffsetFetchRequest { group_id: &name, topics: Some(vec![topic].into()), ..Default::default() };
        loop {
            let answer = connection.call(5, &request).await;
            let response: OffsetFetchResponse<'_> = answer.decode();
            if response.error_code == 0 {
                let topic = response.topics.first().expect("a topic");
                let found = topic.partitions.first().expect("a partition").committed_offset;
                assert_eq!(found, expected, "{name}");
                break;
            }
            io.sleep(Duration::from_millis(2)).await;
        }
    }
    (now() - began, server.usage().cpu)
}
