//! The one table of settings: every broker and topic setting that Apache Kafka 4.3 knows, and ours besides. Command
//! line help, `DescribeConfigs` and the checks of every value come from here. Holds no values: [`layers`] does.
//!
//! The table itself is `settings/*.txt`, one line each, turned into statics by `build.rs`.

pub mod layers;
pub mod properties;
pub mod topic;
pub mod value;

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

include!(concat!(env!("OUT_DIR"), "/settings_table.rs"));

/// What a setting belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A broker, or all of them.
    Broker,
    /// One topic.
    Topic,
    /// One group.
    Group,
    /// One subscription to clients' metrics.
    ClientMetrics,
}

/// The type of a setting's value, as Kafka names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is Kafka's type of that name")]
pub enum ValueType {
    Boolean,
    String,
    Int,
    Short,
    Long,
    Double,
    List,
    Class,
    Password,
}

impl ValueType {
    /// The number that `DescribeConfigs` (version 3 and later) sends for this type.
    pub const fn code(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::String => 2,
            Self::Int => 3,
            Self::Short => 4,
            Self::Long => 5,
            Self::Double => 6,
            Self::List => 7,
            Self::Class => 8,
            Self::Password => 9,
        }
    }

    /// Kafka's name of this type, in capitals.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boolean => "BOOLEAN",
            Self::String => "STRING",
            Self::Int => "INT",
            Self::Short => "SHORT",
            Self::Long => "LONG",
            Self::Double => "DOUBLE",
            Self::List => "LIST",
            Self::Class => "CLASS",
            Self::Password => "PASSWORD",
        }
    }
}

/// Which values of its type a setting takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Valid {
    /// All of its type.
    Any,
    /// A text of at least one character.
    NonEmpty,
    /// A whole number from `least` to `most` (no bound if `None`), or the one value `or` besides.
    Range {
        /// Smallest value, inclusive.
        least: i64,
        /// Largest value, inclusive.
        most: Option<i64>,
        /// One more value outside the range.
        or: Option<i64>,
    },
    /// A number with a fraction, from `least` to `most`.
    Between {
        /// Smallest value, inclusive.
        least: f64,
        /// Largest value, inclusive.
        most: f64,
    },
    /// One of these words; for a list, each of its items.
    OneOf {
        /// The words as Kafka prints them.
        words: &'static [&'static str],
        /// Letter case does not matter.
        any_case: bool,
    },
    /// `*`, or a list of `partition:broker`.
    ThrottledReplicas,
    /// `earliest`, `latest`, or `by_duration:` and a duration of ISO 8601.
    ResetStrategy,
}

/// How much a setting matters, as Kafka ranks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is Kafka's rank of that name")]
pub enum Importance {
    High,
    Medium,
    Low,
}

/// Where a setting may be changed while the broker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nowhere: it is read at the start.
    ReadOnly,
    /// For one broker at a time.
    PerBroker,
    /// For one broker or for all at once; every topic setting.
    ClusterWide,
}

/// Whether a setting does anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The broker obeys it.
    Acts,
    /// It is checked, kept and reported, and does nothing yet.
    Stored,
}

/// The unit of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is the unit it names")]
pub enum Unit {
    None,
    Milliseconds,
    Seconds,
    Minutes,
    Hours,
    Bytes,
    BytesPerSecond,
}

impl Unit {
    /// Milliseconds in one of this unit; `None` when it does not measure time.
    pub const fn milliseconds(self) -> Option<i64> {
        match self {
            Self::Milliseconds => Some(1),
            Self::Seconds => Some(1_000),
            Self::Minutes => Some(60_000),
            Self::Hours => Some(3_600_000),
            Self::None | Self::Bytes | Self::BytesPerSecond => None,
        }
    }

    /// The unit as people write it; empty for plain numbers and texts.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Minutes => "min",
            Self::Hours => "h",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes/s",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setting {
    /// Kafka's name where Kafka has one.
    pub name: &'static str,
    /// What it belongs to.
    pub scope: Scope,
    /// The type of its value.
    pub value_type: ValueType,
    /// Its value when nobody sets one; `None`: unset.
    pub default: Option<&'static str>,
    /// Which values it takes.
    pub valid: Valid,
    /// How much it matters.
    pub importance: Importance,
    /// Where it may be changed while the broker runs.
    pub mode: Mode,
    /// `DescribeConfigs` leaves it out unless it is set.
    pub internal: bool,
    /// Whether it does anything.
    pub role: Role,
    /// The unit of its value.
    pub unit: Unit,
    /// For a setting of a topic or a group: the broker settings whose value it takes when it has none of its own, the
    /// first that is set.
    pub synonyms: &'static [&'static str],
    /// What it is for, one sentence without a full stop.
    pub doc: &'static str,
}

impl Setting {
    /// Whether its value is a secret, which no answer and no log may show.
    pub fn is_sensitive(&self) -> bool {
        self.value_type == ValueType::Password
    }

    /// What it is for, ending with a remark when the setting does nothing yet.
    pub fn documentation(&self) -> Cow<'static, str> {
        match self.role {
            Role::Acts => Cow::Borrowed(self.doc),
            Role::Stored => Cow::Owned(alloc::format!("{} (stored, does nothing yet)", self.doc)),
        }
    }
}

/// Every broker setting: Kafka's by name, then ours by name.
pub fn broker_settings() -> impl Iterator<Item = &'static Setting> {
    KAFKA_BROKER.iter().chain(OWN_BROKER)
}

