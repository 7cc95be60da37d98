//! ListGroups (key 16): every group that this broker coordinates.
//!
//! Owns the gathering from all cores. Never decides.

use std::sync::Arc;

use heddle_cluster::group::CLASSIC;
use heddle_cluster::group::command::{Filter, Listed};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::list_groups::{ListGroupsRequest, ListGroupsResponse, ListedGroup};

use super::{Answer, Call, Refusal};

/// Serves a request for all groups.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: ListGroupsRequest<'_> = call.decode()?;
    call.check_count("filters", request.states_filter.len() + request.types_filter.len())?;
    let filter = Filter {
        states: request.states_filter.iter().map(Arc::from).collect(),
        types: request.types_filter.iter().map(Arc::from).collect(),
    };
    let (groups, error) = match list(call, &filter).await {
        Ok(groups) => (groups, ErrorCode::None),
        Err(error) => (Vec::new(), error),
    };
    let groups: Vec<ListedGroup<'_>> = groups.iter().map(show).collect();
    let error_code = error.code();
    call.answer(&ListGroupsResponse { error_code, groups: groups.into(), ..ListGroupsResponse::default() })
}

async fn list(call: &Call, filter: &Filter) -> Result<Vec<Listed>, ErrorCode> {
    let mut groups = Vec::new();
    for asked in call.core.post_all(|| filter.clone()).await {
        groups.extend(asked.answer::<Filter>().await?);
    }
    Ok(groups)
}

fn show(group: &Listed) -> ListedGroup<'_> {
    ListedGroup {
        group_id: &group.group,
        protocol_type: &group.protocol_type,
        group_state: group.state,
        group_type: CLASSIC,
    }
}
