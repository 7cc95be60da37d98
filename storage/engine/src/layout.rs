//! Names of files and directories in a data directory, and nothing else: no IO here. The whole layout is drawn in
//! `docs/format.md`.
//!
//! A topic's name comes from a peer. It reaches the file system only if it is one that Kafka allows, and a directory
//! also carries the topic's id, so that a topic that was deleted and made again never meets its former files.

use std::fmt;
use std::str::FromStr;

use heddle_record::{LogId, Offset, PartitionIndex, TopicId};

use crate::error::Error;

/// The file with format version and identity.
pub const IDENTITY_FILE: &str = "heddle.identity";
/// The file whose lock is held while a process uses the directory; it contains the process' id.
pub const LOCK_FILE: &str = "heddle.lock";
/// Space that is given back when the disk is full.
pub const RESERVE_FILE: &str = "heddle.reserve";
/// What a checkpoint's name starts with; the core's number follows.
pub const CHECKPOINT_PREFIX: &str = "heddle.checkpoint.";
/// What the name of a snapshot of the metadata starts with; 0 or 1 follows.
pub const METADATA_PREFIX: &str = "heddle.metadata.";
/// What the name of a core's notes of logs that were written to starts with; the core's number follows.
pub const TOUCHED_PREFIX: &str = "heddle.touched.";
/// What a file that is being written ends with until it is renamed; removed at start.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// The space of a deleted segment, kept in its log's directory for the next one; removed at start.
pub const RECYCLED_FILE: &str = "recycled.tmp";
/// What compaction has done to the segments of a log, in its directory.
pub const COMPACTION_FILE: &str = "compaction";
/// What the file of a rewritten segment ends with until it takes the place of those that it stands for.
pub const CLEANED_SUFFIX: &str = ".cleaned";
/// What the directory of a deleted log ends with until it is gone; removed at start.
pub const DELETED_SUFFIX: &str = ".deleted";
/// Digits of a base offset in a file name.
pub const OFFSET_DIGITS: usize = 20;
/// The longest topic name that Kafka allows, in bytes.
pub const TOPIC_NAME_MAX: usize = 249;

/// The longest name of a file that Linux takes, in bytes.
const FILE_NAME_MAX: usize = 255;
/// `-`, ten digits, `.`, 22 characters of topic id, [`DELETED_SUFFIX`].
const DIRECTORY_SUFFIX_MAX: usize = 1 + 10 + 1 + 22 + DELETED_SUFFIX.len();
/// How much of a topic's name a directory's name holds, in bytes; longer names are cut and end in [`CUT_MARK`].
const TOPIC_IN_DIRECTORY_MAX: usize = FILE_NAME_MAX - DIRECTORY_SUFFIX_MAX;
/// Ends a topic name that was cut. No topic's name contains it.
const CUT_MARK: char = '~';

/// A log by name and identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogName {
    /// The topic's name. Of a log that was found on disk, a name longer than a directory's name can hold is cut and
    /// ends in `~`; the id says which topic it is.
    pub topic: String,
    /// The topic's id and the partition.
    pub id: LogId,
}

impl LogName {
    /// The name of the log's directory, `<topic>-<partition>.<topic id>`.
    ///
    /// # Errors
    /// [`Error::InvalidTopicName`] if the topic's name is not one that Kafka allows or the partition is negative.
    pub fn directory(&self) -> Result<String, Error> {
        let cut = self.topic.strip_suffix(CUT_MARK).is_some_and(|rest| rest.len() + 1 == TOPIC_IN_DIRECTORY_MAX);
        let name = if cut { self.topic.trim_end_matches(CUT_MARK) } else { &self.topic };
        if !is_topic_name(name) || self.id.partition.get() < 0 {
            return Err(Error::InvalidTopicName(self.topic.clone()));
        }
        Ok(self.to_string())
    }

