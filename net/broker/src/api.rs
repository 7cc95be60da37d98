//! The table of what this broker serves: key → versions → handler.
//!
//! Owns [`TABLE`], the [`Call`] that a handler gets and the [`Answer`] it gives. Never reads or writes a socket
//! ([`crate::connection`] does) and holds no API's logic: each has its file in `api/`.

pub(crate) mod alter_configs;
pub(crate) mod alter_partition_reassignments;
pub(crate) mod alter_replica_log_dirs;
pub(crate) mod api_versions;
pub(crate) mod create_acls;
pub(crate) mod create_partitions;
pub(crate) mod create_topics;
pub(crate) mod delete_acls;
pub(crate) mod delete_groups;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod describe_acls;
pub(crate) mod describe_cluster;
pub(crate) mod describe_configs;
pub(crate) mod describe_groups;
pub(crate) mod describe_log_dirs;
pub(crate) mod describe_producers;
pub(crate) mod describe_quorum;
pub(crate) mod describe_topic_partitions;
pub(crate) mod elect_leaders;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub(crate) mod groups;
pub(crate) mod heartbeat;
pub(crate) mod incremental_alter_configs;
pub(crate) mod init_producer_id;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_config_resources;
pub(crate) mod list_groups;
pub(crate) mod list_offsets;
pub(crate) mod list_partition_reassignments;
pub(crate) mod metadata;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod offset_for_leader_epoch;
mod outcome;
pub(crate) mod produce;
pub(crate) mod sync_group;
mod topic_view;
pub(crate) mod update_features;

use std::fmt;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;

use heddle_cluster::controller::{Command, Fault, Response};
use heddle_io::{File, Lease, Monotonic};
use heddle_protocol::{ApiKey, DecodeError, EncodeError, Message, Reader, Request, RequestHeader, Writer, frame};
use heddle_record::BrokerId;

use crate::connection::{Rest, Session};
use crate::core::Core;
use crate::mailbox::FIRST_CORE;
use crate::requests::ApiIndex;

/// One API: what is advertised, what is served, and by whom.
pub(crate) struct Api {
    pub(crate) key: ApiKey,
    /// The versions that are served.
    pub(crate) versions: RangeInclusive<i16>,
    /// The lowest version that is advertised: for some APIs old clients look for exact old versions, although they
    /// never send them.
    pub(crate) advertised_min: i16,
    pub(crate) handler: Handler,
}

/// How an API is served.
pub(crate) enum Handler {
    /// Produce and OffsetCommit: takes its place in the logs at once, and is answered when the logs say so. Consecutive
    /// ones of the same kind overlap on one connection.
    Overlapping,
    /// Everything else: starts when the answer before it is ready.
    Alone(for<'a> fn(&'a Call) -> Handling<'a>),
}

/// A handler at work.
pub(crate) type Handling<'a> = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + 'a>>;

/// One row of [`TABLE`] for a handler that is an `async fn(&Call) -> Result<Answer, Refusal>`.
macro_rules! alone {
    ($key:ident, $versions:expr, $module:ident) => {
        Api {
            key: ApiKey::$key,
            versions: $versions,
            advertised_min: *$versions.start(),
            handler: Handler::Alone(|call| Box::pin($module::handle(call))),
        }
    };
}

