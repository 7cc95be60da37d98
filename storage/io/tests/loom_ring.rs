//! The ring between cores under the model checker: every interleaving of small conversations.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p heddle-io --release --test loom_ring`. A wake-up that is lost shows as a
//! deadlock, a slot that both ends touch as a race, a message that is lost or dropped twice as a leak.
#![cfg(loom)]

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use heddle_io::ring::{Full, channel};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// Preemptions in the model with the most steps, of which both ends sleep and wake the other; the rest have no bound.
/// Without one this model does not end within a quarter of an hour; LOOM_MAX_PREEMPTIONS sets another.
const PREEMPTIONS_OF_A_SENDER_THAT_WAITS: usize = 4;

/// Wakes a thread of the model. Not by `unpark`, which in loom also ends the wait of a `join`.
#[derive(Default)]
struct Awake {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Awake {
    fn wake(self: Arc<Awake>) {
        *self.woken.lock().expect("no panic holds this") = true;
        self.changed.notify_one();
    }
}

impl Awake {
    fn wait(&self) {
        let mut woken = self.woken.lock().expect("no panic holds this");
        while !*woken {
            woken = self.changed.wait(woken).expect("no panic holds this");
        }
        *woken = false;
    }
}

/// Runs a future on this thread of the model.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let awake = Arc::new(Awake::default());
    let waker = Waker::from(Arc::clone(&awake));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => awake.wait(),
        }
    }
}

#[test]
fn a_receiver_that_sleeps_is_woken_for_every_batch() {
    loom::model(|| {
        let (mut sender, mut receiver) = channel(2);
        let thread = thread::spawn(move || {
            sender.try_send(1).expect("room for two");
            sender.try_send(2).expect("room for two");
            sender.flush_wakeups();
        });
        assert_eq!(block_on(receiver.recv()), Some(1));
        assert_eq!(block_on(receiver.recv()), Some(2));
        thread.join().expect("the sender ends");
        assert_eq!(block_on(receiver.recv()), None);
    });
}

#[test]
fn a_sender_that_waits_for_room_gets_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(PREEMPTIONS_OF_A_SENDER_THAT_WAITS);
    model.check(|| {
        let (mut sender, mut receiver) = channel(1);
        let thread = thread::spawn(move || {
            for message in 0..3 {
                block_on(sender.ready());
                sender.try_send(message).expect("there is room, and a receiver");
            }
        });
        for message in 0..3 {
            assert_eq!(block_on(receiver.recv()), Some(message));
        }
        assert_eq!(block_on(receiver.recv()), None);
        thread.join().expect("the sender ends");
    });
}

#[test]
fn the_end_of_the_sender_wakes_the_receiver() {
    loom::model(|| {
        let (mut sender, mut receiver) = channel(2);
        let thread = thread::spawn(move || {
            // No flush: the end of the sender does it.
            sender.try_send(loom::sync::Arc::new(1)).expect("room");
        });
        assert_eq!(block_on(receiver.recv()).as_deref(), Some(&1));
        assert!(block_on(receiver.recv()).is_none());
        thread.join().expect("the sender ends");
    });
}

#[test]
fn the_end_of_the_receiver_wakes_the_sender_and_loses_no_memory() {
    loom::model(|| {
        let (mut sender, mut receiver) = channel(1);
        let thread = thread::spawn(move || {
            let received = receiver.try_recv();
            drop(receiver);
            received.is_some()
        });
        let mut sent = 0;
        while !sender.is_closed() {
            match sender.try_send(loom::sync::Arc::new(sent)) {
                Ok(()) => sent += 1,
                Err(Full(message)) => drop(message),
            }
            block_on(sender.ready());
        }
        thread.join().expect("the receiver ends");
        assert!(sent <= 2);
    });
}
