//! Every kind of operation, given up at every stage, over memory that tells on whoever touches it after it was freed.
//!
//! The allocator of this test never gives large blocks back: it fills them with poison and keeps them. A kernel that
//! still writes into a freed buffer breaks the poison; one that still reads from it sends or stores the poison.
//! (CVE-2026-35554 is this mistake: a buffer used again while it was in flight. Case 78.)
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use heddle_io::{Backend, Buffer, Executor, File, Io, IoConfig, Lease, ListenOptions, OpenOptions, Socket};

/// Blocks of at least this size are kept: buffers of operations, and little else.
const KEPT_BYTES_MIN: usize = 32 << 10;
const KEPT_MAX: usize = 16_384;
const POISON: u8 = 0xDE;
static POISONED: [u8; KEPT_BYTES_MIN] = [POISON; KEPT_BYTES_MIN];

/// What operations write and send.
const SENT: u8 = 0x5A;
/// What files and peers answer.
const ANSWERED: u8 = 0xA5;

const LARGE: usize = 512 << 10;
const SMALL: usize = 64 << 10;

struct Poisoning {
    blocks: [AtomicPtr<u8>; KEPT_MAX],
    lens: [AtomicUsize; KEPT_MAX],
    count: AtomicUsize,
}

#[global_allocator]
static ALLOCATOR: Poisoning = Poisoning {
    blocks: [const { AtomicPtr::new(std::ptr::null_mut()) }; KEPT_MAX],
    lens: [const { AtomicUsize::new(0) }; KEPT_MAX],
    count: AtomicUsize::new(0),
};

// SAFETY: allocation is the system's; what is not given back to it is never handed out again.
unsafe impl GlobalAlloc for Poisoning {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() < KEPT_BYTES_MIN {
            // SAFETY: as in `alloc`.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: the caller gives up a block of this size; nobody else uses it.
        unsafe { std::ptr::write_bytes(block, POISON, layout.size()) };
        let index = self.count.fetch_add(1, Ordering::SeqCst);
        assert!(index < KEPT_MAX, "the test frees more large blocks than it can keep");
        self.lens[index].store(layout.size(), Ordering::SeqCst);
        self.blocks[index].store(block, Ordering::SeqCst);
    }
}

impl Poisoning {
    /// How many kept blocks there are. Fails if one was touched since it was freed.
    fn check(&self) -> usize {
        let count = self.count.load(Ordering::SeqCst);
        for index in 0..count {
            let block = self.blocks[index].load(Ordering::SeqCst);
            let len = self.lens[index].load(Ordering::SeqCst);
            if !block.is_null() {
                // SAFETY: kept blocks are never given back.
                let bytes = unsafe { std::slice::from_raw_parts(block, len) };
                let whole = bytes.chunks(KEPT_BYTES_MIN).all(|chunk| *chunk == POISONED[..chunk.len()]);
                assert!(whole, "freed memory of {len} bytes was written");
            }
        }
        count
    }
}

/// When an operation is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Before it is polled.
    Unpolled,
    /// Polled once, in the same turn of the loop.
    Polled,
    /// After one turn: the kernel has it.
    Submitted,
    /// After a few turns.
    Later,
    /// After its end, its result not yet taken.
    Finished,
}

const STAGES: [Stage; 5] = [Stage::Unpolled, Stage::Polled, Stage::Submitted, Stage::Later, Stage::Finished];

type Operation = Pin<Box<dyn Future<Output = ()>>>;

/// Begins one operation.
type Begin = Box<dyn FnOnce() -> Operation>;

/// A place where every operation has something to do.
#[derive(Clone)]
struct Place {
    io: Io,
    directory: PathBuf,
    /// Read and written past the page cache where the file system allows it, so that operations last.
    direct: File,
    cached: File,
    /// A connection whose other end does nothing, and that end; none on backends of files only.
    connection: Option<(Socket, Socket)>,
}

