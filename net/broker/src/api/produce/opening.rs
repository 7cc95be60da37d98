//! A Produce of one large batch, before the batch's body has arrived: [`Opening`].
//!
//! Owns the decision whether the body may stay in the socket until its place in the log is known. Only plain requests of
//! plain batches for logs of the connection's own core; every other is received whole, and answered from there, so that
//! nothing here decides what a client is told.

use std::ops::{Range, RangeInclusive};

use heddle_io::Lease;
use heddle_protocol::frame::RequestStart;
use heddle_protocol::{ApiKey, Message as _, Reader, RequestHeader, Uuid, Writer};
use heddle_record::HEADER_LEN;

use crate::core::Core;
use crate::routing::{self, TopicRef};

/// Versions in which every codec is known to the client; those from 9 on end in tagged fields.
const VERSIONS: RangeInclusive<i16> = 7..=13;
const FLEXIBLE_SINCE: i16 = 9;
const TOPIC_IDS_SINCE: i16 = 13;
/// One byte for each structure that ends behind the batch, if none of them has tagged fields.
const TAG_COUNTS: usize = 3;

/// What is known of the request.
pub(crate) struct Opening {
    /// The request with nothing of its batch but the header, a frame without its length.
    pub(crate) request: Lease,
    /// Where the body lies in the frame.
    pub(crate) body: Range<usize>,
}

/// Looks at the `start` of a frame of `frame_len` bytes. Something only if the batch's body may be received straight into
/// its log.
pub(crate) fn opening(core: &Core, start: &[u8], frame_len: usize) -> Option<Opening> {
    let outline = outline(start, frame_len)?;
    let image = core.image();
    let log = routing::find(&image, core.broker_id(), outline.topic, outline.partition).ok()?;
    if core.owner(log) != core.index() {
        return None;
    }
    let partition = core.partition(log).ok()?;
    partition.log().can_stage(outline.header, outline.batch.len()).then(|| outline.opening(start))
}

/// A request, as far as it can be read.
struct Outline<'a> {
    topic: TopicRef<'a>,
    partition: i32,
    header: &'a [u8; HEADER_LEN],
    /// Where the batch's length stands in the frame.
    length_at: usize,
    batch: Range<usize>,
    is_flexible: bool,
}

fn outline(start: &[u8], frame_len: usize) -> Option<Outline<'_>> {
    let RequestStart { api_key, api_version: version, .. } = RequestStart::peek(start).ok()?;
    if api_key != ApiKey::Produce.code() || !VERSIONS.contains(&version) {
        return None;
    }
    let is_flexible = version >= FLEXIBLE_SINCE;
    let mut reader = Reader::new(start);
    RequestHeader::decode(&mut reader, ApiKey::Produce.request_header_version(version)).ok()?;
    let is_transactional = reader.string_length(is_flexible, "transactional_id").ok()?.is_some();
    let _acks: [u8; 2] = reader.array("acks").ok()?;
    let _timeout: [u8; 4] = reader.array("timeout_ms").ok()?;
    let topics = reader.length(is_flexible, "topics").ok()?;
    let topic = if version >= TOPIC_IDS_SINCE {
        TopicRef::Id(Uuid(reader.array("topic_id").ok()?))
    } else {
        let length = reader.string_length(is_flexible, "name").ok()??;
        TopicRef::Name(std::str::from_utf8(reader.slice(length, "name").ok()?).ok()?)
    };
    let partitions = reader.length(is_flexible, "partitions").ok()?;
    let partition = i32::from_be_bytes(reader.array("index").ok()?);
    let length_at = reader.position();
    let len = reader.length(is_flexible, "records").ok()??;
    let batch = reader.position()..reader.position().checked_add(len)?;
    let header = reader.remaining().first_chunk()?;
    let end = batch.end.checked_add(if is_flexible { TAG_COUNTS } else { 0 })?;
    let is_plain = !is_transactional && (topics, partitions) == (Some(1), Some(1)) && end == frame_len;
    is_plain.then_some(Outline { topic, partition, header, length_at, batch, is_flexible })
}

impl Outline<'_> {
    fn opening(&self, start: &[u8]) -> Opening {
        let mut writer = Writer::new();
        writer.slice(&start[..self.length_at]);
        writer.length(Some(HEADER_LEN), self.is_flexible, "records").expect("a header is short");
        writer.slice(self.header);
        if self.is_flexible {
            writer.slice(&[0; TAG_COUNTS]);
        }
        let request = Lease::from_vec(writer.into_bytes());
        Opening { request, body: self.batch.start + HEADER_LEN..self.batch.end }
    }
}

#[cfg(test)]
mod tests {
    use heddle_protocol::Records;
    use heddle_protocol::messages::produce::{PartitionProduceData, ProduceRequest, TopicProduceData};

    use super::*;

    /// A frame without its length.
    fn frame(version: i16, change: impl FnOnce(&mut ProduceRequest<'_>), records: &[u8]) -> Vec<u8> {
        let partitions = vec![PartitionProduceData { index: 5, records: Some(Records::Bytes(records)) }];
        let topics = vec![TopicProduceData { name: "t", topic_id: Uuid([7; 16]), partition_data: partitions.into() }];
        let mut request = ProduceRequest { acks: -1, timeout_ms: 1000, topic_data: topics.into(), ..<_>::default() };
        change(&mut request);
        let mut writer = Writer::new();
        heddle_protocol::frame::encode_request(&mut writer, version, 3, Some("client"), &request).unwrap();
        writer.into_bytes()[4..].to_vec()
    }

    #[test]
    fn a_request_of_one_batch_is_read_before_its_body_is_there() {
        let records: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        for version in VERSIONS {
            let whole = frame(version, |_| {}, &records);
            let start = &whole[..300];
            let outline = outline(start, whole.len()).expect("plain");
            assert_eq!(outline.partition, 5);
            assert_eq!(whole[outline.batch.clone()], records);
            let opening = outline.opening(start);
            assert_eq!(whole[opening.body.clone()], records[HEADER_LEN..]);
            let expected = frame(version, |_| {}, &records[..HEADER_LEN]);
            assert_eq!(*opening.request, *expected, "version {version}: the same request of a batch without its body");
            let mut reader = Reader::new(&opening.request);
            RequestHeader::decode(&mut reader, ApiKey::Produce.request_header_version(version)).unwrap();
            assert!(ProduceRequest::decode(&mut reader, version).is_ok());
        }
    }

    #[test]
    fn what_is_not_plain_is_received_whole() {
        let records = vec![0; 100_000];
        for version in VERSIONS {
            let is_none = |whole: &[u8], frame_len| outline(&whole[..300], frame_len).is_none();
            let plain = frame(version, |_| {}, &records);
            assert!(is_none(&plain, plain.len() + 1), "more follows than there should");
            assert!(is_none(&plain, plain.len() - 1), "the batch leaves the frame");
            assert!((0..95).all(|cut| outline(&plain[..cut], plain.len()).is_none()), "the header is not there");
            let transactional = frame(version, |request| request.transactional_id = Some("x"), &records);
            assert!(is_none(&transactional, transactional.len()));
            let none = frame(version, |request| request.topic_data = Vec::new().into(), &records);
            assert!(outline(&none, none.len()).is_none());
        }
        for version in [3, 6] {
            let old = frame(version, |_| {}, &records);
            assert!(outline(&old[..300], old.len()).is_none());
        }
    }
}
