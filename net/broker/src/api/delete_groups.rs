//! DeleteGroups (key 42): groups to be forgotten, with all that they have committed.
//!
//! Owns the translation between the wire and the coordinators, which decide.

use std::collections::BTreeSet;

use heddle_cluster::group::Response;
use heddle_cluster::group::command::Command;
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::delete_groups::{DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse};

use super::{Answer, Call, Refusal, groups};
use crate::concurrently;

/// Serves a request to forget groups.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DeleteGroupsRequest<'_> = call.decode()?;
    call.check_count("groups", request.groups_names.len())?;
    // Whoever names a group twice means it once.
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = request.groups_names.iter().filter(|name| seen.insert(*name)).collect();
    let results = concurrently::all(names.iter().map(|name| delete(call, name))).await;
    let results = names.iter().zip(results);
    let results = results.map(|(group_id, result)| DeletableGroupResult { group_id, error_code: groups::code(result) });
    call.answer(&DeleteGroupsResponse { results: results.collect(), ..DeleteGroupsResponse::default() })
}

async fn delete(call: &Call, name: &str) -> Result<(), ErrorCode> {
    match groups::ask(call, name, Command::DeleteGroups(vec![name.into()])).await {
        Response::DeleteGroups(results) => results.into_iter().next().expect("one group, one result"),
        Response::Gone(error) => Err(error),
        _ => unreachable!("a command is answered in kind"),
    }
}
