//! Topics: creation, deletion, more partitions. Every refusal is Kafka's, word for word where Kafka has words.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, LeaderEpoch, PartitionIndex, TopicId};

use super::{Context, Decision, Fault, Response};
use crate::image::{MetadataImage, TopicImage};
use crate::record::{MetadataRecord, PartitionState};
use crate::settings::layers::Values;
use crate::settings::topic::check_together;
use crate::settings::value::boolean;
use crate::settings::{Scope, UnknownSetting, topic_setting};

/// Most partitions that one request may create.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;

/// Longest topic name, in bytes.
const NAME_LENGTH_MAX: usize = 249;

/// The topic that no client may create.
const METADATA_TOPIC: &str = "__cluster_metadata";

/// New topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateTopics {
    /// The topics.
    pub topics: Vec<NewTopic>,
    /// Decide, but change nothing.
    pub validate_only: bool,
}

/// A topic to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// A random id for it.
    pub id: TopicId,
    /// Its number of partitions; -1: the default.
    pub partitions: i32,
    /// Replicas of each partition; -1: the default.
    pub replication_factor: i16,
    /// Who has each partition, where the client says so; then both numbers are -1.
    pub assignments: Vec<Assignment>,
    /// Its own settings.
    pub configs: Vec<(String, Option<String>)>,
}

/// Who has a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The partition's index.
    pub partition: i32,
    /// The brokers, the preferred leader first.
    pub brokers: Vec<BrokerId>,
}

/// What became of a new topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// What it looks like, or why it was refused.
    pub result: Result<TopicShape, Fault>,
}

/// What a new topic looks like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicShape {
    /// Its id.
    pub id: TopicId,
    /// Its number of partitions.
    pub partitions: i32,
    /// Replicas of each partition.
    pub replication_factor: i16,
    /// Its own settings.
    pub config: Values,
}

/// A topic to be deleted, by name or by id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteTopic {
    /// Its name.
    pub name: Option<String>,
    /// Its id; zero: by name.
    pub id: TopicId,
}

/// What became of a topic to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletedTopic {
    /// Its name, as far as known.
    pub name: Option<String>,
    /// Its id, as far as known.
    pub id: TopicId,
    /// Why it was not deleted.
    pub result: Result<(), Fault>,
}

/// More partitions for topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatePartitions {
    /// The topics.
    pub topics: Vec<MorePartitions>,
    /// Decide, but change nothing.
    pub validate_only: bool,
}

/// More partitions for a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MorePartitions {
    /// The topic's name.
    pub name: String,
    /// How many partitions it is to have in all.
    pub count: i32,
    /// Who has each new partition, where the client says so.
    pub assignments: Option<Vec<Vec<BrokerId>>>,
}

/// Checks a topic name: 1 to 249 of `[a-zA-Z0-9._-]`, and neither `.` nor `..`.
///
/// # Errors
/// What is wrong with it, in Kafka's words.
pub fn check_topic_name(name: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err("the empty string is not allowed".into()),
        "." | ".." => Err(format!("'{name}' is not allowed")),
        _ if name.len() > NAME_LENGTH_MAX => {
            Err(format!("the length of '{name}' is longer than the max allowed length {NAME_LENGTH_MAX}"))
        }
        _ if !name.bytes().all(legal) => {
            Err(format!("'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"))
        }
        _ => Ok(()),
    }
}

pub(super) fn create(context: &Context<'_>, command: CreateTopics) -> Decision {
    let mut creation = Creation::new(context);
    let twice = twice(command.topics.iter().map(|topic| topic.name.as_str()));
    let mut results = Vec::new();
    let mut refused = BTreeSet::new();
    for topic in command.topics {
        if twice.contains(&topic.name) {
            if refused.insert(topic.name.clone()) {
                let fault = Fault::with(ErrorCode::InvalidRequest, "Duplicate topic name.");
                results.push(CreatedTopic { name: topic.name, result: Err(fault) });
            }
            continue;
        }
        let name = topic.name.clone();
        results.push(CreatedTopic { name, result: creation.topic(topic) });
    }
    let records = if command.validate_only { Vec::new() } else { creation.records };
    Decision { records, response: Response::CreateTopics(results) }
}

