//! JoinGroup (key 11): a member comes into a group, and waits until the group is complete.
//!
//! Owns the translation between the wire and the coordinator, which decides.

use std::sync::Arc;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Join, Joined, JoinedGeneration, Protocol};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::join_group::{JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember};

use super::{Answer, Call, Refusal, groups};

/// From this version on a new member comes again with the id that it is given (KIP-394).
const KNOWN_ID: i16 = 4;
/// From this version on an answer has the protocol's type, and its name may be missing.
const PROTOCOL_TYPE: i16 = 7;
/// From this version on a leader can be told to leave the assignment as it is (KIP-814).
const SKIPS_ASSIGNMENT: i16 = 9;

/// Serves a request to join.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: JoinGroupRequest<'_> = call.decode()?;
    call.check_count("protocols", request.protocols.len())?;
    let protocols = request.protocols.iter();
    let join = Join {
        group: request.group_id.into(),
        member: request.member_id.into(),
        instance: request.group_instance_id.map(Arc::from),
        client_id: call.client_id()?.into(),
        client_host: call.client_host().into(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms: match request.rebalance_timeout_ms {
            timeout if call.version >= 1 => timeout,
            _ => request.session_timeout_ms,
        },
        protocol_type: request.protocol_type.into(),
        protocols: protocols.map(|it| Protocol { name: it.name.into(), metadata: it.metadata.into() }).collect(),
        needs_known_id: call.version >= KNOWN_ID,
        may_skip_assignment: call.version >= SKIPS_ASSIGNMENT,
        fresh: call.core.io().random_bytes16(),
    };
    match groups::ask(call, request.group_id, Command::Join(Box::new(join))).await {
        Response::Join(joined) => match &joined.result {
            Ok(generation) => accept(call, &joined, generation),
            Err(error) => refuse(call, &joined.member, *error),
        },
        Response::Gone(error) => refuse(call, request.member_id, error),
        _ => unreachable!("a command is answered in kind"),
    }
}

fn accept(call: &Call, joined: &Joined, generation: &JoinedGeneration) -> Result<Answer, Refusal> {
    let members = generation.members.iter().map(|member| JoinGroupResponseMember {
        member_id: &member.id,
        group_instance_id: member.instance.as_deref(),
        metadata: &member.metadata,
    });
    call.answer(&JoinGroupResponse {
        generation_id: generation.generation,
        protocol_type: generation.protocol_type.as_deref(),
        protocol_name: generation.protocol.as_deref().or(absent_name(call)),
        leader: &generation.leader,
        skip_assignment: generation.skip_assignment,
        member_id: &joined.member,
        members: members.collect(),
        ..JoinGroupResponse::default()
    })
}

fn refuse(call: &Call, member_id: &str, error: ErrorCode) -> Result<Answer, Refusal> {
    call.answer(&JoinGroupResponse {
        error_code: error.code(),
        generation_id: -1,
        protocol_type: None,
        protocol_name: absent_name(call),
        member_id,
        ..JoinGroupResponse::default()
    })
}

/// What stands for no protocol.
fn absent_name(call: &Call) -> Option<&'static str> {
    (call.version < PROTOCOL_TYPE).then_some("")
}
