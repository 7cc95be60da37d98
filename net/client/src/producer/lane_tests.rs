//! The lane as its owner sees it: records in, actions out, answers in.

use heddle_record::{Origin, RecordBatch, validate};

use super::*;

/// What goes on in a test: a lane, its memory, a clock that the test moves.
struct Scene {
    lane: Lane,
    memory: Semaphore,
    now: Monotonic,
}

const MEMORY: usize = 1_000_000;
const LINGER: Duration = Duration::from_millis(10);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_millis(100);

impl Scene {
    fn new(change: impl FnOnce(&mut LaneConfig)) -> Self {
        let mut config = LaneConfig {
            subject: "t-0".to_owned(),
            compression: Compression::None,
            compression_level: None,
            batch_bytes_max: 1_000,
            linger: LINGER,
            delivery_timeout: DELIVERY_TIMEOUT,
            window_max: 5,
            idempotence: true,
        };
        change(&mut config);
        Self { lane: Lane::new(config), memory: Semaphore::new(MEMORY), now: Monotonic::from_nanos(1) }
    }

    /// One that has its producer id and one batch written, so that its window is open.
    fn warm() -> Self {
        let mut scene = Self::new(|_| {});
        let first = scene.batch("warm");
        scene.identify(1, 0);
        let (number, _) = scene.sent();
        scene.written(number, 0);
        assert!(settled(&first).is_some_and(|it| it.is_ok()));
        scene
    }

    fn append(&mut self, value: &str) -> (Rc<Outcome>, u32) {
        let record = NewRecord { timestamp: Timestamp::new(7), key: None, value: Some(value.as_bytes()), headers: &[] };
        let permits = self.memory.try_acquire(record.size_max()).expect("memory is left");
        self.lane.append(&record, &self.memory, permits, self.now).expect("the record fits")
    }

    /// A batch of one record, sealed.
    fn batch(&mut self, value: &str) -> Rc<Outcome> {
        let (outcome, place) = self.append(value);
        assert_eq!(place, 0);
        self.lane.seal();
        outcome
    }

    fn next(&mut self) -> Action {
        let action = self.lane.next(self.now);
        self.lane.check_invariants();
        action
    }

    fn identify(&mut self, id: i64, epoch: i16) {
        assert_eq!(self.next(), Action::Identify);
        self.lane.adopt(Identity { id: ProducerId::new(id), epoch: ProducerEpoch::new(epoch) });
    }

    /// The batch that goes out now: its number, and producer id, epoch, base sequence, records.
    fn sent(&mut self) -> (u64, (i64, i16, i32, i32)) {
        let Action::Send { number, batch } = self.next() else { panic!("nothing goes out") };
        let batch: RecordBatch<'_> = validate(&batch, Origin::Producer).expect("what goes out is valid");
        let producer = (batch.producer_id().get(), batch.producer_epoch().get(), batch.base_sequence().get());
        (number, (producer.0, producer.1, producer.2, batch.record_count()))
    }

    fn written(&mut self, number: u64, base_offset: i64) {
        let written = Written { base_offset: Some(heddle_record::Offset::new(base_offset)), log_append_time: None };
        self.lane.settle(number, Answer::Written(written), self.now, WAIT);
        self.lane.check_invariants();
    }

    fn refused(&mut self, number: u64, code: ErrorCode) {
        let error = Error::Broker { code, subject: "t-0".to_owned(), message: None };
        self.lane.settle(number, Answer::Failed { error, sent: true }, self.now, WAIT);
        self.lane.check_invariants();
    }

    /// The connection broke while the batch was on its way.
    fn lost(&mut self, number: u64) {
        let error = Error::Disconnected { broker: "b".to_owned(), reason: "reset".to_owned() };
        self.lane.settle(number, Answer::Failed { error, sent: true }, self.now, WAIT);
        self.lane.check_invariants();
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
    }
}

fn settled(outcome: &Outcome) -> Option<Result<Written, Error>> {
    outcome.result()
}

