//! What [`Io`] promises, held to on every backend: the ring, epoll, the simulator; and what it promises of files and tasks,
//! on those that a build may have besides (`--features tokio-uring,glommio`).
//!
//! A machine that forbids io_uring runs the first with the second's means; `the_ring_is_tested_where_there_is_one` says
//! which of the two it was.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sim::Simulator;
use heddle_io::{
    AppendBuffer, Backend, Buffer, EntryKind, Executor, File, Io, IoConfig, Lease, ListenOptions, Listener, LockError,
    OpenOptions, Socket,
};

const LOOPBACK: &str = "127.0.0.1:0";

/// Longer than anything here takes; only a test that hangs meets it.
const FOREVER: Duration = Duration::from_secs(60);

/// Runs `test` on each backend, in a directory of its own.
fn on_every_backend(name: &str, test: impl AsyncFn(&Io, &Path)) {
    for backend in [Backend::Auto, Backend::Blocking] {
        on(backend, name, &test);
    }
    in_the_simulator(name, test);
}

/// The same, and on the backends of files only that this build has.
fn on_every_file_backend(name: &str, test: impl AsyncFn(&Io, &Path)) {
    for backend in backends_of_files_only() {
        on(backend, name, &test);
    }
    on_every_backend(name, test);
}

fn on(backend: Backend, name: &str, test: impl AsyncFn(&Io, &Path)) {
    let path = std::env::temp_dir().join(format!("heddle-io-{}-{name}-{}", std::process::id(), backend.name()));
    std::fs::create_dir_all(&path).expect("a directory for the test");
    let directory = Removed(path);
    let executor = Executor::new(IoConfig { backend, ..IoConfig::default() }).expect("a backend");
    let io = executor.io();
    let ended = executor.run(io.timeout(FOREVER, test(&io, &directory.0)));
    assert!(ended.is_ok(), "{name} hangs on {}", io.backend_name());
    assert_eq!(io.operations_in_flight(), 0, "{name} leaves operations on {}", io.backend_name());
}

fn in_the_simulator(name: &str, test: impl AsyncFn(&Io, &Path)) {
    let host = Simulator::new(7).host("a");
    let executor = host.executor();
    let io = executor.io();
    let ended = executor.run(io.timeout(FOREVER, test(&io, Path::new("/"))));
    assert!(ended.is_ok(), "{name} hangs in the simulator");
}

/// The backends of files only that this build has, where the kernel offers them their ring.
fn backends_of_files_only() -> impl Iterator<Item = Backend> {
    let has_ring = Executor::new(IoConfig::default()).expect("a backend").backend_name() == "uring";
    [Backend::TokioUring, Backend::Glommio].into_iter().filter(move |backend| backend.is_built() && has_ring)
}

/// A directory that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // A test that fails may have left it in any state.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(text: &'static str) -> Vec<Lease> {
    vec![Lease::from_static(text.as_bytes())]
}

/// `len` bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

async fn create(io: &Io, directory: &Path, name: &str) -> File {
    io.open(&directory.join(name), OpenOptions::create()).await.expect("a new file")
}

fn listen(io: &Io) -> Listener {
    let address: SocketAddr = LOOPBACK.parse().expect("an address");
    io.listen(address, ListenOptions::default()).expect("a free port")
}

/// Both ends of a new connection.
async fn connection(io: &Io) -> (Socket, Socket) {
    let listener = listen(io);
    let connecting = io.spawn({
        let (io, address) = (io.clone(), listener.local_addr());
        async move { io.connect(address).await }
    });
    let (accepted, peer) = io.accept(&listener).await.expect("a connection");
    let connected = connecting.await.expect("a connection");
    assert_eq!(connected.local_addr(), peer);
    assert_eq!(connected.peer_addr(), listener.local_addr());
    assert_eq!(accepted.peer_addr(), peer);
    (connected, accepted)
}

