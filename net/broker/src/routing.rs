//! From the topics and partitions that a request names to the cores that own their logs, and back.
//!
//! Owns the checks that come before any log is touched: does it exist, does this broker lead it. Never opens a log.

use heddle_cluster::MetadataImage;
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::{BrokerId, LeaderEpoch, LogId, PartitionIndex, TopicId};

use crate::core::{Asked, Core};
use crate::mailbox::CoreIndex;
use crate::message::Ask;

/// How a request names a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TopicRef<'a> {
    Name(&'a str),
    Id(Uuid),
}

/// Why a partition cannot be reached here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Misrouted {
    pub(crate) error: ErrorCode,
    /// Who leads instead, where somebody does.
    pub(crate) leader: Option<(BrokerId, LeaderEpoch)>,
}

impl From<ErrorCode> for Misrouted {
    fn from(error: ErrorCode) -> Self {
        Self { error, leader: None }
    }
}

/// The log of a partition that this broker leads.
///
/// # Errors
/// The topic or partition does not exist, or another broker leads it.
pub(crate) fn find(
    image: &MetadataImage,
    own: BrokerId,
    topic: TopicRef<'_>,
    partition: i32,
) -> Result<LogId, Misrouted> {
    let topic = match topic {
        TopicRef::Name(name) => image.topic_named(name).ok_or(ErrorCode::UnknownTopicOrPartition)?,
        TopicRef::Id(id) => image.topic(TopicId::new(id.0)).ok_or(ErrorCode::UnknownTopicId)?,
    };
    let partition = PartitionIndex::new(partition);
    let state = topic.partition(partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if state.leader != own {
        let leader = (state.leader != BrokerId::NONE).then_some((state.leader, state.leader_epoch));
        return Err(Misrouted { error: ErrorCode::NotLeaderOrFollower, leader });
    }
    Ok(LogId { topic: topic.id, partition })
}

/// Questions about single logs, gathered by the core that owns them.
pub(crate) struct Scatter<E> {
    parts: Vec<ScatterPart<E>>,
}

struct ScatterPart<E> {
    core: CoreIndex,
    entries: Vec<E>,
    /// Where the answers belong, one for each entry.
    places: Vec<usize>,
}

/// Questions that were asked, each core's in its place behind the ones asked before.
#[derive(Default)]
pub(crate) struct Gather {
    parts: Vec<(Asked, Vec<usize>)>,
}

impl<E> Scatter<E> {
    pub(crate) fn new() -> Self {
        Self { parts: Vec::new() }
    }

    /// Adds a question about a log that `core` owns; its answer belongs in `place`.
    pub(crate) fn push(&mut self, core: CoreIndex, place: usize, entry: E) {
        let index = self.parts.iter().position(|part| part.core == core).unwrap_or_else(|| {
            self.parts.push(ScatterPart { core, entries: Vec::new(), places: Vec::new() });
            self.parts.len() - 1
        });
        self.parts[index].entries.push(entry);
        self.parts[index].places.push(place);
    }

    /// Asks every core.
    pub(crate) async fn post<A: Ask>(self, core: &Core, question: impl Fn(Vec<E>) -> A) -> Gather {
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            parts.push((core.post(part.core, question(part.entries)).await, part.places));
        }
        Gather { parts }
    }
}

impl Gather {
    /// Whether nothing was asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Waits for all answers to questions of kind `A`, and puts each in its place.
    pub(crate) async fn collect<A: Ask<Answer = Vec<O>>, O>(self, outcomes: &mut [Option<O>]) {
        for (asked, places) in self.parts {
            let answers = asked.answer::<A>().await;
            assert_eq!(answers.len(), places.len(), "a core answers for every log that it is asked about");
            for (place, answer) in places.into_iter().zip(answers) {
                outcomes[place] = Some(answer);
            }
        }
    }
}
