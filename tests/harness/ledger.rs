//! What clients of a broker know: which records were acknowledged, and which were read, each with its offset.
//!
//! Owns the promises that hold for all of a broker's lives together. Never talks to a broker.

use std::collections::{BTreeMap, BTreeSet};

/// A partition and an offset.
pub type Place = (i32, i64);

/// What a record says: who wrote it, and which of theirs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The producer.
    pub producer: u32,
    /// Counts its records.
    pub number: u32,
}

impl Mark {
    /// As the value of a record.
    pub fn to_value(self) -> String {
        format!("{}/{}", self.producer, self.number)
    }

    /// The mark that a value holds.
    ///
    /// # Errors
    /// The value, if nobody wrote such a one.
    pub fn from_value(value: &[u8]) -> Result<Mark, String> {
        let parse = || {
            let (producer, number) = std::str::from_utf8(value).ok()?.split_once('/')?;
            Some(Mark { producer: producer.parse().ok()?, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| format!("nobody wrote {value:?}"))
    }
}

/// What clients know.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Records that were acknowledged with acks=all.
    acknowledged: BTreeMap<Place, Mark>,
    /// Records that somebody has read.
    read: BTreeMap<Place, Mark>,
    /// Topics that were made or deleted, and whether they must be there; `None` while a deletion is under way.
    topics: BTreeMap<String, Option<bool>>,
    /// Deliveries that failed, by producer.
    pub failed: BTreeMap<u32, Vec<String>>,
    /// The first contradiction.
    contradiction: Option<String>,
}

impl Ledger {
    /// A record was acknowledged at a place.
    pub fn acknowledge(&mut self, place: Place, mark: Mark) {
        if let Some(before) = self.acknowledged.insert(place, mark) {
            self.contradict(format!("{place:?} was given to {before:?} and to {mark:?}"));
        }
    }

    /// A record was read at a place.
    pub fn read(&mut self, place: Place, mark: Mark) {
        if let Some(before) = self.read.insert(place, mark)
            && before != mark
        {
            self.contradict(format!("at {place:?} was {before:?}, and then {mark:?}"));
        }
    }

    /// A topic's making was confirmed.
    pub fn topic_made(&mut self, name: &str) {
        self.topics.insert(name.to_owned(), Some(true));
    }

    /// A topic may be gone from now on.
    pub fn topic_deletion_asked(&mut self, name: &str) {
        self.topics.insert(name.to_owned(), None);
    }

    /// A topic's deletion was confirmed.
    pub fn topic_deleted(&mut self, name: &str) {
        self.topics.insert(name.to_owned(), Some(false));
    }

    /// Holds the topics that are there in the end against what was confirmed.
    ///
    /// # Errors
    /// The first topic that is there or missing against what was confirmed.
    pub fn check_topics(&self, there: &BTreeSet<String>) -> Result<(), String> {
        let wrong = self.topics.iter().find(|(name, expected)| expected.is_some_and(|it| it != there.contains(*name)));
        match wrong {
            Some((name, expected)) => Err(format!("topic {name} should be there: {expected:?}; there are {there:?}")),
            None => Ok(()),
        }
    }

    /// Something that may not be was seen; the first is reported.
    pub fn contradict(&mut self, what: String) {
        self.contradiction.get_or_insert(what);
    }

    /// How many records were acknowledged and read.
    pub fn counts(&self) -> (usize, usize) {
        (self.acknowledged.len(), self.read.len())
    }

    /// Holds what is in the topic in the end against what is known. `idempotent` producers wrote nothing twice and each of
    /// their partitions in order.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(&self, last: &BTreeMap<Place, Mark>, idempotent: &BTreeSet<u32>) -> Result<(), String> {
        self.contradiction.clone().map_or(Ok(()), Err)?;
        for (what, known) in [("acknowledged", &self.acknowledged), ("read", &self.read)] {
            for (place, mark) in known {
                match last.get(place) {
                    Some(found) if found == mark => {}
                    found => return Err(format!("{mark:?} was {what} at {place:?}, where now is {found:?}")),
                }
            }
        }
        check_order(last, idempotent)
    }
}

fn check_order(last: &BTreeMap<Place, Mark>, idempotent: &BTreeSet<u32>) -> Result<(), String> {
    let mut newest: BTreeMap<(i32, u32), u32> = BTreeMap::new();
    for ((partition, offset), mark) in last.iter().filter(|(_, mark)| idempotent.contains(&mark.producer)) {
        if let Some(before) = newest.insert((*partition, mark.producer), mark.number)
            && before >= mark.number
        {
            return Err(format!("{mark:?} at offset {offset} of partition {partition} comes after number {before}"));
        }
    }
    Ok(())
}
