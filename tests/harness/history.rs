//! What the outside of an engine has seen of it: which batches got which offsets, which were acknowledged, what was read.
//!
//! Owns the promises that are checked after a crash ([`LogHistory::check`]). Lives outside of the simulated host, so that no
//! power cut takes it back. Never touches an engine.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use heddle_engine::{LogConfig, LogName};
use heddle_io::Lease;
use heddle_record::{ProducerId, RecordBatch, Sequence};

/// What is known of a log's existence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// It was asked for, and may be there or not.
    Asked,
    /// It was made, and must be there.
    Made,
    /// Its deletion was asked for: it may be there or not.
    DeletionAsked,
    /// It was deleted, and must not be there.
    Deleted,
}

/// A batch that got its offsets.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its last offset.
    pub last: i64,
    /// The checksum that it was appended with: tells it from every other batch.
    pub crc: u32,
    /// Its bytes as the producer sent them.
    pub bytes: Lease,
    /// The idempotent producer and its sequence.
    pub producer: Option<(ProducerId, Sequence)>,
    /// It was acknowledged as durable.
    pub acknowledged: bool,
}

/// One log, as seen from outside.
#[derive(Clone, Debug)]
pub struct LogHistory {
    /// How it is kept.
    pub config: LogConfig,
    /// Whether it must be there.
    pub existence: Existence,
    /// The batches by base offset. After a recovery: those that survived.
    pub given: BTreeMap<i64, Given>,
    /// Everything below was read by somebody.
    pub read_end: i64,
    /// Deletion up to here was asked for.
    pub deletion_asked: i64,
    /// Deletion up to here was confirmed.
    pub deletion_confirmed: i64,
}

/// What a recovered log has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The log's start.
    pub start: i64,
    /// The log's end.
    pub end: i64,
    /// Base offset, last offset and checksum of each stored batch.
    pub batches: Vec<(i64, i64, u32)>,
    /// Bytes of stored batches.
    pub size: u64,
}

/// All logs, as seen from outside.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By name and identity.
    pub logs: BTreeMap<LogName, LogHistory>,
}

impl History {
    /// A number that changes with whatever was promised.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, log) in &self.logs {
            let acknowledged = log.given.values().filter(|given| given.acknowledged).count();
            let deleted = (log.deletion_asked, log.deletion_confirmed);
            (name, log.existence as u8, log.given.len(), acknowledged, log.read_end, deleted).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// What is known of a log.
    ///
    /// # Panics
    /// If nothing is: logs are asked for first.
    pub fn log(&mut self, name: &LogName) -> &mut LogHistory {
        self.logs.get_mut(name).expect("a log is asked for before anything happens to it")
    }
}

impl LogHistory {
    /// A log that is being asked for.
    pub fn asked(config: LogConfig) -> LogHistory {
        LogHistory {
            config,
            existence: Existence::Asked,
            given: BTreeMap::new(),
            read_end: 0,
            deletion_asked: 0,
            deletion_confirmed: 0,
        }
    }

    /// Notes that `bytes` got the offsets `base..=last`.
    pub fn give(&mut self, base: i64, last: i64, bytes: &Lease) {
        let batch = RecordBatch::peek(bytes).expect("the workload builds whole batches");
        let header = batch.header();
        let producer = header.has_producer().then_some((header.producer_id, header.base_sequence));
        let given = Given { last, crc: header.crc, bytes: bytes.clone(), producer, acknowledged: false };
        self.given.insert(base, given);
    }

    /// The last batch of a producer.
    pub fn last_of(&self, producer: ProducerId) -> Option<(i64, &Given)> {
        let of_producer = |given: &Given| given.producer.is_some_and(|(id, _)| id == producer);
        self.given.iter().rev().find(|(_, given)| of_producer(given)).map(|(base, given)| (*base, given))
    }

    /// Holds a recovered log, or its absence, against what was promised.
    ///
    /// # Errors
    /// The first broken promise, in words.
    pub fn check(&self, found: Option<&Content>) -> Result<(), String> {
        match (self.existence, found) {
            (Existence::Made, None) => Err("the log was made and is gone".to_owned()),
            (Existence::Deleted, Some(_)) => Err("the log was deleted and is back".to_owned()),
            (_, Some(content)) => self.check_content(content),
            (_, None) => Ok(()),
        }
    }

    fn check_content(&self, content: &Content) -> Result<(), String> {
        self.check_bounds(content)?;
        let mut expected = content.batches.first().map_or(content.end, |(base, ..)| *base);
        for (base, last, crc) in &content.batches {
            if *base != expected {
                return Err(format!("offset {expected} should follow, but the next batch starts at {base}"));
            }
            expected = last + 1;
            match self.given.get(base) {
                Some(given) if (given.last, given.crc) == (*last, *crc) => {}
                Some(given) => return Err(format!("offsets {base} to {last} hold another batch than {given:?}")),
                None => return Err(format!("offsets {base} to {last} hold a batch that was never given them")),
            }
        }
        if expected != content.end {
            return Err(format!("the batches end at {expected}, the log at {}", content.end));
        }
        self.check_kept(content)
    }

    fn check_bounds(&self, content: &Content) -> Result<(), String> {
        let Content { start, end, .. } = *content;
        if start < self.deletion_confirmed {
            return Err(format!("deleted up to {}, and it starts at {start}", self.deletion_confirmed));
        }
        // Retention may have moved the start as well, but only while the log stays large enough.
        let kept_enough = self.config.retention_bytes.is_some_and(|bytes| content.size >= bytes);
        if start > self.deletion_asked && !kept_enough {
            return Err(format!("nobody deleted up to {start}, only up to {}", self.deletion_asked));
        }
        if !self.config.relaxes_flushing() && end < self.read_end {
            return Err(format!("offset {} was read, and the log ends at {end}", self.read_end - 1));
        }
        Ok(())
    }

    fn check_kept(&self, content: &Content) -> Result<(), String> {
        let is_there = |base: i64| content.batches.iter().any(|(found, ..)| *found == base);
        let lost = self.given.iter().find(|(base, given)| {
            let must_be_there = given.acknowledged || (!self.config.relaxes_flushing() && given.last < self.read_end);
            must_be_there && given.last >= content.start && !is_there(**base)
        });
        match lost {
            Some((base, given)) => {
                let how = if given.acknowledged { "acknowledged" } else { "read" };
                Err(format!("offsets {base} to {} were {how} and are gone", given.last))
            }
            None => Ok(()),
        }
    }

    /// Truncation to `end` was asked for: what lies behind may be there or not.
    pub fn truncation_asked(&mut self, end: i64) {
        self.given.values_mut().filter(|given| given.last >= end).for_each(|given| given.acknowledged = false);
        self.read_end = self.read_end.min(end);
    }

    /// Truncation to `end` was confirmed: what lay behind was never there.
    pub fn truncated(&mut self, end: i64) {
        self.given.retain(|_, given| given.last < end);
    }

    /// After a recovery: what did not survive was never there, and what did survive has been read.
    pub fn adopt(&mut self, content: &Content) {
        // A deletion that a kill has interrupted, which nobody was told of, may be undone by a loss of power after the start.
        let may_be_back = |base: i64| base >= self.deletion_confirmed && base < content.start;
        let survived = |base: i64| content.batches.iter().any(|(found, ..)| *found == base);
        self.given.retain(|base, _| may_be_back(*base) || survived(*base));
        self.existence = Existence::Made;
        self.read_end = content.end;
        self.deletion_asked = self.deletion_asked.max(content.start);
    }
}
