//! DescribeGroups (key 15): groups and their members.
//!
//! Owns what each version says of a group that is not there. Never decides.

use heddle_cluster::group::Response;
use heddle_cluster::group::command::{Command, Described};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_groups::{
    DescribeGroupsRequest, DescribeGroupsResponse, DescribedGroup, DescribedGroupMember,
};

use super::groups::{self, GROUP_OPERATIONS};
use super::topic_view::OPERATIONS_NOT_ASKED;
use super::{Answer, Call, Refusal};
use crate::concurrently;

/// From this version on a group that is not there is an error.
const NOT_FOUND: i16 = 6;

/// Serves a request for groups.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeGroupsRequest<'_> = call.decode()?;
    call.check_count("groups", request.groups.len())?;
    let names: Vec<&str> = request.groups.iter().collect();
    let described = concurrently::all(names.iter().map(|name| describe(call, name))).await;
    let messages: Vec<String> = names.iter().map(|name| format!("Group {name} not found.")).collect();
    let operations = if request.include_authorized_operations { GROUP_OPERATIONS } else { OPERATIONS_NOT_ASKED };
    let groups = names.iter().zip(&described).zip(&messages).map(|((name, described), message)| {
        let group = DescribedGroup { group_id: name, authorized_operations: operations, ..DescribedGroup::default() };
        match described {
            Ok(Some(it)) => show(it, group),
            Ok(None) if call.version >= NOT_FOUND => DescribedGroup {
                error_code: ErrorCode::GroupIdNotFound.code(),
                error_message: Some(message),
                group_state: "Dead",
                ..group
            },
            Ok(None) => DescribedGroup { group_state: "Dead", ..group },
            Err(error) => DescribedGroup { error_code: error.code(), ..group },
        }
    });
    let groups: Vec<DescribedGroup<'_>> = groups.collect();
    call.answer(&DescribeGroupsResponse { groups: groups.into(), ..DescribeGroupsResponse::default() })
}

async fn describe(call: &Call, name: &str) -> Result<Option<Box<Described>>, ErrorCode> {
    match groups::ask(call, name, Command::Describe(name.into())).await {
        Response::Describe(described) => Ok(described),
        Response::Gone(error) => Err(error),
        _ => unreachable!("a command is answered in kind"),
    }
}

fn show<'a>(described: &'a Described, group: DescribedGroup<'a>) -> DescribedGroup<'a> {
    let members = described.members.iter().map(|member| DescribedGroupMember {
        member_id: &member.id,
        group_instance_id: member.instance.as_deref(),
        client_id: &member.client_id,
        client_host: &member.client_host,
        member_metadata: &member.metadata,
        member_assignment: &member.assignment,
    });
    DescribedGroup {
        group_state: described.state,
        protocol_type: &described.protocol_type,
        protocol_data: described.protocol.as_deref().unwrap_or_default(),
        members: members.collect(),
        ..group
    }
}
