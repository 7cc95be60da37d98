//! CreateAcls (key 30): without an authorizer there are no access control lists to create.
//!
//! Owns the answer of a broker without an authorizer, as Kafka words it.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::create_acls::{AclCreationResult, CreateAclsRequest, CreateAclsResponse};

use super::describe_acls::check_known;
use super::{Answer, Call, Refusal};

/// What Kafka says where there is no authorizer.
pub(super) const NO_AUTHORIZER: &str = "No Authorizer is configured.";

/// Serves a request for access control lists.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: CreateAclsRequest<'_> = call.decode()?;
    call.check_count("access control lists", request.creations.len())?;
    for creation in request.creations.iter() {
        check_known([
            creation.resource_type,
            creation.resource_pattern_type,
            creation.operation,
            creation.permission_type,
        ])?;
    }
    let refused =
        |_| AclCreationResult { error_code: ErrorCode::SecurityDisabled.code(), error_message: Some(NO_AUTHORIZER) };
    let results = request.creations.iter().map(refused).collect();
    call.answer(&CreateAclsResponse { results, ..CreateAclsResponse::default() })
}