/// Every API that is served, by key. ApiVersions answers with this table.
pub(crate) static TABLE: [Api; 39] = [
    Api { key: ApiKey::Produce, versions: 3..=13, advertised_min: 0, handler: Handler::Overlapping },
    alone!(Fetch, 4..=18, fetch),
    alone!(ListOffsets, 1..=11, list_offsets),
    alone!(Metadata, 0..=13, metadata),
    Api { key: ApiKey::OffsetCommit, versions: 2..=10, advertised_min: 2, handler: Handler::Overlapping },
    alone!(OffsetFetch, 1..=10, offset_fetch),
    alone!(FindCoordinator, 0..=6, find_coordinator),
    alone!(JoinGroup, 0..=9, join_group),
    alone!(Heartbeat, 0..=4, heartbeat),
    alone!(LeaveGroup, 0..=5, leave_group),
    alone!(SyncGroup, 0..=5, sync_group),
    alone!(DescribeGroups, 0..=6, describe_groups),
    alone!(ListGroups, 0..=5, list_groups),
    alone!(ApiVersions, 0..=4, api_versions),
    alone!(CreateTopics, 2..=7, create_topics),
    alone!(DeleteTopics, 1..=6, delete_topics),
    alone!(DeleteRecords, 0..=2, delete_records),
    alone!(InitProducerId, 0..=5, init_producer_id),
    alone!(OffsetForLeaderEpoch, 2..=4, offset_for_leader_epoch),
    alone!(DescribeAcls, 1..=3, describe_acls),
    alone!(CreateAcls, 1..=3, create_acls),
    alone!(DeleteAcls, 1..=3, delete_acls),
    alone!(DescribeConfigs, 1..=4, describe_configs),
    alone!(AlterConfigs, 0..=2, alter_configs),
    alone!(AlterReplicaLogDirs, 1..=2, alter_replica_log_dirs),
    alone!(DescribeLogDirs, 1..=5, describe_log_dirs),
    alone!(CreatePartitions, 0..=3, create_partitions),
    alone!(DeleteGroups, 0..=2, delete_groups),
    alone!(ElectLeaders, 0..=2, elect_leaders),
    alone!(IncrementalAlterConfigs, 0..=1, incremental_alter_configs),
    alone!(AlterPartitionReassignments, 0..=1, alter_partition_reassignments),
    alone!(ListPartitionReassignments, 0..=0, list_partition_reassignments),
    alone!(OffsetDelete, 0..=0, offset_delete),
    alone!(DescribeQuorum, 0..=2, describe_quorum),
    alone!(UpdateFeatures, 0..=2, update_features),
    alone!(DescribeCluster, 0..=2, describe_cluster),
    alone!(DescribeProducers, 0..=0, describe_producers),
    alone!(ListConfigResources, 0..=1, list_config_resources),
    alone!(DescribeTopicPartitions, 0..=0, describe_topic_partitions),
];

/// A request that has its place, and is not answered yet.
pub(crate) enum Pending {
    Produce(produce::Pending),
    Commit(Box<offset_commit::Pending>),
}

impl Pending {
    /// Gives a request its place: those that begin one after the other are decided on in that order.
    ///
    /// # Errors
    /// The bytes are no such request.
    ///
    /// # Panics
    /// When the API does not overlap.
    pub(crate) async fn begin(call: Call) -> Result<Self, Refusal> {
        match call.key {
            ApiKey::Produce => Ok(Self::Produce(produce::begin(call).await?)),
            ApiKey::OffsetCommit => Ok(Self::Commit(Box::new(offset_commit::begin(call).await?))),
            key => unreachable!("{key:?} does not overlap"),
        }
    }

    /// Which API it is.
    pub(crate) fn key(&self) -> ApiKey {
        match self {
            Self::Produce(_) => ApiKey::Produce,
            Self::Commit(_) => ApiKey::OffsetCommit,
        }
    }

    /// Waits until it is known what is to be answered.
    pub(crate) async fn settle(&mut self) {
        match self {
            Self::Produce(pending) => pending.settle().await,
            Self::Commit(pending) => pending.settle().await,
        }
    }

    /// Writes the answer; of a produce that wants none, nothing.
    ///
    /// # Errors
    /// The connection is to be closed instead.
    ///
    /// # Panics
    /// Before [`Pending::settle`] is done.
    pub(crate) fn respond(&self, writer: &mut Writer) -> Result<(), Refusal> {
        match self {
            Self::Produce(pending) => pending.respond(writer),
            Self::Commit(pending) => pending.respond(writer),
        }
    }
}

