//! What cores ask each other, and what they answer.
//!
//! Owns the letters' contents, all `Send`: bytes as leases, logs by id. Never handles any of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::MetadataImage;
use heddle_cluster::controller::{Command, Fault, Response};
use heddle_cluster::group::command::{Filter, Listed};
use heddle_cluster::group::{Command as GroupCommand, Response as GroupResponse};
use heddle_engine::producer_state::Producer;
use heddle_engine::{DataDir, FirstBatch, Piece};
use heddle_io::{Lease, Monotonic, Socket};
use heddle_protocol::ErrorCode;
use heddle_record::{
    HighWatermark, LastStableOffset, LeaderEpoch, LogId, LogStartOffset, Offset, PartitionIndex, ProducerId, Timestamp,
};

use crate::change::Change;
use crate::coordinator::Asker;
use crate::fetch_sessions::FetchSession;
use crate::listener::Listening;
use crate::mailbox::{CoreIndex, Wake};

/// A question that one core can put to another: what it carries, and what comes back.
pub(crate) trait Ask: Sized {
    /// What comes back.
    type Answer;
    /// The letter that carries the question.
    fn into_request(self) -> Request;
    /// The answer in a reply to this kind of question.
    fn answer(reply: Reply) -> Option<Self::Answer>;
}

