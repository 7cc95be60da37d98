//! A large group and one member more: how long until every member has its assignment again.
//!
//! Owns the story. Members beat in short intervals, because nothing else tells a member of the classic protocol that
//! somebody has joined; a client of Kafka's beats every three seconds.

use std::rc::Rc;
use std::time::Duration;

use heddle_bench::now;
use heddle_io::Io;

use crate::member::{Gathering, Member, prepare};
use crate::server::Server;
use crate::{Asked, run};
use heddle_bench::wire::Connection;

/// How often it is looked whether all are there.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) fn measure(asked: &Asked) {
    let members = asked.number("members", 1_000);
    let beat = Duration::from_millis(asked.number("beat", 100) as u64);
    let server = asked.server(&["group.initial.rebalance.delay.ms=1000"]);
    run(|io| rebalance(io, &server, members, beat));
}

async fn rebalance(io: Io, server: &Server, members: usize, beat: Duration) {
    let first = Connection::open(&io, server.address).await;
    prepare(&io, &first, i32::try_from(members).expect("a few members")).await;
    let (old, new) = (Gathering::new(members), Gathering::new(members + 1));
    // A group that no earlier run has left members in.
    let group = format!("weavers-{}", std::process::id());
    let mut tasks = Vec::new();
    let (began, before) = (now(), server.usage().cpu);
    for _ in 0..members {
        let mut member = Member::new(Rc::new(Connection::open(&io, server.address).await), group.clone());
        let (io_of_task, old, new) = (io.clone(), old.clone(), new.clone());
        tasks.push(io.spawn(async move {
            member.gather(&io_of_task, &old, beat).await;
            member.gather(&io_of_task, &new, beat).await;
        }));
    }
    while !old.is_complete() {
        io.sleep(LOOK).await;
    }
    say(members, "gathered", now() - began, server.usage().cpu - before);
    io.sleep(Duration::from_secs(1)).await;
    let mut last = Member::new(Rc::new(Connection::open(&io, server.address).await), group);
    let (began, before) = (now(), server.usage().cpu);
    let (io_of_task, new_of_task) = (io.clone(), new.clone());
    tasks.push(io.spawn(async move { last.gather(&io_of_task, &new_of_task, beat).await }));
    while !new.is_complete() {
        io.sleep(LOOK).await;
    }
    say(members + 1, "settled after a join", now() - began, server.usage().cpu - before);
    for task in tasks {
        task.await;
    }
}

fn say(members: usize, what: &str, time: Duration, cpu: Duration) {
    println!("{members} members {what} in {:.2} s, {:.2} s of CPU", time.as_secs_f64(), cpu.as_secs_f64());
}
