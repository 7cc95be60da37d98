//! What is asked of a coordinator, and what it answers.
//!
//! Owns the words between the broker and the coordinator. Decides nothing.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use heddle_protocol::ErrorCode;
use heddle_record::{LeaderEpoch, Timestamp, TopicId};

use super::record::{CommittedOffset, GroupRecord};
use crate::settings::layers::Layers;

/// The two clocks that decisions depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Time since some moment; never goes back. Timeouts go by it alone.
    pub elapsed: Duration,
    /// The time of day. What is stored, and how long it is kept, goes by it.
    pub wall: Timestamp,
}

/// Who asked: the caller's number for a request that waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// What a step comes to. The caller's duties, in this order:
///
/// 1. append the records to the partition's log, in order, before it appends those of any later step; the coordinator
///    goes by them already;
/// 2. send the answers once everything that was appended so far is committed;
/// 3. where 1 or 2 fails, [`super::Coordinator::abandon`] this coordinator and load a new one from the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// What to append.
    pub records: Vec<GroupRecord>,
    /// What to answer to whom. A request without an answer here waits for other members, or for time to pass.
    pub answers: Vec<(Ticket, Response)>,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Join a group; answered by [`Response::Join`] when the group is complete.
    Join(Box<Join>),
    /// Ask for the assignment; answered by [`Response::Sync`] when the leader has given it.
    Sync(Sync),
    /// A member lives; answered by [`Response::Heartbeat`].
    Heartbeat(Membership),
    /// Members leave; answered by [`Response::Leave`].
    Leave(Leave),
    /// Remember offsets; answered by [`Response::Commit`].
    Commit(Commit),
    /// What offsets are remembered? Answered by [`Response::Offsets`].
    Offsets(Offsets),
    /// Forget offsets; answered by [`Response::DeleteOffsets`].
    DeleteOffsets(DeleteOffsets),
    /// Forget groups; answered by [`Response::DeleteGroups`].
    DeleteGroups(Vec<Arc<str>>),
    /// What is this group? Answered by [`Response::Describe`].
    Describe(Arc<str>),
    /// Which groups are there? Answered by [`Response::List`].
    List(Filter),
}

/// The answer to the [`Command`] of the same name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// Membership in a generation, or why not.
    Join(Box<Joined>),
    /// The assignment, or why there is none.
    Sync(Synced),
    /// Whether the membership stands.
    Heartbeat(Result<(), ErrorCode>),
    /// One for each member of the command, in order.
    Leave(Vec<LeftMember>),
    /// One for each entry of the command, in order; or why none of them was looked at.
    Commit(Result<Vec<Result<(), ErrorCode>>, ErrorCode>),
    /// The offsets of the topics and partitions that were asked for, in order; or of all that there are.
    Offsets(Vec<TopicOffsets>),
    /// One for each entry of the command, in order; or why none of them was looked at.
    DeleteOffsets(Result<Vec<Result<(), ErrorCode>>, ErrorCode>),
    /// One for each group of the command, in order.
    DeleteGroups(Vec<Result<(), ErrorCode>>),
    /// The group; `None`: there is no such group.
    Describe(Option<Box<Described>>),
    /// The groups, by name.
    List(Vec<Listed>),
    /// The coordinator is gone, whatever was asked.
    Gone(ErrorCode),
}

/// [`Command::Join`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// The group.
    pub group: Arc<str>,
    /// The member, or empty for a new one.
    pub member: Arc<str>,
    /// The member's name over restarts (KIP-345).
    pub instance: Option<Arc<str>>,
    /// What its client calls itself.
    pub client_id: Arc<str>,
    /// Where it connected from.
    pub client_host: Arc<str>,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: i32,
    /// How long it may take to join again, in milliseconds.
    pub rebalance_timeout_ms: i32,
    /// `consumer` of most.
    pub protocol_type: Arc<str>,
    /// The assignors it knows, the one it likes best first.
    pub protocols: Vec<Protocol>,
    /// Whether a new member must come again with the id it is given (KIP-394).
    pub needs_known_id: bool,
    /// Whether a leader can be told to leave the assignment as it is.
    pub may_skip_assignment: bool,
    /// Random bits, for the id of a new member.
    pub fresh: [u8; 16],
}