impl Place {
    async fn new(io: &Io, directory: &Path) -> Place {
        let path = directory.join("direct");
        let mut answer = Buffer::aligned(LARGE);
        answer.extend_from_slice(&[ANSWERED; LARGE]);
        let cached = io.open(&path, OpenOptions::create().truncate()).await.expect("a file");
        io.write(&cached, 0, vec![answer.freeze()]).await.expect("space");
        io.sync_data(&cached).await.expect("a disk");
        let direct = io.open(&path, OpenOptions::read_write().direct()).await;
        Place {
            io: io.clone(),
            directory: directory.to_owned(),
            direct: direct.unwrap_or_else(|_| cached.clone()),
            cached,
            connection: if has_sockets(io) { Some(connection(io).await) } else { None },
        }
    }

    /// One of each kind, not yet begun.
    fn operations(&self) -> Vec<(&'static str, Begin)> {
        let mut operations = self.file_operations();
        operations.extend(self.path_operations());
        operations.push(("sleep", begin(self, |place| place.io.sleep(Duration::from_secs(3600)))));
        if let Some((socket, _)) = &self.connection {
            operations.extend(self.socket_operations(socket));
        }
        operations
    }

    fn file_operations(&self) -> Vec<(&'static str, Begin)> {
        let (direct, cached) = (self.direct.clone(), self.cached.clone());
        let io = || self.io.clone();
        let name = self.directory.join("written");
        vec![
            ("read", run(io(), async move |io| drop(io.read(&direct, 0, Buffer::aligned(LARGE), LARGE).await))),
            ("read cached", run(io(), async move |io| drop(io.read_lease(&cached, 0, SMALL).await))),
            ("write, sync and cut", {
                let open = async move |io: Io| {
                    let Ok(file) = io.open(&name, OpenOptions::create()).await else { return };
                    let writing = io.write(&file, 0, sent(LARGE));
                    let small = io.write(&file, LARGE as u64, sent(SMALL));
                    let syncing = io.sync_data(&file);
                    drop((writing.await, small.await, syncing.await));
                    drop((io.sync_all(&file).await, io.allocate(&file, 0, 4096).await, io.len(&file).await));
                };
                run(io(), open)
            }),
            ("write past the cache", begin(self, |place| place.io.write(&place.direct, LARGE as u64, sent(LARGE)))),
            ("write", begin(self, |place| place.io.write(&place.cached, 2 * LARGE as u64, sent(LARGE)))),
            ("sync", begin(self, |place| place.io.sync_data(&place.cached))),
            ("sync all", begin(self, |place| place.io.sync_all(&place.cached))),
        ]
    }

    fn path_operations(&self) -> Vec<(&'static str, Begin)> {
        let io = || self.io.clone();
        let path = |name: &str| self.directory.join(name);
        let (made, made_again) = (path("made/deep"), path("made"));
        let (lock, listed, synced, seen) =
            (path("lock"), self.directory.clone(), self.directory.clone(), path("direct"));
        vec![
            ("create directory", run(io(), async move |io| drop(io.create_dir_all(&made).await))),
            ("remove directory", run(io(), async move |io| drop(io.remove_dir_all(&made_again).await))),
            ("read directory", run(io(), async move |io| drop(io.read_dir(&listed).await))),
            ("sync directory", run(io(), async move |io| drop(io.sync_dir(&synced).await))),
            ("metadata", run(io(), async move |io| drop(io.metadata(&seen).await))),
            (
                "lock",
                run(io(), async move |io| {
                    let Ok(file) = io.open(&lock, OpenOptions::create()).await else { return };
                    drop(io.lock_exclusive(&file).await);
                }),
            ),
            ("run blocking", run(io(), async |io| drop(io.run_blocking(|| vec![0_u8; SMALL]).await))),
        ]
    }

    fn socket_operations(&self, socket: &Socket) -> Vec<(&'static str, Begin)> {
        let io = || self.io.clone();
        let (receiving, arriving, sending, much) = (socket.clone(), socket.clone(), socket.clone(), socket.clone());
        let file = self.cached.clone();
        let listener = self.io.listen(any_address(), ListenOptions::default()).expect("a free port");
        let address = listener.local_addr();
        vec![
            ("accept", run(io(), async move |io| drop(io.accept(&listener).await))),
            ("connect", run(io(), async move |io| drop(io.connect(address).await))),
            ("receive", begin(self, move |place| place.io.recv(&receiving, place.io.buffer(SMALL)))),
            ("arrival", run(io(), async move |io| drop(io.arrival(&arriving, SMALL).await))),
            ("send file", run(io(), async move |io| drop(io.send_file(&sending, &file, 0, LARGE).await))),
            ("send", begin(self, move |place| place.io.send(&much, sent(8 * LARGE)))),
        ]
    }