/// Writes the two enums of letters and ties each question to its answer.
macro_rules! letters {
    ($($(#[$doc:meta])* $name:ident($question:ty) -> $answer:ty;)+) => {
        /// A question to a core.
        pub(crate) enum Request { $($(#[$doc])* $name($question),)+ }

        /// The answer to the [`Request`] of the same name.
        pub(crate) enum Reply { $($(#[$doc])* $name($answer),)+ }

        $(impl Ask for $question {
            type Answer = $answer;

            fn into_request(self) -> Request {
                Request::$name(self)
            }

            fn answer(reply: Reply) -> Option<Self::Answer> {
                match reply {
                    Reply::$name(answer) => Some(answer),
                    _ => None,
                }
            }
        })+
    };
}

letters! {
    /// Append one batch to each of some logs; one outcome for each, in order.
    Append(AppendRequest) -> Vec<AppendOutcome>;
    /// Read some logs; one outcome for each, in order.
    Read(ReadRequest) -> Vec<ReadOutcome>;
    /// Find offsets by time; one outcome for each, in order.
    ListOffsets(ListOffsetsRequest) -> Vec<Result<FoundOffset, ErrorCode>>;
    /// Drop records below an offset; the new log start offsets, in order.
    DeleteRecords(DeleteRecordsRequest) -> Vec<Result<LogStartOffset, ErrorCode>>;
    /// Find where leader epochs end; one outcome for each, in order.
    EpochEnds(EpochEndsRequest) -> Vec<Result<EpochEnd, ErrorCode>>;
    /// The producers that some logs remember; one outcome for each, in order.
    Producers(ProducersRequest) -> Vec<Result<Vec<(ProducerId, Producer)>, ErrorCode>>;
    /// Bytes of some logs; one outcome for each, in order.
    Sizes(SizesRequest) -> Vec<Result<u64, ErrorCode>>;
    /// Ask the coordinator of a group.
    Group(Box<GroupRequest>) -> GroupReply;
    /// Give answers to requests of the asked core that waited.
    GroupAnswers(GroupAnswersRequest) -> ();
    /// List the groups of the asked core.
    GroupList(Filter) -> Result<Vec<Listed>, ErrorCode>;
    /// Forget wake-ups that a poll of the asking core has armed.
    Disarm(DisarmRequest) -> ();
    /// Give up a fetch session of this id, if it is the asked core's.
    Surrender(SurrenderRequest) -> Option<Box<FetchSession>>;
    /// Long polls of the asked core have news.
    Wake(WakeRequest) -> ();
    /// Serve a connection.
    Serve(ServeRequest) -> ();
    /// Count a connection out.
    Release(ReleaseRequest) -> ();
    /// Open the engine and all logs of the asked core.
    Open(OpenRequest) -> Result<(), String>;
    /// Open the logs that an image adds, so that they take writes before anybody hears of them.
    Prepare(PrepareRequest) -> Result<(), String>;
    /// Answer from this image from now on, and drop the logs that it lacks.
    Publish(PublishRequest) -> ();
    /// Change the cluster's metadata. Only the first core can.
    Control(Command) -> Result<Response, Fault>;
    /// Stop accepting, answer what was taken, close connections.
    Drain(DrainRequest) -> ();
    /// Flush, checkpoint and close all logs.
    Close(CloseRequest) -> Result<(), String>;
}

/// What a producer wants to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Nothing; there is no answer either.
    None,
    /// The leader's write.
    Leader,
    /// Every in-sync replica's disk.
    All,
}

/// [`Request::Append`].
pub(crate) struct AppendRequest {
    pub(crate) entries: Vec<AppendEntry>,
    pub(crate) acks: Acks,
    /// When a producer with [`Acks::All`] gives up.
    pub(crate) deadline: Monotonic,
}

/// A batch for one log.
pub(crate) struct AppendEntry {
    pub(crate) log: LogId,
    pub(crate) batch: Lease,
}

/// What became of a batch.
pub(crate) type AppendOutcome = Result<Accepted, AppendFault>;

/// A batch that is in the log, as durable as its producer asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted {
    pub(crate) base_offset: Offset,
    /// [`Timestamp`] none where the records keep their producer's times.
    pub(crate) log_append_time: Timestamp,
    pub(crate) log_start_offset: LogStartOffset,
}

/// A batch that is not, or not known to be.
#[derive(Debug, Clone)]
pub(crate) struct AppendFault {
    pub(crate) error: ErrorCode,
    /// Words for the producer's log.
    pub(crate) message: Option<String>,
    /// The records at fault, where single ones are: their index in the batch, and why.
    pub(crate) records: Vec<(i32, String)>,
    pub(crate) log_start_offset: Option<LogStartOffset>,
}

impl AppendFault {
    /// A fault that is told by its code alone.
    pub(crate) fn new(error: ErrorCode) -> Self {
        Self { error, message: None, records: Vec::new(), log_start_offset: None }
    }

    /// A fault with words for the producer's log.
    pub(crate) fn with_message(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::new(error) }
    }
}

/// Who reads, and so how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Up to the high watermark.
    ReadUncommitted,
    /// Up to the last stable offset.
    ReadCommitted,
}

/// [`Request::Read`].
pub(crate) struct ReadRequest {
    pub(crate) entries: Vec<ReadEntry>,
    pub(crate) isolation: Isolation,
    /// Bytes of all entries together; the first batch found may be larger.
    pub(crate) bytes_max: usize,
    /// Whether the first batch found may be larger than the limits.
    pub(crate) first_batch: FirstBatch,
    /// Whether a poll is to be woken when one of the logs has more to read than it had.
    pub(crate) arm: Arm,
}

/// Which reads arm a poll.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arm {
    /// None.
    Never,
    /// Those that find nothing to read.
    AtEnd(Poll),
    /// All but those that fail.
    Always(Poll),
}

/// One log to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadEntry {
    /// Where the asker keeps the outcome; comes back with [`Wake`].
    pub(crate) slot: usize,
    pub(crate) log: LogId,
    pub(crate) from: Offset,
    pub(crate) bytes_max: usize,
    /// The epoch the reader believes in, if it says.
    pub(crate) current_leader_epoch: Option<LeaderEpoch>,
    /// The epoch of the last record the reader has, if it says.
    pub(crate) last_fetched_epoch: Option<LeaderEpoch>,
}

/// A long poll that wants to hear of news, once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poll {
    pub(crate) core: CoreIndex,
    /// The core's number for it.
    pub(crate) number: u64,
    /// When nobody listens any more.
    pub(crate) expires: Monotonic,
}

/// What became of reading one log.
pub(crate) type ReadOutcome = Result<ReadData, ReadFault>;

/// What was read, and the log's limits at that moment.
pub(crate) struct ReadData {
    pub(crate) limits: ReadLimits,
    pub(crate) pieces: Vec<Piece>,
    /// The sum of the pieces' lengths.
    pub(crate) bytes: usize,
    /// Where the reader's history leaves the log's; then there are no pieces.
    pub(crate) diverging: Option<EpochEnd>,
}

/// How far a log can be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimits {
    pub(crate) log_start_offset: LogStartOffset,
    pub(crate) last_stable_offset: LastStableOffset,
    pub(crate) high_watermark: HighWatermark,
}

impl ReadLimits {
    /// The exclusive end of what a reader may see.
    pub(crate) fn readable_end(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadUncommitted => self.high_watermark.offset(),
            Isolation::ReadCommitted => self.last_stable_offset.offset(),
        }
    }
}

/// Why a log was not read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadFault {
    pub(crate) error: ErrorCode,
}

impl From<ErrorCode> for ReadFault {
    fn from(error: ErrorCode) -> Self {
        Self { error }
    }
}

