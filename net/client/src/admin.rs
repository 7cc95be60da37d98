//! Calls that change or describe the cluster. Each is tried again while that can help.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use heddle_protocol::messages::create_partitions::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreatePartitionsTopic,
};
use heddle_protocol::messages::create_topics::{
    CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, CreateTopicsResponse,
};
use heddle_protocol::messages::delete_records::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopic,
};
use heddle_protocol::messages::delete_topics::{DeleteTopicState, DeleteTopicsRequest, DeleteTopicsResponse};
use heddle_protocol::messages::describe_cluster::{DescribeClusterRequest, DescribeClusterResponse};
use heddle_protocol::messages::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResourceResult, DescribeConfigsResponse,
};
use heddle_protocol::messages::incremental_alter_configs::{
    AlterConfigsResource, AlterableConfig, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use heddle_protocol::messages::list_offsets::{
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic,
};
use heddle_protocol::{ApiKey, ErrorCode};
use heddle_record::{BrokerId, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};

use crate::brokers::{Address, Purpose};
use crate::client::{Client, Creation};
use crate::config::Isolation;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::metadata::{Broker, Topic};

/// How long a broker may work on a change before it answers.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The first version of DescribeConfigs that tells what settings are for.
const DOCUMENTED: i16 = 3;

/// Whether a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Apply,
    /// The broker only says whether it would work.
    ValidateOnly,
}

/// A topic to make.
#[derive(Debug, Clone, Default)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; without it the broker's `num.partitions`.
    pub partition_count: Option<i32>,
    /// How many copies of each; without it the broker's `default.replication.factor`.
    pub replication_factor: Option<i16>,
    /// Settings that differ from the broker's, by Kafka's names.
    pub settings: Vec<(String, String)>,
}

/// A topic that was made. Old brokers do not say everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTopic {
    /// Its id; [`TopicId::ZERO`] if the broker does not say.
    pub id: TopicId,
    /// How many partitions it has, if the broker says.
    pub partition_count: Option<i32>,
    /// How many copies of each, if the broker says.
    pub replication_factor: Option<i16>,
}

/// What settings belong to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A topic, by name.
    Topic(String),
    /// A broker.
    Broker(BrokerId),
    /// All brokers together: what is set for all at once while they run.
    AllBrokers,
    /// A group, by name.
    Group(String),
    /// A subscription to clients' metrics, by name.
    ClientMetrics(String),
    /// The loggers of a broker, whose settings are their levels.
    Loggers(BrokerId),
}

impl Resource {
    fn to_wire(&self) -> (i8, String) {
        match self {
            Resource::Topic(name) => (2, name.clone()),
            Resource::Broker(id) => (4, id.to_string()),
            Resource::AllBrokers => (4, String::new()),
            Resource::Loggers(id) => (8, id.to_string()),
            Resource::ClientMetrics(name) => (16, name.clone()),
            Resource::Group(name) => (32, name.clone()),
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Resource::Topic(name) => write!(f, "topic {name:?}"),
            Resource::Broker(id) => write!(f, "broker {id}"),
            Resource::AllBrokers => write!(f, "all brokers"),
            Resource::Group(name) => write!(f, "group {name:?}"),
            Resource::ClientMetrics(name) => write!(f, "metrics subscription {name:?}"),
            Resource::Loggers(id) => write!(f, "loggers of broker {id}"),
        }
    }
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingSource {
    /// It was set for the topic.
    Topic,
    /// It was set for this broker while it ran.
    Broker,
    /// It was set for all brokers while they ran.
    AllBrokers,
    /// It stands in the broker's configuration.
    BrokerFile,
    /// It is the default.
    Default,
    /// It is a logger's.
    Logger,
    /// It was set for the subscription.
    ClientMetrics,
    /// It was set for the group.
    Group,
    /// The broker names a source that this client does not know.
    Other(i8),
}

impl SettingSource {
    fn from_wire(source: i8) -> Self {
        match source {
            1 => Self::Topic,
            2 => Self::Broker,
            3 => Self::AllBrokers,
            4 => Self::BrokerFile,
            5 => Self::Default,
            6 => Self::Logger,
            7 => Self::ClientMetrics,
            8 => Self::Group,
            other => Self::Other(other),
        }
    }

