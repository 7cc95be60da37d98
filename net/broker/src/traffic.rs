//! What goes in and out of topics, counted on one core.
//!
//! Owns the counts and the bound on them: the first `metrics.topics.max` topics that a core hears of have counts of their
//! own, all later ones share one. Every core hears of topics in the same order, those without a partition here included, so
//! all cores come to the same choice without a word. Plain numbers, written and read on the core itself.
//!
//! What of a topic that is deleted was counted stays in the broker's totals.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_record::TopicId;

/// The counts of one topic, or of all that have none of their own.
#[derive(Debug, Default)]
pub(crate) struct TopicTraffic {
    counts: Cell<TrafficCounts>,
}

/// What a [`TopicTraffic`] has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TrafficCounts {
    /// Records that were appended.
    pub(crate) records_in: u64,
    /// Bytes of the batches that they came in.
    pub(crate) bytes_in: u64,
    /// Bytes of batches in answers to fetches.
    pub(crate) bytes_out: u64,
    /// Batches that producers wanted appended.
    pub(crate) produces: u64,
    /// Those that were refused.
    pub(crate) produces_failed: u64,
    /// Partitions that fetches looked at.
    pub(crate) fetches: u64,
    /// Those of them that could not be read.
    pub(crate) fetches_failed: u64,
}

impl TrafficCounts {
    /// Adds what was counted elsewhere.
    pub(crate) fn add(&mut self, other: &Self) {
        self.records_in += other.records_in;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.produces += other.produces;
        self.produces_failed += other.produces_failed;
        self.fetches += other.fetches;
        self.fetches_failed += other.fetches_failed;
    }
}

impl TopicTraffic {
    /// Changes the counts.
    pub(crate) fn count(&self, change: impl FnOnce(&mut TrafficCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> TrafficCounts {
        self.counts.get()
    }
}

/// The traffic of one core.
pub(crate) struct Traffic {
    topics_max: usize,
    own: RefCell<BTreeMap<TopicId, Rc<TopicTraffic>>>,
    /// Of all topics without counts of their own.
    other: Rc<TopicTraffic>,
    /// Of topics that are gone.
    gone: TopicTraffic,
}

/// What a [`Traffic`] has counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrafficSample {
    /// The topics with counts of their own, in the order of ids.
    pub(crate) own: Vec<(TopicId, TrafficCounts)>,
    /// All others together.
    pub(crate) other: TrafficCounts,
    /// Everything, topics that are gone included.
    pub(crate) all: TrafficCounts,
}

impl Traffic {
    /// No topic is known; at most `topics_max` get counts of their own.
    pub(crate) fn new(topics_max: usize) -> Self {
        Self { topics_max, own: RefCell::default(), other: Rc::default(), gone: TopicTraffic::default() }
    }

    /// A topic is there. It has counts of its own if there is room.
    pub(crate) fn learn(&self, topic: TopicId) {
        let mut own = self.own.borrow_mut();
        if own.len() < self.topics_max {
            own.entry(topic).or_default();
        }
    }

    /// A topic is gone.
    pub(crate) fn forget(&self, topic: TopicId) {
        if let Some(traffic) = self.own.borrow_mut().remove(&topic) {
            self.gone.count(|gone| gone.add(&traffic.counts()));
        }
    }

    /// Where the traffic of a topic is counted.
    pub(crate) fn of(&self, topic: TopicId) -> Rc<TopicTraffic> {
        self.own.borrow().get(&topic).map_or_else(|| Rc::clone(&self.other), Rc::clone)
    }

    /// What was counted so far.
    pub(crate) fn sample(&self) -> TrafficSample {
        let own: Vec<_> = self.own.borrow().iter().map(|(topic, traffic)| (*topic, traffic.counts())).collect();
        let other = self.other.counts();
        let mut all = self.gone.counts();
        all.add(&other);
        own.iter().for_each(|(_, counts)| all.add(counts));
        TrafficSample { own, other, all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(number: u8) -> TopicId {
        TopicId::new([number; 16])
    }

    fn one_record_in(traffic: &Traffic, topic: TopicId) {
        traffic.of(topic).count(|counts| counts.records_in += 1);
    }

    #[test]
    fn topics_beyond_the_bound_are_counted_together() {
        let traffic = Traffic::new(2);
        (1..=4).for_each(|number| traffic.learn(topic(number)));
        (1..=4).for_each(|number| one_record_in(&traffic, topic(number)));
        let sample = traffic.sample();
        let own: Vec<TopicId> = sample.own.iter().map(|(topic, _)| *topic).collect();
        assert_eq!(own, [topic(1), topic(2)]);
        assert_eq!((sample.other.records_in, sample.all.records_in), (2, 4));
    }

    #[test]
    fn totals_never_go_back_and_a_place_that_is_free_goes_to_who_comes_next() {
        let traffic = Traffic::new(1);
        traffic.learn(topic(1));
        traffic.learn(topic(2));
        one_record_in(&traffic, topic(1));
        traffic.forget(topic(1));
        assert_eq!(traffic.sample().all.records_in, 1, "a deleted topic's records came in all the same");
        traffic.learn(topic(2));
        traffic.learn(topic(3));
        one_record_in(&traffic, topic(3));
        let sample = traffic.sample();
        assert_eq!((sample.own[0].0, sample.other.records_in, sample.all.records_in), (topic(2), 1, 2));
    }
}
