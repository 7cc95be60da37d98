//! Scripts of requests, what a broker answers to them, and the notation of both: how Heddle is held to Apache Kafka's
//! answers. The notation is described in `tests/compat/README.md`. Knows no API: messages go through the codec's tables.

pub mod batch;
pub mod decode;
pub mod encode;
pub mod normal;
pub mod script;
pub mod talk;
pub mod value;