#[test]
fn a_batch_lingers_for_more() {
    let mut scene = Scene::new(|config| (config.idempotence, config.window_max) = (false, 1));
    let start = scene.now;
    let (_, first) = scene.append("a");
    scene.pass(Duration::from_millis(3));
    let (_, second) = scene.append("b");
    assert_eq!((first, second), (0, 1));
    assert_eq!(scene.next(), Action::WaitUntil(start + LINGER));
    scene.pass(LINGER);
    let (number, (id, _, sequence, records)) = scene.sent();
    assert_eq!((id, sequence, records), (-1, -1, 2));
    scene.written(number, 10);
    assert_eq!(scene.next(), Action::Wait);
    assert_eq!(scene.memory.available(), MEMORY);
}

#[test]
fn a_full_batch_does_not_linger() {
    let mut scene = Scene::warm();
    let (full, _) = scene.append(&"x".repeat(600));
    let (next, place) = scene.append(&"y".repeat(600));
    assert_eq!(place, 0, "it did not fit in the first");
    assert!(!Rc::ptr_eq(&full, &next));
    assert_eq!(scene.sent().1.3, 1);
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "the second may still fill");
}

#[test]
fn a_record_above_the_batch_size_goes_alone() {
    let mut scene = Scene::warm();
    scene.append(&"x".repeat(5_000));
    assert_eq!(scene.sent().1.3, 1);
}

#[test]
fn a_flush_ends_the_lingering() {
    let mut scene = Scene::warm();
    let (outcome, _) = scene.append("a");
    let waited_for = scene.lane.hurry();
    assert!(waited_for.iter().any(|it| Rc::ptr_eq(it, &outcome)));
    let (number, _) = scene.sent();
    scene.written(number, 1);
    assert!(settled(&outcome).is_some());
    scene.append("b");
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "the next batch lingers again");
}

#[test]
fn the_first_batch_goes_alone_then_five_at_once() {
    let mut scene = Scene::new(|_| {});
    for value in ["a", "b", "c", "d", "e", "f", "g"] {
        scene.batch(value);
    }
    scene.identify(9, 3);
    let (first, stamp) = scene.sent();
    assert_eq!(stamp, (9, 3, 0, 1));
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "the broker does not know the producer yet");
    scene.written(first, 0);
    let sequences: Vec<_> = (0..5).map(|_| scene.sent().1.2).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5]);
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "five are in flight");
}

#[test]
fn without_idempotence_one_batch_is_in_flight() {
    let mut scene = Scene::new(|config| (config.idempotence, config.window_max) = (false, 1));
    scene.batch("a");
    scene.batch("b");
    let (first, _) = scene.sent();
    assert!(matches!(scene.next(), Action::WaitUntil(_)));
    scene.lost(first);
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "it waits out the failure");
    scene.pass(WAIT);
    assert_eq!(scene.sent().0, first, "the first goes first");
}

#[test]
fn what_failed_goes_out_again_in_order_with_the_same_sequences() {
    let mut scene = Scene::warm();
    let outcomes: Vec<_> = ["a", "b", "c"].map(|value| scene.batch(value)).into();
    let (a, b, c) = (scene.sent(), scene.sent(), scene.sent());
    scene.refused(a.0, ErrorCode::NotLeaderOrFollower);
    assert_eq!(scene.next(), Action::Wait, "what is in flight comes back first");
    scene.refused(b.0, ErrorCode::OutOfOrderSequenceNumber);
    scene.refused(c.0, ErrorCode::OutOfOrderSequenceNumber);
    scene.pass(WAIT);
    assert_eq!(scene.sent(), a);
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "a new leader may not know the producer: one alone");
    scene.written(a.0, 1);
    assert_eq!((scene.sent(), scene.sent()), (b, c));
    scene.written(b.0, 2);
    scene.written(c.0, 3);
    let offsets: Vec<_> = outcomes.iter().map(|it| settled(it).unwrap().unwrap().base_offset.unwrap().get()).collect();
    assert_eq!(offsets, [1, 2, 3]);
}

#[test]
fn a_batch_is_settled_before_the_broker_can_forget_it() {
    let mut scene = Scene::warm();
    let oldest = scene.batch("oldest");
    for value in ["b", "c", "d", "e", "f"] {
        scene.batch(value);
    }
    let sent: Vec<_> = (0..5).map(|_| scene.sent()).collect();
    // All five were written; the answer to the first was lost on another way than those to the others.
    for (number, (_, _, sequence, _)) in &sent[1..] {
        scene.written(*number, (*sequence).into());
    }
    assert!(matches!(scene.next(), Action::WaitUntil(_)), "a sixth would make the broker forget the first");
    scene.refused(sent[0].0, ErrorCode::NotEnoughReplicasAfterAppend);
    scene.pass(WAIT);
    assert_eq!(scene.sent(), sent[0]);
    assert!(matches!(scene.next(), Action::WaitUntil(_)));
    scene.written(sent[0].0, 1);
    assert!(settled(&oldest).unwrap().is_ok());
    assert_eq!(scene.sent().1.2, 6);
}