    /// What the peer gets of all that was sent before the connection ended: never poison.
    async fn check_peer(self) {
        let Some((socket, peer)) = &self.connection else { return };
        self.io.send(peer, vec![Lease::from_vec(vec![ANSWERED; SMALL])]).await.expect("a connection");
        socket.shutdown();
        let mut received = Buffer::with_capacity(SMALL);
        loop {
            let (count, buffer) = self.io.recv(peer, received).await;
            assert!(buffer.iter().all(|byte| [SENT, ANSWERED].contains(byte)), "freed memory was sent");
            received = buffer;
            received.clear();
            if !matches!(count, Ok(1..)) {
                return;
            }
        }
    }

    async fn check_files(&self) {
        for file in [&self.direct, &self.cached] {
            let len = self.io.len(file).await.expect("an open file") as usize;
            let aligned = len.next_multiple_of(4096);
            let (count, buffer) = self.io.read(file, 0, Buffer::aligned(aligned), aligned).await;
            count.expect("bytes");
            assert!(!buffer.contains(&POISON), "freed memory was written to a file");
        }
    }
}

/// The backends of files only that this build has, where the kernel offers them their ring.
fn backends_of_files_only() -> impl Iterator<Item = Backend> {
    let has_ring = Executor::new(IoConfig::default()).expect("a backend").backend_name() == "uring";
    [Backend::TokioUring, Backend::Glommio].into_iter().filter(move |backend| backend.is_built() && has_ring)
}

fn has_sockets(io: &Io) -> bool {
    !backends_of_files_only().any(|backend| backend.name() == io.backend_name())
}

fn any_address() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

async fn connection(io: &Io) -> (Socket, Socket) {
    let listener = io.listen(any_address(), ListenOptions::default()).expect("a free port");
    let address = listener.local_addr();
    let connecting = io.spawn({
        let io = io.clone();
        async move { io.connect(address).await }
    });
    let (accepted, _) = io.accept(&listener).await.expect("a connection");
    (connecting.await.expect("a connection"), accepted)
}

fn sent(len: usize) -> Vec<Lease> {
    let mut buffer = Buffer::aligned(len);
    buffer.extend_from_slice(&vec![SENT; len]);
    let whole = buffer.freeze();
    vec![whole.slice(0..4096), whole.slice(4096..len)]
}

/// An operation that begins when it is polled.
fn run(io: Io, body: impl AsyncFnOnce(Io) + 'static) -> Begin {
    Box::new(move || Box::pin(async move { body(io).await }))
}

/// An operation that begins when it is called.
fn begin<F: Future + 'static>(place: &Place, operation: impl FnOnce(&Place) -> F + 'static) -> Begin {
    let place = place.clone();
    Box::new(move || {
        let begun = operation(&place);
        Box::pin(async move { drop(begun.await) })
    })
}

async fn poll_once(operation: &mut Operation) -> Poll<()> {
    std::future::poll_fn(|context| Poll::Ready(operation.as_mut().poll(context))).await
}

/// Brings an operation to its stage and drops it there.
async fn give_up(io: &Io, operation: &mut Option<Operation>, stage: Stage) {
    let Some(begun) = operation else { return };
    if stage != Stage::Unpolled && poll_once(begun).await.is_ready() {
        *operation = None;
        return;
    }
    let turns = match stage {
        Stage::Unpolled | Stage::Polled => 0,
        Stage::Submitted => 1,
        Stage::Later | Stage::Finished => 4,
    };
    for _ in 0..turns {
        io.yield_now().await;
    }
    if stage == Stage::Finished {
        // Long enough for all that can end by itself; nothing depends on it.
        io.sleep(Duration::from_millis(5)).await;
    }
    *operation = None;
}

