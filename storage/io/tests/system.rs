//! What only the operating system's backends do: threads, signals, foreign runtimes.

#![expect(unsafe_code, reason = "a signal to this very thread")]

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use heddle_io::ring::{self, RingReceiver, RingSender};
use heddle_io::{Backend, Buffer, Executor, Hold, Io, IoConfig, Lease, ListenOptions, OpenOptions, Signal, threads};

const FOREVER: Duration = Duration::from_secs(60);

fn executors() -> [Executor; 2] {
    [Backend::Auto, Backend::Blocking]
        .map(|backend| Executor::new(IoConfig { backend, ..IoConfig::default() }).expect("a backend"))
}

/// What a killed process has in flight keeps its files held: the next one must not read or write before it has landed.
#[test]
fn a_file_is_held_until_its_last_clone_is_gone() {
    for executor in executors() {
        let io = executor.io();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("held-{}", io.backend_name()));
        executor.run(async {
            let writer = io.open(&path, OpenOptions::create()).await.expect("a file");
            let reader = io.open(&path, OpenOptions::read()).await.expect("the same file");
            assert!(writer.try_hold(Hold::Shared).expect("a lock"));
            let in_flight = io.write(&writer, 0, vec![Lease::from_static(b"in flight")]);
            drop(writer);
            assert!(!reader.try_hold(Hold::Alone).expect("an answer"), "the operation holds it");
            in_flight.await.expect("a write");
            assert!(reader.try_hold(Hold::Alone).expect("a lock"));
        });
    }
}

#[test]
fn a_core_that_sleeps_is_woken_by_another_thread() {
    for executor in executors() {
        let io = executor.io();
        let woken = Arc::new(AtomicBool::new(false));
        for _ in 0..100 {
            woken.store(false, Ordering::SeqCst);
            let waiting = async {
                let waker = io.remote_waker().await;
                let other = Arc::clone(&woken);
                let thread = threads::spawn_core("waker", None, move || {
                    other.store(true, Ordering::SeqCst);
                    waker.wake();
                });
                std::future::poll_fn(|_| if woken.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending })
                    .await;
                thread.expect("a thread").join().expect("the waker ends");
            };
            executor.run(io.timeout(FOREVER, waiting)).expect("a wake-up is never lost");
        }
    }
}

async fn answer(mut questions: RingReceiver<Lease>, mut answers: RingSender<Lease>) {
    while let Some(question) = questions.recv().await {
        answers.ready().await;
        answers.try_send(question.slice(1..question.len())).expect("there is room");
        answers.flush_wakeups();
    }
}

#[test]
fn two_cores_talk_through_rings() {
    for backend in [Backend::Auto, Backend::Blocking] {
        let config = IoConfig { backend, ..IoConfig::default() };
        let (mut to_other, questions) = ring::channel(8);
        let (answers, mut from_other) = ring::channel(8);
        let other = threads::spawn_core("other", None, {
            let config = config.clone();
            move || Executor::new(config).expect("a backend").run(answer(questions, answers))
        });
        let executor = Executor::new(config).unwrap();
        let io = executor.io();
        let conversation = async {
            for round in 0..2000_u32 {
                // Now one at a time, now many: the other core sleeps or it does not.
                let burst = 1 + round % 8;
                for number in 0..burst {
                    to_other.try_send(Lease::from_vec(vec![round as u8, number as u8])).expect("there is room");
                }
                to_other.flush_wakeups();
                for number in 0..burst {
                    let answer = from_other.recv().await.expect("an answer");
                    assert_eq!(*answer, [number as u8]);
                }
            }
            drop(to_other);
            assert!(from_other.recv().await.is_none());
        };
        executor.run(io.timeout(FOREVER, conversation)).expect("a wake-up is never lost");
        other.unwrap().join().unwrap();
    }
}

#[test]
fn a_thread_can_have_many_cores() {
    let executors: Vec<_> = (0..20).map(|_| Executor::new(IoConfig::default()).unwrap()).collect();
    for executor in &executors {
        let io = executor.io();
        executor.run(io.sleep(Duration::from_micros(1)));
    }
}

#[test]
fn a_signal_is_taken_instead_of_ending_the_process() {
    for executor in executors() {
        let io = executor.io();
        executor.run(async {
            let mut signals = io.signals().unwrap();
            for (number, expected) in [(libc::SIGTERM, Signal::Terminate), (libc::SIGINT, Signal::Interrupt)] {
                let waiting = signals.next();
                // SAFETY: no memory is involved; the signal goes to this thread, where `signals` blocked it.
                unsafe { libc::pthread_kill(libc::pthread_self(), number) };
                assert_eq!(io.timeout(FOREVER, waiting).await.expect("a signal").unwrap(), expected);
            }
        });
    }
}

/// A foreign runtime: one task on one thread.
#[derive(Default)]
struct Outer {
    woken: Mutex<bool>,
    changed: Condvar,
    polls: AtomicUsize,
}

impl Wake for Outer {
    fn wake(self: Arc<Outer>) {
        *self.woken.lock().expect("nobody panics with it") = true;
        self.changed.notify_one();
    }
}

impl Outer {
    fn run<F: Future>(self: Arc<Outer>, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let waker = Waker::from(Arc::clone(&self));
        loop {
            self.polls.fetch_add(1, Ordering::SeqCst);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            let mut woken = self.woken.lock().expect("nobody panics with it");
            while !std::mem::take(&mut *woken) {
                let (guard, waited) = self.changed.wait_timeout(woken, FOREVER).expect("nobody panics with it");
                assert!(!waited.timed_out(), "a wake-up is never lost");
                woken = guard;
            }
        }
    }
}

/// Files, sockets, timers and threads, all in one.
async fn everything(io: Io) -> u64 {
    let listener = io.listen("127.0.0.1:0".parse().expect("an address"), ListenOptions::default()).expect("a port");
    let server = io.spawn({
        let (io, listener) = (io.clone(), listener.clone());
        async move {
            let (socket, _) = io.accept(&listener).await.expect("a connection");
            let (count, buffer) = io.recv(&socket, Buffer::with_capacity(100)).await;
            io.sleep(Duration::from_millis(2)).await;
            io.send(&socket, vec![buffer.freeze()]).await.expect("a connection");
            count.expect("bytes")
        }
    });
    let socket = io.connect(listener.local_addr()).await.expect("a connection");
    io.send(&socket, vec![Lease::from_static(b"question")]).await.expect("a connection");
    let (count, _) = io.recv(&socket, Buffer::with_capacity(100)).await;
    assert_eq!((count.expect("bytes"), server.await), (8, 8));
    let entries = io.read_dir(std::env::temp_dir().as_ref()).await;
    assert!(entries.is_ok());
    io.run_blocking(|| 42).await.expect("no panic")
}

#[test]
fn a_core_runs_inside_of_a_foreign_runtime() {
    for executor in executors() {
        let io = executor.io();
        let outer = Arc::new(Outer::default());
        let inner = executor.run_inside(everything(io)).unwrap();
        assert_eq!(Arc::clone(&outer).run(inner), 42);
        let polls = outer.polls.load(Ordering::SeqCst);
        assert!(polls < 1000, "{polls} polls: the outer task sleeps while there is nothing to do");
    }
}
