//! Fetch (key 1): batches out of logs, as they are stored.
//!
//! Owns what a request means: with a session, on its way to one, or without; and what it is answered. The reads and the long
//! poll are in `gathering.rs`. Never clamps what a reader may see: [`crate::partition::Partition::read`] does. Records go
//! out as pieces of files and memory; none is copied here.

mod gathering;
mod response;

use std::rc::Rc;

use heddle_protocol::messages::fetch::{FetchRequest, FetchResponse, FetchableTopicResponse, PartitionData};
use heddle_protocol::{ErrorCode, Records};

use super::{Answer, Call, Refusal};
use crate::fetch_sessions::{self, EPOCH_FINAL, EPOCH_INITIAL, FetchSession, Live, Naming, next_epoch};
use crate::message::Isolation;

use gathering::{Gathering, Slot, Visit};

/// Partitions that one request, or one session, may name.
const PARTITIONS_MAX: usize = 200_000;

/// Serves a fetch: reads, waits for more if there is not enough, and answers.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: FetchRequest<'_> = call.decode()?;
    if request.replica_id >= 0 || request.replica_state.replica_id >= 0 {
        // Case 24: only brokers replicate, and this cluster has one.
        return refuse(call, &request, ErrorCode::ClusterAuthorizationFailed);
    }
    let partitions: usize = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    if partitions > PARTITIONS_MAX {
        return Err(Refusal::TooMany { what: "partitions", limit: PARTITIONS_MAX });
    }
    match context(call, &request, partitions).await? {
        Context::Sessionless => {
            let mut gathering = Gathering::of_request(call, &request);
            gathering.work().await;
            let slots = gathering.into_slots();
            count(call, &slots);
            response::all(call, slots, isolation(&request), 0)
        }
        Context::Opening(live) => {
            let mut gathering = Gathering::of_session(call, &request, Visit::new(&live));
            gathering.work().await;
            let slots = gathering.into_slots();
            count(call, &slots);
            let sessions = call.core.fetch_sessions();
            let io = call.core.io();
            response::tell(&live, &slots, isolation(&request));
            let id = sessions.keep(&live, io.now(), || io.random_u64());
            response::all(call, slots, isolation(&request), id)
        }
        Context::Incremental(live) => {
            let visit = Visit::new(&live);
            let epoch = visit.epoch();
            let mut gathering = Gathering::of_session(call, &request, visit);
            gathering.work().await;
            let slots = gathering.into_slots();
            let id = live.session.borrow().id;
            if live.session.borrow().epoch != epoch {
                // Somebody else went on with the session meanwhile.
                let error_code = ErrorCode::InvalidFetchSessionEpoch.code();
                return call.answer(&FetchResponse { error_code, session_id: id, ..FetchResponse::default() });
            }
            count(call, &slots);
            let news = response::tell(&live, &slots, isolation(&request));
            let slots = slots.into_iter().zip(news).filter_map(|(slot, is_news)| is_news.then_some(slot)).collect();
            response::all(call, slots, isolation(&request), id)
        }
        Context::Refused(error) => refuse(call, &request, error),
    }
}

/// Counts what a fetch has looked at and is about to get.
fn count(call: &Call, slots: &[Slot<'_>]) {
    let traffic = call.core.traffic();
    let topic_of = |slot: &Slot<'_>| slot.question.map(|(_, entry)| entry.log.topic);
    for slots in slots.chunk_by(|a, b| topic_of(a) == topic_of(b)) {
        // Partitions that nobody has are nobody's traffic.
        let Some(topic) = slots.first().and_then(topic_of) else { continue };
        traffic.of(topic).count(|counts| {
            for slot in slots {
                counts.fetches += 1;
                match &slot.outcome {
                    Ok(data) => counts.bytes_out += data.bytes as u64,
                    Err(_) => counts.fetches_failed += 1,
                }
            }
        });
    }
}

/// What a request has to do with sessions.
enum Context {
    Sessionless,
    /// It asks for a new one, which is kept once it is answered.
    Opening(Rc<Live>),
    /// It goes on with one, which has taken over what it says.
    Incremental(Rc<Live>),
    Refused(ErrorCode),
}

async fn context(call: &Call, request: &FetchRequest<'_>, partitions: usize) -> Result<Context, Refusal> {
    let core = &call.core;
    let sessions = core.fetch_sessions();
    let naming = if call.version >= 13 { Naming::Ids } else { Naming::Names };
    if matches!(request.session_epoch, EPOCH_INITIAL | EPOCH_FINAL) {
        if request.session_id != 0 {
            fetch_sessions::close(core, request.session_id).await;
        }
        if request.session_epoch == EPOCH_FINAL || !sessions.has_room(partitions, core.io().now()) {
            return Ok(Context::Sessionless);
        }
        let mut session = FetchSession::new(naming, isolation(request));
        session.apply(request);
        return Ok(Context::Opening(Live::new(core, session)));
    }
    let Some(live) = fetch_sessions::find(core, request.session_id).await else {
        return Ok(Context::Refused(ErrorCode::FetchSessionIdNotFound));
    };
    let len = {
        let mut session = live.session.borrow_mut();
        if session.epoch != request.session_epoch {
            return Ok(Context::Refused(ErrorCode::InvalidFetchSessionEpoch));
        }
        if session.naming() != naming {
            return Ok(Context::Refused(ErrorCode::FetchSessionTopicIdError));
        }
        session.apply(request);
        session.set_isolation(isolation(request));
        session.epoch = next_epoch(session.epoch);
        session.len()
    };
    live.disarm_forgotten(core);
    if len == 0 || len > PARTITIONS_MAX {
        sessions.remove(request.session_id);
    }
    match len {
        0 => Ok(Context::Sessionless),
        1..=PARTITIONS_MAX => {
            sessions.touch(request.session_id, core.io().now());
            Ok(Context::Incremental(live))
        }
        _ => Err(Refusal::TooMany { what: "partitions", limit: PARTITIONS_MAX }),
    }
}

fn isolation(request: &FetchRequest<'_>) -> Isolation {
    if request.isolation_level == 1 { Isolation::ReadCommitted } else { Isolation::ReadUncommitted }
}

/// Refuses a fetch as a whole: in one code where the version has a place for it, else in each partition.
fn refuse(call: &Call, request: &FetchRequest<'_>, error: ErrorCode) -> Result<Answer, Refusal> {
    let refused = |partition: heddle_protocol::messages::fetch::FetchPartition| PartitionData {
        partition_index: partition.partition,
        error_code: error.code(),
        high_watermark: -1,
        records: Some(Records::Bytes(&[])),
        ..PartitionData::default()
    };
    let responses: Vec<FetchableTopicResponse<'_>> = if call.version >= 7 {
        Vec::new()
    } else {
        request
            .topics
            .iter()
            .map(|topic| FetchableTopicResponse {
                topic: topic.topic,
                topic_id: topic.topic_id,
                partitions: topic.partitions.iter().map(refused).collect::<Vec<_>>().into(),
            })
            .collect()
    };
    call.answer(&FetchResponse { error_code: error.code(), responses: responses.into(), ..FetchResponse::default() })
}
