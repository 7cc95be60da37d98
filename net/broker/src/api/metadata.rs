//! Metadata (key 3): brokers, topics, partitions, and topics that are created because somebody asks for them.
//!
//! Owns what each version means by "all" and "none", and who may create a topic this way. Never decides whether a topic
//! can be created: the controller does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_cluster::controller::{Command, CreateTopics, CreatedTopic, NewTopic, Response, check_topic_name};
use heddle_cluster::settings::value::boolean;
use heddle_cluster::{MetadataImage, TopicImage};
use heddle_protocol::messages::metadata::{
    MetadataRequest, MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use heddle_protocol::{Array, ErrorCode, Uuid};
use heddle_record::TopicId;

use super::topic_view::{CLUSTER_OPERATIONS, OPERATIONS_NOT_ASKED, PartitionView, TOPIC_OPERATIONS, is_internal};
use super::{Answer, Call, Refusal};

/// The controller in an answer that names no broker.
const NO_CONTROLLER: i32 = -1;
/// From here on an answer has an error of its own.
const TOP_LEVEL_ERROR: i16 = 13;
/// From here on topics may be asked for by id.
const BY_ID: i16 = 12;

/// What a request asks for.
enum Wanted<'a> {
    All,
    Names(Vec<&'a str>),
    Ids(Vec<Uuid>),
}

/// Why topics that were asked for by name are not there.
type Refused = BTreeMap<String, ErrorCode>;

/// Serves a request for metadata.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: MetadataRequest<'_> = call.decode()?;
    call.check_count("topics", request.topics.as_ref().map_or(0, Array::len))?;
    let Some(wanted) = wanted(&request, call.version) else {
        return refuse(call, &request);
    };
    // As it is now: a topic that this very request creates is unknown in its answer, as on Kafka, and there when the
    // client asks again. Clients that want to hear of a missing topic do.
    let image = call.core.image();
    let refused = match &wanted {
        Wanted::Names(names) if request.allow_auto_topic_creation => create_missing(call, &image, names).await,
        _ => Refused::new(),
    };
    let operations = if request.include_topic_authorized_operations { TOPIC_OPERATIONS } else { OPERATIONS_NOT_ASKED };
    let topics: Vec<MetadataResponseTopic<'_>> = match &wanted {
        Wanted::All => image.topics_by_name("").map(|topic| shown(&image, topic, operations)).collect(),
        Wanted::Names(names) => names
            .iter()
            .map(|name| match image.topic_named(name) {
                Some(topic) => shown(&image, topic, operations),
                None => MetadataResponseTopic {
                    topic_authorized_operations: operations,
                    ..missing(Some(name), Uuid::ZERO, absence(name, &refused))
                },
            })
            .collect(),
        Wanted::Ids(ids) => ids
            .iter()
            .map(|id| match image.topic(TopicId::from(*id)) {
                Some(topic) => shown(&image, topic, operations),
                None => missing(None, *id, ErrorCode::UnknownTopicId),
            })
            .collect(),
    };
    respond(call, &image, topics, request.include_cluster_authorized_operations)
}

/// What the request asks for; nothing where it asks for what its version has no words for.
fn wanted<'a>(request: &MetadataRequest<'a>, version: i16) -> Option<Wanted<'a>> {
    let Some(topics) = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty()) else {
        return Some(Wanted::All);
    };
    if version < BY_ID && topics.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_zero()) {
        return None;
    }
    let mut seen = BTreeSet::new();
    let ids: Vec<Uuid> = topics.iter().map(|topic| topic.topic_id).filter(|id| !id.is_zero()).collect();
    if !ids.is_empty() {
        return Some(Wanted::Ids(ids.into_iter().filter(|id| seen.insert(id.0)).collect()));
    }
    if topics.iter().any(|topic| topic.name.is_none()) {
        return None;
    }
    let mut seen = BTreeSet::new();
    let names = topics.iter().filter_map(|topic| topic.name).filter(|name| seen.insert(*name));
    Some(Wanted::Names(names.collect()))
}

/// Answers each topic of a request that cannot be understood, and nothing else, as Kafka does: with an error of the request
/// where the version has no topic ids, with an unknown one where a topic has neither id nor name.
fn refuse(call: &Call, request: &MetadataRequest<'_>) -> Result<Answer, Refusal> {
    let topics = request.topics.iter().flatten();
    let by_id = call.version >= BY_ID;
    let error = if by_id { ErrorCode::UnknownServerError } else { ErrorCode::InvalidRequest };
    let topics = topics.map(|topic| missing(Some(topic.name.unwrap_or_default()), topic.topic_id, error)).collect();
    call.answer(&MetadataResponse {
        controller_id: NO_CONTROLLER,
        topics,
        error_code: if call.version >= TOP_LEVEL_ERROR { error.code() } else { 0 },
        ..MetadataResponse::default()
    })
}

