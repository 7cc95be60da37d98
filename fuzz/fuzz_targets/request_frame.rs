//! Requests of any API in any version: a header and a body, without the length before them.
#![no_main]

use heddle_protocol::schema::{MessageSpec, ReencodeError};
use heddle_protocol::{Reader, frame, json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = frame::RequestStart::peek(data);
    let mut reader = Reader::new(data);
    let Ok((api, header)) = frame::decode_request_header(&mut reader) else {
        return;
    };
    let spec = MessageSpec::request(api.code()).expect("every known API has a request");
    check(spec, header.request_api_version, reader.remaining());
});

/// What is decoded can be encoded, and decoding that gives the same bytes again. JSON agrees on what is legal.
fn check(spec: &MessageSpec, version: i16, body: &[u8]) {
    let shown = json::show(spec, version, body);
    match (spec.reencode)(body, version) {
        Ok((bytes, read)) => {
            assert!(read <= body.len());
            let again = (spec.reencode)(&bytes, version).expect("what was encoded can be decoded");
            assert_eq!(again, (bytes.clone(), bytes.len()));
            assert!(shown.is_ok(), "{shown:?}");
        }
        Err(ReencodeError::Decode(error)) => assert!(error.at <= body.len() && shown.is_err()),
        Err(ReencodeError::Encode(error)) => panic!("{}: what was decoded cannot be encoded: {error}", spec.name),
    }
}
