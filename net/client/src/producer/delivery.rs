//! What becomes of a batch, told to everybody who has a record in it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use heddle_record::{Offset, PartitionIndex, Timestamp};

use crate::error::Result;

/// Where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The partition.
    pub partition: PartitionIndex,
    /// The record's offset; unknown with [`crate::Acks::None`], and for a batch that had been written before and whose
    /// first answer was lost.
    pub offset: Option<Offset>,
    /// The record's timestamp: the producer's, or the broker's on a topic that is set up so.
    pub timestamp: Timestamp,
}

/// Where a batch was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) base_offset: Option<Offset>,
    /// The broker's time, on a topic that is set up to use it.
    pub(crate) log_append_time: Option<Timestamp>,
}

/// The fate of one batch: unknown, then written, failed or split in two, once.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    state: RefCell<State>,
}

#[derive(Debug, Clone)]
enum Fate {
    Settled(Result<Written>),
    /// The first `at` records have the first fate, the others the second.
    Split {
        at: u32,
        halves: [Rc<Outcome>; 2],
    },
}

#[derive(Debug, Default)]
struct State {
    fate: Option<Fate>,
    /// One place for each future that waits; it keeps its place.
    wakers: Vec<Waker>,
}

impl Outcome {
    /// Settles the fate and wakes all who wait.
    ///
    /// # Panics
    /// The fate is settled already.
    pub(crate) fn settle(&self, result: Result<Written>) {
        self.decide(Fate::Settled(result));
    }

    /// The batch goes on as two: gives the fates of its first `at` records and of the others.
    ///
    /// # Panics
    /// The fate is settled already.
    pub(crate) fn split(&self, at: u32) -> [Rc<Outcome>; 2] {
        let halves: [Rc<Outcome>; 2] = Default::default();
        self.decide(Fate::Split { at, halves: halves.clone() });
        halves
    }

    fn decide(&self, fate: Fate) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            assert!(state.fate.is_none(), "a batch is settled once");
            state.fate = Some(fate);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, place: &mut Option<usize>, context: &Context<'_>) -> Poll<Fate> {
        let mut state = self.state.borrow_mut();
        if let Some(fate) = &state.fate {
            return Poll::Ready(fate.clone());
        }
        match place.and_then(|place| state.wakers.get_mut(place)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *place = Some(state.wakers.len());
                state.wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }

    /// The fate, once it is settled.
    #[cfg(test)]
    pub(crate) fn result(&self) -> Option<Result<Written>> {
        match self.state.borrow().fate.clone()? {
            Fate::Settled(result) => Some(result),
            Fate::Split { .. } => None,
        }
    }

    /// Waits until the fate of every record is settled.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn wait(self: Rc<Self>) -> Result<()> {
        let mut result = Ok(());
        let mut open = vec![self];
        while let Some(outcome) = open.pop() {
            let mut place = None;
            match std::future::poll_fn(|context| outcome.poll(&mut place, context)).await {
                Fate::Settled(settled) => result = result.and(settled.map(|_| ())),
                Fate::Split { halves, .. } => open.extend(halves),
            }
        }
        result
    }
}

/// The future of what becomes of one record. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "a record is written only once this says so; await it, or flush the producer"]
pub struct Delivery {
    outcome: Rc<Outcome>,
    partition: PartitionIndex,
    /// The record's place in its batch.
    index: u32,
    timestamp: Timestamp,
    waker_place: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(outcome: Rc<Outcome>, partition: PartitionIndex, index: u32, timestamp: Timestamp) -> Self {
        Self { outcome, partition, index, timestamp, waker_place: None }
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> PartitionIndex {
        self.partition
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match std::task::ready!(this.outcome.poll(&mut this.waker_place, context)) {
                Fate::Split { at, halves: [first, second] } => {
                    let in_second = this.index >= at;
                    this.index -= if in_second { at } else { 0 };
                    this.outcome = if in_second { second } else { first };
                    this.waker_place = None;
                }
                Fate::Settled(written) => return Poll::Ready(written.map(|written| this.metadata(written))),
            }
        }
    }
}

impl Delivery {
    fn metadata(&self, written: Written) -> RecordMetadata {
        RecordMetadata {
            partition: self.partition,
            offset: written.base_offset.map(|base| Offset::new(base.get() + i64::from(self.index))),
            timestamp: written.log_append_time.unwrap_or(self.timestamp),
        }
    }
}
