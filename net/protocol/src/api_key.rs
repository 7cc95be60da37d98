//! The APIs by number. The enum itself is generated from the schema; what is said about it is here.

pub use crate::generated::ApiKey;
use core::fmt;

impl ApiKey {
    /// The API with this number on the wire.
    #[must_use]
    pub fn from_i16(key: i16) -> Option<ApiKey> {
        let index = ApiKey::ALL.binary_search_by_key(&key, |api| api.code()).ok()?;
        ApiKey::ALL.get(index).copied()
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// Whether `version` is flexible: compact lengths and tagged fields.
    #[must_use]
    pub fn is_flexible(self, version: i16) -> bool {
        self.flexible_from().is_some_and(|first| version >= first)
    }

    /// The version of the request header that goes before this version of the request.
    #[must_use]
    pub fn request_header_version(self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }

    /// The version of the response header that goes before this version of the response.
    ///
    /// ApiVersions answers with version 0 always: a client that asked in a version that the broker does not know must
    /// be able to read the answer (KIP-511).
    #[must_use]
    pub fn response_header_version(self, version: i16) -> i16 {
        i16::from(self.is_flexible(version) && self != ApiKey::ApiVersions)
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        assert_eq!(ApiKey::from_i16(0), Some(ApiKey::Produce));
        assert_eq!(ApiKey::from_i16(18).map(ApiKey::name), Some("ApiVersions"));
        assert_eq!(ApiKey::from_i16(4), None);
        assert_eq!(ApiKey::from_i16(93), None);
        for api in ApiKey::ALL {
            assert_eq!(ApiKey::from_i16(api.code()), Some(*api));
        }
    }

    #[test]
    fn header_versions() {
        assert_eq!(ApiKey::Produce.request_header_version(8), 1);
        assert_eq!(ApiKey::Produce.request_header_version(9), 2);
        assert_eq!(ApiKey::Produce.response_header_version(9), 1);
        assert_eq!(ApiKey::ApiVersions.request_header_version(3), 2);
        assert_eq!(ApiKey::ApiVersions.response_header_version(3), 0);
        assert_eq!(ApiKey::SaslHandshake.request_header_version(1), 1);
    }
}
