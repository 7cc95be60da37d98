//! Responses of any API in any version, as a client reads them: int16 API, int16 version, body.
#![no_main]

use heddle_protocol::json;
use heddle_protocol::schema::{MessageSpec, ReencodeError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[key_high, key_low, version_high, version_low], body)) = data.split_first_chunk() else {
        return;
    };
    let version = i16::from_be_bytes([version_high, version_low]);
    let Some(spec) = MessageSpec::response(i16::from_be_bytes([key_high, key_low])) else {
        return;
    };
    if !spec.versions.contains(version) {
        return;
    }
    let shown = json::show(spec, version, body);
    match (spec.reencode)(body, version) {
        Ok((bytes, _)) => {
            let again = (spec.reencode)(&bytes, version).expect("what was encoded can be decoded");
            assert_eq!(again, (bytes.clone(), bytes.len()));
            assert!(shown.is_ok(), "{shown:?}");
        }
        Err(ReencodeError::Decode(error)) => assert!(error.at <= body.len() && shown.is_err()),
        Err(ReencodeError::Encode(error)) => panic!("{}: what was decoded cannot be encoded: {error}", spec.name),
    }
});
