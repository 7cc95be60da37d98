//! One partition's records on their way to the broker: collected into batches, sent in order, sent again where needed.
//!
//! Owns every decision about order, sequences and fate. Does no IO and reads no clock: its owner asks [`Lane::next`] what
//! to do, does it, and reports with [`Lane::settle`].
//!
//! ```text
//! append ──▶ open batch ──full, lingered, flushed──▶ queue: waiting ──send──▶ in flight ──answer──▶ settled
//!                                                            ▲                   │
//!                                                            └── may be retried ─┘
//! ```
//!
//! **Order.** Batches leave the queue's front in order, and with idempotence up to five are in flight at once: the broker
//! refuses one that comes before its turn. It can only do so if it knows the producer, so the first batch of a partition,
//! and the first after any failure, travels alone. And it recognises only the last five: no batch is sent for the first
//! time while the fifth before it is not settled, although those between may be. Without idempotence every batch travels
//! alone.
//!
//! **Sequences.** A batch gets its sequence when it is first sent, and keeps it when it is sent again: that is how the
//! broker knows it. When a batch fails for good, those behind it would leave a gap; once nothing is in flight, the lane
//! starts a new producer epoch at sequence 0 (KIP-360). A batch that may have been written under the old epoch cannot be
//! recognised under the new one: it fails with [`Error::OutcomeUnknown`] rather than be written twice.
//!
//! **Size.** A batch of several records that is too large for the broker is cut in two (`producer/split.rs`), under the
//! same sequences; only a record that is too large by itself fails.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sync::{Permits, Semaphore};
use heddle_io::{Lease, Monotonic};
use heddle_protocol::ErrorCode;
use heddle_record::patch::patch_in_place;
use heddle_record::{
    BatchBuilder, BatchOptions, Compression, ProducerEpoch, ProducerId, RecordHeader, Sequence, Timestamp,
};

use crate::error::Error;
use crate::producer::delivery::{Outcome, Written};
use crate::producer::split;

/// What a lane must know of its producer's settings.
#[derive(Debug, Clone)]
pub(crate) struct LaneConfig {
    /// `topic-partition`, for errors.
    pub(crate) subject: String,
    pub(crate) compression: Compression,
    pub(crate) compression_level: Option<i32>,
    pub(crate) batch_bytes_max: usize,
    pub(crate) linger: Duration,
    pub(crate) delivery_timeout: Duration,
    /// Batches in flight at once; above 1 only with idempotence.
    pub(crate) window_max: usize,
    pub(crate) idempotence: bool,
}

/// A producer id and the incarnation that a lane writes under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

/// One record to append, borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRecord<'a> {
    pub(crate) timestamp: Timestamp,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [RecordHeader<'a>],
}

impl NewRecord<'_> {
    /// The most bytes that the record takes in a batch.
    pub(crate) fn size_max(&self) -> usize {
        BatchBuilder::record_size_max(self.key, self.value, self.headers)
    }
}

/// What a lane wants done next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing until something changes.
    Wait,
    /// Nothing until something changes or this time has come.
    WaitUntil(Monotonic),
    /// Get a producer id, then call [`Lane::adopt`].
    Identify,
    /// Send this batch, then call [`Lane::settle`] with its number, once.
    Send {
        /// The lane's own number of the batch.
        number: u64,
        /// The batch as it goes over the wire.
        batch: Lease,
    },
    /// The lane was abandoned.
    Ended,
}

/// What became of a batch that was sent.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Written(Written),
    /// It failed. `sent` says whether bytes may have reached the broker.
    Failed {
        error: Error,
        sent: bool,
    },
}

/// Producer memory that a batch holds until it is settled.
struct Memory {
    semaphore: Semaphore,
    bytes: usize,
}

impl Memory {
    fn take_over(&mut self, permits: Permits) {
        self.bytes += permits.count();
        permits.forget();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.semaphore.add(self.bytes);
    }
}

struct Batch {
    number: u64,
    body: Body,
    record_count: u32,
    created: Monotonic,
    in_flight: bool,
    /// It was sent and no answer said that it was not written.
    maybe_written: bool,
    outcome: Rc<Outcome>,
    /// Shared by the halves of a batch that was split.
    memory: Rc<Memory>,
}