/// Receives until `len` bytes are there or the peer has closed.
async fn receive(io: &Io, socket: &Socket, len: usize) -> Buffer {
    let mut buffer = Buffer::with_capacity(len);
    while buffer.len() < len {
        let (received, filled) = io.recv(socket, buffer).await;
        buffer = filled;
        if received.expect("bytes or the end") == 0 {
            break;
        }
    }
    buffer
}

#[test]
fn the_ring_is_tested_where_there_is_one() {
    let executor = Executor::new(IoConfig::default()).unwrap();
    match executor.backend_name() {
        "uring" => assert_eq!(executor.backend_reason(), "the kernel offers it"),
        _ => assert!(executor.backend_reason().starts_with("no io_uring here: "), "{}", executor.backend_reason()),
    }
    let blocking = IoConfig { backend: Backend::Blocking, ..IoConfig::default() };
    assert_eq!(Executor::new(blocking).unwrap().backend_name(), "blocking");
}

#[test]
fn what_was_written_is_read() {
    on_every_file_backend("written", async |io, directory| {
        let file = create(io, directory, "a").await;
        let pieces = vec![Lease::from_static(b"hello"), Lease::empty(), Lease::from_static(b" world")];
        io.write(&file, 5, pieces).await.unwrap();
        io.write(&file, 0, Vec::new()).await.unwrap();
        assert_eq!(io.len(&file).await.unwrap(), 16);
        assert_eq!(&*io.read_lease(&file, 0, 100).await.unwrap(), b"\0\0\0\0\0hello world");
        assert_eq!(&*io.read_lease(&file, 6, 4).await.unwrap(), b"ello");
        assert!(io.read_lease(&file, 16, 4).await.unwrap().is_empty());
        let mut buffer = Buffer::with_capacity(8);
        buffer.extend_from_slice(b"> ");
        let (count, buffer) = io.read(&file, 11, buffer, 6).await;
        assert_eq!(count.unwrap(), 5);
        assert_eq!(&*buffer, b"> world");
        assert_eq!(buffer.capacity(), 8, "a buffer does not grow by itself");
    });
}

#[test]
fn a_write_takes_any_number_of_pieces_of_any_size() {
    on_every_file_backend("pieces", async |io, directory| {
        let file = create(io, directory, "a").await;
        let all = Lease::from_vec(pattern(3 << 20));
        let small = (0..5000).map(|at| all.slice(at * 7..at * 7 + 7));
        let large = [all.slice(35_000..1 << 20), all.slice(1 << 20..3 << 20)];
        io.write(&file, 10, small.chain(large).collect()).await.unwrap();
        let read = io.read_lease(&file, 10, 4 << 20).await.unwrap();
        assert!(read == all, "all bytes, in their order");
    });
}

#[test]
fn a_hundred_operations_at_once_keep_their_buffers_apart() {
    on_every_file_backend("hundred", async |io, directory| {
        let file = create(io, directory, "a").await;
        let all = Lease::from_vec(pattern(100 * 3000));
        let writes: Vec<_> = (0..100)
            .map(|at| io.write(&file, at * 3000, vec![all.slice(at as usize * 3000..at as usize * 3000 + 3000)]))
            .collect();
        for write in writes {
            write.await.unwrap();
        }
        io.sync_data(&file).await.unwrap();
        let reads: Vec<_> = (0..100_u64)
            .map(|at| {
                let (io, file) = (io.clone(), file.clone());
                io.clone().spawn(async move { io.read_lease(&file, at * 3000, 3000).await.unwrap() })
            })
            .collect();
        for (at, read) in reads.into_iter().enumerate() {
            assert!(read.await == all.slice(at * 3000..at * 3000 + 3000));
        }
    });
}

