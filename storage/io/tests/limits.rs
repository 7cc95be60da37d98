//! What happens when the process runs out: one test, because the limits are the whole process'.

#![expect(unsafe_code, reason = "the limits of the process")]
#![expect(clippy::unwrap_used, reason = "helpers of the one test")]

use std::net::{SocketAddr, TcpStream};

use heddle_io::{Backend, Executor, IoConfig, ListenOptions};

fn set_limit(resource: libc::__rlimit_resource_t, now: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place during the calls.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &raw mut limit), 0);
        limit.rlim_cur = now.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(resource, &raw const limit), 0);
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the process' descriptors").count()
}

fn executor(backend: Backend) -> Executor {
    Executor::new(IoConfig { backend, ..IoConfig::default() }).expect("a backend")
}

#[test]
fn limits_are_errors_that_pass() {
    nothing_is_leaked();
    set_limit(libc::RLIMIT_MEMLOCK, 0);
    for backend in [Backend::Auto, Backend::Blocking] {
        accepting_pauses_and_resumes(&executor(backend));
    }
}

fn nothing_is_leaked() {
    let before = open_descriptors();
    for round in 0..40 {
        let backend = if round % 2 == 0 { Backend::Auto } else { Backend::Blocking };
        let executor = executor(backend);
        let io = executor.io();
        executor.run(async {
            let listener = io.listen(any_address(), ListenOptions::default()).unwrap();
            let client = TcpStream::connect(listener.local_addr()).unwrap();
            let (socket, _) = io.accept(&listener).await.unwrap();
            let connected = io.connect(listener.local_addr()).await.unwrap();
            io.run_blocking(|| ()).await.unwrap();
            drop((client, connected, socket));
        });
    }
    // A helper thread that has not ended yet may hold its core's wake-up for a moment.
    while helpers_run() {
        std::thread::yield_now();
    }
    assert_eq!(open_descriptors(), before);
}

/// Whether a helper thread of any core lives. Those of a core that is gone end by themselves.
fn helpers_run() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("the process' threads");
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.map_while(Result::ok).map(name).any(|name| name.starts_with("heddle-"))
}

fn any_address() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A connection that finds no descriptor waits in the backlog, and is taken when there is one.
fn accepting_pauses_and_resumes(executor: &Executor) {
    let io = executor.io();
    executor.run(async {
        let listener = io.listen(any_address(), ListenOptions::default()).unwrap();
        let _first = TcpStream::connect(listener.local_addr()).unwrap();
        let (_accepted, _) = io.accept(&listener).await.unwrap();
        let waiting = TcpStream::connect(listener.local_addr()).unwrap();
        let in_use = std::fs::read_dir("/proc/self/fd").unwrap();
        let highest = in_use.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok()).max();
        // Fills the gaps below the highest, so that the limit is met at once.
        let mut fillers = Vec::new();
        set_limit(libc::RLIMIT_NOFILE, highest.unwrap() + 1);
        while let Ok(filler) = std::fs::File::open("/dev/null") {
            fillers.push(filler);
        }
        for _ in 0..3 {
            let error = io.accept(&listener).await.unwrap_err();
            assert!(error.is_too_many_files(), "{error}");
        }
        set_limit(libc::RLIMIT_NOFILE, 1 << 16);
        drop(fillers);
        let (_socket, peer) = io.accept(&listener).await.unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    });
}