enum Body {
    /// Not sent yet: no sequence, not compressed.
    Building(BatchBuilder),
    /// As sent. `order` counts the batches of the lane that were sent; `base_sequence` is [`Sequence::NONE`] without
    /// idempotence.
    Built { bytes: Lease, base_sequence: Sequence, order: u64 },
}

struct OpenBatch {
    builder: BatchBuilder,
    created: Monotonic,
    outcome: Rc<Outcome>,
    memory: Memory,
}

/// See the head of the file.
pub(crate) struct Lane {
    config: LaneConfig,
    open: Option<OpenBatch>,
    /// Sealed and not settled, in the order of their sequences.
    queue: VecDeque<Batch>,
    in_flight: usize,
    /// How many batches may be in flight now: 1 or the configured maximum.
    window: usize,
    /// The open batch goes out without lingering.
    hurried: bool,
    closed: bool,
    retry_at: Option<Monotonic>,
    failures: u32,
    identity: Option<Identity>,
    next_sequence: Sequence,
    /// A gap in the sequences: a new epoch starts once nothing is in flight.
    gap: bool,
    next_number: u64,
    /// How many batches were sent for the first time.
    next_order: u64,
}

impl Lane {
    pub(crate) fn new(config: LaneConfig) -> Self {
        assert!(config.window_max == 1 || config.idempotence, "order needs idempotence or one batch at a time");
        Self {
            config,
            open: None,
            queue: VecDeque::new(),
            in_flight: 0,
            window: 1,
            hurried: false,
            closed: false,
            retry_at: None,
            failures: 0,
            identity: None,
            next_sequence: Sequence::new(0),
            gap: false,
            next_number: 0,
            next_order: 0,
        }
    }

    /// Adds a record, whose memory `permits` stand for. Gives the batch it is in and its place there.
    ///
    /// # Errors
    /// The batch cannot be built.
    pub(crate) fn append(
        &mut self,
        record: &NewRecord<'_>,
        memory: &Semaphore,
        permits: Permits,
        now: Monotonic,
    ) -> Result<(Rc<Outcome>, u32), Error> {
        let size = record.size_max();
        if self.open.as_ref().is_some_and(|it| it.builder.size_uncompressed() + size > self.config.batch_bytes_max) {
            self.seal();
        }
        let options = self.options();
        let open = self.open.get_or_insert_with(|| OpenBatch {
            builder: BatchBuilder::new(options),
            created: now,
            outcome: Rc::default(),
            memory: Memory { semaphore: memory.clone(), bytes: 0 },
        });
        let pushed = open.builder.push(record.timestamp, record.key, record.value, record.headers);
        if let Err(error) = pushed {
            self.open.take_if(|open| open.builder.is_empty());
            return Err(Error::Invalid { what: error.to_string() });
        }
        open.memory.take_over(permits);
        let place = u32::try_from(open.builder.len() - 1).expect("a batch counts its records with 31 bits");
        let outcome = Rc::clone(&open.outcome);
        if open.builder.size_uncompressed() >= self.config.batch_bytes_max {
            self.seal();
        }
        Ok((outcome, place))
    }

    fn options(&self) -> BatchOptions {
        BatchOptions {
            compression: self.config.compression,
            compression_level: self.config.compression_level,
            ..BatchOptions::default()
        }
    }

    /// Sends what is open without lingering, and gives the fates of everything that is not settled yet.
    pub(crate) fn hurry(&mut self) -> Vec<Rc<Outcome>> {
        self.hurried = self.open.is_some();
        let open = self.open.iter().map(|it| &it.outcome);
        self.queue.iter().map(|it| &it.outcome).chain(open).map(Rc::clone).collect()
    }

    /// Gives up everything that is not settled.
    pub(crate) fn abandon(&mut self, error: &Error) {
        self.closed = true;
        let open = self.open.take().map(|it| it.outcome);
        let queued = self.queue.drain(..).map(|it| it.outcome);
        for outcome in queued.chain(open) {
            outcome.settle(Err(error.clone()));
        }
        self.in_flight = 0;
    }