#[test]
fn lengths_and_blocks() {
    on_every_file_backend("lengths", async |io, directory| {
        let file = create(io, directory, "a").await;
        io.write(&file, 0, text("0123456789")).await.unwrap();
        io.set_len(&file, 4).await.unwrap();
        io.set_len(&file, 6).await.unwrap();
        assert_eq!(&*io.read_lease(&file, 0, 100).await.unwrap(), b"0123\0\0");
        io.allocate(&file, 0, 8192).await.unwrap();
        assert_eq!(io.len(&file).await.unwrap(), 8192);
        assert_eq!(&*io.read_lease(&file, 0, 6).await.unwrap(), b"0123\0\0");
        let metadata = io.metadata(&directory.join("a")).await.unwrap();
        assert_eq!((metadata.len, metadata.kind), (8192, EntryKind::File));
        assert!((metadata.modified_ms - io.wall_clock()).abs() < 600_000);
        io.sync_all(&file).await.unwrap();
        io.sync_dir(directory).await.unwrap();
    });
}

/// `count` blocks of 4,096 bytes for a direct file, each with another byte.
fn aligned(count: usize) -> Lease {
    let mut buffer = Buffer::aligned(count * 4096);
    (0..count * 4096).for_each(|at| buffer.extend_from_slice(&[(at / 4096) as u8 + 1]));
    buffer.freeze()
}

#[test]
fn zeros_are_written_over_what_was_there_and_behind_the_end() {
    on_every_backend("zeros", async |io, directory| {
        let file = create(io, directory, "a").await;
        io.write(&file, 0, vec![Lease::from_vec(vec![7; 10_000])]).await.unwrap();
        io.write_zeros(&file, 100, 5000).await.unwrap();
        io.write_zeros(&file, 9000, 0).await.unwrap();
        let expected = [vec![7; 100], vec![0; 5000], vec![7; 4900]].concat();
        assert!(*io.read_lease(&file, 0, 20_000).await.unwrap() == *expected);
        let len = (3 << 20) + 1000;
        io.write_zeros(&file, 9000, len).await.unwrap();
        assert_eq!(io.len(&file).await.unwrap(), 9000 + len);
        let read = io.read_lease(&file, 9000, 4 << 20).await.unwrap();
        assert_eq!((read.len() as u64, read.iter().any(|byte| *byte != 0)), (len, false));
    });
}

#[test]
fn what_a_probe_finds_holds() {
    on_every_backend("probe", async |io, directory| {
        let traits = io.probe_disk(directory).await.unwrap();
        assert!(io.read_dir(directory).await.unwrap().is_empty(), "nothing is left behind");
        let direct = OpenOptions::create_new().direct();
        if !traits.direct {
            return println!("NOT RUN on {}: {}", io.backend_name(), traits.reason);
        }
        let file = io.open(&directory.join("direct"), direct).await.unwrap();
        io.write_zeros(&file, 0, 64 << 10).await.unwrap();
        let block = aligned(2);
        io.write(&file, 4096, vec![block.clone()]).await.unwrap();
        io.sync_data(&file).await.unwrap();
        let (count, read) = io.read(&file, 0, Buffer::aligned(16 << 10), 16 << 10).await;
        assert_eq!(count.unwrap(), 16 << 10);
        assert!(read[..4096].iter().all(|byte| *byte == 0) && read[4096..12_288] == *block);
        assert!(io.write(&file, 100, vec![block]).await.is_err(), "only whole blocks");
    });
}