#[test]
fn a_lost_answer_is_asked_for_with_the_same_batch() {
    let mut scene = Scene::warm();
    let outcome = scene.batch("a");
    let first = scene.sent();
    scene.lost(first.0);
    scene.pass(WAIT);
    assert_eq!(scene.sent(), first);
    // The broker recognises it and gives the offset it had; an old one only says that it knows it.
    scene.refused(first.0, ErrorCode::DuplicateSequenceNumber);
    assert_eq!(settled(&outcome).unwrap().unwrap().base_offset, None);
    assert_eq!(scene.next(), Action::Wait);
}

#[test]
fn a_refused_batch_leaves_no_gap_when_nothing_was_numbered_behind_it() {
    let mut scene = Scene::warm();
    let refused = scene.batch("too large");
    let (number, (_, epoch, sequence, _)) = scene.sent();
    scene.refused(number, ErrorCode::MessageTooLarge);
    assert_eq!(settled(&refused).unwrap().unwrap_err().code(), Some(ErrorCode::MessageTooLarge));
    scene.batch("next");
    assert_eq!(scene.sent().1, (1, epoch, sequence, 1), "its sequence is free again");
}

#[test]
fn a_batch_that_is_too_large_goes_out_in_halves() {
    for compression in [Compression::None, Compression::Lz4] {
        let mut scene = Scene::new(|config| config.compression = compression);
        let deliveries: Vec<_> = ["a", "b", "c", "d", "e"].map(|value| scene.append(value)).into();
        let (last, _) = scene.append("f");
        scene.lane.seal();
        scene.identify(1, 0);
        let (number, stamp) = scene.sent();
        assert_eq!(stamp, (1, 0, 0, 6));
        assert!(Rc::ptr_eq(&deliveries[0].0, &last));
        scene.refused(number, ErrorCode::MessageTooLarge);
        let (first, stamp) = scene.sent();
        assert_eq!(stamp, (1, 0, 0, 3));
        scene.refused(first, ErrorCode::MessageTooLarge);
        for expected in [(0, 2), (2, 1), (3, 3)] {
            let (number, (_, epoch, sequence, records)) = scene.sent();
            assert_eq!((epoch, sequence, records), (0, expected.0, expected.1));
            scene.written(number, i64::from(sequence));
        }
        assert_eq!(scene.memory.available(), MEMORY, "the halves gave back what the whole had taken");
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let partition = heddle_record::PartitionIndex::new(0);
        for (place, (outcome, index)) in (0..).zip(deliveries) {
            let mut delivery = crate::Delivery::new(outcome, partition, index, Timestamp::NONE);
            let std::task::Poll::Ready(Ok(metadata)) = std::pin::Pin::new(&mut delivery).poll(&mut context) else {
                panic!("record {place} is not settled");
            };
            assert_eq!(metadata.offset, Some(heddle_record::Offset::new(place)));
        }
    }
}

#[test]
fn a_gap_starts_a_new_epoch_at_sequence_zero() {
    let mut scene = Scene::warm();
    let refused = scene.batch("too large");
    let behind = scene.batch("behind");
    let (a, b) = (scene.sent(), scene.sent());
    scene.refused(a.0, ErrorCode::MessageTooLarge);
    assert!(settled(&refused).unwrap().is_err());
    scene.refused(b.0, ErrorCode::OutOfOrderSequenceNumber);
    scene.pass(WAIT);
    let (number, stamp) = scene.sent();
    assert_eq!((number, stamp), (b.0, (1, 1, 0, 1)));
    scene.written(number, 5);
    assert!(settled(&behind).unwrap().is_ok());
}

