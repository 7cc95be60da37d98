//! DeleteAcls (key 31): without an authorizer there are no access control lists to delete.
//!
//! Owns the answer of a broker without an authorizer, as Kafka words it.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::delete_acls::{DeleteAclsFilterResult, DeleteAclsRequest, DeleteAclsResponse};

use super::create_acls::NO_AUTHORIZER;
use super::describe_acls::check_known;
use super::{Answer, Call, Refusal};

/// Serves a request to delete access control lists.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DeleteAclsRequest<'_> = call.decode()?;
    call.check_count("filters", request.filters.len())?;
    for filter in request.filters.iter() {
        check_known([
            filter.resource_type_filter,
            filter.pattern_type_filter,
            filter.operation,
            filter.permission_type,
        ])?;
    }
    let refused = |_| DeleteAclsFilterResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some(NO_AUTHORIZER),
        ..DeleteAclsFilterResult::default()
    };
    let filter_results = request.filters.iter().map(refused).collect();
    call.answer(&DeleteAclsResponse { filter_results, ..DeleteAclsResponse::default() })
}