/// [`Request::ListOffsets`].
pub(crate) struct ListOffsetsRequest {
    pub(crate) entries: Vec<OffsetQuestion>,
    pub(crate) isolation: Isolation,
}

/// Which offset of a log is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OffsetQuestion {
    pub(crate) log: LogId,
    pub(crate) current_leader_epoch: Option<LeaderEpoch>,
    pub(crate) sought: Sought,
}

/// How an offset is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    /// The first that can be read.
    Earliest,
    /// The end of what can be read.
    Latest,
    /// That of the record with the highest timestamp.
    MaxTimestamp,
    /// The end of what has moved to cheaper storage: there is none, so nothing is found.
    Tiered,
    /// The first at or after a time.
    AtOrAfter(Timestamp),
}

/// An offset that was sought; nothing where no record fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundOffset {
    pub(crate) offset: Option<Offset>,
    pub(crate) timestamp: Timestamp,
    pub(crate) leader_epoch: Option<LeaderEpoch>,
}

/// [`Request::DeleteRecords`].
pub(crate) struct DeleteRecordsRequest {
    pub(crate) entries: Vec<(LogId, DeleteBefore)>,
}

/// Below which offset records are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeleteBefore {
    /// This one.
    Offset(Offset),
    /// All that consumers could read.
    HighWatermark,
}

/// [`Request::EpochEnds`].
pub(crate) struct EpochEndsRequest {
    pub(crate) entries: Vec<EpochQuestion>,
}

/// Where does this epoch end in this log?
#[derive(Debug, Clone, Copy)]
pub(crate) struct EpochQuestion {
    pub(crate) log: LogId,
    pub(crate) current_leader_epoch: Option<LeaderEpoch>,
    pub(crate) epoch: LeaderEpoch,
}

/// The largest epoch not above the one asked for, and its exclusive end; nothing where the log knows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) epoch: Option<LeaderEpoch>,
    pub(crate) end: Option<Offset>,
}

/// [`Request::Producers`].
pub(crate) struct ProducersRequest {
    pub(crate) logs: Vec<LogId>,
}

/// [`Request::Sizes`].
pub(crate) struct SizesRequest {
    pub(crate) logs: Vec<LogId>,
}

/// [`Request::Group`].
pub(crate) struct GroupRequest {
    /// The group's partition of the offsets topic.
    pub(crate) partition: PartitionIndex,
    /// Where the answer goes if it has to wait, for the disk or for other members.
    pub(crate) asker: Asker,
    pub(crate) command: GroupCommand,
}

/// What becomes of a [`GroupRequest`].
pub(crate) enum GroupReply {
    /// Its answer.
    Answered(GroupResponse),
    /// It waits: its answer comes with a [`GroupAnswersRequest`].
    Held,
}

/// [`Request::GroupAnswers`]: answers by the numbers that the asked core gave its requests.
pub(crate) struct GroupAnswersRequest(pub(crate) Vec<(u64, GroupResponse)>);

/// [`Request::Disarm`].
pub(crate) struct DisarmRequest {
    /// Whose poll it is.
    pub(crate) core: CoreIndex,
    /// That core's number for it.
    pub(crate) poll: u64,
    /// Where it is armed, and the slot that it keeps each partition in.
    pub(crate) entries: Vec<(LogId, usize)>,
}

/// [`Request::Surrender`].
pub(crate) struct SurrenderRequest(pub(crate) i32);

/// [`Request::Wake`].
pub(crate) struct WakeRequest(pub(crate) Vec<Wake>);

/// [`Request::Serve`].
pub(crate) struct ServeRequest {
    /// A connection that was counted in.
    pub(crate) socket: Socket,
    /// Where it came in.
    pub(crate) listening: Arc<Listening>,
}

/// [`Request::Release`].
pub(crate) struct ReleaseRequest {
    /// Whose connection is over.
    pub(crate) address: IpAddr,
    /// Which core served it.
    pub(crate) core: CoreIndex,
}

/// [`Request::Open`].
pub(crate) struct OpenRequest {
    pub(crate) data_dir: DataDir,
    pub(crate) image: Arc<MetadataImage>,
}

/// [`Request::Prepare`].
pub(crate) struct PrepareRequest(pub(crate) Arc<Change>);

/// [`Request::Publish`].
pub(crate) struct PublishRequest(pub(crate) Arc<Change>);

/// [`Request::Drain`].
pub(crate) struct DrainRequest {
    /// How long connections may take to finish.
    pub(crate) patience: Duration,
}

/// [`Request::Close`].
pub(crate) struct CloseRequest;
