//! How much each part of the broker logs, and how that changes while it runs.
//!
//! Owns the list of loggers and their levels. Filters no line itself: whoever set up the logging takes over the levels
//! that it is given.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// How urgent a line must be to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What has failed.
    Error,
    /// What somebody should look at.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// All there is to say.
    Trace,
}

/// The levels by the names that Kafka has for them. What is fatal is an error here.
const NAMES: [(&str, LogLevel); 6] = [
    ("DEBUG", LogLevel::Debug),
    ("ERROR", LogLevel::Error),
    ("FATAL", LogLevel::Error),
    ("INFO", LogLevel::Info),
    ("TRACE", LogLevel::Trace),
    ("WARN", LogLevel::Warn),
];

impl LogLevel {
    /// Its name, in capitals.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }

    /// The level of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
    }

    /// Every name, for a refusal.
    pub(crate) fn names() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }
}

/// The logger that all others inherit from.
pub(crate) const ROOT: &str = "root";

/// Every logger but the root, by name: the parts of the program that have something to say. One inherits the level of
/// the longest other that its name begins with.
const LOGGERS: [&str; 22] = [
    "heddle",
    "heddle_broker",
    "heddle_broker::api",
    "heddle_broker::connection",
    "heddle_broker::controller",
    "heddle_broker::coordinator",
    "heddle_broker::guard",
    "heddle_broker::listener",
    "heddle_broker::metadata_snapshots",
    "heddle_broker::partition",
    "heddle_broker::partitions",
    "heddle_broker::peer_log",
    "heddle_broker::server",
    "heddle_engine",
    "heddle_engine::checkpoint",
    "heddle_engine::data_dir",
    "heddle_engine::engine",
    "heddle_engine::log",
    "heddle_engine::recovery",
    "heddle_engine::retention",
    "heddle_engine::segment_index",
    "heddle_engine::verify",
];

/// The levels that were set: the root's, and those of loggers that have one of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// The root's.
    pub root: LogLevel,
    /// By logger.
    pub own: BTreeMap<&'static str, LogLevel>,
}

impl Levels {
    /// What a logger comes to.
    fn level(&self, logger: &str) -> LogLevel {
        let parent =
            |name: &str| logger.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        let nearest = self.own.iter().filter(|(name, _)| parent(name)).max_by_key(|(name, _)| name.len());
        nearest.map_or(self.root, |(_, level)| *level)
    }
}

/// The levels of a process: one set for all its cores.
pub struct LogLevels {
    levels: Mutex<Levels>,
    apply: Box<dyn Fn(&Levels) + Send + Sync>,
}

impl fmt::Debug for LogLevels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LogLevels").field("levels", &self.levels).finish_non_exhaustive()
    }
}

impl LogLevels {
    /// All loggers at one level, which is how lines are filtered now; `apply` filters them otherwise from its return on.
    pub fn new(root: LogLevel, apply: impl Fn(&Levels) + Send + Sync + 'static) -> Self {
        Self { levels: Mutex::new(Levels { root, own: BTreeMap::new() }), apply: Box::new(apply) }
    }

    /// Every logger and what it comes to, the root first.
    pub(crate) fn all(&self) -> Vec<(&'static str, LogLevel)> {
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::once((ROOT, levels.root)).chain(LOGGERS.map(|logger| (logger, levels.level(logger)))).collect()
    }

    /// Sets levels; a logger without one inherits again. All names are of [`find`], and the root has a level.
    pub(crate) fn set(&self, changes: &[(&'static str, Option<LogLevel>)]) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        for (logger, level) in changes {
            match (*logger, level) {
                (ROOT, Some(level)) => levels.root = *level,
                (ROOT, None) => unreachable!("the root keeps a level"),
                (logger, Some(level)) => drop(levels.own.insert(logger, *level)),
                (logger, None) => drop(levels.own.remove(logger)),
            }
        }
        (self.apply)(&levels);
    }
}

/// The logger of this name.
pub(crate) fn find(name: &str) -> Option<&'static str> {
    if name == ROOT { Some(ROOT) } else { LOGGERS.into_iter().find(|logger| *logger == name) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_logger_inherits_from_the_nearest() {
        let applied = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&applied);
        let levels = LogLevels::new(LogLevel::Info, move |levels| *seen.lock().unwrap() = Some(levels.clone()));
        let level = |name| levels.all().into_iter().find(|(logger, _)| *logger == name).unwrap().1;
        levels.set(&[("heddle_broker", Some(LogLevel::Debug)), ("heddle_broker::partition", Some(LogLevel::Error))]);
        assert_eq!(level("heddle_broker::controller"), LogLevel::Debug);
        assert_eq!(level("heddle_broker::partition"), LogLevel::Error);
        assert_eq!(level("heddle_broker::partitions"), LogLevel::Debug, "no part of partition");
        assert_eq!(level("heddle_engine"), LogLevel::Info);
        levels.set(&[("heddle_broker", None), (ROOT, Some(LogLevel::Warn))]);
        assert_eq!((level("heddle_broker::controller"), level(ROOT)), (LogLevel::Warn, LogLevel::Warn));
        assert_eq!(applied.lock().unwrap().as_ref().unwrap().own.len(), 1);
    }

    #[test]
    fn every_logger_is_a_part_that_logs() {
        let crates = [("heddle_broker", "src"), ("heddle_engine", "../../storage/engine/src")];
        for logger in LOGGERS {
            let Some((name, module)) = logger.split_once("::") else { continue };
            let (_, source) = crates.iter().find(|(known, _)| *known == name).expect("a crate that is known");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(source).join(format!("{module}.rs"));
            assert!(file.is_file(), "{logger}: {} is gone", file.display());
        }
        assert!(LOGGERS.is_sorted());
    }
}
