//! Heartbeat (key 12): a member lives.
//!
//! Owns the translation between the wire and the coordinator, which decides.

use std::sync::Arc;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Membership};
use heddle_protocol::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};

use super::{Answer, Call, Refusal, groups};

/// Serves a sign of life.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: HeartbeatRequest<'_> = call.decode()?;
    let of = Membership {
        group: request.group_id.into(),
        member: request.member_id.into(),
        instance: request.group_instance_id.map(Arc::from),
        generation: request.generation_id,
    };
    let result = match groups::ask(call, request.group_id, Command::Heartbeat(of)).await {
        Response::Heartbeat(result) => result,
        Response::Gone(error) => Err(error),
        _ => unreachable!("a command is answered in kind"),
    };
    call.answer(&HeartbeatResponse { error_code: groups::code(result), ..HeartbeatResponse::default() })
}
