//! The simulator as its users see it: hosts, power, processes, clocks, network, and that one seed is one run.
//!
//! What its disk promises is tested beside it, in `src/sim/promises.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::ring::RingSender;
use heddle_io::sim::{CutPoint, Effect, Fault, Host, NetworkTiming, OperationKind, Simulator, Stopped};
use heddle_io::{Buffer, Io, Lease, ListenOptions, Listener, OpenOptions, Socket};

const SECOND: Duration = Duration::from_secs(1);

fn bytes(text: &str) -> Vec<Lease> {
    vec![text.as_bytes().to_vec().into()]
}

async fn write_durably(io: &Io, path: &str, text: &str) {
    let file = io.open(path.as_ref(), OpenOptions::create()).await.unwrap();
    io.write(&file, 0, bytes(text)).await.unwrap();
    io.sync_data(&file).await.unwrap();
    io.sync_dir("/".as_ref()).await.unwrap();
}

fn listen(io: &Io, port: u16) -> Listener {
    io.listen(SocketAddr::from(([0, 0, 0, 0], port)), ListenOptions::default()).unwrap()
}

/// Answers every connection with what it sends, until it ends.
async fn echo(io: Io, listener: Listener) {
    while let Ok((socket, _)) = io.accept(&listener).await {
        let echo = io.clone();
        io.spawn(async move { while echo_once(&echo, &socket).await {} }).detach();
    }
}

async fn echo_once(io: &Io, socket: &Socket) -> bool {
    let (received, buffer) = io.recv(socket, Buffer::with_capacity(1000)).await;
    matches!(received, Ok(1..)) && io.send(socket, vec![buffer.freeze()]).await.is_ok()
}

async fn ask(io: &Io, socket: &Socket, question: &[u8]) -> Result<Vec<u8>, std::io::ErrorKind> {
    io.send(socket, vec![question.to_vec().into()]).await.map_err(|error| error.kind())?;
    let mut answer = Buffer::with_capacity(question.len());
    while answer.len() < question.len() {
        let (received, buffer) = io.recv(socket, answer).await;
        if received.map_err(|error| error.kind())? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof);
        }
        answer = buffer;
    }
    Ok(answer.to_vec())
}

fn two_hosts(seed: u64) -> (Simulator, Host, Host) {
    let simulator = Simulator::new(seed);
    let (server, client) = (simulator.host("server"), simulator.host("client"));
    let io = server.start_core();
    let listener = listen(&io, 9092);
    io.spawn(echo(io.clone(), listener)).detach();
    (simulator, server, client)
}

fn address(host: &Host) -> SocketAddr {
    SocketAddr::new(host.address(), 9092)
}

/// A run with something of everything in it; answers its trace.
fn busy_run(seed: u64) -> u64 {
    let (simulator, server, client) = two_hosts(seed);
    let (disk, asker) = (server.start_core(), client.start_core());
    let writer = disk.clone();
    disk.spawn(async move {
        for number in 0..20 {
            write_durably(&writer, &format!("/{number}"), "text").await;
        }
    })
    .detach();
    let (io, to) = (asker.clone(), address(&server));
    let asked = simulator.run(&asker, async move {
        let socket = io.connect(to).await.unwrap();
        for number in 0..20_u64 {
            let question = vec![number as u8; 1 + (io.random_u64() % 3000) as usize];
            assert_eq!(ask(&io, &socket, &question).await.unwrap(), question);
        }
    });
    asked.unwrap();
    server.power_cut();
    server.restart();
    simulator.run_for(SECOND);
    simulator.trace()
}

#[test]
fn one_seed_is_one_run() {
    let traces: BTreeSet<u64> = (0..10).map(busy_run).collect();
    assert_eq!(traces.len(), 10, "seeds differ");
    assert!((0..10).all(|seed| traces.contains(&busy_run(seed))), "and repeat");
}

