//! What operations cost here: `cargo run --release -p heddle-io --example costs [DIRECTORY]`.
//!
//! CPU time is the whole process', kernel workers included. Run it a few times: the disk decides much.
#![expect(clippy::print_stdout, reason = "a table for people")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails says nothing")]
#![expect(unsafe_code, reason = "the CPU time of the process")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_io::ring;
use heddle_io::{Backend, Buffer, Executor, File, Io, IoConfig, Lease, ListenOptions, OpenOptions, Socket, threads};

const FILES: u64 = 16;

fn main() {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("heddle-io-costs");
    std::fs::create_dir_all(&directory).unwrap();
    let ring = IoConfig { backend: Backend::Uring, ..IoConfig::default() };
    let configs = [
        ("ring, small writes inline", ring.clone()),
        ("ring, every write on it", IoConfig { inline_write_bytes_max: 0, ..ring }),
        ("blocking", IoConfig { backend: Backend::Blocking, ..IoConfig::default() }),
    ];
    for (name, config) in configs {
        let executor = Executor::new(config.clone()).unwrap();
        println!("{name}");
        let io = executor.io();
        executor.run(async {
            appends(&io, &directory, 64 << 10, 2000, None).await;
            appends(&io, &directory, 4 << 10, 4000, None).await;
            appends(&io, &directory, 64 << 10, 500, Some(10)).await;
            appends(&io, &directory, 4 << 10, 300, Some(1)).await;
            echo(&io, 1, 100_000).await;
            echo(&io, 32, 300_000).await;
        });
        cross_core(&config, 1, 100_000);
        cross_core(&config, 64, 2_000_000);
        idle(&executor);
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// User and system time of the process.
fn cpu() -> Duration {
    // SAFETY: plain numbers; all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place during the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let span = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}

/// Prints the time and CPU of one of `count` things that were done since `start`.
fn report(io: &Io, what: &str, count: u64, start: (heddle_io::Monotonic, Duration), bytes: u64) {
    let (wall, cpu) = (io.now().since(start.0), cpu() - start.1);
    let each = |span: Duration| span.as_secs_f64() * 1e6 / count as f64;
    let per_gb =
        if bytes == 0 { String::new() } else { format!(", {:.2} CPU s/GB", cpu.as_secs_f64() / (bytes as f64 / 1e9)) };
    println!("  {what}: {:.2} µs each, {:.2} µs CPU{per_gb}", each(wall), each(cpu));
}

/// Rounds of one append to each file; a flush of every file each `flush_every` rounds.
async fn appends(io: &Io, directory: &Path, len: usize, rounds: u64, flush_every: Option<u64>) {
    let mut files: Vec<File> = Vec::new();
    for number in 0..FILES {
        let path = directory.join(number.to_string());
        files.push(io.open(&path, OpenOptions::create().truncate()).await.unwrap());
    }
    let bytes = Lease::from_vec(vec![7; len]);
    let pieces = || vec![bytes.slice(0..61), bytes.slice(61..len)];
    let start = (io.now(), cpu());
    for round in 0..rounds {
        let writes: Vec<_> = files.iter().map(|file| io.write(file, round * len as u64, pieces())).collect();
        for write in writes {
            write.await.unwrap();
        }
        if flush_every.is_some_and(|every| round % every == 0) {
            let syncs: Vec<_> = files.iter().map(|file| io.sync_data(file)).collect();
            for sync in syncs {
                sync.await.unwrap();
            }
        }
    }
    let what = match flush_every {
        None => format!("append {} KiB", len >> 10),
        Some(every) => format!("append {} KiB, 16 files flushed every {every} rounds", len >> 10),
    };
    report(io, &what, rounds * FILES, start, rounds * FILES * len as u64);
    for file in &files {
        io.set_len(file, 0).await.unwrap();
    }
}

/// One request and answer after the other on each of so many connections, both ends on this core.
async fn echo(io: &Io, connections: u64, requests: u64) {
    let listener = io.listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap();
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..connections {
        let connecting = io.spawn({
            let (io, address) = (io.clone(), listener.local_addr());
            async move { io.connect(address).await.unwrap() }
        });
        let (server, _) = io.accept(&listener).await.unwrap();
        servers.push(io.spawn(answer(io.clone(), server)));
        clients.push(connecting.await);
    }
    let start = (io.now(), cpu());
    let asking: Vec<_> =
        clients.into_iter().map(|client| io.spawn(ask(io.clone(), client, requests / connections))).collect();
    for client in asking {
        client.await;
    }
    report(io, &format!("1 KiB and back on {connections} connections"), requests, start, 0);
    for server in servers {
        server.await;
    }
}

async fn ask(io: Io, socket: Socket, requests: u64) {
    let question = Lease::from_vec(vec![1; 1024]);
    let mut buffer = Buffer::with_capacity(64 << 10);
    for _ in 0..requests {
        io.send(&socket, vec![question.clone()]).await.unwrap();
        buffer.clear();
        while buffer.len() < 1024 {
            let (count, filled) = io.recv(&socket, buffer).await;
            assert!(count.unwrap() > 0);
            buffer = filled;
        }
    }
}

async fn answer(io: Io, socket: Socket) {
    loop {
        let (count, buffer) = io.recv(&socket, Buffer::with_capacity(64 << 10)).await;
        if count.unwrap() == 0 {
            return;
        }
        io.send(&socket, vec![buffer.freeze()]).await.unwrap();
    }
}

/// Messages to another core and back, so many at once.
fn cross_core(config: &IoConfig, burst: u64, messages: u64) {
    let (mut to_other, mut questions) = ring::channel::<u64>(64);
    let (mut answers, mut from_other) = ring::channel::<u64>(64);
    let cpus = threads::available_cpus();
    let other = threads::spawn_core("other", cpus.last().copied(), {
        let config = config.clone();
        move || {
            let executor = Executor::new(config).unwrap();
            executor.run(async {
                while let Some(first) = questions.recv().await {
                    let mut next = Some(first);
                    while let Some(question) = next {
                        answers.try_send(question).unwrap();
                        next = questions.try_recv();
                    }
                    answers.flush_wakeups();
                }
            });
        }
    });
    let here = threads::spawn_core("here", cpus.first().copied(), {
        let config = config.clone();
        move || {
            let executor = Executor::new(config).unwrap();
            let io = executor.io();
            executor.run(async {
                let start = (io.now(), cpu());
                for _ in 0..messages / burst {
                    for message in 0..burst {
                        to_other.try_send(message).unwrap();
                    }
                    to_other.flush_wakeups();
                    for _ in 0..burst {
                        from_other.recv().await.unwrap();
                    }
                }
                report(&io, &format!("message to another core and back, {burst} at once"), messages, start, 0);
            });
        }
    });
    here.unwrap().join().unwrap();
    other.unwrap().join().unwrap();
}

fn idle(executor: &Executor) {
    let io = executor.io();
    executor.run(async {
        let before = cpu();
        io.sleep(Duration::from_secs(2)).await;
        println!("  idle: {:.3} % of a core", (cpu() - before).as_secs_f64() / 2.0 * 100.0);
    });
}
