//! ApiVersions (key 18): what this broker serves, from the table itself.
//!
//! Owns the answer to clients that are newer than this broker. Advertises nothing that does not work.

use heddle_io::Lease;
use heddle_protocol::messages::api_versions::{ApiVersion, ApiVersionsRequest, ApiVersionsResponse};
use heddle_protocol::{ErrorCode, Writer, frame};

use super::{Answer, Call, Part, Refusal, TABLE};

/// Serves a question for versions.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: ApiVersionsRequest<'_> = call.decode()?;
    let names = [request.client_software_name, request.client_software_version];
    if call.version >= NAMED && !names.into_iter().all(is_software_name) {
        let error_code = ErrorCode::InvalidRequest.code();
        return call.answer(&ApiVersionsResponse { error_code, ..ApiVersionsResponse::default() });
    }
    call.answer(&response(ErrorCode::None))
}

/// From this version on clients say what they are (KIP-511).
const NAMED: i16 = 3;

/// Letters and digits, between them also `.` and `-`.
fn is_software_name(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().last()];
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    ends.into_iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric())) && name.bytes().all(is_inner)
}

/// Answers a version of this API that is not known: in version 0, with everything a client needs to choose again
/// (KIP-511). The rest of the request is not looked at.
pub(crate) fn unsupported(call: &Call) -> Result<Answer, Refusal> {
    let mut writer = Writer::new();
    let mut response = response(ErrorCode::UnsupportedVersion);
    let own: Vec<ApiVersion> = response.api_keys.iter().filter(|api| api.api_key == call.key.code()).collect();
    response.api_keys = own.into();
    frame::encode_response(&mut writer, call.key, 0, call.correlation_id, &response)?;
    call.note_errors(&mut writer);
    Ok(Answer(vec![Part::Bytes(Lease::from_vec(writer.into_bytes()))]))
}

fn response(error: ErrorCode) -> ApiVersionsResponse<'static> {
    let keys = TABLE.iter().map(|api| ApiVersion {
        api_key: api.key.code(),
        min_version: api.advertised_min,
        max_version: *api.versions.end(),
    });
    ApiVersionsResponse {
        error_code: error.code(),
        api_keys: keys.collect::<Vec<_>>().into(),
        ..ApiVersionsResponse::default()
    }
}
