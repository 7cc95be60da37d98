//! Answers on their way out, in the order of their requests.
//!
//! Owns the queue between dispatch and the writer and its limits. Never sends, never waits for a log.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use heddle_io::sync::Notify;
use heddle_protocol::ApiKey;

use super::receiver::Charge;
use crate::api::{Answer, Part, Pending};

/// Bytes in memory of ready answers that may wait before the next request is taken.
const READY_BYTES_MAX: usize = 1 << 20;

/// An answer in its place.
pub(crate) enum Queued {
    /// It can be sent.
    Ready(Answer),
    /// The logs have the records, but are not yet as sure of them as was asked. The receive budget is held until then:
    /// the frame's bytes may still be wanted.
    Pending(Pending, Charge),
}

/// The queue. One task at each end.
pub(crate) struct Outbox {
    queue: RefCell<VecDeque<Queued>>,
    /// Answers that may wait, ready or not.
    answers_max: usize,
    /// Answers that were queued and are not ready, the one that the writer waits for included.
    unready: Cell<usize>,
    /// Of which API those are.
    unready_key: Cell<ApiKey>,
    ready_bytes: Cell<usize>,
    closed: Cell<bool>,
    /// Something was queued, or the queue was closed.
    filled: Notify,
    /// Something left the queue, or became ready.
    drained: Notify,
}

impl Outbox {
    /// An empty queue for at most `answers_max` answers.
    pub(crate) fn new(answers_max: usize) -> Self {
        Self {
            answers_max,
            queue: RefCell::default(),
            unready: Cell::new(0),
            unready_key: Cell::new(ApiKey::Produce),
            ready_bytes: Cell::new(0),
            closed: Cell::new(false),
            filled: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// Waits until one more answer may be queued.
    pub(crate) async fn room(&self) {
        while self.queue.borrow().len() >= self.answers_max || self.ready_bytes.get() >= READY_BYTES_MAX {
            self.drained.wait().await;
        }
    }

    /// Waits until every queued answer is ready.
    pub(crate) async fn settled(&self) {
        while self.unready.get() > 0 {
            self.drained.wait().await;
        }
    }

    /// Waits until every queued answer is ready but those of one API.
    pub(crate) async fn settled_but(&self, key: ApiKey) {
        if self.unready_key.get() != key {
            self.settled().await;
        }
    }

    /// Queues the answer to the next request.
    pub(crate) fn push(&self, queued: Queued) {
        match &queued {
            Queued::Ready(answer) => self.ready_bytes.set(self.ready_bytes.get() + memory_bytes(answer)),
            Queued::Pending(pending, _) => {
                self.unready.set(self.unready.get() + 1);
                self.unready_key.set(pending.key());
            }
        }
        self.queue.borrow_mut().push_back(queued);
        self.filled.notify_all();
    }

    /// No more answers will come.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.filled.notify_all();
    }

    /// The next answer, once it can be sent; nothing once all were taken and no more will come.
    pub(crate) async fn next_ready(&self) -> Option<Queued> {
        let mut next = self.next().await?;
        match &mut next {
            Queued::Ready(answer) => self.ready_bytes.set(self.ready_bytes.get() - memory_bytes(answer)),
            Queued::Pending(pending, _) => {
                pending.settle().await;
                self.unready.set(self.unready.get() - 1);
            }
        }
        self.drained.notify_all();
        Some(next)
    }

    async fn next(&self) -> Option<Queued> {
        loop {
            let first = self.queue.borrow_mut().pop_front();
            if first.is_some() || self.closed.get() {
                return first;
            }
            self.filled.wait().await;
        }
    }
}

fn memory_bytes(Answer(parts): &Answer) -> usize {
    parts.iter().filter(|part| matches!(part, Part::Bytes(_))).map(Part::len).sum()
}