/// Topics of one request as they are decided one after the other.
struct Creation<'a> {
    context: &'a Context<'a>,
    records: Vec<MetadataRecord>,
    /// Names with every `.` as `_`, of all topics that have one of the two; built when first needed.
    collisions: Option<BTreeMap<String, Arc<str>>>,
    partitions: usize,
}

impl<'a> Creation<'a> {
    fn new(context: &'a Context<'a>) -> Self {
        Self { context, records: Vec::new(), collisions: None, partitions: 0 }
    }

    fn topic(&mut self, topic: NewTopic) -> Result<TopicShape, Fault> {
        self.check_name(&topic.name)?;
        let replicas = self.place(&topic)?;
        let config = self.config(topic.configs)?;
        self.check_count(replicas.len())?;
        let shape = TopicShape {
            id: topic.id,
            partitions: i32::try_from(replicas.len()).expect("a request creates at most 10,000 partitions"),
            replication_factor: i16::try_from(replicas.first().map_or(0, Vec::len)).expect("brokers are few"),
            config,
        };
        self.partitions += replicas.len();
        self.records.push(MetadataRecord::Topic { name: topic.name, id: topic.id });
        for (name, value) in &shape.config {
            let (name, value) = (name.clone(), Some(value.clone()));
            self.records.push(MetadataRecord::TopicConfig { topic: topic.id, name, value });
        }
        self.records.extend(new_partitions(topic.id, 0, replicas));
        Ok(shape)
    }

    fn check_name(&mut self, name: &str) -> Result<(), Fault> {
        if name == METADATA_TOPIC {
            let message = format!("Creation of internal topic {METADATA_TOPIC} is prohibited.");
            return Err(Fault::with(ErrorCode::InvalidRequest, message));
        } else if let Err(reason) = check_topic_name(name) {
            return Err(Fault::with(ErrorCode::InvalidTopicException, format!("Topic name is invalid: {reason}")));
        } else if self.context.image.topic_named(name).is_some() {
            return Err(Fault::with(ErrorCode::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
        } else if !collides(name) {
            return Ok(());
        }
        match self.collisions().get(&normalised(name)) {
            Some(other) => {
                let message = format!("Topic '{name}' collides with existing topic: {other}");
                Err(Fault::with(ErrorCode::InvalidTopicException, message))
            }
            None => Ok(()),
        }
    }

    /// The topics that were there before this request: two new names that collide with each other only are both taken,
    /// as on Kafka.
    fn collisions(&mut self) -> &BTreeMap<String, Arc<str>> {
        let image = self.context.image;
        self.collisions.get_or_insert_with(|| {
            let names = image.topics().map(|topic| &topic.name).filter(|name| collides(name));
            names.map(|name| (normalised(name), Arc::clone(name))).collect()
        })
    }

    /// Who has each partition, by the partition's index.
    fn place(&self, topic: &NewTopic) -> Result<Vec<Vec<BrokerId>>, Fault> {
        if !topic.assignments.is_empty() {
            return self.assigned(topic);
        } else if topic.replication_factor < -1 || topic.replication_factor == 0 {
            let message = "Replication factor must be larger than 0, or -1 to use the default value.";
            return Err(Fault::with(ErrorCode::InvalidReplicationFactor, message));
        } else if topic.partitions < -1 || topic.partitions == 0 {
            let message = "Number of partitions was set to an invalid non-positive value.";
            return Err(Fault::with(ErrorCode::InvalidPartitions, message));
        }
        let or_default = |number: i64, name| if number == -1 { self.context.number(name) } else { number };
        let factor = or_default(topic.replication_factor.into(), "default.replication.factor");
        let count = or_default(topic.partitions.into(), "num.partitions");
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.check_count(count)?;
        spread(self.context, self.partitions, count, factor)
    }

    fn assigned(&self, topic: &NewTopic) -> Result<Vec<Vec<BrokerId>>, Fault> {
        let not_default = |what| {
            let message = format!("A manual partition assignment was specified, but {what} was not set to -1.");
            Err(Fault::with(ErrorCode::InvalidRequest, message))
        };
        if topic.replication_factor != -1 {
            return not_default("replication factor");
        } else if topic.partitions != -1 {
            return not_default("numPartitions");
        }
        let mut placed = BTreeMap::new();
        for assignment in &topic.assignments {
            if placed.insert(assignment.partition, &assignment.brokers).is_some() {
                let partition = assignment.partition;
                let message = format!("Found multiple manual partition assignments for partition {partition}");
                return Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message));
            }
            check_replicas(
                self.context,
                &assignment.brokers,
                topic.assignments.first().map_or(0, |a| a.brokers.len()),
            )?;
        }
        if placed.keys().copied().zip(0..).any(|(index, expected)| index != expected) {
            let message = "partitions should be a consecutive 0-based integer sequence";
            return Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message));
        }
        Ok(placed.into_values().cloned().collect())
    }

    fn check_count(&self, more: usize) -> Result<(), Fault> {
        check_partition_count(self.context, self.partitions, more)
    }

    fn config(&self, given: Vec<(String, Option<String>)>) -> Result<Values, Fault> {
        let mut values = Values::new();
        for (name, value) in given {
            let Some(setting) = topic_setting(&name) else {
                return Err(Fault::with(ErrorCode::InvalidConfig, unknown_topic_setting(&name)));
            };
            let Some(value) = value else {
                let message = format!("Null value not supported for topic configs: {name}");
                return Err(Fault::with(ErrorCode::InvalidConfig, message));
            };
            setting.check(&value).map_err(|error| Fault::with(ErrorCode::InvalidConfig, error.to_string()))?;
            values.insert(name, value);
        }
        check_together(&self.context.layers(), &values)
            .map_err(|conflict| Fault::with(ErrorCode::InvalidConfig, conflict))?;
        Ok(values)
    }
}

