//! One connection: frames in, answers out, in the order of the requests.
//!
//! Owns the life of a connection from its first byte to its last. Never knows what a request means: [`crate::api`]'s
//! table names the handler. Two loops run as one task:
//!
//! ```text
//!   receiver.rs: socket ──▶ frames ──▶ take (here) ──▶ outbox.rs ──▶ writer.rs: socket
//! ```
//!
//! Produces that follow each other overlap, and so do commits of offsets: each takes its place in the logs, in order, and
//! its answer is awaited by the writer. Any other request starts when the answer before it is ready, as Kafka's clients
//! expect.

mod outbox;
mod receiver;
mod rest;
mod session;
mod writer;

use std::pin::pin;
use std::rc::Rc;

use heddle_io::{Lease, Socket};
use heddle_protocol::frame::RequestStart;
use heddle_protocol::{ApiKey, Message as _, Reader, RequestHeader};

use crate::api::{self, Api, Call, Handler, Pending, Refusal};
use crate::concurrently;
use crate::config::PlantedPanic;
use crate::core::Core;

use outbox::{Outbox, Queued};
use receiver::{Frame, Receiver};
pub(crate) use rest::Rest;
pub(crate) use session::{Ending, Session};

/// Serves one connection until either side ends it, and logs why if the peer is at fault.
pub(crate) async fn serve(core: Core, socket: Socket, session: Rc<Session>) {
    // In memory of its own, once: futures that hold futures by value grow with every layer.
    let work = Box::pin(converse(&core, &socket, &session));
    let ending = match core.io().catch_panic(work).await {
        Ok(Ok(())) => Ending::Finished,
        Ok(Err(ending)) => ending,
        Err(panicked) => Ending::Panicked(panicked.to_string()),
    };
    socket.shutdown();
    session.ended(&core, &ending);
}

async fn converse(core: &Core, socket: &Socket, session: &Rc<Session>) -> Result<(), Ending> {
    let outbox = Outbox::new(core.config().connection_requests_max);
    let take = pin!(take(core, socket, session, &outbox));
    let write = pin!(writer::write(core, socket, session, &outbox));
    concurrently::try_both(take, write).await
}

/// Takes frames one by one and queues what answers them, until the peer closes its side or the session is left.
async fn take(core: &Core, socket: &Socket, session: &Rc<Session>, outbox: &Outbox) -> Result<(), Ending> {
    let mut receiver = Receiver::new(core, socket, session);
    while let Some(frame) = receiver.next().await? {
        let answering = pin!(answer(core, session, frame, outbox));
        receiver.meanwhile(answering).await?;
    }
    session.leave();
    outbox.close();
    Ok(())
}

async fn answer(core: &Core, session: &Rc<Session>, frame: Frame, outbox: &Outbox) -> Result<(), Ending> {
    outbox.room().await;
    let (call, opened) = open(core, session, frame.bytes, frame.rest)?;
    session.request_taken();
    if let Opened::Served(_) = opened {
        core.requests().taken(call.index, call.version);
    }
    match opened {
        Opened::Served(Api { handler: Handler::Overlapping, .. }) => {
            outbox.settled_but(call.key).await;
            outbox.push(Queued::Pending(Pending::begin(call).await?, frame.charge));
        }
        Opened::Served(Api { handler: Handler::Alone(handle), .. }) => {
            outbox.settled().await;
            if call.core.config().planted_panic == PlantedPanic::Connection && call.key == ApiKey::DescribeCluster {
                panic!("planted in a connection");
            }
            let answer = handle(&call).await?;
            call.answered();
            outbox.push(Queued::Ready(answer));
        }
        Opened::Unversioned => outbox.push(Queued::Ready(api::api_versions::unsupported(&call)?)),
    }
    Ok(())
}

enum Opened {
    Served(&'static Api),
    /// ApiVersions in a version that we do not know: answered in version 0, so that the client can choose again.
    Unversioned,
}

/// Reads the request header and finds the API.
fn open(core: &Core, session: &Rc<Session>, frame: Lease, rest: Option<Rc<Rest>>) -> Result<(Call, Opened), Refusal> {
    let start = RequestStart::peek(&frame)?;
    let (key, version) = (start.api_key, start.api_version);
    let (index, api) = api::find(key).ok_or(Refusal::UnknownApi { key })?;
    let is_served = api.versions.contains(&version);
    let body_at = if is_served {
        let mut reader = Reader::new(&frame);
        RequestHeader::decode(&mut reader, api.key.request_header_version(version))?;
        reader.position()
    } else if api.key == ApiKey::ApiVersions {
        frame.len()
    } else {
        return Err(Refusal::UnsupportedVersion { key: api.key, version });
    };
    let call = Call {
        core: core.clone(),
        session: Rc::clone(session),
        key: api.key,
        index,
        version,
        correlation_id: start.correlation_id,
        began: core.io().now(),
        frame,
        body_at,
        rest,
    };
    Ok((call, if is_served { Opened::Served(api) } else { Opened::Unversioned }))
}