    /// The source in a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Broker => "broker",
            Self::AllBrokers => "all brokers",
            Self::BrokerFile => "broker file",
            Self::Default => "default",
            Self::Logger => "logger",
            Self::ClientMetrics => "subscription",
            Self::Group => "group",
            Self::Other(_) => "other",
        }
    }
}

/// One setting and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Kafka's name.
    pub name: String,
    /// The value; none if it is secret or has none.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: SettingSource,
    /// Whether the broker keeps the value to itself.
    pub sensitive: bool,
    /// Whether it can only be changed where the broker is started.
    pub read_only: bool,
    /// What it is for, if the broker says.
    pub documentation: Option<String>,
}

/// A change of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingChange {
    /// To this value.
    Set(String),
    /// Back to the default.
    Unset,
    /// This element joins the list.
    Append(String),
    /// This element leaves the list.
    Subtract(String),
}

impl SettingChange {
    fn to_wire(&self) -> (i8, Option<&str>) {
        match self {
            Self::Set(value) => (0, Some(value)),
            Self::Unset => (1, None),
            Self::Append(value) => (2, Some(value)),
            Self::Subtract(value) => (3, Some(value)),
        }
    }
}

/// The cluster as its brokers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id, if the brokers are new enough to say.
    pub id: Option<String>,
    /// The broker that takes changes.
    pub controller: Option<BrokerId>,
    /// All brokers, by id.
    pub brokers: Vec<Broker>,
}

/// A question about a partition's offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OffsetQuery {
    /// The first readable record.
    Earliest,
    /// Where the next record will be; with [`Isolation::ReadCommitted`] where the first open transaction starts.
    Latest,
    /// The record with the largest timestamp.
    MaxTimestamp,
    /// The first record with this timestamp or a later one.
    AtTime(Timestamp),
}

impl OffsetQuery {
    fn to_wire(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::MaxTimestamp => -3,
            Self::AtTime(timestamp) => timestamp.get().max(0),
        }
    }

    /// The first version of ListOffsets that knows the question.
    fn version_min(self) -> i16 {
        if self == Self::MaxTimestamp { 7 } else { 1 }
    }
}

/// The answer to an [`OffsetQuery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; none when no record is that young.
    pub offset: Option<Offset>,
    /// The record's timestamp, where the question is about timestamps.
    pub timestamp: Option<Timestamp>,
    /// The leadership that wrote the record; [`LeaderEpoch::NONE`] if the broker does not say.
    pub leader_epoch: LeaderEpoch,
}