    /// How often in a row sending has failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// What to do now.
    pub(crate) fn next(&mut self, now: Monotonic) -> Action {
        self.expire(now);
        if self.in_flight == 0 && self.gap {
            self.start_epoch();
        }
        match self.retry_at {
            Some(_) if self.in_flight > 0 => return Action::Wait,
            Some(at) if now < at && !self.queue.is_empty() => return Action::WaitUntil(at),
            _ => self.retry_at = None,
        }
        if self.in_flight < self.window {
            self.seal_if_due(now);
            let next = self.queue.iter().position(|batch| !batch.in_flight);
            if let Some(position) = next.filter(|position| self.may_send(*position)) {
                return self.send(position);
            }
        }
        match self.next_deadline() {
            _ if self.closed => Action::Ended,
            Some(at) => Action::WaitUntil(at),
            None => Action::Wait,
        }
    }

    /// Whether the broker will still recognise the oldest batch after this one.
    fn may_send(&self, position: usize) -> bool {
        let orders = self.queue.iter().filter_map(|batch| match batch.body {
            Body::Built { order, .. } => Some(order),
            Body::Building(_) => None,
        });
        let was_sent = self.queue.get(position).is_some_and(|batch| matches!(batch.body, Body::Built { .. }));
        let oldest = orders.min().unwrap_or(self.next_order);
        was_sent || self.next_order - oldest < self.config.window_max as u64
    }

    fn send(&mut self, position: usize) -> Action {
        // A batch that starts a new epoch must not meet one of the old: `start_epoch` comes first.
        if self.gap {
            return Action::Wait;
        }
        if self.config.idempotence && self.identity.is_none() {
            return Action::Identify;
        }
        if let Err(error) = self.build(position) {
            self.remove(position).outcome.settle(Err(error));
            // Nothing was numbered: look at the next.
            return Action::WaitUntil(Monotonic::default());
        }
        let batch = self.queue.get_mut(position).expect("the position was just found");
        let Body::Built { bytes, .. } = &batch.body else { unreachable!("just built") };
        batch.in_flight = true;
        self.in_flight += 1;
        Action::Send { number: batch.number, batch: bytes.clone() }
    }

    /// Compresses a batch and gives it its sequence, unless that was done.
    fn build(&mut self, position: usize) -> Result<(), Error> {
        let batch = self.queue.get_mut(position).expect("the caller found it");
        let Body::Building(builder) = &mut batch.body else { return Ok(()) };
        let mut bytes = Vec::with_capacity(builder.size_uncompressed());
        let builder = std::mem::replace(builder, BatchBuilder::new(BatchOptions::default()));
        builder.finish(&mut bytes).map_err(|error| Error::Invalid { what: error.to_string() })?;
        let base_sequence = match self.identity {
            Some(identity) => {
                stamp(&mut bytes, identity, self.next_sequence);
                self.next_sequence
            }
            None => Sequence::NONE,
        };
        self.next_sequence = self.next_sequence.next(batch.record_count);
        batch.body = Body::Built { bytes: Lease::from_vec(bytes), base_sequence, order: self.next_order };
        self.next_order += 1;
        Ok(())
    }

    fn seal_if_due(&mut self, now: Monotonic) {
        let Some(open) = &self.open else { return };
        // While earlier batches wait to go out, the open one may as well fill.
        let none_waits = self.queue.iter().all(|batch| batch.in_flight);
        if none_waits && (self.hurried || now >= open.created + self.config.linger) {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.hurried = false;
        let record_count = u32::try_from(open.builder.len()).expect("a batch counts its records with 31 bits");
        self.queue.push_back(Batch {
            number: self.next_number,
            body: Body::Building(open.builder),
            record_count,
            created: open.created,
            in_flight: false,
            maybe_written: false,
            outcome: open.outcome,
            memory: Rc::new(open.memory),
        });
        self.next_number += 1;
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        let expires = |created: Monotonic| created + self.config.delivery_timeout;
        let waiting = self.queue.iter().find(|batch| !batch.in_flight).map(|batch| expires(batch.created));
        let may_send = self.in_flight < self.window && waiting.is_none();
        let open =
            self.open.as_ref().map(|it| if may_send { it.created + self.config.linger } else { expires(it.created) });
        waiting.into_iter().chain(open).min()
    }

    /// Fails what was not written in time.
    fn expire(&mut self, now: Monotonic) {
        let timeout = self.config.delivery_timeout;
        let late = |created: Monotonic| now >= created + timeout;
        while let Some(position) = self.queue.iter().position(|batch| !batch.in_flight && late(batch.created)) {
            let error = Error::TimedOut { what: "writing a record", after: timeout };
            self.fail(position, error);
        }
        if let Some(open) = self.open.take_if(|open| late(open.created)) {
            open.outcome.settle(Err(Error::TimedOut { what: "writing a record", after: timeout }));
        }
    }

    /// Takes a producer id, and numbers what was numbered before anew.
    pub(crate) fn adopt(&mut self, identity: Identity) {
        assert!(self.in_flight == 0, "what is in flight belongs to the identity before");
        self.identity = Some(identity);
        self.next_sequence = Sequence::new(0);
        self.renumber();
    }

    /// The producer id could not be had: everything fails.
    pub(crate) fn identity_failed(&mut self, error: &Error) {
        for batch in self.queue.drain(..) {
            batch.outcome.settle(Err(error.clone()));
        }
    }

    /// Tries again after `wait`.
    pub(crate) fn postpone(&mut self, now: Monotonic, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait);
    }