/// Topics, replicas or settings that one request about metadata may name, and settings that one answer may show.
const NAMES_MAX: usize = 100_000;

/// The row of an API key from the wire, and where it stands in the table.
pub(crate) fn find(key: i16) -> Option<(ApiIndex, &'static Api)> {
    let (index, api) = TABLE.iter().enumerate().find(|(_, api)| api.key.code() == key)?;
    Some((ApiIndex(index), api))
}

/// One request, whole in memory, and where it came from.
pub(crate) struct Call {
    pub(crate) core: Core,
    /// The connection: which listener, whose address.
    pub(crate) session: Rc<Session>,
    pub(crate) key: ApiKey,
    /// Where the key stands in the table of APIs.
    pub(crate) index: ApiIndex,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    /// When it was taken.
    pub(crate) began: Monotonic,
    /// The whole frame after its length; records are handed on as slices of it.
    pub(crate) frame: Lease,
    /// Where the body starts in the frame.
    pub(crate) body_at: usize,
    /// The body of the one batch in the frame, if it waits in the socket: of that batch the frame has only the header.
    pub(crate) rest: Option<Rc<Rest>>,
}

impl Call {
    /// The request's body.
    ///
    /// # Errors
    /// The bytes are no such request: the connection is to be closed.
    pub(crate) fn decode<'a, R: Request<'a>>(&'a self) -> Result<R, Refusal> {
        debug_assert_eq!(R::KEY, self.key, "a handler decodes its own request");
        let mut reader = Reader::new(&self.frame[self.body_at..]);
        Ok(R::decode(&mut reader, self.version)?)
    }

    /// What the client calls itself; empty where it does not say.
    ///
    /// # Errors
    /// The header is none, which was read before.
    pub(crate) fn client_id(&self) -> Result<&str, Refusal> {
        let mut reader = Reader::new(&self.frame);
        let header = RequestHeader::decode(&mut reader, self.key.request_header_version(self.version))?;
        Ok(header.client_id.unwrap_or_default())
    }

    /// Where the client connected from, as Kafka writes it.
    pub(crate) fn client_host(&self) -> String {
        format!("/{}", self.session.peer.ip())
    }

    /// The lease of a part of this request's frame: nothing is copied.
    ///
    /// # Panics
    /// When `bytes` do not lie in the frame.
    pub(crate) fn lease_of(&self, bytes: &[u8]) -> Lease {
        let start = (bytes.as_ptr() as usize).wrapping_sub(self.frame.as_ptr() as usize);
        assert!(start <= self.frame.len(), "decoded bytes lie in the frame");
        self.frame.slice(start..start + bytes.len())
    }

    /// Refuses a request that names more than one answer can hold: whatever is named costs memory many times over.
    ///
    /// # Errors
    /// There are more than [`NAMES_MAX`].
    pub(crate) fn check_count(&self, what: &'static str, count: usize) -> Result<(), Refusal> {
        if count > NAMES_MAX { Err(Refusal::TooMany { what, limit: NAMES_MAX }) } else { Ok(()) }
    }

    /// Has the controller change the metadata; the answer comes once every core answers from what has changed.
    ///
    /// # Errors
    /// Nothing was changed.
    pub(crate) async fn control(&self, command: Command) -> Result<Response, Fault> {
        self.core.ask(FIRST_CORE, command).await
    }

    /// Where this client reaches this broker: what its listener advertises.
    pub(crate) fn own_endpoint(&self) -> (String, u16) {
        self.session.listener.endpoint(self.session.local)
    }