/// Calls that change or describe the cluster. Made by [`Client::admin`].
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// What the broker says: it exists already, its name or a setting is not allowed, …
    pub async fn create_topic(&self, topic: &NewTopic, mode: Mode) -> Result<CreatedTopic> {
        self.client.retry(async || self.create_topic_once(topic, mode).await).await
    }

    async fn create_topic_once(&self, topic: &NewTopic, mode: Mode) -> Result<CreatedTopic> {
        let connection = self.client.controller_connection().await?;
        let version = connection.pick(ApiKey::CreateTopics, i16::MAX)?;
        if version < 4 && (topic.partition_count.is_none() || topic.replication_factor.is_none()) {
            let what = "this broker wants the number of partitions and the replication factor to be named".to_owned();
            return Err(Error::Invalid { what });
        }
        let settings = topic.settings.iter();
        let creatable = CreatableTopic {
            name: &topic.name,
            num_partitions: topic.partition_count.unwrap_or(-1),
            replication_factor: topic.replication_factor.unwrap_or(-1),
            configs: settings.map(|(name, value)| CreatableTopicConfig { name, value: Some(value) }).collect(),
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest {
            topics: vec![creatable].into(),
            timeout_ms: milliseconds(CHANGE_TIMEOUT),
            validate_only: mode == Mode::ValidateOnly,
        };
        let reply = connection.call(&request, version, CHANGE_TIMEOUT).await?;
        let response: CreateTopicsResponse<'_> = reply.decode()?;
        let result = response.topics.first().ok_or_else(|| left_out(&connection, &topic.name))?;
        Error::check(result.error_code, result.error_message, || format!("topic {:?}", topic.name))?;
        Ok(CreatedTopic {
            id: TopicId::new(result.topic_id.0),
            partition_count: Some(result.num_partitions).filter(|it| *it > 0),
            replication_factor: Some(result.replication_factor).filter(|it| *it > 0),
        })
    }

    /// Deletes a topic and all that is in it.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`], and what else the broker says.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let mut attempts = 0;
        let attempt = async || {
            attempts += 1;
            match self.delete_topic_once(name).await {
                // An attempt whose answer was lost did it.
                Err(Error::UnknownTopic { .. }) if attempts > 1 => Ok(()),
                result => result,
            }
        };
        let deleted = self.client.retry(attempt).await;
        self.client.doubt(name);
        deleted
    }

    async fn delete_topic_once(&self, name: &str) -> Result<()> {
        let connection = self.client.controller_connection().await?;
        let version = connection.pick(ApiKey::DeleteTopics, i16::MAX)?;
        let state = DeleteTopicState { name: Some(name), ..DeleteTopicState::default() };
        let (topics, topic_names) = if version >= 6 { (vec![state], vec![]) } else { (vec![], vec![name]) };
        let request = DeleteTopicsRequest {
            topics: topics.into(),
            topic_names: topic_names.into(),
            timeout_ms: milliseconds(CHANGE_TIMEOUT),
        };
        let reply = connection.call(&request, version, CHANGE_TIMEOUT).await?;
        let response: DeleteTopicsResponse<'_> = reply.decode()?;
        let result = response.responses.first().ok_or_else(|| left_out(&connection, name))?;
        if result.error_code == ErrorCode::UnknownTopicOrPartition.code() {
            return Err(Error::UnknownTopic { topic: name.to_owned() });
        }
        Error::check(result.error_code, result.error_message, || format!("topic {name:?}"))
    }

    /// Adds partitions to a topic, until there are `total`.
    ///
    /// # Errors
    /// What the broker says: there are as many or more already, there is no such topic, …
    pub async fn create_partitions(&self, topic: &str, total: i32, mode: Mode) -> Result<()> {
        let added = self.client.retry(async || self.create_partitions_once(topic, total, mode).await).await;
        self.client.doubt(topic);
        added
    }

    async fn create_partitions_once(&self, name: &str, total: i32, mode: Mode) -> Result<()> {
        let connection = self.client.controller_connection().await?;
        let version = connection.pick(ApiKey::CreatePartitions, i16::MAX)?;
        let topic = CreatePartitionsTopic { name, count: total, assignments: None };
        let request = CreatePartitionsRequest {
            topics: vec![topic].into(),
            timeout_ms: milliseconds(CHANGE_TIMEOUT),
            validate_only: mode == Mode::ValidateOnly,
        };
        let reply = connection.call(&request, version, CHANGE_TIMEOUT).await?;
        let response: CreatePartitionsResponse<'_> = reply.decode()?;
        let result = response.results.first().ok_or_else(|| left_out(&connection, name))?;
        if result.error_code == ErrorCode::UnknownTopicOrPartition.code() {
            return Err(Error::UnknownTopic { topic: name.to_owned() });
        }
        Error::check(result.error_code, result.error_message, || format!("topic {name:?}"))
    }

    /// Topics as they are now, in the order of `names`.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] for the first that does not exist.
    pub async fn describe_topics(&self, names: &[&str]) -> Result<Vec<Rc<Topic>>> {
        let mut topics = Vec::with_capacity(names.len());
        for name in names {
            self.client.doubt(name);
            topics.push(self.client.topic(name, Creation::Forbidden).await?);
        }
        Ok(topics)
    }

    /// The cluster's id, controller and brokers as they are now.
    ///
    /// # Errors
    /// No broker answers.
    pub async fn describe_cluster(&self) -> Result<Cluster> {
        self.client.retry(async || self.describe_cluster_once().await).await
    }

    async fn describe_cluster_once(&self) -> Result<Cluster> {
        let connection = self.client.any_connection().await?;
        if !connection.versions().has(ApiKey::DescribeCluster) {
            let client = &self.client;
            client.topics().await?;
            return Ok(Cluster { id: client.cluster_id(), controller: client.controller(), brokers: client.brokers() });
        }
        let version = connection.pick(ApiKey::DescribeCluster, i16::MAX)?;
        let reply = connection.call(&DescribeClusterRequest::default(), version, Duration::ZERO).await?;
        let response: DescribeClusterResponse<'_> = reply.decode()?;
        Error::check(response.error_code, response.error_message, || "cluster".to_owned())?;
        let mut brokers: Vec<_> = response.brokers.iter().map(|it| broker(&it)).collect();
        brokers.sort_by_key(|it| it.id);
        Ok(Cluster {
            id: Some(response.cluster_id.to_owned()),
            controller: Some(BrokerId::new(response.controller_id)).filter(|it| it.get() >= 0),
            brokers,
        })
    }

    /// All settings of a resource, by name.
    ///
    /// # Errors
    /// What the broker says; [`Error::UnknownTopic`].
    pub async fn describe_settings(&self, resource: &Resource) -> Result<Vec<Setting>> {
        self.client.retry(async || self.describe_settings_once(resource).await).await
    }

    async fn describe_settings_once(&self, resource: &Resource) -> Result<Vec<Setting>> {
        let connection = self.connection_for(resource).await?;
        let version = connection.pick(ApiKey::DescribeConfigs, i16::MAX)?;
        let (resource_type, resource_name) = resource.to_wire();
        let wanted = DescribeConfigsResource { resource_type, resource_name: &resource_name, configuration_keys: None };
        let request = DescribeConfigsRequest {
            resources: vec![wanted].into(),
            include_synonyms: false,
            include_documentation: version >= DOCUMENTED,
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: DescribeConfigsResponse<'_> = reply.decode()?;
        let result = response.results.first().ok_or_else(|| left_out(&connection, &resource_name))?;
        check_resource(result.error_code, result.error_message, resource)?;
        let mut settings: Vec<_> = result.configs.iter().map(|it| setting(&it)).collect();
        settings.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(settings)
    }

    /// Changes settings of a resource, all or none.
    ///
    /// # Errors
    /// What the broker says: a name or value is not allowed, …; [`Error::UnknownTopic`].
    pub async fn alter_settings(
        &self,
        resource: &Resource,
        changes: &[(String, SettingChange)],
        mode: Mode,
    ) -> Result<()> {
        self.client.retry(async || self.alter_settings_once(resource, changes, mode).await).await
    }

    async fn alter_settings_once(
        &self,
        resource: &Resource,
        changes: &[(String, SettingChange)],
        mode: Mode,
    ) -> Result<()> {
        let connection = self.connection_for(resource).await?;
        let version = connection.pick(ApiKey::IncrementalAlterConfigs, i16::MAX)?;
        let (resource_type, resource_name) = resource.to_wire();
        let change = |(name, change): &'_ (String, SettingChange)| (name.clone(), change.clone());
        let changes: Vec<_> = changes.iter().map(change).collect();
        let configs = changes.iter().map(|(name, change)| {
            let (config_operation, value) = change.to_wire();
            AlterableConfig { name, config_operation, value }
        });
        let configs = configs.collect();
        let altered = AlterConfigsResource { resource_type, resource_name: &resource_name, configs };
        let validate_only = mode == Mode::ValidateOnly;
        let request = IncrementalAlterConfigsRequest { resources: vec![altered].into(), validate_only };
        let reply = connection.call(&request, version, CHANGE_TIMEOUT).await?;
        let response: IncrementalAlterConfigsResponse<'_> = reply.decode()?;
        let result = response.responses.first().ok_or_else(|| left_out(&connection, &resource_name))?;
        check_resource(result.error_code, result.error_message, resource)
    }

    /// A broker knows its own settings best; any other resource is asked of the controller.
    async fn connection_for(&self, resource: &Resource) -> Result<Connection> {
        match resource {
            Resource::Broker(id) | Resource::Loggers(id) => self.client.connection_to(*id, Purpose::Control).await,
            Resource::Topic(_) | Resource::AllBrokers | Resource::Group(_) | Resource::ClientMetrics(_) => {
                self.client.controller_connection().await
            }
        }
    }

    /// Answers a question for each of many partitions, in the order of the questions.
    ///
    /// # Errors
    /// The first that a partition has.
    pub async fn list_offsets(
        &self,
        queries: &[(&str, PartitionIndex, OffsetQuery)],
        isolation: Isolation,
    ) -> Result<Vec<ListedOffset>> {
        let mut answers: BTreeMap<usize, ListedOffset> = BTreeMap::new();
        let attempt = async || {
            let open: Vec<_> = (0..queries.len()).filter(|it| !answers.contains_key(it)).collect();
            self.list_offsets_once(queries, &open, isolation, &mut answers).await
        };
        self.client.retry(attempt).await?;
        Ok(answers.into_values().collect())
    }

    async fn list_offsets_once(
        &self,
        queries: &[(&str, PartitionIndex, OffsetQuery)],
        open: &[usize],
        isolation: Isolation,
        answers: &mut BTreeMap<usize, ListedOffset>,
    ) -> Result<()> {
        // One request can ask one question about a partition.
        let mut groups: BTreeMap<(Address, OffsetQuery), Vec<(usize, LeaderEpoch)>> = BTreeMap::new();
        for index in open {
            let (topic, partition, query) = queries[*index];
            let leader = self.client.leader(topic, partition, Creation::Forbidden).await.map_err(unknown(topic))?;
            groups.entry((leader.broker.address, query)).or_default().push((*index, leader.epoch));
        }
        for ((address, query), group) in groups {
            self.list_offsets_of(&address, query, queries, &group, isolation, answers).await?;
        }
        Ok(())
    }

    async fn list_offsets_of(
        &self,
        address: &Address,
        query: OffsetQuery,
        queries: &[(&str, PartitionIndex, OffsetQuery)],
        group: &[(usize, LeaderEpoch)],
        isolation: Isolation,
        answers: &mut BTreeMap<usize, ListedOffset>,
    ) -> Result<()> {
        let connection = self.client.connection(address, Purpose::Control).await?;
        let version = connection.pick(ApiKey::ListOffsets, i16::MAX)?;
        if version < query.version_min() {
            return Err(Error::Unsupported { api: ApiKey::ListOffsets, offered: format!("version {version}") });
        }
        let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
        for (index, epoch) in group {
            let (topic, partition, query) = queries[*index];
            topics.entry(topic).or_default().push(ListOffsetsPartition {
                partition_index: partition.get(),
                current_leader_epoch: epoch.get(),
                timestamp: query.to_wire(),
            });
        }
        let topics = topics.into_iter().map(|(name, it)| ListOffsetsTopic { name, partitions: it.into() });
        let request = ListOffsetsRequest {
            replica_id: -1,
            // Before version 2 there is no such field, and no transactions either.
            isolation_level: if version < 2 { 0 } else { isolation.to_wire() },
            topics: topics.collect(),
            timeout_ms: milliseconds(self.client.config().request_timeout),
        };
        let reply = connection.call(&request, version, Duration::ZERO).await?;
        let response: ListOffsetsResponse<'_> = reply.decode()?;
        for topic in &response.topics {
            for partition in &topic.partitions {
                let index = PartitionIndex::new(partition.partition_index);
                let asked = group.iter().find(|(it, _)| (queries[*it].0, queries[*it].1) == (topic.name, index));
                let Some((asked, _)) = asked else { continue };
                let checked = Error::check(partition.error_code, None, || format!("{}-{index}", topic.name));
                if let Err(error) = checked {
                    self.client.doubt(topic.name);
                    return Err(error);
                }
                let listed = ListedOffset {
                    offset: Some(Offset::new(partition.offset)).filter(|it| it.get() >= 0),
                    timestamp: Some(Timestamp::new(partition.timestamp)).filter(|it| it.get() >= 0),
                    leader_epoch: LeaderEpoch::new(partition.leader_epoch),
                };
                answers.insert(*asked, listed);
            }
        }
        match group.iter().find(|(index, _)| !answers.contains_key(index)) {
            Some((index, _)) => Err(left_out(&connection, queries[*index].0)),
            None => Ok(()),
        }
    }

    /// Deletes the records of a partition below `before`; without it all that can be read now. Gives the log start
    /// offset.
    ///
    /// # Errors
    /// What the broker says: the offset is outside of the log, …
    pub async fn delete_records(
        &self,
        topic: &str,
        partition: PartitionIndex,
        before: Option<Offset>,
    ) -> Result<Offset> {
        self.client.retry(async || self.delete_records_once(topic, partition, before).await).await
    }

    async fn delete_records_once(
        &self,
        name: &str,
        partition: PartitionIndex,
        before: Option<Offset>,
    ) -> Result<Offset> {
        let leader = self.client.leader(name, partition, Creation::Forbidden).await.map_err(unknown(name))?;
        let connection = self.client.connection(&leader.broker.address, Purpose::Control).await?;
        let version = connection.pick(ApiKey::DeleteRecords, i16::MAX)?;
        let wanted =
            DeleteRecordsPartition { partition_index: partition.get(), offset: before.map_or(-1, Offset::get) };
        let topic = DeleteRecordsTopic { name, partitions: vec![wanted].into() };
        let request = DeleteRecordsRequest { topics: vec![topic].into(), timeout_ms: milliseconds(CHANGE_TIMEOUT) };
        let reply = connection.call(&request, version, CHANGE_TIMEOUT).await?;
        let response: DeleteRecordsResponse<'_> = reply.decode()?;
        let topic = response.topics.first().ok_or_else(|| left_out(&connection, name))?;
        let result = topic.partitions.first().ok_or_else(|| left_out(&connection, name))?;
        Error::check(result.error_code, None, || format!("{name}-{partition}"))
            .inspect_err(|_| self.client.doubt(name))?;
        Ok(Offset::new(result.low_watermark))
    }
}

