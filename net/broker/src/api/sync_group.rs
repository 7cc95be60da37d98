//! SyncGroup (key 14): a member asks what it gets; the leader says what everybody gets.
//!
//! Owns the translation between the wire and the coordinator, which decides.

use std::sync::Arc;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Membership, Sync, SyncedMember};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::sync_group::{SyncGroupRequest, SyncGroupResponse};

use super::{Answer, Call, Refusal, groups};

/// From this version on both sides say what they believe the group's protocol to be.
const PROTOCOL: i16 = 5;

/// Serves a request for an assignment.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: SyncGroupRequest<'_> = call.decode()?;
    call.check_count("assignments", request.assignments.len())?;
    if call.version >= PROTOCOL && (request.protocol_type.is_none() || request.protocol_name.is_none()) {
        return refuse(call, ErrorCode::InconsistentGroupProtocol);
    }
    let sync = Sync {
        of: Membership {
            group: request.group_id.into(),
            member: request.member_id.into(),
            instance: request.group_instance_id.map(Arc::from),
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type.map(Arc::from),
        protocol: request.protocol_name.map(Arc::from),
        assignments: request.assignments.iter().map(|it| (it.member_id.into(), it.assignment.into())).collect(),
    };
    match groups::ask(call, request.group_id, Command::Sync(sync)).await {
        Response::Sync(synced) => match &synced.result {
            Ok(member) => accept(call, member),
            Err(error) => refuse(call, *error),
        },
        Response::Gone(error) => refuse(call, error),
        _ => unreachable!("a command is answered in kind"),
    }
}

fn accept(call: &Call, member: &SyncedMember) -> Result<Answer, Refusal> {
    call.answer(&SyncGroupResponse {
        protocol_type: member.protocol_type.as_deref(),
        protocol_name: member.protocol.as_deref(),
        assignment: &member.assignment,
        ..SyncGroupResponse::default()
    })
}

fn refuse(call: &Call, error: ErrorCode) -> Result<Answer, Refusal> {
    call.answer(&SyncGroupResponse { error_code: error.code(), ..SyncGroupResponse::default() })
}
