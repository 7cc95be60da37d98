//! Whole frames: an int32 length, a header, a message.
//!
//! Owns how a frame is taken apart and put together; knows no socket and keeps no bytes.

use crate::api_key::ApiKey;
use crate::error::{DecodeError, DecodeErrorKind, EncodeError};
use crate::generated::messages::header::{RequestHeader, ResponseHeader};
use crate::message::{Message, Request};
use crate::reader::Reader;
use crate::writer::Writer;

/// Bytes of the length that goes before every frame and does not count itself.
pub const LENGTH_BYTES: usize = 4;

/// The first eight bytes of every request, which are the same in every version of every API.
///
/// An ApiVersions request of an unknown version is answered from these alone (KIP-511).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStart {
    /// The API, known or not.
    pub api_key: i16,
    /// Its version, known or not.
    pub api_version: i16,
    /// What the response must carry.
    pub correlation_id: i32,
}

impl RequestStart {
    /// Reads the start of a request; `frame` has no length before it.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Truncated`] when there are fewer than eight bytes.
    pub fn peek(frame: &[u8]) -> Result<RequestStart, DecodeError> {
        let mut reader = Reader::new(frame);
        Ok(RequestStart {
            api_key: i16::from_be_bytes(reader.array("RequestHeader.request_api_key")?),
            api_version: i16::from_be_bytes(reader.array("RequestHeader.request_api_version")?),
            correlation_id: i32::from_be_bytes(reader.array("RequestHeader.correlation_id")?),
        })
    }
}

/// Reads the header of a request; `reader` then stands at the body.
///
/// # Errors
/// [`DecodeErrorKind::ApiKey`] and [`DecodeErrorKind::Version`] for what the schema does not describe, and those of the
/// header itself.
pub fn decode_request_header<'a>(reader: &mut Reader<'a>) -> Result<(ApiKey, RequestHeader<'a>), DecodeError> {
    let start = RequestStart::peek(reader.remaining())?;
    let Some(api) = ApiKey::from_i16(start.api_key) else {
        return Err(reader.error("RequestHeader.request_api_key", DecodeErrorKind::ApiKey(start.api_key)));
    };
    if !api.versions().contains(start.api_version) {
        return Err(reader.error("RequestHeader.request_api_version", DecodeErrorKind::Version(start.api_version)));
    }
    let header = RequestHeader::decode(reader, api.request_header_version(start.api_version))?;
    Ok((api, header))
}

/// Appends a whole request frame: length, header, body.
///
/// # Errors
/// As [`Message::encode`].
pub fn encode_request<'a, R: Request<'a>>(
    writer: &mut Writer,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    request: &R,
) -> Result<(), EncodeError> {
    let start = writer.start_frame();
    let header =
        RequestHeader { request_api_key: R::KEY.code(), request_api_version: version, correlation_id, client_id };
    header.encode(writer, R::KEY.request_header_version(version))?;
    request.encode(writer, version)?;
    writer.end_frame(start)
}

/// Appends a whole response frame: length, header, body. The gaps of external records count in the length.
///
/// # Errors
/// As [`Message::encode`].
pub fn encode_response<'a, M: Message<'a>>(
    writer: &mut Writer,
    api: ApiKey,
    version: i16,
    correlation_id: i32,
    response: &M,
) -> Result<(), EncodeError> {
    let start = writer.start_frame();
    ResponseHeader { correlation_id }.encode(writer, api.response_header_version(version))?;
    response.encode(writer, version)?;
    writer.end_frame(start)
}

/// Reads the header of a response to a request of `api` in `version`; `reader` then stands at the body.
///
/// # Errors
/// As [`Message::decode`].
pub fn decode_response_header(
    reader: &mut Reader<'_>,
    api: ApiKey,
    version: i16,
) -> Result<ResponseHeader, DecodeError> {
    ResponseHeader::decode(reader, api.response_header_version(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generated::messages::api_versions::{ApiVersionsRequest, ApiVersionsResponse};

    #[test]
    fn request_frame_reads_back() {
        let request = ApiVersionsRequest { client_software_name: "heddle", client_software_version: "1" };
        let mut writer = Writer::new();
        encode_request(&mut writer, 3, 77, Some("me"), &request).unwrap();
        let bytes = writer.into_bytes();
        let (length, frame) = bytes.split_first_chunk::<4>().unwrap();
        assert_eq!(i32::from_be_bytes(*length), i32::try_from(frame.len()).unwrap());
        let mut reader = Reader::new(frame);
        let (api, header) = decode_request_header(&mut reader).unwrap();
        assert_eq!((api, header.correlation_id, header.client_id), (ApiKey::ApiVersions, 77, Some("me")));
        assert_eq!(ApiVersionsRequest::decode(&mut reader, 3), Ok(request));
    }

    /// Even in version 3, whose body is flexible.
    #[test]
    fn api_versions_answers_with_a_header_without_tags() {
        let mut writer = Writer::new();
        encode_response(&mut writer, ApiKey::ApiVersions, 3, 5, &ApiVersionsResponse::default()).unwrap();
        assert_eq!(writer.bytes(), [0, 0, 0, 12, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn unknown_keys_and_versions_are_told_apart() {
        let error = decode_request_header(&mut Reader::new(&[0, 4, 0, 0, 0, 0, 0, 1])).unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::ApiKey(4));
        let bytes = [0, 18, 0, 99, 0, 0, 0, 1];
        let error = decode_request_header(&mut Reader::new(&bytes)).unwrap_err();
        assert_eq!(error.kind, DecodeErrorKind::Version(99));
        let start = RequestStart { api_key: 18, api_version: 99, correlation_id: 1 };
        assert_eq!(RequestStart::peek(&bytes), Ok(start));
    }
}