/// Creates those topics that do not exist, if this broker does that, but not without limit at a time; those that it
/// does not create, with the reason.
async fn create_missing(call: &Call, image: &MetadataImage, names: &[&str]) -> Refused {
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let enabled = layers.broker_value("auto.create.topics.enable").is_some_and(|value| boolean(&value) == Ok(true));
    let most = layers.broker_value("topic.creations.max").and_then(|value| value.parse().ok());
    let most: usize = most.expect("a value is checked before it is kept");
    let creatable = |name: &&&str| image.topic_named(name).is_none() && !is_internal(name);
    let topics: Vec<NewTopic> = names
        .iter()
        .filter(creatable)
        .filter(|_| enabled)
        .take(most)
        .map(|name| NewTopic {
            name: (*name).to_owned(),
            id: TopicId::new(call.core.io().random_bytes16()),
            partitions: -1,
            replication_factor: -1,
            assignments: Vec::new(),
            configs: Vec::new(),
        })
        .collect();
    if topics.is_empty() {
        return Refused::new();
    }
    let asked: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    match call.control(Command::CreateTopics(CreateTopics { topics, validate_only: false })).await {
        Ok(Response::CreateTopics(created)) => created.into_iter().filter_map(refused).collect(),
        Ok(other) => unreachable!("the controller answers in kind, not {other:?}"),
        Err(fault) => asked.into_iter().map(|name| (name, fault.code)).collect(),
    }
}

fn refused(topic: CreatedTopic) -> Option<(String, ErrorCode)> {
    topic.result.err().map(|fault| (topic.name, fault.code))
}

/// Why there is no topic of this name.
fn absence(name: &str, refused: &Refused) -> ErrorCode {
    match refused.get(name) {
        // Somebody else created it, and somebody deleted it again.
        Some(ErrorCode::TopicAlreadyExists) => ErrorCode::UnknownTopicOrPartition,
        Some(error) => *error,
        None if check_topic_name(name).is_err() => ErrorCode::InvalidTopicException,
        None => ErrorCode::UnknownTopicOrPartition,
    }
}

fn missing(name: Option<&str>, topic_id: Uuid, error: ErrorCode) -> MetadataResponseTopic<'_> {
    MetadataResponseTopic {
        error_code: error.code(),
        name,
        topic_id,
        is_internal: name.is_some_and(is_internal),
        ..MetadataResponseTopic::default()
    }
}

fn shown<'a>(image: &MetadataImage, topic: &'a Arc<TopicImage>, operations: i32) -> MetadataResponseTopic<'a> {
    let partitions = topic.partitions.iter().zip(0..).map(|(state, partition_index)| {
        let view = PartitionView::new(image, state);
        MetadataResponsePartition {
            error_code: view.error.code(),
            partition_index,
            leader_id: view.leader,
            leader_epoch: view.leader_epoch,
            replica_nodes: view.replicas.into(),
            isr_nodes: view.in_sync_replicas.into(),
            offline_replicas: view.offline_replicas.into(),
        }
    });
    MetadataResponseTopic {
        error_code: ErrorCode::None.code(),
        name: Some(&topic.name),
        topic_id: topic.id.into(),
        is_internal: is_internal(&topic.name),
        partitions: partitions.collect(),
        topic_authorized_operations: operations,
    }
}

fn respond(
    call: &Call,
    image: &MetadataImage,
    topics: Vec<MetadataResponseTopic<'_>>,
    with_cluster_operations: bool,
) -> Result<Answer, Refusal> {
    let own = call.core.broker_id();
    let endpoints = call.endpoints(image.brokers().map(|(broker, _)| broker));
    let brokers = endpoints.iter().map(|(broker, host, port)| MetadataResponseBroker {
        node_id: broker.get(),
        host,
        port: i32::from(*port),
        rack: image.broker(*broker).and_then(|registration| registration.rack.as_deref()),
    });
    call.answer(&MetadataResponse {
        brokers: brokers.collect(),
        cluster_id: Some(&call.core.identity().cluster_id),
        controller_id: own.get(),
        topics: topics.into(),
        cluster_authorized_operations: if with_cluster_operations { CLUSTER_OPERATIONS } else { OPERATIONS_NOT_ASKED },
        ..MetadataResponse::default()
    })
}