    /// The log whose directory has this name, or `None` if it is no log's.
    pub fn from_directory(directory: &str) -> Option<LogName> {
        let (rest, topic_id) = directory.rsplit_once('.')?;
        let (topic, partition) = rest.rsplit_once('-')?;
        let id = LogId {
            topic: TopicId::from_str(topic_id).ok()?,
            partition: PartitionIndex::new(decimal(partition)?.try_into().ok()?),
        };
        let name = LogName { topic: topic.to_string(), id };
        (name.directory().ok()? == directory).then_some(name)
    }
}

/// The name of the log's directory, whether or not it is a valid one.
impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogId { topic: topic_id, partition } = self.id;
        match self.topic.get(..TOPIC_IN_DIRECTORY_MAX - CUT_MARK.len_utf8()) {
            Some(start) if self.topic.len() > TOPIC_IN_DIRECTORY_MAX => {
                write!(f, "{start}{CUT_MARK}-{partition}.{topic_id}")
            }
            _ => write!(f, "{}-{partition}.{topic_id}", self.topic),
        }
    }
}

/// Whether Kafka allows this name for a topic: 1 to 249 letters, digits, `.`, `_` and `-`, but not `.` or `..`.
pub fn is_topic_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=TOPIC_NAME_MAX).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != ".."
}

/// The files of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentFile {
    /// The record batches.
    Log,
    /// Offsets to positions.
    OffsetIndex,
    /// Timestamps to offsets.
    TimeIndex,
}

impl SegmentFile {
    /// All of them, in the order in which they are removed: without its `.log` the rest is a leftover.
    pub const ALL: [SegmentFile; 3] = [SegmentFile::Log, SegmentFile::OffsetIndex, SegmentFile::TimeIndex];

    /// The ending of the file's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            SegmentFile::Log => ".log",
            SegmentFile::OffsetIndex => ".index",
            SegmentFile::TimeIndex => ".timeindex",
        }
    }

    /// The name of this file of the segment that starts at `base_offset`.
    pub fn name(self, base_offset: Offset) -> String {
        format!("{:0width$}{}", base_offset.get(), self.suffix(), width = OFFSET_DIGITS)
    }

    /// Which segment's and which file this name is of; `None` for any other name.
    pub fn parse(name: &str) -> Option<(Offset, SegmentFile)> {
        let (digits, _) = name.split_at_checked(OFFSET_DIGITS)?;
        let base_offset = Offset::new(decimal(digits)?);
        SegmentFile::ALL.into_iter().find(|file| file.name(base_offset) == name).map(|file| (base_offset, file))
    }
}

/// The name of the file of a rewritten segment, until it takes its place.
pub fn cleaned_file(base_offset: Offset, generation: u64) -> String {
    format!("{:0width$}.{generation}{CLEANED_SUFFIX}", base_offset.get(), width = OFFSET_DIGITS)
}

/// The base offset and the generation of the rewritten segment whose file has this name; `None` for any other name.
pub fn parse_cleaned(name: &str) -> Option<(Offset, u64)> {
    let (base_offset, generation) = name.strip_suffix(CLEANED_SUFFIX)?.split_once('.')?;
    let found = (Offset::new(decimal(base_offset)?), decimal(generation)?.try_into().ok()?);
    (cleaned_file(found.0, found.1) == name).then_some(found)
}

/// The name of a core's checkpoint.
pub fn checkpoint_file(core: usize) -> String {
    format!("{CHECKPOINT_PREFIX}{core}")
}

/// The core whose checkpoint has this name; `None` for any other name.
pub fn checkpoint_core(name: &str) -> Option<usize> {
    decimal(name.strip_prefix(CHECKPOINT_PREFIX)?)?.try_into().ok()
}

/// The name of a core's notes of logs that were written to.
pub fn touched_file(core: usize) -> String {
    format!("{TOUCHED_PREFIX}{core}")
}