/// An assignor that a member knows, and what the member tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Protocol {
    /// The assignor.
    pub name: Arc<str>,
    /// What the member tells it.
    pub metadata: Arc<[u8]>,
}

/// Who speaks, and of which generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The group.
    pub group: Arc<str>,
    /// The member.
    pub member: Arc<str>,
    /// Its name over restarts, if it has one.
    pub instance: Option<Arc<str>>,
    /// The generation that it belongs to.
    pub generation: i32,
}

/// [`Command::Sync`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sync {
    /// Who asks.
    pub of: Membership,
    /// What it believes the group to be, if it says.
    pub protocol_type: Option<Arc<str>>,
    /// The assignor that it believes was chosen, if it says.
    pub protocol: Option<Arc<str>>,
    /// What the leader gives each member.
    pub assignments: Vec<(Arc<str>, Arc<[u8]>)>,
}

/// [`Command::Leave`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leave {
    /// The group.
    pub group: Arc<str>,
    /// Who leaves: by id, or, as an administrator says it, by the instance alone.
    pub members: Vec<Leaving>,
}

/// Who leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    /// The member; empty: whoever has this instance.
    pub member: Arc<str>,
    /// Its name over restarts, if it has one.
    pub instance: Option<Arc<str>>,
}

/// What became of one that leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftMember {
    /// As it was named.
    pub who: Leaving,
    /// Why it is still a member, or never was.
    pub result: Result<(), ErrorCode>,
}

/// [`Command::Commit`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Who commits; a generation below 0 and no member is a simple consumer.
    pub of: Membership,
    /// What a member of a group that is not there is told.
    pub no_group: ErrorCode,
    /// How long the offsets are to be kept, where a client of old says so.
    pub retention_ms: Option<i64>,
    /// What to remember.
    pub entries: Vec<CommitEntry>,
}

/// An offset to remember.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitEntry {
    /// The topic.
    pub topic: Arc<str>,
    /// Its id.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The leader epoch of the last record that was read, or -1.
    pub leader_epoch: LeaderEpoch,
    /// The client's own words.
    pub metadata: Box<str>,
}

/// [`Command::Offsets`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offsets {
    /// The group.
    pub group: Arc<str>,
    /// Topics and their partitions; `None`: all that there are.
    pub wanted: Option<Vec<(Arc<str>, Vec<i32>)>>,
}

/// Offsets of a topic's partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicOffsets {
    /// The topic.
    pub topic: Arc<str>,
    /// Its partitions, and what is committed for them.
    pub partitions: Vec<(i32, Option<CommittedOffset>)>,
}

/// [`Command::DeleteOffsets`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteOffsets {
    /// The group.
    pub group: Arc<str>,
    /// Topics and partitions.
    pub entries: Vec<(Arc<str>, i32)>,
}

/// [`Command::List`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Names of states, in any case; empty: all.
    pub states: Vec<Arc<str>>,
    /// Names of group types, in any case; empty: all.
    pub types: Vec<Arc<str>>,
}

/// [`Response::Join`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The member's id; the new one beside `MEMBER_ID_REQUIRED`.
    pub member: Arc<str>,
    /// The generation, or why there is none.
    pub result: Result<JoinedGeneration, ErrorCode>,
}

/// A generation, as one of its members sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinedGeneration {
    /// Its number.
    pub generation: i32,
    /// What the group is.
    pub protocol_type: Option<Arc<str>>,
    /// The assignor that was chosen.
    pub protocol: Option<Arc<str>>,
    /// The member that assigns.
    pub leader: Arc<str>,
    /// Whether the leader is to leave the assignment as it is.
    pub skip_assignment: bool,
    /// All members, for the leader; empty for the others.
    pub members: Vec<JoinedMember>,
}

/// A member, as the leader is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinedMember {
    /// Its id.
    pub id: Arc<str>,
    /// Its name over restarts, if it has one.
    pub instance: Option<Arc<str>>,
    /// What it tells the chosen assignor.
    pub metadata: Arc<[u8]>,
}

