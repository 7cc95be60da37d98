//! DeleteTopics (key 20): topics to be gone, by name or by id.
//!
//! Owns the translation between the wire and the controller, which decides.

use heddle_cluster::controller::{Command, DeleteTopic, DeletedTopic, Fault, Response};
use heddle_protocol::messages::delete_topics::{DeletableTopicResult, DeleteTopicsRequest, DeleteTopicsResponse};
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::TopicId;

use super::{Answer, Call, Refusal};

/// From this version on topics may be named by id, and a name may be null.
const BY_ID: i16 = 6;
/// Before this version there was no error code of its own for a broker that deletes nothing.
const DELETION_DISABLED: i16 = 3;

/// Serves a request for topics to be deleted.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DeleteTopicsRequest<'_> = call.decode()?;
    call.check_count("topics", request.topics.len() + request.topic_names.len())?;
    let topics: Vec<DeleteTopic> = if call.version >= BY_ID {
        let topics = request.topics.iter();
        topics.map(|t| DeleteTopic { name: t.name.map(str::to_owned), id: TopicId::new(t.topic_id.0) }).collect()
    } else {
        let names = request.topic_names.iter();
        names.map(|name| DeleteTopic { name: Some(name.to_owned()), id: TopicId::ZERO }).collect()
    };
    let asked = topics.clone();
    let deleted = match call.control(Command::DeleteTopics(topics)).await {
        Ok(Response::DeleteTopics(deleted)) => deleted,
        Ok(_) => unreachable!("a command is answered in kind"),
        Err(fault) => {
            let failed =
                |topic: DeleteTopic| DeletedTopic { name: topic.name, id: topic.id, result: Err(fault.clone()) };
            asked.into_iter().map(failed).collect()
        }
    };
    let responses: Vec<DeletableTopicResult<'_>> = deleted.iter().map(|topic| result(topic, call.version)).collect();
    call.answer(&DeleteTopicsResponse { responses: responses.into(), ..DeleteTopicsResponse::default() })
}

fn result(topic: &DeletedTopic, version: i16) -> DeletableTopicResult<'_> {
    let (error, message) = match &topic.result {
        Ok(()) => (ErrorCode::None, None),
        Err(Fault { code: ErrorCode::TopicDeletionDisabled, message }) if version < DELETION_DISABLED => {
            (ErrorCode::InvalidRequest, message.as_deref())
        }
        Err(fault) => (fault.code, fault.message.as_deref()),
    };
    DeletableTopicResult {
        name: topic.name.as_deref(),
        topic_id: Uuid(topic.id.bytes()),
        error_code: error.code(),
        error_message: message,
    }
}