#[test]
fn what_may_have_been_written_is_not_sent_under_a_new_epoch() {
    let mut scene = Scene::warm();
    scene.batch("too large");
    let unknown = scene.batch("lost");
    let known = scene.batch("refused");
    let (a, b, c) = (scene.sent(), scene.sent(), scene.sent());
    scene.refused(a.0, ErrorCode::MessageTooLarge);
    scene.lost(b.0);
    scene.refused(c.0, ErrorCode::OutOfOrderSequenceNumber);
    scene.pass(WAIT);
    let (number, stamp) = scene.sent();
    assert_eq!((number, stamp), (c.0, (1, 1, 0, 1)));
    assert!(matches!(settled(&unknown), Some(Err(Error::OutcomeUnknown { .. }))));
    assert!(settled(&known).is_none());
}

#[test]
fn a_broker_that_lost_its_memory_fails_one_batch_and_gets_a_new_epoch() {
    let mut scene = Scene::warm();
    let first = scene.batch("a");
    let (number, (_, epoch, ..)) = scene.sent();
    scene.refused(number, ErrorCode::OutOfOrderSequenceNumber);
    assert!(settled(&first).unwrap().is_err(), "records before it are gone: its sender must know");
    scene.batch("b");
    assert_eq!(scene.sent().1, (1, epoch + 1, 0, 1));
}

#[test]
fn a_forgotten_producer_gets_a_new_id() {
    for code in [ErrorCode::UnknownProducerId, ErrorCode::InvalidProducerEpoch] {
        let mut scene = Scene::warm();
        scene.batch("a");
        let (number, _) = scene.sent();
        scene.refused(number, code);
        scene.pass(WAIT);
        scene.identify(2, 0);
        assert_eq!(scene.sent(), (number, (2, 0, 0, 1)), "{code}");
    }
}

#[test]
fn epochs_end_with_a_new_id() {
    let mut scene = Scene::new(|_| {});
    scene.batch("a");
    scene.identify(1, i16::MAX - 1);
    let (number, _) = scene.sent();
    scene.refused(number, ErrorCode::OutOfOrderSequenceNumber);
    scene.batch("b");
    scene.identify(2, 0);
    assert_eq!(scene.sent().1, (2, 0, 0, 1));
}

#[test]
fn sequences_wrap() {
    let mut scene = Scene::warm();
    scene.lane.next_sequence = Sequence::new(i32::MAX);
    scene.append("a");
    scene.append("b");
    scene.lane.seal();
    scene.batch("c");
    assert_eq!(scene.sent().1.2, i32::MAX);
    assert_eq!(scene.sent().1.2, 1);
}

#[test]
fn what_is_late_fails() {
    let mut scene = Scene::warm();
    let sent = scene.batch("sent");
    let waiting = scene.batch("waiting");
    let (number, _) = scene.sent();
    scene.lost(number);
    let (open, _) = scene.append("open");
    scene.pass(DELIVERY_TIMEOUT);
    assert_eq!(scene.next(), Action::Wait);
    for outcome in [&sent, &waiting, &open] {
        assert!(matches!(settled(outcome), Some(Err(Error::TimedOut { .. }))));
    }
    assert_eq!(scene.memory.available(), MEMORY);
    scene.batch("next");
    assert_eq!(scene.sent().1, (1, 1, 0, 1), "the first may have been written: a gap");
}

#[test]
fn a_batch_that_was_never_sent_expires_without_a_gap() {
    let mut scene = Scene::warm();
    scene.batch("waiting");
    scene.lane.postpone(scene.now, DELIVERY_TIMEOUT * 2);
    scene.pass(DELIVERY_TIMEOUT);
    assert_eq!(scene.next(), Action::Wait);
    scene.batch("next");
    assert_eq!(scene.sent().1, (1, 0, 1, 1));
}

#[test]
fn what_is_abandoned_fails_and_answers_come_too_late() {
    let mut scene = Scene::warm();
    let flying = scene.batch("flying");
    let (number, _) = scene.sent();
    let (open, _) = scene.append("open");
    scene.lane.abandon(&Error::Closed);
    assert!(matches!(settled(&flying), Some(Err(Error::Closed))));
    assert!(matches!(settled(&open), Some(Err(Error::Closed))));
    scene.written(number, 3);
    assert_eq!(scene.next(), Action::Ended);
    assert_eq!(scene.memory.available(), MEMORY);
}