/// [`Response::Sync`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Synced {
    /// What the member gets, or why it gets nothing.
    pub result: Result<SyncedMember, ErrorCode>,
}

/// What a member gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncedMember {
    /// What the group is.
    pub protocol_type: Option<Arc<str>>,
    /// The assignor that was chosen.
    pub protocol: Option<Arc<str>>,
    /// The leader's bytes for this member.
    pub assignment: Arc<[u8]>,
}

/// [`Response::Describe`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// Kafka's name of its state.
    pub state: &'static str,
    /// What the group is; empty for none.
    pub protocol_type: Arc<str>,
    /// The assignor that was chosen, of a stable group.
    pub protocol: Option<Arc<str>>,
    /// Its members.
    pub members: Vec<DescribedMember>,
}

/// A member of a [`Described`] group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescribedMember {
    /// Its id.
    pub id: Arc<str>,
    /// Its name over restarts, if it has one.
    pub instance: Option<Arc<str>>,
    /// What its client calls itself.
    pub client_id: Arc<str>,
    /// Where it connected from.
    pub client_host: Arc<str>,
    /// What it told the assignor, in a stable group.
    pub metadata: Arc<[u8]>,
    /// What the leader gave it, in a stable group.
    pub assignment: Arc<[u8]>,
}

/// One group of [`Response::List`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub group: Arc<str>,
    /// What it is; empty for none.
    pub protocol_type: Arc<str>,
    /// Kafka's name of its state.
    pub state: &'static str,
}

/// What a coordinator goes by; from the settings of the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSettings {
    /// How long the first rebalance of an empty group waits for more members (`group.initial.rebalance.delay.ms`).
    pub initial_rebalance_delay: Duration,
    /// Shortest session timeout that a member may ask for, in milliseconds (`group.min.session.timeout.ms`).
    pub session_timeout_min_ms: i32,
    /// Longest session timeout that a member may ask for, in milliseconds (`group.max.session.timeout.ms`).
    pub session_timeout_max_ms: i32,
    /// Most members of a group (`group.max.size`).
    pub members_max: usize,
    /// Most UTF-16 units in the words beside an offset (`offset.metadata.max.bytes`).
    pub metadata_max: usize,
    /// How long the offsets of an empty group are kept, in milliseconds (`offsets.retention.minutes`).
    pub offsets_retention_ms: i64,
    /// How often expired offsets are looked for (`offsets.retention.check.interval.ms`).
    pub expiry_interval: Duration,
    /// Most bytes of records that one step may want to have appended whole.
    pub step_bytes_max: usize,
}

impl GroupSettings {
    /// The settings in force.
    ///
    /// # Panics
    /// When a value is none: values are checked before they are stored.
    pub fn new(layers: &Layers<'_>) -> Self {
        let number = |name| -> i64 {
            let value = layers.broker_value(name).expect("the setting has a default");
            value.parse().expect("a value is checked before it is stored")
        };
        let milliseconds = |name| Duration::from_millis(u64::try_from(number(name)).unwrap_or(0));
        let int = |name| i32::try_from(number(name)).expect("the setting is an int");
        Self {
            initial_rebalance_delay: milliseconds("group.initial.rebalance.delay.ms"),
            session_timeout_min_ms: int("group.min.session.timeout.ms"),
            session_timeout_max_ms: int("group.max.session.timeout.ms"),
            members_max: usize::try_from(number("group.max.size")).expect("at least one"),
            metadata_max: usize::try_from(number("offset.metadata.max.bytes")).unwrap_or(0),
            offsets_retention_ms: number("offsets.retention.minutes").saturating_mul(60_000),
            expiry_interval: milliseconds("offsets.retention.check.interval.ms"),
            step_bytes_max: STEP_BYTES_MAX,
        }
    }
}

/// The largest batch of a topic with Kafka's defaults, less a batch header with room to spare.
const STEP_BYTES_MAX: usize = 1_048_588 - 128;
