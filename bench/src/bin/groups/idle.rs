//! Groups that nobody uses: what each of them takes of the broker's memory.
//!
//! Owns the story: groups with some offsets, and either a member that is silent or none any more.

use std::rc::Rc;
use std::time::Duration;

use heddle_io::Io;
use heddle_protocol::messages::leave_group::{LeaveGroupRequest, LeaveGroupResponse};

use crate::member::{Member, prepare};
use crate::server::Server;
use crate::{Asked, run};
use heddle_bench::wire::Connection;

/// Connections that make groups side by side.
const MAKERS: usize = 64;
/// How long the broker is left alone before it is looked at: buffers of logs that nobody uses go.
const REST: Duration = Duration::from_secs(12);

pub(crate) fn measure(asked: &Asked) {
    let (groups, offsets) = (asked.number("groups", 10_000), asked.number("offsets", 4));
    let has_member = asked.number("members", 1) > 0;
    let server = asked.server(&["group.initial.rebalance.delay.ms=0"]);
    let (before, after) = run(|io| fill(io, &server, groups, offsets, has_member));
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / groups as f64 / 1024.0;
    let who = if has_member { "a silent member" } else { "nobody in it" };
    println!("{groups} groups with {offsets} offsets and {who}: {:.2} KiB each", each(after, before));
}

async fn fill(io: Io, server: &Server, groups: usize, offsets: usize, has_member: bool) -> (u64, u64) {
    let first = Connection::open(&io, server.address).await;
    prepare(&io, &first, i32::try_from(offsets).expect("a few offsets")).await;
    // What the first groups of each partition bring with them is not theirs.
    make(&io, server, "first", 500, offsets, has_member).await;
    io.sleep(REST).await;
    let before = server.resident();
    make(&io, server, "idle", groups, offsets, has_member).await;
    io.sleep(REST).await;
    (before, server.resident())
}

async fn make(io: &Io, server: &Server, prefix: &'static str, groups: usize, offsets: usize, has_member: bool) {
    let mut makers = Vec::new();
    let partitions = i32::try_from(offsets).expect("a few offsets");
    for maker in 0..MAKERS {
        let connection = Rc::new(Connection::open(io, server.address).await);
        let io_of_task = io.clone();
        makers.push(io.spawn(async move {
            for group in (maker..groups).step_by(MAKERS) {
                let mut member = Member::new(Rc::clone(&connection), format!("{prefix}-{group}"));
                member.settle(&io_of_task).await;
                connection.send(member.commit(0..partitions)).await;
                connection.answer().await;
                if !has_member {
                    leave(&member).await;
                }
            }
        }));
    }
    for maker in makers {
        maker.await;
    }
}

async fn leave(member: &Member) {
    let request = LeaveGroupRequest { group_id: &member.group, member_id: &member.id, ..Default::default() };
    let answer = member.connection.call(2, &request).await;
    assert_eq!(answer.decode::<LeaveGroupResponse<'_>>().error_code, 0, "a member may leave");
}