/// The core whose notes have this name; `None` for any other name.
pub fn touched_core(name: &str) -> Option<usize> {
    decimal(name.strip_prefix(TOUCHED_PREFIX)?)?.try_into().ok()
}

/// A number in digits only: no sign, no space.
fn decimal(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(topic: &str, partition: i32) -> LogName {
        LogName {
            topic: topic.to_string(),
            id: LogId { topic: TopicId::new([7; 16]), partition: PartitionIndex::new(partition) },
        }
    }

    #[test]
    fn directories_name_topic_partition_and_id() {
        let orders = name("orders", 3);
        assert_eq!(orders.directory().unwrap(), format!("orders-3.{}", TopicId::new([7; 16])));
        for topic in ["a", "a-1", "a.b-2", "-", "__consumer_offsets", "x.y.z"] {
            let log = name(topic, 0);
            assert_eq!(LogName::from_directory(&log.directory().unwrap()), Some(log));
        }
    }

    #[test]
    fn the_longest_names_fit_the_file_system_and_come_back_cut() {
        for length in [TOPIC_IN_DIRECTORY_MAX, TOPIC_IN_DIRECTORY_MAX + 1, TOPIC_NAME_MAX] {
            let log = name(&"t".repeat(length), i32::MAX);
            let directory = log.directory().unwrap();
            assert!(directory.len() + DELETED_SUFFIX.len() <= FILE_NAME_MAX);
            let found = LogName::from_directory(&directory).unwrap();
            assert_eq!(found.id, log.id);
            assert_eq!(found.directory().unwrap(), directory, "a cut name leads to the same directory");
            assert_eq!(found.topic == log.topic, length <= TOPIC_IN_DIRECTORY_MAX);
        }
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for topic in ["", ".", "..", "../x", "a/b", "a b", "a\0", "é", "a~", &"t".repeat(250)] {
            assert!(name(topic, 0).directory().is_err(), "{topic:?}");
        }
        assert!(name("a", -1).directory().is_err());
        for directory in [
            "lost+found",
            "orders-0",
            "orders.AAAAAAAAAAAAAAAAAAAAAQ",
            "a-00.AAAAAAAAAAAAAAAAAAAAAQ",
            "a-+1.AAAAAAAAAAAAAAAAAAAAAQ",
        ] {
            assert_eq!(LogName::from_directory(directory), None, "{directory}");
        }
    }

    #[test]
    fn segment_files_are_named_by_twenty_digits() {
        assert_eq!(SegmentFile::Log.name(Offset::new(42)), "00000000000000000042.log");
        assert_eq!(
            SegmentFile::parse("00000000000000000042.timeindex"),
            Some((Offset::new(42), SegmentFile::TimeIndex))
        );
        for other in
            ["42.log", "00000000000000000042.log.tmp", "0000000000000000004x.log", "99999999999999999999.log", ""]
        {
            assert_eq!(SegmentFile::parse(other), None, "{other}");
        }
    }

    #[test]
    fn rewritten_segments_are_named_by_offset_and_generation() {
        let name = cleaned_file(Offset::new(42), 7);
        assert_eq!(name, "00000000000000000042.7.cleaned");
        assert_eq!(parse_cleaned(&name), Some((Offset::new(42), 7)));
        for other in ["42.7.cleaned", "00000000000000000042.07.cleaned", "00000000000000000042.cleaned", ".7.cleaned"] {
            assert_eq!(parse_cleaned(other), None, "{other}");
        }
        assert_eq!(SegmentFile::parse(&name), None);
    }

    #[test]
    fn checkpoints_are_named_by_core() {
        assert_eq!(checkpoint_core(&checkpoint_file(17)), Some(17));
        assert_eq!(checkpoint_core("heddle.checkpoint.1.tmp"), None);
        assert_eq!(touched_core(&touched_file(3)), Some(3));
        assert_eq!(touched_core(&checkpoint_file(3)), None);
    }
}