    /// Where this client reaches each of `brokers`, through the listener of the same name as its own; brokers without
    /// one are left out.
    pub(crate) fn endpoints(&self, brokers: impl Iterator<Item = BrokerId>) -> Vec<(BrokerId, String, u16)> {
        let mut brokers = brokers.peekable();
        let mut endpoints = Vec::new();
        if brokers.peek().is_none() {
            return endpoints;
        }
        let image = self.core.image();
        for broker in brokers {
            if broker == self.core.broker_id() {
                let (host, port) = self.own_endpoint();
                endpoints.push((broker, host, port));
            } else if let Some(registration) = image.broker(broker) {
                let name = &self.session.listener.name;
                let same = registration.endpoints.iter().find(|endpoint| endpoint.listener == *name);
                endpoints.extend(same.map(|endpoint| (broker, endpoint.host.clone(), endpoint.port)));
            }
        }
        endpoints
    }

    /// The answer that carries this response, all of it in memory.
    ///
    /// # Errors
    /// The response cannot be expressed in the request's version: a fault of ours, and the connection is closed.
    pub(crate) fn answer<'a>(&self, response: &impl Message<'a>) -> Result<Answer, Refusal> {
        let mut writer = Writer::new();
        frame::encode_response(&mut writer, self.key, self.version, self.correlation_id, response)?;
        self.note_errors(&mut writer);
        Ok(Answer(vec![Part::Bytes(Lease::from_vec(writer.into_bytes()))]))
    }

    /// Counts the errors in the answer that was just written.
    pub(crate) fn note_errors(&self, writer: &mut Writer) {
        self.core.requests().failed(self.index, writer.take_errors());
    }

    /// Counts the answer, which is ready now.
    pub(crate) fn answered(&self) {
        self.core.requests().answered(self.index, self.began, self.core.io().now());
    }
}

/// A response, in parts that are sent one after the other.
pub(crate) struct Answer(pub(crate) Vec<Part>);

/// A stretch of a response.
pub(crate) enum Part {
    /// Bytes in memory.
    Bytes(Lease),
    /// Bytes of a file, sent from there.
    File { file: File, position: u64, length: usize },
}

impl Part {
    /// Bytes of the part.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(lease) => lease.len(),
            Self::File { length, .. } => *length,
        }
    }
}

/// Why a request gets no answer and its connection is closed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The bytes are no such request.
    Malformed(DecodeError),
    /// No API of ours has this key.
    UnknownApi { key: i16 },
    /// The API is served, but not in this version.
    UnsupportedVersion { key: ApiKey, version: i16 },
    /// The request names more than one answer can hold.
    TooMany { what: &'static str, limit: usize },
    /// The request asks for what cannot be.
    Senseless(&'static str),
    /// A producer that wants no answers must hear of an error: Kafka closes its connection.
    UnansweredError(String),
    /// The connection ended within the request.
    Broken(heddle_io::Error),
    /// The response cannot be written. Our fault.
    Unanswerable(EncodeError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(formatter, "malformed request: {error}"),
            Self::UnknownApi { key } => write!(formatter, "API key {key} is not served here"),
            Self::UnsupportedVersion { key, version } => {
                write!(formatter, "{key:?} version {version} is not served here")
            }
            Self::TooMany { what, limit } => write!(formatter, "a request names more than {limit} {what}"),
            Self::Senseless(what) => write!(formatter, "a request names {what}"),
            Self::UnansweredError(what) => write!(formatter, "a produce with acks=0 failed: {what}"),
            Self::Broken(error) => error.fmt(formatter),
            Self::Unanswerable(error) => write!(formatter, "a response could not be written: {error}"),
        }
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::Unanswerable(error)
    }
}

impl From<heddle_io::Error> for Refusal {
    fn from(error: heddle_io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_is_listed_once_in_the_order_of_keys() {
        let keys: Vec<i16> = TABLE.iter().map(|api| api.key.code()).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }

    #[test]
    fn nothing_is_served_that_the_codec_cannot_read() {
        for api in &TABLE {
            let known = api.key.versions();
            assert!(api.advertised_min <= *api.versions.start());
            assert!(known.contains(*api.versions.start()) && known.contains(*api.versions.end()), "{:?}", api.key);
        }
    }
}