#[test]
fn an_overwrite_in_place_is_handed_to_no_thread_and_an_extension_is() {
    on_every_backend("punts", async |io, directory| {
        let traits = io.probe_disk(directory).await.unwrap();
        if !traits.one_flush_for_all || io.backend_name() != "uring" {
            return println!("NOT RUN on {}: {}", io.backend_name(), traits.reason);
        }
        let file = io.open(&directory.join("a"), OpenOptions::create_new().direct()).await.unwrap();
        io.write_zeros(&file, 0, 1 << 20).await.unwrap();
        io.sync_all(&file).await.unwrap();
        let before = io.counters();
        for at in 0..64 {
            io.write(&file, at * 8192, vec![aligned(2)]).await.unwrap();
        }
        let done = io.counters().since(&before);
        // A device whose queue is full of others' requests refuses too, now and then.
        assert!(done.handed_over < 8 && done.inline_writes == 0 && done.flushes == 0, "{done:?}");
        let in_place = done.handed_over;
        assert!(done.submissions >= 64 && done.completions >= 64 && done.enters < 4 * 64, "{done:?}");
        io.write(&file, 1 << 20, vec![aligned(1)]).await.unwrap();
        io.sync_data(&file).await.unwrap();
        let done = io.counters().since(&before);
        assert_eq!((done.handed_over > in_place, done.flushes), (true, 1), "{done:?}");
    });
}