/// Kafka's words for a topic setting that does not exist, and the nearest that does.
pub(super) fn unknown_topic_setting(name: &str) -> String {
    match UnknownSetting::new(name, Scope::Topic).nearest {
        Some(nearest) => format!("Unknown topic config name: {name}; did you mean {nearest}?"),
        None => format!("Unknown topic config name: {name}"),
    }
}

/// Metrics once had `.` and `_` as the same character, so Kafka keeps names apart that differ only there.
fn collides(name: &str) -> bool {
    name.contains(['.', '_'])
}

fn normalised(name: &str) -> String {
    name.replace('.', "_")
}

/// The texts that come more than once.
fn twice<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| !seen.insert(*name)).map(ToString::to_string).collect()
}

/// `before`: partitions that the same request creates already.
fn check_partition_count(context: &Context<'_>, before: usize, more: usize) -> Result<(), Fault> {
    let here = before.saturating_add(more);
    if here > PARTITIONS_PER_REQUEST_MAX {
        let message = "Excessively large number of partitions per request.";
        return Err(Fault::with(ErrorCode::PolicyViolation, message));
    }
    let most = context.number("partitions.max");
    let total = context.image.partition_count() + here;
    if i64::try_from(total).is_ok_and(|total| total <= most) {
        return Ok(());
    }
    let message = format!("The cluster would have {total} partitions; partitions.max is {most}.");
    Err(Fault::with(ErrorCode::PolicyViolation, message))
}

fn check_replicas(context: &Context<'_>, brokers: &[BrokerId], factor: usize) -> Result<(), Fault> {
    check_brokers(context.image, brokers)?;
    if brokers.len() != factor {
        let message = format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is not consistent \
             with previous partitions, which have {factor} replica(s).",
            brokers.len()
        );
        return Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message));
    }
    Ok(())
}

