//! What became of a part of a request, as responses tell it.
//!
//! Owns the translation of a fault into a number and words.

use heddle_cluster::controller::{AlteredResource, Fault};
use heddle_protocol::ErrorCode;

/// The number of an outcome's error, 0 where there is none.
pub(super) fn code<T>(outcome: &Result<T, Fault>) -> i16 {
    outcome.as_ref().err().map_or(ErrorCode::None, |fault| fault.code).code()
}

/// The words beside it, where there are any.
pub(super) fn message<T>(outcome: &Result<T, Fault>) -> Option<&str> {
    outcome.as_ref().err().and_then(|fault| fault.message.as_deref())
}

/// What both requests that change settings are told of a resource.
pub(super) struct Altered<'a> {
    pub(super) error_code: i16,
    pub(super) error_message: Option<&'a str>,
    pub(super) resource_type: i8,
    pub(super) resource_name: &'a str,
}

impl<'a> From<&'a AlteredResource> for Altered<'a> {
    fn from(resource: &'a AlteredResource) -> Self {
        Self {
            error_code: code(&resource.result),
            error_message: message(&resource.result),
            resource_type: resource.kind,
            resource_name: &resource.name,
        }
    }
}