#[test]
fn opening_says_what_it_may_do() {
    on_every_file_backend("opening", async |io, directory| {
        let path = directory.join("a");
        let missing = io.open(&path, OpenOptions::read()).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(missing.path(), Some(&*path));
        assert!(missing.to_string().starts_with("open "), "{missing}");
        let file = io.open(&path, OpenOptions::create_new()).await.unwrap();
        io.write(&file, 0, text("text")).await.unwrap();
        assert_eq!(io.open(&path, OpenOptions::create_new()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let read_only = io.open(&path, OpenOptions::read()).await.unwrap();
        let refused = io.write(&read_only, 8, text("no")).await.unwrap_err();
        assert_eq!((refused.operation(), refused.position()), ("write", Some(8)));
        let cut = io.open(&path, OpenOptions::create().truncate()).await.unwrap();
        assert_eq!(io.len(&cut).await.unwrap(), 0);
    });
}

#[test]
fn directories_are_listed_renamed_and_removed() {
    on_every_file_backend("directories", async |io, directory| {
        let (deep, other) = (directory.join("b/c"), directory.join("moved"));
        io.create_dir_all(&deep).await.unwrap();
        io.create_dir_all(&deep).await.unwrap();
        for name in ["z", "a"] {
            let file = create(io, &directory.join("b"), name).await;
            io.write(&file, 0, text(name)).await.unwrap();
        }
        let listed = io.read_dir(&directory.join("b")).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
        assert_eq!(listed, [("a", EntryKind::File), ("c", EntryKind::Directory), ("z", EntryKind::File)]);
        io.rename(&directory.join("b/z"), &directory.join("b/a")).await.unwrap();
        io.rename(&directory.join("b"), &other).await.unwrap();
        assert!(!io.exists(&directory.join("b")).await.unwrap());
        let file = io.open(&other.join("a"), OpenOptions::read()).await.unwrap();
        io.remove_file(&other.join("a")).await.unwrap();
        assert_eq!(&*io.read_lease(&file, 0, 9).await.unwrap(), b"z", "an open file outlives its name");
        assert_eq!(io.remove_file(&other.join("a")).await.unwrap_err().kind(), ErrorKind::NotFound);
        io.remove_dir_all(&other).await.unwrap();
        assert!(!io.exists(&other).await.unwrap());
        assert_eq!(io.read_dir(&other).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_keeps_others_out_and_names_its_holder() {
    on_every_file_backend("lock", async |io, directory| {
        let file = create(io, directory, "lock").await;
        io.lock_exclusive(&file).await.unwrap();
        let again = create(io, directory, "lock").await;
        match io.lock_exclusive(&again).await {
            Err(LockError::Locked { pid: Some(pid) }) => {
                assert!(pid == std::process::id() || io.backend_name() == "sim");
            }
            other => panic!("{other:?}"),
        }
        drop(file);
        io.lock_exclusive(&again).await.unwrap();
    });
}

#[test]
fn both_ends_of_a_connection_read_and_write_at_once() {
    on_every_backend("echo", async |io, _| {
        let (client, server) = connection(io).await;
        let all = Lease::from_vec(pattern(4 << 20));
        let echo = io.spawn({
            let io = io.clone();
            async move {
                loop {
                    let (received, buffer) = io.recv(&server, Buffer::with_capacity(100_000)).await;
                    if received.unwrap() == 0 {
                        return;
                    }
                    io.send(&server, vec![buffer.freeze()]).await.unwrap();
                }
            }
        });
        let sent = io.spawn({
            let (io, client, all) = (io.clone(), client.clone(), all.clone());
            async move {
                let pieces = (0..4096).map(|at| all.slice(at * 1024..at * 1024 + 1024)).collect();
                io.send(&client, pieces).await.unwrap();
            }
        });
        let received = receive(io, &client, all.len()).await;
        assert!(received.freeze() == all, "every byte, in its order");
        sent.await;
        drop(client);
        echo.await;
    });
}

/// A simulated network hands bytes over only by receives, and says so.
#[test]
fn the_end_of_a_request_is_received_where_it_stays_once_the_socket_holds_it() {
    on_every_backend("arrival", async |io, _| {
        let (client, server) = connection(io).await;
        let all = Lease::from_vec(pattern(1 << 20));
        let (begun, rest) = (all.slice(0..300_000), all.slice(300_000..all.len()));
        let sent = io.spawn({
            let (io, client) = (io.clone(), client.clone());
            async move {
                io.send(&client, vec![begun]).await.unwrap();
                io.sleep(Duration::from_millis(5)).await;
                io.send(&client, vec![rest, Lease::from_static(b"next")]).await.unwrap();
            }
        });
        let Some(arrived) = io.arrival(&server, all.len()).await.unwrap() else {
            assert_eq!(io.backend_name(), "sim", "the kernel makes room for what is waited for");
            return sent.cancel();
        };
        let mut place = AppendBuffer::with_capacity(1 << 20);
        place.append(b"before");
        assert_eq!(place.stage_arrived(&arrived, 1000).unwrap(), 1000);
        assert_eq!(place.staged(), &all[..1000]);
        assert_eq!(arrived.receive(24).unwrap(), all[1000..1024]);
        assert_eq!(place.stage_arrived(&arrived, 100_000).unwrap(), 100_000);
        assert_eq!(place.staged()[1000..], all[1024..101_024]);
        assert_eq!(arrived.left(), all.len() - 101_024);
        arrived.discard(arrived.left()).unwrap();
        assert_eq!(arrived.left(), 0);
        assert_eq!(&*receive(io, &server, 4).await, b"next", "what follows is received as ever");
        sent.await;
    });
}

#[test]
fn what_does_not_arrive_is_not_waited_for_once_the_peer_has_gone() {
    on_every_backend("departure", async |io, _| {
        let (client, server) = connection(io).await;
        io.send(&client, text("some")).await.unwrap();
        let given_up = io.timeout(Duration::from_millis(5), io.arrival(&server, 1000)).await;
        assert_eq!(given_up.is_err(), io.backend_name() != "sim", "it waits for what has not come");
        assert_eq!(&*receive(io, &server, 4).await, b"some", "a wait that was given up takes nothing");
        client.shutdown();
        assert!(io.arrival(&server, 1000).await.unwrap().is_none());
    });
}

#[test]
fn a_shutdown_ends_a_receive_that_waits() {
    on_every_backend("shutdown", async |io, _| {
        let (client, server) = connection(io).await;
        let waiting = io.spawn({
            let (io, client) = (io.clone(), client.clone());
            async move { io.recv(&client, Buffer::with_capacity(10)).await.0.unwrap_or(0) }
        });
        io.yield_now().await;
        client.shutdown();
        assert_eq!(waiting.await, 0);
        assert_eq!(receive(io, &server, 1).await.len(), 0);
        assert!(io.send(&client, text("too late")).await.is_err(), "and no signal ends the process");
        client.shutdown();
    });
}

#[test]
fn nobody_listens() {
    on_every_backend("refused", async |io, _| {
        let address = listen(io).local_addr();
        let error = io.connect(address).await.unwrap_err();
        assert_eq!((error.kind(), error.peer()), (ErrorKind::ConnectionRefused, Some(address)));
    });
}

#[test]
fn an_address_in_use_is_refused_and_shared_on_request() {
    on_every_backend("in-use", async |io, _| {
        let listener = listen(io);
        let refused = io.listen(listener.local_addr(), ListenOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        assert!(refused.to_string().starts_with("listen on 127.0.0.1:"), "{refused}");
        drop(listener);
        let shared = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let first = io.listen(LOOPBACK.parse().unwrap(), shared).unwrap();
        let second = io.listen(first.local_addr(), shared).unwrap();
        assert_eq!(first.local_addr(), second.local_addr());
    });
}

#[test]
fn a_hundred_connections_wait_at_once() {
    on_every_backend("connections", async |io, _| {
        let listener = listen(io);
        let clients: Vec<_> = (0..100_u8)
            .map(|number| {
                let (io, address) = (io.clone(), listener.local_addr());
                io.clone().spawn(async move {
                    let socket = io.connect(address).await.unwrap();
                    io.send(&socket, vec![Lease::from_vec(vec![number; 100])]).await.unwrap();
                    let answer = receive(&io, &socket, 100).await;
                    assert_eq!(&*answer, [number; 100]);
                })
            })
            .collect();
        for _ in 0..100 {
            let (socket, _) = io.accept(&listener).await.unwrap();
            let echo = io.clone();
            io.spawn(async move {
                let question = receive(&echo, &socket, 100).await;
                echo.send(&socket, vec![question.freeze()]).await.unwrap();
            })
            .detach();
        }
        for client in clients {
            client.await;
        }
    });
}

#[test]
fn a_file_is_sent_without_passing_through_our_hands() {
    on_every_backend("send-file", async |io, directory| {
        let file = create(io, directory, "a").await;
        let all = Lease::from_vec(pattern(5 << 20));
        io.write(&file, 0, vec![all.clone()]).await.unwrap();
        io.sync_data(&file).await.unwrap();
        let (client, server) = connection(io).await;
        let sending = io.spawn({
            let io = io.clone();
            async move {
                io.send(&server, text("head")).await.unwrap();
                io.send_file(&server, &file, 1000, 4 << 20).await.unwrap();
                io.send_file(&server, &file, 0, 0).await.unwrap();
                io.send_file(&server, &file, (5 << 20) - 10, 20).await.unwrap_err()
            }
        });
        let received = receive(io, &client, 4 + (4 << 20)).await;
        assert_eq!(&received[..4], b"head");
        assert!(received[4..] == all[1000..1000 + (4 << 20)]);
        let error = sending.await;
        assert_eq!((error.kind(), error.position()), (ErrorKind::UnexpectedEof, Some((5 << 20) - 10)));
    });
}

#[test]
fn tasks_are_joined_cancelled_and_detached() {
    on_every_file_backend("tasks", async |io, _| {
        let sum = io.spawn(async { 1 + 1 });
        assert!(!sum.is_finished());
        assert_eq!(sum.await, 2);
        let dropped = Rc::new(());
        let held = Rc::clone(&dropped);
        let endless = io.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        io.yield_now().await;
        endless.cancel();
        assert_eq!(Rc::strong_count(&dropped), 1, "a cancelled task lets go of what it held");
        let (order, seen) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
        for number in 0..3 {
            let (io, order, seen) = (io.clone(), Rc::clone(&order), Rc::clone(&seen));
            io.clone()
                .spawn(async move {
                    for round in 0..2 {
                        order.borrow_mut().push((round, number));
                        io.yield_now().await;
                    }
                    seen.set(seen.get() + 1);
                })
                .detach();
        }
        while seen.get() < 3 {
            io.yield_now().await;
        }
        assert_eq!(*order.borrow(), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    });
}

#[test]
fn timers_fire_in_their_order_and_a_timeout_drops_what_it_limits() {
    on_every_file_backend("timers", async |io, _| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = io.now();
        let sleepers: Vec<_> = [30_u64, 10, 20]
            .map(|millis| {
                let (io, order) = (io.clone(), Rc::clone(&order));
                io.clone().spawn(async move {
                    io.sleep_until(start + Duration::from_millis(millis)).await;
                    order.borrow_mut().push(millis);
                })
            })
            .into_iter()
            .collect();
        for sleeper in sleepers {
            sleeper.await;
        }
        assert_eq!(*order.borrow(), [10, 20, 30]);
        assert!(io.now().since(start) >= Duration::from_millis(30));
        let held = Rc::new(());
        let limited = Rc::clone(&held);
        let result = io.timeout(Duration::from_millis(1), async move {
            std::future::pending::<()>().await;
            drop(limited);
        });
        assert!(result.await.is_err());
        assert_eq!(Rc::strong_count(&held), 1);
        assert_eq!(io.timeout(FOREVER, async { 5 }).await, Ok(5));
    });
}

#[test]
fn a_panic_stays_inside_of_what_is_guarded() {
    on_every_file_backend("panic", async |io, _| {
        let caught = io.catch_panic(async { panic!("bytes from {}", "a stranger") }).await;
        assert_eq!(caught.unwrap_err().to_string(), "bytes from a stranger");
        assert_eq!(io.catch_panic(async { 3 }).await, Ok(3));
    });
}

#[test]
fn what_blocks_runs_elsewhere() {
    on_every_file_backend("blocking", async |io, _| {
        let values: Vec<_> = (0..20_u64)
            .map(|number| {
                let io = io.clone();
                io.clone().spawn(async move { io.run_blocking(move || number * number).await.unwrap() })
            })
            .collect();
        for (number, value) in values.into_iter().enumerate() {
            assert_eq!(value.await, (number * number) as u64);
        }
        assert_eq!(io.resolve("127.0.0.1", 9092).await.unwrap(), ["127.0.0.1:9092".parse().unwrap()]);
        assert_eq!(io.resolve("[::1]", 1).await.unwrap(), ["[::1]:1".parse().unwrap()]);
    });
}

#[test]
fn chance_differs_and_clocks_go_on() {
    on_every_file_backend("chance", async |io, _| {
        assert_ne!(io.random_u64(), io.random_u64());
        assert_ne!(io.random_bytes16(), io.random_bytes16());
        let before = io.now();
        io.sleep(Duration::from_millis(1)).await;
        assert!(io.now() > before);
    });
}

/// A future that polls `first` once and then gives it up.
async fn poll_once_and_drop<F: Future>(first: F) {
    let mut first = Box::pin(first);
    std::future::poll_fn(|context| {
        // Its end, if it came at once, is as good as being given up.
        let _ = first.as_mut().poll(context);
        std::task::Poll::Ready(())
    })
    .await;
}

#[test]
fn a_write_that_nobody_waits_for_is_still_written() {
    on_every_file_backend("abandoned", async |io, directory| {
        let file = create(io, directory, "a").await;
        let all = Lease::from_vec(pattern(1 << 20));
        drop(io.write(&file, 0, vec![all.clone()]));
        poll_once_and_drop(io.write(&file, 1 << 20, vec![all.clone()])).await;
        while io.operations_in_flight() > 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        let read = io.read_lease(&file, 0, 2 << 20).await.unwrap();
        assert!(read[..1 << 20] == all[..] && read[1 << 20..] == all[..]);
    });
}

#[test]
fn an_operation_after_the_end_of_its_core_fails() {
    for backend in [Backend::Auto, Backend::Blocking].into_iter().chain(backends_of_files_only()) {
        let executor = Executor::new(IoConfig { backend, ..IoConfig::default() }).unwrap();
        let io = executor.io();
        drop(executor);
        let other = Executor::new(IoConfig::default()).unwrap();
        let error = other.run(io.open(Path::new("/dev/null"), OpenOptions::read())).unwrap_err();
        assert_eq!(error.to_string(), "open /dev/null: the executor is gone");
    }
}

#[test]
fn a_backend_that_is_not_built_says_how_to_get_it() {
    let absent = |backend: &Backend| !backend.is_built();
    for backend in backends_of_files_only().chain([Backend::TokioUring, Backend::Glommio].into_iter().filter(absent)) {
        let name = backend.name();
        match Executor::new(IoConfig { backend, ..IoConfig::default() }) {
            Ok(executor) => assert_eq!((executor.backend_name(), backend.is_built()), (name, true)),
            Err(error) => {
                let words = format!("this build has no {name}: it needs the feature `{name}` of heddle-io");
                assert_eq!(error.to_string(), format!("set up the backend: {words}"));
            }
        }
    }
}

#[test]
fn a_backend_of_files_only_refuses_sockets() {
    for backend in backends_of_files_only() {
        on(backend, "sockets", async |io, _| {
            let words = format!("the backend {} has files only", backend.name());
            let refused = io.listen(LOOPBACK.parse().unwrap(), ListenOptions::default()).unwrap_err();
            assert!(refused.kind() == ErrorKind::Unsupported && refused.to_string().ends_with(&words), "{refused}");
            let refused = io.connect(LOOPBACK.parse().unwrap()).await.unwrap_err();
            assert!(refused.kind() == ErrorKind::Unsupported && refused.to_string().ends_with(&words), "{refused}");
        });
    }
}

#[test]
fn what_goes_past_the_cache_is_read_with_and_without_it() {
    on_every_file_backend("direct", async |io, directory| {
        let path = directory.join("a");
        let cached = create(io, directory, "a").await;
        // Not every file system takes O_DIRECT; there the same holds of the cache.
        let direct = io.open(&path, OpenOptions::read_write().direct()).await.unwrap_or_else(|_| cached.clone());
        let all = {
            let mut buffer = Buffer::aligned(1 << 20);
            buffer.extend_from_slice(&pattern(1 << 20));
            buffer.freeze()
        };
        let pieces = vec![all.slice(0..4096), all.slice(4096..1 << 20)];
        io.write(&direct, 8192, pieces).await.unwrap();
        io.write(&direct, 0, vec![all.slice(0..8192)]).await.unwrap();
        io.sync_data(&direct).await.unwrap();
        assert!(io.read_lease(&cached, 8192, 2 << 20).await.unwrap() == all);
        let (count, buffer) = io.read(&direct, 4096, Buffer::aligned(64 << 10), 64 << 10).await;
        assert_eq!(count.unwrap(), 64 << 10);
        assert!(buffer[..4096] == all[4096..8192] && buffer[4096..] == all[..60 << 10]);
        let (count, buffer) = io.read(&direct, 1 << 20, Buffer::aligned(64 << 10), 64 << 10).await;
        assert_eq!((count.unwrap(), buffer.len()), (8192, 8192), "the end of the file");
    });
}

#[test]
fn a_core_that_is_never_idle_still_gets_its_results() {
    on_every_file_backend("busy", async |io, directory| {
        let file = create(io, directory, "a").await;
        let done = Rc::new(Cell::new(false));
        let writing = io.spawn({
            let (io, done) = (io.clone(), Rc::clone(&done));
            async move {
                io.write(&file, 0, text("text")).await.unwrap();
                io.sync_data(&file).await.unwrap();
                done.set(true);
            }
        });
        // A task that is always ready: the core has no reason to sleep.
        while !done.get() {
            io.yield_now().await;
        }
        writing.await;
    });
}