/// Brokers that can have a partition's replicas: at least one, each registered, none named twice.
pub(super) fn check_brokers(image: &MetadataImage, brokers: &[BrokerId]) -> Result<(), Fault> {
    let fault = |message: String| Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message));
    if brokers.is_empty() {
        return fault("The manual partition assignment includes an empty replica list.".into());
    }
    for (index, broker) in brokers.iter().enumerate() {
        if image.broker(*broker).is_none() {
            return fault(format!(
                "The manual partition assignment includes broker {broker}, but no such broker is registered."
            ));
        } else if brokers.iter().take(index).any(|earlier| earlier == broker) {
            return fault(format!("The manual partition assignment includes the broker {broker} more than once."));
        }
    }
    Ok(())
}

/// Places `count` partitions round the brokers, one after the other, so that leaders are even.
fn spread(context: &Context<'_>, before: usize, count: usize, factor: i64) -> Result<Vec<Vec<BrokerId>>, Fault> {
    let brokers: Vec<BrokerId> = context.image.brokers().map(|(id, _)| id).collect();
    let factor = usize::try_from(factor).unwrap_or(usize::MAX);
    if factor > brokers.len() {
        let message = format!(
            "Unable to replicate the partition {factor} time(s): The target replication factor of {factor} cannot be \
             reached because only {} broker(s) are registered.",
            brokers.len()
        );
        return Err(Fault::with(ErrorCode::InvalidReplicationFactor, message));
    }
    let first = context.image.partition_count() + before;
    let replicas = |index: usize| brokers.iter().copied().cycle().skip((first + index) % brokers.len()).take(factor);
    Ok((0..count).map(|index| replicas(index).collect()).collect())
}

/// The records of new partitions, the first at index `from`.
fn new_partitions(topic: TopicId, from: i32, replicas: Vec<Vec<BrokerId>>) -> impl Iterator<Item = MetadataRecord> {
    replicas.into_iter().zip(from..).map(move |(replicas, index)| MetadataRecord::Partition {
        topic,
        partition: PartitionIndex::new(index),
        state: PartitionState {
            leader: *replicas.first().expect("a partition has at least one replica"),
            in_sync_replicas: replicas.clone(),
            replicas,
            leader_epoch: LeaderEpoch::new(0),
            partition_epoch: 0,
        },
    })
}

pub(super) fn delete(context: &Context<'_>, topics: &[DeleteTopic]) -> Decision {
    // One that is named in both ways is refused for that.
    let by_name = topics.iter().filter(|topic| topic.id.is_zero());
    let names = twice(by_name.filter_map(|topic| topic.name.as_deref()));
    let mut seen = BTreeSet::new();
    let by_id = topics.iter().filter(|topic| topic.name.is_none() && !topic.id.is_zero()).map(|topic| topic.id);
    let ids: BTreeSet<TopicId> = by_id.filter(|id| !seen.insert(*id)).collect();
    let mut refused_ids = BTreeSet::new();
    let mut results: Vec<DeletedTopic> = Vec::new();
    let (mut gone, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for topic in topics {
        if let Some(name) = topic.name.as_ref().filter(|name| topic.id.is_zero() && names.contains(*name)) {
            if refused.insert(name) {
                let result = Err(Fault::with(ErrorCode::InvalidRequest, "Duplicate topic name."));
                results.push(DeletedTopic { name: Some(name.clone()), id: TopicId::ZERO, result });
            }
            continue;
        }
        if topic.name.is_none() && ids.contains(&topic.id) {
            if refused_ids.insert(topic.id) {
                let result = Err(Fault::with(ErrorCode::InvalidRequest, "Duplicate topic id."));
                results.push(DeletedTopic { name: None, id: topic.id, result });
            }
            continue;
        }
        results.push(match find(context, topic) {
            Ok(found) if !gone.insert(found.id) => {
                let message = "The topic is named more than once in this request.";
                let result = Err(Fault::with(ErrorCode::InvalidRequest, message));
                DeletedTopic { name: Some(found.name.to_string()), id: found.id, result }
            }
            Ok(found) => DeletedTopic { name: Some(found.name.to_string()), id: found.id, result: Ok(()) },
            Err(fault) => DeletedTopic { name: topic.name.clone(), id: topic.id, result: Err(fault) },
        });
    }
    let records = gone.into_iter().map(|id| MetadataRecord::RemoveTopic { id }).collect();
    Decision { records, response: Response::DeleteTopics(results) }
}

fn find<'a>(context: &Context<'a>, topic: &DeleteTopic) -> Result<&'a Arc<TopicImage>, Fault> {
    let enabled = context.layers().broker_value("delete.topic.enable");
    if enabled.is_some_and(|enabled| boolean(&enabled) == Ok(false)) {
        return Err(Fault::with(ErrorCode::TopicDeletionDisabled, "Topic deletion is disabled."));
    }
    let invalid = |message: &str| Err(Fault::with(ErrorCode::InvalidRequest, message));
    match &topic.name {
        Some(_) if !topic.id.is_zero() => invalid("You may not specify both topic name and topic id."),
        None if topic.id.is_zero() => invalid("Neither topic name nor id were specified."),
        Some(name) => context.image.topic_named(name).ok_or_else(|| {
            let message = "This server does not host this topic-partition.";
            Fault::with(ErrorCode::UnknownTopicOrPartition, message)
        }),
        None => context
            .image
            .topic(topic.id)
            .ok_or_else(|| Fault::with(ErrorCode::UnknownTopicId, "This server does not host this topic ID.")),
    }
}