#[test]
fn a_power_cut_ends_every_task_and_keeps_what_was_flushed() {
    let simulator = Simulator::new(1);
    let host = simulator.host("a");
    let io = host.start_core();
    let alive = Rc::new(Cell::new(0));
    let (ticking, count) = (io.clone(), Rc::clone(&alive));
    io.spawn(async move {
        loop {
            ticking.sleep(Duration::from_millis(1)).await;
            count.set(count.get() + 1);
        }
    })
    .detach();
    let writer = io.clone();
    simulator.run(&io, async move { write_durably(&writer, "/kept", "text").await }).unwrap();
    let forever = std::future::pending::<()>();
    assert_eq!(simulator.run_within(SECOND, &io, forever), Err(Stopped::TimeLimit));
    assert!(alive.get() > 900);
    host.power_cut();
    assert!(!host.is_up());
    assert_eq!(Rc::strong_count(&alive), 1, "the task was dropped, with all it held");
    assert_eq!(simulator.run(&io, async {}), Err(Stopped::HostGone));
    host.restart();
    let io = host.start_core();
    let reader = io.clone();
    let read = simulator.run(&io, async move {
        let file = reader.open("/kept".as_ref(), OpenOptions::read()).await.unwrap();
        reader.read_lease(&file, 0, 100).await.unwrap()
    });
    assert_eq!(&*read.unwrap(), b"text");
}

#[test]
fn kill_keeps_the_page_cache_and_closes_what_was_open() {
    let simulator = Simulator::new(1);
    let host = simulator.host("a");
    let io = host.start_core();
    let writer = io.clone();
    let file = simulator.run(&io, async move {
        let file = writer.open("/lock".as_ref(), OpenOptions::create()).await.unwrap();
        writer.lock_exclusive(&file).await.unwrap();
        writer.write(&file, 0, bytes("cached")).await.unwrap();
        file
    });
    let file = file.unwrap();
    host.kill();
    let io = host.start_core();
    let again = io.clone();
    let stale = simulator.run(&io, async move {
        let own = again.open("/lock".as_ref(), OpenOptions::read_write()).await.unwrap();
        again.lock_exclusive(&own).await.unwrap();
        again.read_lease(&file, 0, 1).await.unwrap_err().raw_os_error()
    });
    assert_eq!(stale, Ok(Some(9)), "a dead process' descriptor is bad");
    assert_eq!(host.peek("/lock").unwrap(), b"cached");
}

/// Writes `/0`, `/1`, ... each durable before the next, and counts those that were acknowledged.
fn acknowledged_until(seed: u64, point: Option<CutPoint>) -> (Host, u64) {
    let simulator = Simulator::new(seed);
    let host = simulator.host("a");
    let io = host.start_core();
    if let Some(point) = point {
        host.cut_at(point);
    }
    let acknowledged = Rc::new(Cell::new(0));
    let (writer, count) = (io.clone(), Rc::clone(&acknowledged));
    let run = simulator.run(&io, async move {
        for number in 0..4 {
            write_durably(&writer, &format!("/{number}"), "text").await;
            count.set(count.get() + 1);
        }
    });
    assert_eq!(run.is_ok(), point.is_none());
    (host, acknowledged.get())
}

#[test]
fn every_step_of_a_story_can_be_cut_and_nothing_acknowledged_is_lost() {
    // Case 27.
    let (host, all) = acknowledged_until(0, None);
    assert_eq!(all, 4);
    let counters = host.counters();
    assert_eq!((counters.writes, counters.flushes, counters.directory_syncs), (4, 4, 4));
    assert_eq!(counters.steps, 2 * (4 + 4 + 4 + 4), "an open, a write and two flushes each");
    let mut seen = BTreeSet::new();
    for step in 0..counters.steps {
        for seed in 0..10 {
            let (host, acknowledged) = acknowledged_until(seed, Some(CutPoint::Step(step)));
            assert!(!host.is_up());
            for number in 0..acknowledged {
                assert_eq!(host.peek(format!("/{number}")).unwrap(), b"text", "step {step}, seed {seed}");
            }
            seen.insert((acknowledged, host.files().len()));
        }
    }
    assert!(seen.contains(&(0, 0)) && seen.contains(&(0, 1)) && seen.contains(&(3, 3)) && seen.contains(&(3, 4)));
}