fn broker(answer: &heddle_protocol::messages::describe_cluster::DescribeClusterBroker<'_>) -> Broker {
    let port = u16::try_from(answer.port).unwrap_or(0);
    Broker {
        id: BrokerId::new(answer.broker_id),
        address: Address { host: answer.host.to_owned(), port },
        rack: answer.rack.map(str::to_owned),
    }
}

fn setting(answer: &DescribeConfigsResourceResult<'_>) -> Setting {
    Setting {
        name: answer.name.to_owned(),
        value: answer.value.map(str::to_owned),
        source: SettingSource::from_wire(answer.config_source),
        sensitive: answer.is_sensitive,
        read_only: answer.read_only,
        documentation: answer.documentation.filter(|text| !text.is_empty()).map(str::to_owned),
    }
}

fn check_resource(code: i16, message: Option<&str>, resource: &Resource) -> Result<()> {
    match resource {
        Resource::Topic(topic) if code == ErrorCode::UnknownTopicOrPartition.code() => {
            Err(Error::UnknownTopic { topic: topic.clone() })
        }
        _ => Error::check(code, message, || resource.to_string()),
    }
}

/// A topic that is read or changed by name, and does not exist, is not waited for.
fn unknown(topic: &str) -> impl FnOnce(Error) -> Error + '_ {
    |error| match error.code() {
        Some(ErrorCode::UnknownTopicOrPartition) => Error::UnknownTopic { topic: topic.to_owned() },
        _ => error,
    }
}

fn left_out(connection: &Connection, name: &str) -> Error {
    Error::Malformed { from: connection.broker().to_owned(), what: format!("an answer that leaves {name:?} out") }
}

fn milliseconds(span: Duration) -> i32 {
    i32::try_from(span.as_millis()).unwrap_or(i32::MAX)
}