pub(super) fn create_partitions(context: &Context<'_>, command: CreatePartitions) -> Decision {
    let twice = twice(command.topics.iter().map(|topic| topic.name.as_str()));
    let mut records = Vec::new();
    let mut results: Vec<(String, Result<(), Fault>)> = Vec::new();
    for topic in command.topics {
        let result = if !twice.contains(&topic.name) {
            more_partitions(context, records.len(), &topic).map(|more| records.extend(more))
        } else if results.iter().all(|(name, _)| *name != topic.name) {
            Err(Fault::with(ErrorCode::InvalidRequest, "Duplicate topic name."))
        } else {
            continue;
        };
        results.push((topic.name, result));
    }
    if command.validate_only {
        records = vec![];
    }
    Decision { records, response: Response::CreatePartitions(results) }
}

fn more_partitions(context: &Context<'_>, before: usize, more: &MorePartitions) -> Result<Vec<MetadataRecord>, Fault> {
    let topic = context.image.topic_named(&more.name).ok_or(Fault::new(ErrorCode::UnknownTopicOrPartition))?;
    let now = i32::try_from(topic.partitions.len()).expect("a topic's partitions are counted by an i32");
    let name = &more.name;
    let count = match more.count.checked_sub(now) {
        Some(0) => Err(format!("Topic already has {now} partition(s).")),
        Some(difference @ 1..) => Ok(usize::try_from(difference).expect("it is above 0")),
        _ => {
            Err(format!("The topic {name} currently has {now} partition(s); {} would not be an increase.", more.count))
        }
    };
    let count = count.map_err(|message| Fault::with(ErrorCode::InvalidPartitions, message))?;
    check_partition_count(context, before, count)?;
    let factor = topic.partitions.first().map_or(1, |partition| partition.replicas.len());
    let replicas = match &more.assignments {
        None => spread(context, before, count, i64::try_from(factor).expect("replicas are few"))?,
        Some(assignments) if assignments.len() != count => {
            let given = assignments.len();
            let message = format!(
                "Attempted to add {count} additional partition(s), but only {given} assignment(s) were specified."
            );
            return Err(Fault::with(ErrorCode::InvalidReplicaAssignment, message));
        }
        Some(assignments) => {
            assignments.iter().try_for_each(|brokers| check_replicas(context, brokers, factor))?;
            assignments.clone()
        }
    };
    Ok(new_partitions(topic.id, now, replicas).collect())
}