/// Every topic setting, by name.
pub fn topic_settings() -> impl Iterator<Item = &'static Setting> {
    KAFKA_TOPIC.iter()
}

/// Every setting of a group, by name.
pub fn group_settings() -> impl Iterator<Item = &'static Setting> {
    KAFKA_GROUP.iter()
}

/// Every setting of a subscription to clients' metrics, by name.
pub fn client_metrics_settings() -> impl Iterator<Item = &'static Setting> {
    KAFKA_CLIENT_METRICS.iter()
}

/// Settings that Kafka reads by a prefix, so that their names cannot be listed: one listener's own values, and those
/// handed to storage plug-ins. They are stored.
const PREFIXES: [&str; 3] = ["listener.name.", "rsm.config.", "rlmm.config."];

/// Whether a broker setting has one of the names that Kafka reads by a prefix, as `listener.name.internal.ssl.key.type`.
pub fn has_known_prefix(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
}

/// The broker setting of this name.
pub fn broker_setting(name: &str) -> Option<&'static Setting> {
    find(KAFKA_BROKER, name).or_else(|| find(OWN_BROKER, name))
}

/// The topic setting of this name.
pub fn topic_setting(name: &str) -> Option<&'static Setting> {
    find(KAFKA_TOPIC, name)
}

/// The group setting of this name.
pub fn group_setting(name: &str) -> Option<&'static Setting> {
    find(KAFKA_GROUP, name)
}

/// The setting of a subscription to clients' metrics of this name.
pub fn client_metrics_setting(name: &str) -> Option<&'static Setting> {
    find(KAFKA_CLIENT_METRICS, name)
}

fn find(table: &'static [Setting], name: &str) -> Option<&'static Setting> {
    table.binary_search_by(|setting| setting.name.cmp(name)).ok().and_then(|index| table.get(index))
}

/// A name that no table knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownSetting {
    /// The name as it was given.
    pub name: alloc::string::String,
    /// The known name that it most likely stands for.
    pub nearest: Option<&'static str>,
}

impl UnknownSetting {
    /// The refusal of `name` in this scope, with the nearest known name.
    pub fn new(name: &str, scope: Scope) -> Self {
        Self { name: name.into(), nearest: nearest(name, scope) }
    }
}

impl fmt::Display for UnknownSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown setting {}", self.name)?;
        self.nearest.map_or(Ok(()), |nearest| write!(f, "; did you mean {nearest}?"))
    }
}

impl core::error::Error for UnknownSetting {}

/// Longest name that is compared with the table; what is longer is no typing error.
const NAME_LENGTH_MAX: usize = 100;

fn nearest(name: &str, scope: Scope) -> Option<&'static str> {
    if scope == Scope::Broker
        && let Some(synonym) = topic_setting(name).and_then(|setting| setting.synonyms.first())
    {
        return Some(synonym);
    } else if name.len() > NAME_LENGTH_MAX {
        return None;
    }
    let near = |candidate: &'static Setting| {
        let distance = edit_distance(name, candidate.name);
        (distance <= (name.len() / 4).max(1)).then_some((distance, candidate.name))
    };
    match scope {
        Scope::Broker => broker_settings().filter_map(near).min().map(|(_, name)| name),
        Scope::Topic => topic_settings().filter_map(near).min().map(|(_, name)| name),
        Scope::Group => group_settings().filter_map(near).min().map(|(_, name)| name),
        Scope::ClientMetrics => client_metrics_settings().filter_map(near).min().map(|(_, name)| name),
    }
}

/// Insertions, deletions and replacements between two names (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, from) in from.bytes().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(to.bytes()) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = replaced.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        assert_eq!(KAFKA_BROKER.len(), 363, "Kafka 4.3.1 has 360 broker settings and three that are dynamic only");
        assert_eq!((KAFKA_TOPIC.len(), KAFKA_GROUP.len(), KAFKA_CLIENT_METRICS.len()), (34, 17, 3));
        let all = broker_settings().chain(topic_settings()).chain(group_settings()).chain(client_metrics_settings());
        for setting in all {
            assert!(!setting.doc.is_empty() && !setting.doc.ends_with('.'), "{}", setting.name);
            if let Some(default) = setting.default {
                assert_eq!(setting.check(default), Ok(()), "{}", setting.name);
            }
            for synonym in setting.synonyms {
                assert!(broker_setting(synonym).is_some(), "{} names {synonym}", setting.name);
            }
        }
    }

    #[test]
    fn no_own_name_hides_one_of_kafkas() {
        assert!(OWN_BROKER.iter().all(|own| find(KAFKA_BROKER, own.name).is_none()));
    }

    #[test]
    fn nearest_names() {
        let nearest = |name, scope| UnknownSetting::new(name, scope).nearest;
        assert_eq!(nearest("num.partition", Scope::Broker), Some("num.partitions"));
        assert_eq!(nearest("log.retention.mss", Scope::Broker), Some("log.retention.ms"));
        assert_eq!(nearest("retention.ms", Scope::Broker), Some("log.retention.ms"), "a topic's name for it");
        assert_eq!(nearest("retention.sm", Scope::Topic), Some("retention.ms"));
        assert_eq!(nearest("zookeeper.connect", Scope::Broker), None);
        assert_eq!(nearest("", Scope::Topic), None);
        assert_eq!(
            alloc::string::ToString::to_string(&UnknownSetting::new("retention.sm", Scope::Topic)),
            "unknown setting retention.sm; did you mean retention.ms?"
        );
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
