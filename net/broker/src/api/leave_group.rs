//! LeaveGroup (key 13): members go.
//!
//! Owns what each version means by the members of a request. Never decides.

use std::sync::Arc;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Leave, Leaving, LeftMember};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::leave_group::{LeaveGroupRequest, LeaveGroupResponse, MemberResponse};

use super::{Answer, Call, Refusal, groups};

/// From this version on many members may leave at once.
const BATCHED: i16 = 3;

/// Serves a request to leave.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: LeaveGroupRequest<'_> = call.decode()?;
    call.check_count("members", request.members.len())?;
    if request.group_id.is_empty() {
        return refuse(call, ErrorCode::InvalidGroupId);
    }
    let members = if call.version >= BATCHED {
        let leaving = request.members.iter();
        leaving
            .map(|it| Leaving { member: it.member_id.into(), instance: it.group_instance_id.map(Arc::from) })
            .collect()
    } else {
        vec![Leaving { member: request.member_id.into(), instance: None }]
    };
    let leave = Leave { group: request.group_id.into(), members };
    match groups::ask(call, request.group_id, Command::Leave(leave)).await {
        Response::Leave(left) => respond(call, &left),
        Response::Gone(error) => refuse(call, error),
        _ => unreachable!("a command is answered in kind"),
    }
}

fn respond(call: &Call, left: &[LeftMember]) -> Result<Answer, Refusal> {
    if call.version < BATCHED {
        let result = left.first().map_or(Ok(()), |member| member.result);
        return call.answer(&LeaveGroupResponse { error_code: groups::code(result), ..LeaveGroupResponse::default() });
    }
    let members = left.iter().map(|member| MemberResponse {
        member_id: &member.who.member,
        group_instance_id: member.who.instance.as_deref(),
        error_code: groups::code(member.result),
    });
    call.answer(&LeaveGroupResponse { members: members.collect(), ..LeaveGroupResponse::default() })
}

fn refuse(call: &Call, error: ErrorCode) -> Result<Answer, Refusal> {
    call.answer(&LeaveGroupResponse { error_code: error.code(), ..LeaveGroupResponse::default() })
}
