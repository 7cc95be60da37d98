//! Durable commits: members of groups that commit, each as fast as it is answered, some of them in flight at a time.
//!
//! Owns the load and its count. Every answer is compared with the one that the first commit got.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use heddle_bench::now;
use heddle_io::{Io, Lease};

use crate::member::{Gathering, Member, prepare};
use crate::server::{Server, Usage};
use crate::{Asked, run};
use heddle_bench::wire::Connection;

/// How long the load runs before it counts.
const WARM_UP: Duration = Duration::from_secs(2);
/// How often members ask whether the others are there.
const BEAT: Duration = Duration::from_millis(20);

pub(crate) fn measure(asked: &Asked) {
    let (groups, members) = (asked.number("groups", 64), asked.number("members", 64));
    let (depth, seconds) = (asked.number("depth", 1), asked.number("seconds", 5));
    let server = asked.server(&["group.initial.rebalance.delay.ms=500"]);
    let span = Duration::from_secs(seconds as u64);
    let rate = run(|io| load(io, &server, groups, members, depth, span));
    let Rate { commits, usage: (before, after), seconds } = rate;
    let each = |total: f64| total / commits as f64;
    println!(
        "{members} members of {groups} groups, {depth} in flight each: {:.0} commits/s, {:.1} µs of CPU each, \
         {:.0} flushes/s, answered in {:.2} ms",
        commits as f64 / seconds,
        each((after.cpu - before.cpu).as_secs_f64() * 1e6),
        (after.flushes - before.flushes) as f64 / seconds,
        each(seconds * 1e3 * (members * depth) as f64),
    );
}

struct Rate {
    commits: u64,
    usage: (Usage, Usage),
    seconds: f64,
}

async fn load(io: Io, server: &Server, groups: usize, members: usize, depth: usize, span: Duration) -> Rate {
    let first = Connection::open(&io, server.address).await;
    prepare(&io, &first, i32::try_from(members).expect("a few members")).await;
    let (count, ends) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let gatherings: Vec<Gathering> =
        (0..groups).map(|group| Gathering::new((group..members).step_by(groups).count())).collect();
    let mut tasks = Vec::new();
    for index in 0..members {
        let connection = Connection::open(&io, server.address).await;
        let mut member = Member::new(Rc::new(connection), group_named(index % groups));
        let (io_of_task, gathering) = (io.clone(), gatherings[index % groups].clone());
        let (count, ends) = (Rc::clone(&count), Rc::clone(&ends));
        tasks.push(io.spawn(async move {
            member.gather(&io_of_task, &gathering, BEAT).await;
            let bytes = member.commit(std::iter::once(i32::try_from(index).expect("a few members")));
            commit_often(&member.connection, &bytes, depth, &count, &ends).await;
        }));
    }
    while !gatherings.iter().all(Gathering::is_complete) {
        io.sleep(BEAT).await;
    }
    io.sleep(WARM_UP).await;
    let (began, counted, before) = (now(), count.get(), server.usage());
    io.sleep(span).await;
    let rate = Rate {
        commits: count.get() - counted,
        usage: (before, server.usage()),
        seconds: (now() - began).as_secs_f64(),
    };
    ends.set(true);
    for task in tasks {
        task.await;
    }
    rate
}

/// A group that no earlier run has left members in.
fn group_named(group: usize) -> String {
    format!("weavers-{}-{group}", std::process::id())
}

/// Commits until it ends, `depth` at a time.
async fn commit_often(connection: &Connection, request: &Lease, depth: usize, count: &Cell<u64>, ends: &Cell<bool>) {
    connection.send(request.clone()).await;
    let expected = connection.answer().await;
    assert!(expected.ends_with(&[0, 0]), "the commit was refused");
    let all = Lease::from_vec(request.repeat(depth));
    let mut wanted = depth;
    let mut open = 0;
    loop {
        if !ends.get() {
            connection.send(all.slice(0..wanted * request.len())).await;
            open += wanted;
        }
        if open == 0 {
            return;
        }
        wanted = connection.answers(&expected).await;
        open -= wanted;
        count.set(count.get() + wanted as u64);
    }
}