#[test]
fn one_moment_has_many_ends() {
    let simulator = Simulator::new(3);
    let host = simulator.host("a");
    let io = host.start_core();
    let writer = io.clone();
    simulator
        .run(&io, async move {
            let file = writer.open("/a".as_ref(), OpenOptions::create()).await.unwrap();
            writer.write(&file, 0, vec![vec![1; 5000].into()]).await.unwrap();
        })
        .unwrap();
    let copy = host.copy_disk();
    let ends: BTreeSet<Option<Vec<u8>>> = (0..50)
        .map(|seed| {
            let other = simulator.host("other");
            other.insert_after_power_cut(&copy, seed);
            other.peek("/a").ok()
        })
        .collect();
    assert!(ends.len() > 5, "{} ends", ends.len());
    assert_eq!(host.peek("/a").unwrap(), vec![1; 5000], "the original is as it was");
}

#[test]
fn a_failed_flush_and_a_hang_reach_the_caller() {
    // Case 26.
    let simulator = Simulator::new(1);
    let host = simulator.host("a");
    let io = host.start_core();
    host.plant(Fault::next(OperationKind::Flush, Effect::Fail(5)));
    host.plant(Fault::next(OperationKind::Write, Effect::Hang(10 * SECOND)).after(1));
    host.plant(Fault::next(OperationKind::Write, Effect::Short(3)).after(2));
    let tried = io.clone();
    let run = simulator.run(&io, async move {
        let file = tried.open("/a".as_ref(), OpenOptions::create()).await.unwrap();
        tried.write(&file, 0, bytes("one")).await.unwrap();
        let error = tried.sync_data(&file).await.unwrap_err();
        assert_eq!((error.raw_os_error(), error.path()), (Some(5), Some(Path::new("/a"))));
        let before = tried.now();
        tried.write(&file, 3, bytes("two")).await.unwrap();
        assert!(tried.now() - before >= 10 * SECOND);
        tried.write(&file, 6, bytes("three")).await.unwrap();
    });
    run.unwrap();
    assert_eq!(host.peek("/a").unwrap(), b"onetwothree", "a short write is carried on");
}

#[test]
fn a_dropped_write_arrives_all_the_same() {
    let simulator = Simulator::new(1);
    let host = simulator.host("a");
    let io = host.start_core();
    let writer = io.clone();
    let run = simulator.run(&io, async move {
        let file = writer.open("/a".as_ref(), OpenOptions::create()).await.unwrap();
        drop(writer.write(&file, 0, bytes("text")));
        writer.sleep(SECOND).await;
    });
    run.unwrap();
    assert_eq!(host.peek("/a").unwrap(), b"text");
}

#[test]
fn streams_keep_their_order_and_a_window_holds_the_sender_back() {
    for seed in 0..20 {
        let (simulator, server, client) = two_hosts(seed);
        let (io, to) = (client.start_core(), address(&server));
        let asker = io.clone();
        let question: Vec<u8> = (0..300_000_u32).map(|number| (number / 7) as u8).collect();
        let answer = simulator.run(&io, async move {
            let socket = asker.connect(to).await.unwrap();
            let sender = (asker.clone(), socket.clone());
            let expected = question.clone();
            let sending = asker.spawn(async move { sender.0.send(&sender.1, vec![question.into()]).await });
            asker.sleep(SECOND).await;
            assert!(!sending.is_finished(), "nobody receives, and the window is small");
            let mut answer = Vec::new();
            while answer.len() < expected.len() {
                let (received, buffer) = asker.recv(&socket, Buffer::with_capacity(5000)).await;
                assert!(received.unwrap() > 0);
                answer.extend_from_slice(&buffer);
            }
            sending.await.unwrap();
            answer == expected
        });
        assert_eq!(answer, Ok(true), "seed {seed}");
    }
}

