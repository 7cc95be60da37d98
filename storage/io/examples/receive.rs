//! What receiving costs here: a receive for each request against multishot receives into provided buffers.
//! `cargo run --release -p heddle-io --example receive`.
//!
//! Both on a bare ring as this crate sets one up, so that nothing but the kind of receive differs. A server thread takes
//! requests of 1 KiB and answers each receive with 100 bytes; its CPU time counts. The clients are another thread.
#![expect(clippy::print_stdout, reason = "a table for people")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails says nothing")]
#![expect(unsafe_code, reason = "a bare ring, and the CPU time of a thread")]

mod thread_cpu;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use heddle_io::threads::spawn_core;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use thread_cpu::thread_cpu;

const REQUEST_BYTES: usize = 1 << 10;
const ANSWER: [u8; 100] = [7; 100];
const BUFFER_BYTES: usize = 64 << 10;
const BUFFERS: u16 = 64;
const GROUP: u16 = 1;
/// User data of a send; a receive's is the number of its connection.
const SENT: u64 = u64::MAX;
const ROUNDS: usize = 5;

#[derive(Clone, Copy)]
enum Kind {
    Single,
    Multishot,
}

fn main() {
    for (connections, depth) in [(1, 1), (16, 1), (16, 8)] {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            costs[0].push(measure(Kind::Single, connections, depth));
            costs[1].push(measure(Kind::Multishot, connections, depth));
        }
        for of_kind in &mut costs {
            of_kind.sort_by(f64::total_cmp);
        }
        let [single, multishot] = costs.map(|of_kind| of_kind[ROUNDS / 2]);
        println!(
            "{connections} connections, {depth} requests each in flight: single {single:.2} µs, multishot {multishot:.2} µs CPU for each request"
        );
    }
}

/// CPU microseconds of the server for each request.
fn measure(kind: Kind, connections: usize, depth: usize) -> f64 {
    let requests = 40_000 / connections / depth * depth;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let clients = spawn_core("clients", None, move || {
        let mut streams: Vec<TcpStream> = (0..connections).map(|_| TcpStream::connect(address).unwrap()).collect();
        let request = vec![1; REQUEST_BYTES * depth];
        for stream in &streams {
            stream.set_nodelay(true).unwrap();
        }
        for _ in 0..requests / depth {
            for stream in &mut streams {
                stream.write_all(&request).unwrap();
            }
            for stream in &mut streams {
                let mut answered = [0; ANSWER.len()];
                stream.read_exact(&mut answered).unwrap();
            }
        }
    });
    let streams: Vec<TcpStream> = (0..connections).map(|_| listener.accept().unwrap().0).collect();
    let server = spawn_core("server", None, move || serve(kind, &streams, connections * requests, depth));
    let cost = server.unwrap().join().unwrap();
    clients.unwrap().join().unwrap();
    cost
}

fn serve(kind: Kind, streams: &[TcpStream], requests: usize, depth: usize) -> f64 {
    let mut ring: IoUring =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(256).unwrap();
    let mut provided = Provided::new(&ring);
    let mut own: Vec<Vec<u8>> = streams.iter().map(|_| vec![0; REQUEST_BYTES * depth]).collect();
    let receive = |connection: usize, own: &mut [Vec<u8>]| {
        let socket = Fd(streams[connection].as_raw_fd());
        let entry = match kind {
            Kind::Single => {
                let buffer = &mut own[connection];
                opcode::Recv::new(socket, buffer.as_mut_ptr(), buffer.len() as u32).build()
            }
            Kind::Multishot => opcode::RecvMulti::new(socket, GROUP).build(),
        };
        entry.user_data(connection as u64)
    };
    for connection in 0..streams.len() {
        push(&mut ring, &receive(connection, &mut own));
    }
    let mut left = requests * REQUEST_BYTES;
    let mut arrived = vec![0; streams.len()];
    let began = thread_cpu();
    while left > 0 {
        ring.submit_and_wait(1).unwrap();
        let results: Vec<(u64, i32, u32)> =
            ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())).collect();
        for (user_data, result, flags) in results {
            if user_data == SENT {
                assert_eq!(result as usize, ANSWER.len(), "an answer goes out whole");
                continue;
            }
            let connection = user_data as usize;
            if let Some(buffer) = cqueue::buffer_select(flags) {
                provided.give_back(buffer);
            }
            if !cqueue::more(flags) {
                push(&mut ring, &receive(connection, &mut own));
            }
            let count = usize::try_from(result).unwrap_or(0);
            left -= count;
            arrived[connection] += count;
            if arrived[connection] == REQUEST_BYTES * depth {
                arrived[connection] = 0;
                let socket = Fd(streams[connection].as_raw_fd());
                push(
                    &mut ring,
                    &opcode::Send::new(socket, ANSWER.as_ptr(), ANSWER.len() as u32).build().user_data(SENT),
                );
            }
        }
    }
    ring.submit().unwrap();
    let spent = thread_cpu() - began;
    // Before the memory that the receives in flight name.
    drop(ring);
    drop((own, provided));
    spent / requests as f64
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: what entries lead to are constants, and buffers that outlive the ring's use of them in `serve`.
    unsafe { ring.submission().push(entry) }.unwrap();
}

/// Buffers that the kernel chooses from.
struct Provided {
    entries: &'static mut [BufRingEntry],
    tail: u16,
    memory: Vec<u8>,
}

impl Provided {
    fn new(ring: &IoUring) -> Provided {
        let bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        let pages = Box::leak(vec![[0_u8; 4096]; bytes.div_ceil(4096) + 1].into_boxed_slice()).as_mut_ptr();
        let start = pages.cast::<u8>().wrapping_add(pages.cast::<u8>().align_offset(4096)).cast::<BufRingEntry>();
        // SAFETY: the memory is leaked, zeroed, aligned to a page and large enough.
        let entries = unsafe { std::slice::from_raw_parts_mut(start, usize::from(BUFFERS)) };
        // SAFETY: the memory lives for ever.
        unsafe { ring.submitter().register_buf_ring_with_flags(start as u64, BUFFERS, GROUP, 0) }.unwrap();
        let memory = vec![0; BUFFER_BYTES * usize::from(BUFFERS)];
        let mut provided = Provided { entries, tail: 0, memory };
        (0..BUFFERS).for_each(|buffer| provided.give_back(buffer));
        provided
    }

    fn give_back(&mut self, buffer: u16) {
        let place = &mut self.memory[usize::from(buffer) * BUFFER_BYTES..];
        let entry = &mut self.entries[usize::from(self.tail % BUFFERS)];
        entry.set_addr(place.as_mut_ptr() as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, which is valid, and the kernel reads it as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