    /// Goes on after a gap: the next epoch of the same producer id, or a new id where epochs are used up.
    fn start_epoch(&mut self) {
        self.gap = false;
        let next = self.identity.and_then(|it| Some(Identity { epoch: next_epoch(it.epoch)?, ..it }));
        match next {
            Some(identity) => self.adopt(identity),
            None => self.identity = None,
        }
    }

    /// Gives every batch that was sent before, in order, a sequence under the new identity.
    fn renumber(&mut self) {
        let Some(identity) = self.identity else { return };
        self.queue.retain(|batch| {
            if batch.maybe_written {
                batch.outcome.settle(Err(Error::OutcomeUnknown { subject: self.config.subject.clone() }));
            }
            !batch.maybe_written
        });
        for batch in &mut self.queue {
            if let Body::Built { bytes, base_sequence, .. } = &mut batch.body {
                let mut renumbered = bytes.to_vec();
                stamp(&mut renumbered, identity, self.next_sequence);
                *bytes = Lease::from_vec(renumbered);
                *base_sequence = self.next_sequence;
                self.next_sequence = self.next_sequence.next(batch.record_count);
            }
        }
    }

    /// Takes the answer to a batch in. `wait` is how long to wait if it must be sent again.
    pub(crate) fn settle(&mut self, number: u64, answer: Answer, now: Monotonic, wait: Duration) {
        // An abandoned lane has forgotten its batches.
        let Some(position) = self.queue.iter().position(|batch| batch.number == number) else { return };
        let batch = self.queue.get_mut(position).expect("the position was just found");
        assert!(std::mem::take(&mut batch.in_flight), "only what is in flight is answered");
        self.in_flight -= 1;
        match answer {
            Answer::Written(written) => self.written(position, written),
            Answer::Failed { error, sent } => {
                batch.maybe_written |= sent && !rejects_for_certain(&error);
                self.failed(position, error, now, wait);
            }
        }
    }

    fn written(&mut self, position: usize, written: Written) {
        self.remove(position).outcome.settle(Ok(written));
        // One that stands behind a failure says nothing about it.
        if position == 0 {
            self.window = self.config.window_max;
            self.failures = 0;
        }
    }

    fn failed(&mut self, position: usize, error: Error, now: Monotonic, wait: Duration) {
        match self.judge(position, &error) {
            Verdict::WrittenBefore => self.written(position, Written { base_offset: None, log_append_time: None }),
            Verdict::Fail => self.fail(position, error),
            Verdict::Retry => self.retry(now, wait),
            Verdict::Split => {
                self.retry(now, Duration::ZERO);
                self.split(position);
            }
            Verdict::RetryAsNewProducer => {
                self.identity = None;
                self.gap = true;
                self.retry(now, wait);
            }
        }
    }

    fn retry(&mut self, now: Monotonic, wait: Duration) {
        self.window = 1;
        self.postpone(now, wait);
    }