#[test]
fn connections_end_as_they_do_in_life() {
    let (simulator, server, client) = two_hosts(5);
    let (io, to) = (client.start_core(), address(&server));
    let run = |future: std::pin::Pin<Box<dyn Future<Output = Result<Vec<u8>, std::io::ErrorKind>>>>| {
        simulator.run(&io, future).unwrap()
    };
    let connect = || {
        let io = io.clone();
        simulator.run(&io.clone(), async move { io.connect(to).await.map_err(|error| error.kind()) }).unwrap()
    };
    let asking = |socket: &Socket| {
        let (io, socket) = (io.clone(), socket.clone());
        Box::pin(async move { ask(&io, &socket, b"hello").await })
    };
    let socket = connect().unwrap();
    assert_eq!(socket.peer_addr(), to);
    assert_eq!(run(asking(&socket)).unwrap(), b"hello");
    // The process dies: its kernel says so.
    server.kill();
    assert!(run(asking(&socket)).is_err());
    assert_eq!(connect().unwrap_err(), std::io::ErrorKind::ConnectionRefused);
    // It comes back.
    let again = server.start_core();
    again.spawn(echo(again.clone(), listen(&again, 9092))).detach();
    let socket = connect().unwrap();
    assert_eq!(run(asking(&socket)).unwrap(), b"hello");
    // It loses power, and the network tells.
    server.power_cut();
    assert_eq!(run(asking(&socket)).unwrap_err(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(connect().unwrap_err(), std::io::ErrorKind::TimedOut);
    // This end shuts down.
    server.restart();
    let again = server.start_core();
    again.spawn(echo(again.clone(), listen(&again, 9092))).detach();
    let socket = connect().unwrap();
    socket.shutdown();
    assert_eq!(run(asking(&socket)).unwrap_err(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_silent_power_cut_is_noticed_only_when_the_host_is_back() {
    let (simulator, server, client) = two_hosts(5);
    simulator.set_network(NetworkTiming { silent_power_cuts: true, ..NetworkTiming::default() });
    let (io, to) = (client.start_core(), address(&server));
    let asker = io.clone();
    let socket = simulator.run(&io, async move { asker.connect(to).await.unwrap() }).unwrap();
    server.power_cut();
    let (asker, asked) = (io.clone(), socket.clone());
    let waiting = simulator.run_within(60 * SECOND, &io, async move { ask(&asker, &asked, b"hello").await });
    assert_eq!(waiting, Err(Stopped::Stuck));
    server.restart();
    let asker = io.clone();
    let answer = simulator.run(&io, async move { ask(&asker, &socket, b"still there?").await }).unwrap();
    assert_eq!(answer.unwrap_err(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_partition_holds_back_and_loses_nothing() {
    let (simulator, server, client) = two_hosts(9);
    let (io, to) = (client.start_core(), address(&server));
    let asker = io.clone();
    let socket = simulator.run(&io, async move { asker.connect(to).await.unwrap() }).unwrap();
    for one_way in [false, true] {
        if one_way {
            simulator.partition_one_way(&server, &client);
        } else {
            simulator.partition(&server, &client);
        }
        let (asker, asked, answer) = (io.clone(), socket.clone(), Rc::new(RefCell::new(None)));
        let place = Rc::clone(&answer);
        io.spawn(async move { *place.borrow_mut() = Some(ask(&asker, &asked, b"hello").await) }).detach();
        simulator.run_for(30 * SECOND);
        assert!(answer.borrow().is_none());
        simulator.heal();
        simulator.run_for(SECOND);
        assert_eq!(answer.take(), Some(Ok(b"hello".to_vec())));
    }
    simulator.reset_connections(&client, &server);
    let asker = io.clone();
    let answer = simulator.run(&io, async move { ask(&asker, &socket, b"hello").await }).unwrap();
    assert_eq!(answer.unwrap_err(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn clocks_are_the_hosts_own() {
    // Cases 63 to 65.
    let simulator = Simulator::new(2);
    let (a, b) = (simulator.host("a"), simulator.host("b"));
    let (on_a, on_b) = (a.start_core(), b.start_core());
    assert_ne!(on_a.now(), on_b.now(), "points of two hosts cannot be compared");
    assert_eq!(on_a.wall_clock(), on_b.wall_clock());
    let (monotonic, wall) = (on_a.now(), on_a.wall_clock());
    a.shift_wall_clock(-3_600_000);
    assert_eq!((on_a.now(), on_a.wall_clock()), (monotonic, wall - 3_600_000));
    assert_eq!(on_b.wall_clock(), wall);
    simulator.run_for(5 * SECOND);
    assert_eq!(on_a.now() - monotonic, 5 * SECOND);
    assert_eq!(on_b.wall_clock(), wall + 5_000);
}

#[test]
fn a_stopped_process_sleeps_on_and_its_neighbours_do_not() {
    // Case 64.
    let simulator = Simulator::new(2);
    let (a, b) = (simulator.host("a"), simulator.host("b"));
    let woke = |host: &Host| {
        let (io, at, simulator) = (host.start_core(), Rc::new(Cell::new(Duration::ZERO)), simulator.clone());
        let (sleeper, place) = (io.clone(), Rc::clone(&at));
        io.spawn(async move {
            sleeper.sleep(SECOND).await;
            place.set(simulator.now());
        })
        .detach();
        at
    };
    let (at_a, at_b) = (woke(&a), woke(&b));
    simulator.run_for(SECOND / 2);
    a.pause(20 * SECOND);
    simulator.run_for(30 * SECOND);
    assert_eq!(at_b.get().as_secs(), 1);
    assert_eq!(at_a.get().as_secs(), 20);
}

async fn send(ring: &mut RingSender<u64>, number: u64) {
    while ring.try_send(number).is_err() {
        ring.ready().await;
    }
    ring.flush_wakeups();
}

#[test]
fn rings_and_wakeups_cross_the_cores_of_a_host() {
    for seed in 0..20 {
        let simulator = Simulator::new(seed);
        let host = simulator.host("a");
        let (first, second) = (host.start_core(), host.start_core());
        let (mut there, mut arriving) = heddle_io::ring::channel::<u64>(4);
        let (mut back, mut answers) = heddle_io::ring::channel::<u64>(4);
        second
            .spawn(async move {
                while let Some(number) = arriving.recv().await {
                    send(&mut back, number * 2).await;
                }
            })
            .detach();
        first
            .spawn(async move {
                for number in 0..100 {
                    send(&mut there, number).await;
                }
            })
            .detach();
        let sum = simulator.run(&first, async move {
            let mut sum = 0;
            while let Some(answer) = answers.recv().await {
                sum += answer;
            }
            sum
        });
        assert_eq!(sum, Ok(9900), "seed {seed}");
    }
}

#[test]
fn a_core_can_be_run_by_its_owner() {
    let simulator = Simulator::new(4);
    let host = simulator.host("a");
    let executor = host.executor();
    let (io, neighbour) = (executor.io(), host.start_core());
    assert_eq!(executor.backend_name(), "sim");
    let (sender, asked) = (neighbour.clone(), Rc::new(Cell::new(false)));
    let heard = Rc::clone(&asked);
    neighbour
        .spawn(async move {
            sender.sleep(SECOND).await;
            heard.set(true);
        })
        .detach();
    executor.run(async {
        write_durably(&io, "/a", "text").await;
        while !asked.get() {
            io.yield_now().await;
        }
        io.sleep(SECOND).await;
    });
    assert!(simulator.now() >= 2 * SECOND);
}

#[test]
#[should_panic(expected = "nothing will ever wake this core")]
fn waiting_for_nothing_is_told() {
    Simulator::new(4).host("a").executor().run(std::future::pending::<()>());
}

#[test]
fn a_world_without_events_is_told() {
    let simulator = Simulator::new(4);
    let io = simulator.host("a").start_core();
    assert_eq!(simulator.run(&io, std::future::pending::<()>()), Err(Stopped::Stuck));
}
