//! Whole frames as JSON: `{"header":{…},"body":{…}}`.
//!
//! A frame may come with its int32 length or without; it is written back the way it came.

use super::{Shown, show, write_message};
use crate::api_key::ApiKey;
use crate::error::{DecodeError, DecodeErrorKind};
use crate::frame::{LENGTH_BYTES, decode_request_header};
use crate::reader::Reader;
use crate::schema::{MessageSpec, ReencodeError};
use alloc::string::String;

/// Shows a request frame; the header says which request it is.
///
/// # Errors
/// [`ReencodeError`] when it is no request that the schema describes.
pub fn show_request(bytes: &[u8]) -> Result<Shown, ReencodeError> {
    let (prefix, frame) = split_length(bytes);
    let at = |error: ReencodeError| error.after(prefix.len());
    let mut reader = Reader::new(frame);
    let (api, header) = decode_request_header(&mut reader).map_err(|error| at(ReencodeError::Decode(error)))?;
    let version = header.request_api_version;
    let spec = MessageSpec::request(api.code()).expect("every API has a request");
    show_frame("RequestHeader", api.request_header_version(version), spec, version, prefix, frame).map_err(at)
}

/// Shows the response to a request of `api_key` in `version`.
///
/// # Errors
/// [`ReencodeError`] when it is no such response.
pub fn show_response(api_key: i16, version: i16, bytes: &[u8]) -> Result<Shown, ReencodeError> {
    let (prefix, frame) = split_length(bytes);
    let at = |error: ReencodeError| error.after(prefix.len());
    let (Some(api), Some(spec)) = (ApiKey::from_i16(api_key), MessageSpec::response(api_key)) else {
        let error = DecodeError { what: "ResponseHeader", at: 0, kind: DecodeErrorKind::ApiKey(api_key) };
        return Err(ReencodeError::Decode(error));
    };
    show_frame("ResponseHeader", api.response_header_version(version), spec, version, prefix, frame).map_err(at)
}

/// The length that goes before a frame, if these bytes start with one.
fn split_length(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.split_at_checked(LENGTH_BYTES) {
        Some((prefix, frame)) if u32::try_from(frame.len()).is_ok_and(|length| prefix == length.to_be_bytes()) => {
            (prefix, frame)
        }
        _ => (&[], bytes),
    }
}

fn show_frame(
    header: &str,
    header_version: i16,
    spec: &MessageSpec,
    version: i16,
    prefix: &[u8],
    frame: &[u8],
) -> Result<Shown, ReencodeError> {
    let header = MessageSpec::named(header).expect("the schema has both headers");
    let (mut bytes, header_length) = (header.reencode)(frame, header_version)?;
    let mut json = String::from("{\"header\":");
    let mut reader = Reader::new(frame);
    write_message(&mut json, header, header_version, &mut reader).map_err(ReencodeError::Decode)?;
    let body = show(spec, version, reader.remaining()).map_err(|error| error.after(header_length))?;
    json.push_str(",\"body\":");
    json.push_str(&body.json);
    json.push('}');
    bytes.extend_from_slice(&body.bytes);
    if !prefix.is_empty() {
        // What is written again is never longer than what came.
        let length = u32::try_from(bytes.len()).expect("a frame has an int32 length");
        bytes = [&length.to_be_bytes(), bytes.as_slice()].concat();
    }
    Ok(Shown { version, json, bytes, trailing: body.trailing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{encode_request, encode_response};
    use crate::messages::heartbeat::{HeartbeatRequest, HeartbeatResponse};
    use crate::writer::Writer;
    use alloc::string::ToString;

    #[test]
    fn a_request_is_shown_with_its_header() {
        let mut writer = Writer::new();
        let request = HeartbeatRequest { group_id: "g", generation_id: 4, ..Default::default() };
        encode_request(&mut writer, 4, 9, Some("me"), &request).unwrap();
        let bytes = writer.into_bytes();
        for frame in [bytes.as_slice(), bytes.split_at(LENGTH_BYTES).1] {
            let shown = show_request(frame).unwrap();
            assert_eq!(
                shown.json,
                "{\"header\":{\"requestApiKey\":12,\"requestApiVersion\":4,\"correlationId\":9,\"clientId\":\"me\"},\
                 \"body\":{\"groupId\":\"g\",\"generationId\":4,\"memberId\":\"\",\"groupInstanceId\":null}}"
            );
            assert_eq!(shown.bytes, frame);
        }
    }

    #[test]
    fn a_response_is_shown_with_its_header() {
        let mut writer = Writer::new();
        let response = HeartbeatResponse { throttle_time_ms: 7, error_code: 27 };
        encode_response(&mut writer, ApiKey::Heartbeat, 4, 9, &response).unwrap();
        let bytes = writer.into_bytes();
        let shown = show_response(12, 4, &bytes).unwrap();
        let json = "{\"header\":{\"correlationId\":9},\"body\":{\"throttleTimeMs\":7,\"errorCode\":27}}";
        assert_eq!((shown.json.as_str(), &shown.bytes), (json, &bytes));
    }

    #[test]
    fn errors_count_from_the_first_byte_of_the_frame() {
        let bytes = [0, 0, 0, 11, 0, 12, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 9];
        let error = show_request(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "HeartbeatRequest.group_id: 2 bytes needed, 1 remain, at byte 14");
    }
}