    fn judge(&self, position: usize, error: &Error) -> Verdict {
        let too_large = matches!(error.code(), Some(ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge));
        if too_large && self.queue.get(position).is_some_and(|batch| batch.record_count > 1) {
            return Verdict::Split;
        }
        match error.code().filter(|_| self.config.idempotence) {
            Some(ErrorCode::DuplicateSequenceNumber) => Verdict::WrittenBefore,
            // Those before it did not get through either and go first; or it is about to be numbered anew.
            Some(ErrorCode::OutOfOrderSequenceNumber) if position > 0 || self.gap => Verdict::Retry,
            Some(
                ErrorCode::UnknownProducerId | ErrorCode::InvalidProducerEpoch | ErrorCode::InvalidProducerIdMapping,
            ) => Verdict::RetryAsNewProducer,
            _ if error.retriable() => Verdict::Retry,
            _ => Verdict::Fail,
        }
    }

    /// Puts two halves in the place of a batch that is too large.
    fn split(&mut self, position: usize) {
        let options = self.options();
        let batch = self.remove(position);
        let Body::Built { bytes, base_sequence, order } = batch.body else {
            unreachable!("only what was sent is answered")
        };
        let halves = split::halves(&bytes, options);
        let outcomes = batch.outcome.split(halves[0].record_count);
        let mut sequence = base_sequence;
        for (place, (half, outcome)) in halves.into_iter().zip(outcomes).enumerate() {
            let mut bytes = half.bytes;
            if let Some(identity) = self.identity {
                stamp(&mut bytes, identity, sequence);
            }
            let part = Batch {
                number: self.next_number,
                body: Body::Built { bytes: Lease::from_vec(bytes), base_sequence: sequence, order },
                record_count: half.record_count,
                created: batch.created,
                in_flight: false,
                maybe_written: false,
                outcome,
                memory: Rc::clone(&batch.memory),
            };
            sequence = sequence.next(half.record_count);
            self.next_number += 1;
            self.queue.insert(position + place, part);
        }
    }

    /// Fails a batch for good.
    fn fail(&mut self, position: usize, error: Error) {
        let batch = self.remove(position);
        if let Body::Built { base_sequence, .. } = &batch.body {
            let numbered_behind = self.queue.iter().skip(position).any(|it| matches!(it.body, Body::Built { .. }));
            // A broker that expects another sequence refuses all that follow, too.
            let disagrees = error.code() == Some(ErrorCode::OutOfOrderSequenceNumber);
            if batch.maybe_written || numbered_behind || disagrees {
                self.gap = self.config.idempotence;
            } else {
                self.next_sequence = *base_sequence;
            }
        }
        batch.outcome.settle(Err(error));
    }

    fn remove(&mut self, position: usize) -> Batch {
        self.queue.remove(position).expect("the caller found it")
    }

    /// What must hold between calls.
    #[cfg(test)]
    fn check_invariants(&self) {
        assert_eq!(self.in_flight, self.queue.iter().filter(|batch| batch.in_flight).count());
        assert!(self.in_flight <= self.config.window_max);
        let orders = self.queue.iter().filter_map(|batch| match batch.body {
            Body::Built { order, .. } => Some(order),
            Body::Building(_) => None,
        });
        assert!(orders.is_sorted(), "the queue is in the order of the first sending");
        let built = self.queue.iter().map(|it| matches!(it.body, Body::Built { .. }));
        assert!(built.is_sorted_by(|a, b| a >= b), "what was numbered stands before what was not");
    }
}

/// What to do about a batch that came back.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// An earlier attempt got through.
    WrittenBefore,
    Retry,
    /// It is cut in two, and both halves go out.
    Split,
    RetryAsNewProducer,
    Fail,
}

/// Whether the broker says for certain that it did not write the batch in this attempt.
fn rejects_for_certain(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        !matches!(
            code,
            ErrorCode::RequestTimedOut
                | ErrorCode::NotEnoughReplicasAfterAppend
                | ErrorCode::NetworkException
                | ErrorCode::KafkaStorageError
                | ErrorCode::UnknownServerError
        )
    })
}

fn next_epoch(epoch: ProducerEpoch) -> Option<ProducerEpoch> {
    // 32,767 is never used: Kafka keeps it for fencing.
    (epoch.get() < i16::MAX - 1).then(|| ProducerEpoch::new(epoch.get() + 1))
}

fn stamp(bytes: &mut [u8], identity: Identity, base_sequence: Sequence) {
    patch_in_place(bytes, |header| header.set_producer(identity.id, identity.epoch, base_sequence));
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
