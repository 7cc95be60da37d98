//! CreateTopics (key 19): what a client wants becomes a command, and what was decided an answer.
//!
//! Owns what each version shows of a new topic. Never decides: the controller does.

use heddle_cluster::MetadataImage;
use heddle_cluster::controller::{Assignment, Command, CreateTopics, CreatedTopic, NewTopic, Response, TopicShape};
use heddle_cluster::settings::topic_settings;
use heddle_protocol::messages::create_topics::{
    CreatableTopic, CreatableTopicConfigs, CreatableTopicResult, CreateTopicsRequest, CreateTopicsResponse,
};
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::{BrokerId, TopicId};

use super::{Answer, Call, Refusal};

/// From here on a new topic is shown with its settings (KIP-525).
const SHAPES: i16 = 5;

/// Serves a request to create topics.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: CreateTopicsRequest<'_> = call.decode()?;
    let size = |topic: CreatableTopic<'_>| {
        let replicas: usize = topic.assignments.iter().map(|assignment| 1 + assignment.broker_ids.len()).sum();
        1 + replicas + topic.configs.len()
    };
    call.check_count("topics, replicas and settings", request.topics.iter().map(size).sum())?;
    let topics: Vec<NewTopic> = request.topics.iter().map(|topic| new_topic(call, &topic)).collect();
    let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    let command = Command::CreateTopics(CreateTopics { topics, validate_only: request.validate_only });
    let created = match call.control(command).await {
        Ok(Response::CreateTopics(created)) => created,
        Ok(other) => unreachable!("the controller answers in kind, not {other:?}"),
        Err(fault) => names.into_iter().map(|name| CreatedTopic { name, result: Err(fault.clone()) }).collect(),
    };
    let image = call.core.image();
    let configs: Vec<Vec<ConfigView>> = created
        .iter()
        .map(|topic| match &topic.result {
            Ok(shape) if call.version >= SHAPES => config_views(call, &image, shape),
            _ => Vec::new(),
        })
        .collect();
    let topics = created.iter().zip(&configs).map(|(topic, configs)| result(topic, configs, request.validate_only));
    call.answer(&CreateTopicsResponse { topics: topics.collect(), ..CreateTopicsResponse::default() })
}

/// -1 partitions or replicas mean the defaults in every version: clients of before KIP-464 say so, too.
fn new_topic(call: &Call, topic: &CreatableTopic<'_>) -> NewTopic {
    let assignments = topic.assignments.iter().map(|assignment| Assignment {
        partition: assignment.partition_index,
        brokers: assignment.broker_ids.iter().map(BrokerId::new).collect(),
    });
    NewTopic {
        name: topic.name.to_owned(),
        id: TopicId::new(call.core.io().random_bytes16()),
        partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: assignments.collect(),
        configs: topic.configs.iter().map(|config| (config.name.to_owned(), config.value.map(str::to_owned))).collect(),
    }
}

/// One setting of a new topic, with where its value comes from.
struct ConfigView {
    name: &'static str,
    value: Option<String>,
    source: i8,
    is_sensitive: bool,
}

fn config_views(call: &Call, image: &MetadataImage, shape: &TopicShape) -> Vec<ConfigView> {
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let view = |setting| {
        let effective = layers.topic_setting(&shape.config, setting);
        let value = effective.value.filter(|_| !setting.is_sensitive());
        ConfigView {
            name: setting.name,
            value: value.map(|value| value.into_owned()),
            source: effective.source.code(),
            is_sensitive: setting.is_sensitive(),
        }
    };
    topic_settings().filter(|setting| !setting.internal || shape.config.contains_key(setting.name)).map(view).collect()
}

fn result<'a>(topic: &'a CreatedTopic, configs: &'a [ConfigView], validate_only: bool) -> CreatableTopicResult<'a> {
    let result = CreatableTopicResult { name: &topic.name, ..CreatableTopicResult::default() };
    match &topic.result {
        Ok(shape) => CreatableTopicResult {
            error_code: ErrorCode::None.code(),
            error_message: None,
            topic_id: if validate_only { Uuid::ZERO } else { shape.id.into() },
            num_partitions: shape.partitions,
            replication_factor: shape.replication_factor,
            configs: Some(configs.iter().map(shown).collect()),
            ..result
        },
        Err(fault) => CreatableTopicResult {
            error_code: fault.code.code(),
            error_message: fault.message.as_deref(),
            configs: Some(Vec::new().into()),
            ..result
        },
    }
}

fn shown(config: &ConfigView) -> CreatableTopicConfigs<'_> {
    CreatableTopicConfigs {
        name: config.name,
        value: config.value.as_deref(),
        read_only: false,
        config_source: config.source,
        is_sensitive: config.is_sensitive,
    }
}
