//! placeholder
#![expect(unsafe_code, reason = "the ring, the buffers and the cross-core queue live here")]
