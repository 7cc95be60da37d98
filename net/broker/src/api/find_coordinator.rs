//! FindCoordinator (key 10): which broker decides about a group.
//!
//! Owns the creation of the offsets topic, with the first question for it. The coordinator of a group is the leader of
//! the group's partition of that topic.

use heddle_cluster::controller::{Command, CreateTopics, NewTopic, Response};
use heddle_cluster::group::OFFSETS_TOPIC;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::find_coordinator::{Coordinator, FindCoordinatorRequest, FindCoordinatorResponse};
use heddle_record::TopicId;

use super::groups::place_of;
use super::{Answer, Call, Refusal};

/// From this version on a request has many keys.
const BATCHED: i16 = 4;
/// The key is a group.
const GROUP: i8 = 0;
/// The key is a transactional id.
const TRANSACTION: i8 = 1;
/// The key type of a partition of a share group.
const SHARE: i8 = 2;

/// What is found for a key.
struct Found {
    node_id: i32,
    host: String,
    port: i32,
    error: ErrorCode,
    message: Option<&'static str>,
}

impl Found {
    fn refused(error: ErrorCode, message: Option<&'static str>) -> Self {
        Self { node_id: -1, host: String::new(), port: -1, error, message }
    }
}

/// Serves a request for coordinators.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: FindCoordinatorRequest<'_> = call.decode()?;
    call.check_count("keys", request.coordinator_keys.len())?;
    if request.key_type == GROUP {
        create_topic(call).await;
    }
    if call.version < BATCHED {
        let found = find(call, request.key_type, request.key);
        return call.answer(&FindCoordinatorResponse {
            error_code: found.error.code(),
            // Before the batched form, success has the name of its code for a message.
            error_message: found
                .message
                .or_else(|| Some(found.error.name()).filter(|_| found.error == ErrorCode::None)),
            node_id: found.node_id,
            host: &found.host,
            port: found.port,
            ..FindCoordinatorResponse::default()
        });
    }
    let keys: Vec<&str> = request.coordinator_keys.iter().collect();
    let found: Vec<Found> = keys.iter().map(|key| find(call, request.key_type, key)).collect();
    let coordinators = keys.iter().zip(&found).map(|(key, found)| Coordinator {
        key,
        node_id: found.node_id,
        host: &found.host,
        port: found.port,
        error_code: found.error.code(),
        error_message: found.message.or(Some("")),
    });
    call.answer(&FindCoordinatorResponse { coordinators: coordinators.collect(), ..FindCoordinatorResponse::default() })
}

fn find(call: &Call, key_type: i8, key: &str) -> Found {
    match key_type {
        GROUP => {}
        // The one refusal that every client takes for final.
        TRANSACTION => {
            let message = "This broker does not coordinate transactions.";
            return Found::refused(ErrorCode::TransactionalIdAuthorizationFailed, Some(message));
        }
        SHARE => return Found::refused(ErrorCode::InvalidRequest, None),
        _ => {
            return Found::refused(
                ErrorCode::InvalidRequest,
                Some("There are coordinators of groups and of transactions."),
            );
        }
    }
    let image = call.core.image();
    let unavailable = || Found::refused(ErrorCode::CoordinatorNotAvailable, None);
    let Some((topic, partition)) = place_of(&image, key) else { return unavailable() };
    let leader = topic.partition(partition).expect("a group lives in a partition of the topic").leader;
    match call.endpoints(std::iter::once(leader)).pop() {
        Some((node, host, port)) => {
            Found { node_id: node.get(), host, port: i32::from(port), error: ErrorCode::None, message: None }
        }
        None => unavailable(),
    }
}

/// Makes the offsets topic, unless it is there.
async fn create_topic(call: &Call) {
    let image = call.core.image();
    if image.topic_named(OFFSETS_TOPIC).is_some() {
        return;
    }
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let value = |name| layers.broker_value(name).expect("the setting has a default").into_owned();
    let number = |name| value(name).parse::<i32>().expect("a value is checked before it is kept");
    let brokers = i32::try_from(image.brokers().len()).unwrap_or(i32::MAX);
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "producer".to_owned()),
        ("segment.bytes", value("offsets.topic.segment.bytes")),
    ];
    let topic = NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        id: TopicId::new(call.core.io().random_bytes16()),
        partitions: number("offsets.topic.num.partitions"),
        // As many copies as there are brokers for, up to what is wanted.
        replication_factor: i16::try_from(number("offsets.topic.replication.factor").min(brokers)).unwrap_or(1),
        assignments: Vec::new(),
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect(),
    };
    let command = Command::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false });
    let fault = match call.control(command).await {
        Ok(Response::CreateTopics(created)) => created.into_iter().find_map(|topic| topic.result.err()),
        Ok(_) => unreachable!("a command is answered in kind"),
        Err(fault) => Some(fault),
    };
    if let Some(fault) = fault.filter(|fault| fault.code != ErrorCode::TopicAlreadyExists) {
        tracing::error!("{OFFSETS_TOPIC} cannot be created: {fault}");
    }
}