fn each_system_backend(name: &str, test: impl Fn(Executor, &Path)) {
    for backend in [Backend::Auto, Backend::Blocking].into_iter().chain(backends_of_files_only()) {
        let directory =
            std::env::temp_dir().join(format!("heddle-io-{}-{name}-{}", std::process::id(), backend.name()));
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        // Freed, not kept for the next: freed memory is what this test can see.
        let config = IoConfig { backend, recycled_bytes_max: 0, ..IoConfig::default() };
        test(Executor::new(config).expect("a backend"), &directory);
        std::fs::remove_dir_all(&directory).expect("the directory of the test");
    }
}

/// One test at a time: each looks at all of the freed memory.
#[test]
fn the_kernel_never_touches_freed_memory() {
    an_operation_may_be_dropped_at_every_stage();
    a_core_may_end_with_everything_in_flight();
    a_poisoned_block_that_is_written_is_noticed();
    memory_in_flight_is_not_used_again();
}

/// Memory that is kept for the next buffer is not freed, so it is looked at here: a receive that was given up and is
/// still in the kernel must not fill somebody else's buffer.
fn memory_in_flight_is_not_used_again() {
    for backend in [Backend::Auto, Backend::Blocking] {
        let executor = Executor::new(IoConfig { backend, ..IoConfig::default() }).expect("a backend");
        let io = executor.io();
        executor.run(async {
            for stage in STAGES {
                let (socket, peer) = connection(&io).await;
                let receiving = io.recv(&socket, io.buffer(SMALL));
                let mut operation: Option<Operation> = Some(Box::pin(async move { drop(receiving.await) }));
                give_up(&io, &mut operation, stage).await;
                let mut others: Vec<Buffer> = (0..4).map(|_| io.buffer(SMALL)).collect();
                others.iter_mut().for_each(|buffer| buffer.extend_from_slice(&[SENT; SMALL]));
                io.send(&peer, vec![Lease::from_vec(vec![ANSWERED; SMALL])]).await.expect("a connection");
                // Long enough for the bytes to arrive; nothing depends on it.
                io.sleep(Duration::from_millis(5)).await;
                assert!(others.iter().all(|buffer| buffer.iter().all(|byte| *byte == SENT)), "dropped at {stage:?}");
            }
        });
    }
}

fn an_operation_may_be_dropped_at_every_stage() {
    let before = ALLOCATOR.check();
    each_system_backend("stages", |executor, directory| {
        let io = executor.io();
        for stage in STAGES {
            executor.run(async {
                let place = Place::new(&io, directory).await;
                let kinds = place.operations().len();
                for kind in 0..kinds {
                    let (name, begin) = place.operations().swap_remove(kind);
                    let mut operation = Some(begin());
                    give_up(&io, &mut operation, stage).await;
                    assert!(operation.is_none(), "{name} at {stage:?}");
                }
                ended(&io).await;
                place.check_files().await;
                place.check_peer().await;
                ended(&io).await;
            });
            ALLOCATOR.check();
        }
    });
    assert!(ALLOCATOR.check() > before + 100, "the allocator keeps what is freed");
}

/// Waits until nothing is in flight: what was given up has ended.
async fn ended(io: &Io) {
    while io.operations_in_flight() > 0 {
        io.sleep(Duration::from_millis(1)).await;
    }
}

fn a_core_may_end_with_everything_in_flight() {
    for turns in [0, 1, 2, 5] {
        each_system_backend("end", |executor, directory| {
            let io = executor.io();
            let place = executor.run(Place::new(&io, directory));
            for (_, begin) in place.operations() {
                io.spawn(begin()).detach();
            }
            executor.run(async {
                for _ in 0..turns {
                    io.yield_now().await;
                }
            });
            drop(executor);
            assert_eq!(io.tasks(), 0);
            assert!(Executor::new(IoConfig::default()).is_ok(), "the thread can have another core");
            drop(place);
        });
        ALLOCATOR.check();
    }
}

fn a_poisoned_block_that_is_written_is_noticed() {
    let mut block = vec![0_u8; KEPT_BYTES_MIN];
    let place = block.as_mut_ptr();
    drop(block);
    // SAFETY: the allocator above never gives this block back; nobody else uses it. Put right again below.
    unsafe { place.write(0) };
    let noticed = std::panic::catch_unwind(|| ALLOCATOR.check());
    // SAFETY: as above.
    unsafe { place.write(POISON) };
    assert!(noticed.is_err());
}
