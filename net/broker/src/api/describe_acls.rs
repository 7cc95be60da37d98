//! DescribeAcls (key 29): nobody is kept from anything here, and a client that asks who may do what is told so.
//!
//! Owns the answer of a broker without an authorizer, as Kafka words it.

use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_acls::{DescribeAclsRequest, DescribeAclsResponse};

use super::{Answer, Call, Refusal};

/// The number that stands for no known kind of resource, pattern, operation or permission.
const UNKNOWN: i8 = 0;

/// Serves a question for access control lists.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeAclsRequest<'_> = call.decode()?;
    check_known([
        request.resource_type_filter,
        request.pattern_type_filter,
        request.operation,
        request.permission_type,
    ])?;
    call.answer(&DescribeAclsResponse {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some("No Authorizer is configured on the broker"),
        ..DescribeAclsResponse::default()
    })
}

/// Refuses what names nothing, as Kafka does: the connection is closed.
///
/// # Errors
/// One of the numbers stands for nothing known.
pub(super) fn check_known(numbers: [i8; 4]) -> Result<(), Refusal> {
    if numbers.contains(&UNKNOWN) { Err(Refusal::Senseless("an access control list of unknown kind")) } else { Ok(()) }
}
