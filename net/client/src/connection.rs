//! One connection to one broker: requests go out in the order of the calls and answers come back in the same order.
//!
//! Two tasks serve it, one that sends and one that receives. Whatever goes wrong (the peer closes, an answer is late or
//! cannot be matched) ends the connection as a whole: behind a lost answer no other can be trusted to be on time.
//!
//! Never retries and never reconnects; that is [`crate::brokers`]'s.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sync::{Notify, OneshotReceiver, OneshotSender, Permits, Semaphore, oneshot};
use heddle_io::{Buffer, Io, Lease, Socket, Task};
use heddle_protocol::messages::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use heddle_protocol::{ApiKey, DecodeError, ErrorCode, Message, Reader, Request, Writer, frame};

use crate::brokers::Address;
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::versions::{BrokerVersions, spoken};

/// Where the correlation id stands in a request: behind length, key and version.
const CORRELATION_AT: std::ops::Range<usize> = 8..12;
/// The room a receive starts with, in bytes.
const RECEIVE_BYTES: usize = 64 * 1024;

/// A connection whose versions are known. Clones share it; the last to drop closes it.
#[derive(Clone)]
pub(crate) struct Connection {
    link: Rc<Link>,
    _tasks: Rc<Tasks>,
}

/// What the connection's users and its two tasks share.
struct Link {
    io: Io,
    socket: Socket,
    /// `host:port`, for errors.
    broker: String,
    config: Rc<ClientConfig>,
    versions: RefCell<BrokerVersions>,
    next_correlation: Cell<i32>,
    outgoing: RefCell<VecDeque<Outgoing>>,
    outgoing_changed: Notify,
    /// Requests whose answers are due, oldest first.
    waiting: RefCell<VecDeque<Waiting>>,
    /// Bytes of requests that may still be sent before answers come.
    room: Semaphore,
    /// Why the connection ended.
    ended: RefCell<Option<Error>>,
}

/// A request on its way to the socket.
struct Outgoing {
    pieces: Vec<Lease>,
    /// For a request that has no answer: told once the bytes are with the kernel.
    sent: Option<(OneshotSender<Result<()>>, Permits)>,
}

/// A request whose answer is due.
struct Waiting {
    correlation: i32,
    reply: OneshotSender<Result<Lease>>,
    /// Given back when the answer is here.
    _room: Permits,
}

/// The two tasks of a connection, which end with it.
struct Tasks {
    link: Rc<Link>,
    tasks: RefCell<Vec<Task<()>>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.link.end(Error::Closed);
        for task in self.tasks.take() {
            task.cancel();
        }
    }
}

/// An answer that was not decoded yet.
pub(crate) struct Reply {
    /// Without the length, header included.
    frame: Lease,
    api: ApiKey,
    version: i16,
    broker: String,
}

impl Reply {
    /// Reads the answer.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn decode<'a, R: Message<'a>>(&'a self) -> Result<R> {
        let malformed = |error: DecodeError| Error::Malformed { from: self.broker.clone(), what: error.to_string() };
        let mut reader = Reader::new(&self.frame);
        frame::decode_response_header(&mut reader, self.api, self.version).map_err(malformed)?;
        R::decode(&mut reader, self.version).map_err(malformed)
    }

    /// The whole frame, which the decoded answer borrows from.
    pub(crate) fn frame(&self) -> &Lease {
        &self.frame
    }
}

/// An answer that is due.
pub(crate) struct PendingReply {
    receiver: OneshotReceiver<Result<Lease>>,
    link: Rc<Link>,
    api: ApiKey,
    version: i16,
    patience: Duration,
}

impl PendingReply {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Error::TimedOut`] (and the connection is over), or why the connection ended before.
    pub(crate) async fn wait(self) -> Result<Reply> {
        let Self { receiver, link, api, version, patience } = self;
        let frame = match link.io.timeout(patience, receiver).await {
            Ok(Ok(reply)) => reply?,
            Ok(Err(_)) => return Err(link.reason()),
            Err(_) => {
                let error = Error::TimedOut { what: api.name(), after: patience };
                link.end(error.clone());
                return Err(error);
            }
        };
        Ok(Reply { frame, api, version, broker: link.broker.clone() })
    }
}

impl Connection {
    /// Connects to `address` and learns which versions the broker accepts.
    ///
    /// # Errors
    /// [`Error::Disconnected`] or [`Error::TimedOut`], within [`ClientConfig::connect_timeout`].
    pub(crate) async fn open(io: &Io, address: &Address, config: &Rc<ClientConfig>) -> Result<Self> {
        let open = async {
            let socket = connect(io, address).await?;
            let connection = Self::start(io, socket, address.to_string(), config);
            connection.negotiate().await?;
            Ok(connection)
        };
        let after = config.connect_timeout;
        io.timeout(after, open).await.unwrap_or(Err(Error::TimedOut { what: "connecting", after }))
    }

    fn start(io: &Io, socket: Socket, broker: String, config: &Rc<ClientConfig>) -> Self {
        let link = Rc::new(Link {
            io: io.clone(),
            socket,
            broker,
            config: Rc::clone(config),
            versions: RefCell::default(),
            next_correlation: Cell::new(0),
            outgoing: RefCell::default(),
            outgoing_changed: Notify::new(),
            waiting: RefCell::default(),
            room: Semaphore::new(config.in_flight_bytes_max),
            ended: RefCell::new(None),
        });
        let tasks = vec![io.spawn(send_all(Rc::clone(&link))), io.spawn(receive_all(Rc::clone(&link)))];
        let tasks = Rc::new(Tasks { link: Rc::clone(&link), tasks: RefCell::new(tasks) });
        Self { link, _tasks: tasks }
    }

    /// Asks for the broker's versions; in an older version when it does not know ours (KIP-511).
    async fn negotiate(&self) -> Result<()> {
        let mut version = spoken(ApiKey::ApiVersions).1;
        loop {
            let request = ApiVersionsRequest {
                client_software_name: if version >= 3 { "heddle" } else { "" },
                client_software_version: if version >= 3 { env!("CARGO_PKG_VERSION") } else { "" },
            };
            let frame = self.enqueue(&request, version, Vec::new(), Duration::ZERO).await?.wait().await?;
            match self.read_versions(&frame, version)? {
                Negotiated::Done(versions) => {
                    *self.link.versions.borrow_mut() = versions;
                    return Ok(());
                }
                Negotiated::Older(older) if older < version => version = older,
                Negotiated::Older(_) => {
                    let offered = "a version that it then refused".to_owned();
                    return Err(Error::Unsupported { api: ApiKey::ApiVersions, offered });
                }
            }
        }
    }

    fn read_versions(&self, reply: &Reply, version: i16) -> Result<Negotiated> {
        // The error code comes first in every version; with error 35 the rest is written as version 0.
        let refused = reply.frame.get(4..6) == Some(&ErrorCode::UnsupportedVersion.code().to_be_bytes()[..]);
        let as_version = if refused { 0 } else { version };
        let response =
            Reply { frame: reply.frame.clone(), version: as_version, broker: reply.broker.clone(), ..*reply };
        let response: ApiVersionsResponse<'_> = response.decode()?;
        if refused {
            let api = ApiKey::ApiVersions.code();
            let newest = response.api_keys.iter().find(|it| it.api_key == api).map_or(0, |it| it.max_version);
            return Ok(Negotiated::Older(newest.min(version - 1)));
        }
        Error::check(response.error_code, None, || format!("broker {}", self.link.broker))?;
        let ranges = response.api_keys.iter().map(|it| (it.api_key, it.min_version, it.max_version));
        Ok(Negotiated::Done(BrokerVersions::new(ranges)))
    }

    /// What the broker accepts.
    pub(crate) fn versions(&self) -> BrokerVersions {
        self.link.versions.borrow().clone()
    }

    /// The newest version of `api` that both sides speak, none above `cap`.
    pub(crate) fn pick(&self, api: ApiKey, cap: i16) -> Result<i16> {
        self.link.versions.borrow().pick(api, cap)
    }

    /// Whether the connection has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        self.link.ended.borrow().is_none()
    }

    /// `host:port`.
    pub(crate) fn broker(&self) -> &str {
        &self.link.broker
    }

    /// Sends a request and waits for its answer. `patience` is what the request asks the broker to wait at most; the
    /// client's own request timeout comes on top.
    ///
    /// # Errors
    /// No common version, the connection ended, no answer in time.
    pub(crate) async fn call<'a, R: Request<'a>>(
        &self,
        request: &R,
        version: i16,
        patience: Duration,
    ) -> Result<Reply> {
        self.enqueue(request, version, Vec::new(), patience).await?.wait().await
    }

    /// Queues a request; when this returns it stands behind all earlier ones. `records` fill the gaps that the request
    /// leaves, in order.
    ///
    /// # Errors
    /// The request cannot be written in this version, or the connection ended.
    pub(crate) async fn enqueue<'a, R: Request<'a>>(
        &self,
        request: &R,
        version: i16,
        records: Vec<Lease>,
        patience: Duration,
    ) -> Result<PendingReply> {
        let (frame, room) = self.prepare(request, version, records).await?;
        let (reply, receiver) = oneshot();
        let correlation = self.link.push(frame, None);
        self.link.waiting.borrow_mut().push_back(Waiting { correlation, reply, _room: room });
        let patience = patience + self.link.config.request_timeout;
        Ok(PendingReply { receiver, link: Rc::clone(&self.link), api: R::KEY, version, patience })
    }

    /// Queues a request that has no answer (Produce with acks=0) and waits until the kernel has its bytes.
    ///
    /// # Errors
    /// As [`Connection::enqueue`].
    pub(crate) async fn tell<'a, R: Request<'a>>(&self, request: &R, version: i16, records: Vec<Lease>) -> Result<()> {
        let (frame, room) = self.prepare(request, version, records).await?;
        let (sent, receiver) = oneshot();
        self.link.push(frame, Some((sent, room)));
        let after = self.link.config.request_timeout;
        match self.link.io.timeout(after, receiver).await {
            Ok(sent) => sent.unwrap_or_else(|_| Err(self.link.reason())),
            Err(_) => {
                self.link.end(Error::TimedOut { what: R::KEY.name(), after });
                Err(self.link.reason())
            }
        }
    }

    /// The request's bytes, correlation id still open, and room for them.
    async fn prepare<'a, R: Request<'a>>(
        &self,
        request: &R,
        version: i16,
        records: Vec<Lease>,
    ) -> Result<(EncodedRequest, Permits)> {
        let frame = self.encode(request, version, records)?;
        let bytes = frame.length.min(self.link.config.in_flight_bytes_max);
        let room = self.link.room.acquire(bytes).await;
        match &*self.link.ended.borrow() {
            Some(_) => Err(self.link.reason()),
            None => Ok((frame, room)),
        }
    }

    fn encode<'a, R: Request<'a>>(&self, request: &R, version: i16, records: Vec<Lease>) -> Result<EncodedRequest> {
        let mut writer = Writer::new();
        frame::encode_request(&mut writer, version, 0, Some(&self.link.config.client_id), request)
            .map_err(|error| Error::Invalid { what: format!("{} version {version}: {error}", R::KEY.name()) })?;
        let length = writer.total_length();
        let (bytes, gaps) = writer.finish();
        assert_eq!(gaps.len(), records.len(), "each gap has its records");
        let gaps = gaps.into_iter().map(|gap| gap.position).zip(records).collect();
        Ok(EncodedRequest { bytes, gaps, length })
    }
}

/// What came of asking for versions.
enum Negotiated {
    Done(BrokerVersions),
    /// Ask again in this version.
    Older(i16),
}

/// A frame whose correlation id is still 0.
struct EncodedRequest {
    bytes: Vec<u8>,
    /// Where records go in, and which.
    gaps: Vec<(usize, Lease)>,
    /// Bytes in all.
    length: usize,
}

impl EncodedRequest {
    /// The pieces to send, in order.
    fn into_pieces(mut self, correlation: i32) -> Vec<Lease> {
        let place = self.bytes.get_mut(CORRELATION_AT).expect("a request has a header");
        place.copy_from_slice(&correlation.to_be_bytes());
        let bytes = Lease::from_vec(self.bytes);
        let mut pieces = Vec::with_capacity(2 * self.gaps.len() + 1);
        let mut from = 0;
        for (position, records) in self.gaps {
            pieces.push(bytes.slice(from..position));
            pieces.push(records);
            from = position;
        }
        if from < bytes.len() {
            pieces.push(bytes.slice(from..bytes.len()));
        }
        pieces
    }
}

impl Link {
    /// Queues a frame and gives its correlation id.
    fn push(&self, frame: EncodedRequest, sent: Option<(OneshotSender<Result<()>>, Permits)>) -> i32 {
        let correlation = self.next_correlation.get();
        self.next_correlation.set(correlation.wrapping_add(1) & i32::MAX);
        self.outgoing.borrow_mut().push_back(Outgoing { pieces: frame.into_pieces(correlation), sent });
        self.outgoing_changed.notify_one();
        correlation
    }

    /// Ends the connection; all who wait are told why. Only the first reason counts.
    fn end(&self, error: Error) {
        if self.ended.borrow().is_some() {
            return;
        }
        *self.ended.borrow_mut() = Some(error);
        self.socket.shutdown();
        self.outgoing_changed.notify_one();
        let waiting = self.waiting.take();
        let outgoing = self.outgoing.take();
        for Waiting { reply, .. } in waiting {
            answer(reply, Err(self.reason()));
        }
        for (sent, _) in outgoing.into_iter().filter_map(|it| it.sent) {
            answer(sent, Err(self.reason()));
        }
    }

    /// Why the connection ended, for those whose request was not the cause.
    fn reason(&self) -> Error {
        let reason = match &*self.ended.borrow() {
            Some(Error::Disconnected { reason, .. }) => reason.clone(),
            Some(Error::Closed) | None => "closed".to_owned(),
            Some(cause) => cause.to_string(),
        };
        Error::Disconnected { broker: self.broker.clone(), reason }
    }

    fn disconnected(&self, reason: impl std::fmt::Display) -> Error {
        Error::Disconnected { broker: self.broker.clone(), reason: reason.to_string() }
    }

    /// Hands a frame to whoever waits for it.
    fn deliver(&self, frame: Lease) -> Result<()> {
        let malformed = |what: String| Error::Malformed { from: self.broker.clone(), what };
        let correlation = frame.first_chunk().map(|bytes| i32::from_be_bytes(*bytes));
        let Some(correlation) = correlation else { return Err(malformed("an answer without a header".to_owned())) };
        let Some(next) = self.waiting.borrow_mut().pop_front() else {
            return Err(malformed("an answer to nothing".to_owned()));
        };
        if next.correlation != correlation {
            let error = malformed(format!("an answer to request {correlation}, due was {}", next.correlation));
            answer(next.reply, Err(error.clone()));
            return Err(error);
        }
        answer(next.reply, Ok(frame));
        Ok(())
    }
}

/// Gives `value` to whoever waits for it; nobody may.
fn answer<T>(sender: OneshotSender<T>, value: T) {
    let _nobody_waits = sender.send(value);
}

/// The first address of `host` that takes the connection.
async fn connect(io: &Io, address: &Address) -> Result<Socket> {
    let failed = |reason: String| Error::Disconnected { broker: address.to_string(), reason };
    let addresses = io.resolve(&address.host, address.port).await.map_err(|error| failed(plainly(&error)))?;
    let mut reason = "the name has no address".to_owned();
    for address in addresses {
        match io.connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => reason = plainly(&error),
        }
    }
    Err(failed(reason))
}

/// The reason alone: what was done and to whom is said around it.
fn plainly(error: &heddle_io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::TimedOut => "timed out".to_owned(),
        _ => error.to_string(),
    }
}

/// The task that sends: all that is queued goes out in one call.
async fn send_all(link: Rc<Link>) {
    loop {
        let queued = link.outgoing.take();
        if link.ended.borrow().is_some() {
            return;
        }
        if queued.is_empty() {
            link.outgoing_changed.wait().await;
            continue;
        }
        let mut pieces = Vec::new();
        let mut told = Vec::new();
        for outgoing in queued {
            pieces.extend(outgoing.pieces);
            told.extend(outgoing.sent);
        }
        let result = link.io.send(&link.socket, pieces).await.map_err(|error| link.disconnected(plainly(&error)));
        for (sent, _room) in told {
            answer(sent, result.clone());
        }
        if let Err(error) = result {
            return link.end(error);
        }
    }
}

/// The task that receives, until the connection ends.
async fn receive_all(link: Rc<Link>) {
    let mut buffer = Buffer::with_capacity(RECEIVE_BYTES);
    loop {
        let (received, filled) = link.io.recv(&link.socket, buffer).await;
        let result = match received {
            Ok(0) => Err(link.disconnected("the broker closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(link.disconnected(plainly(&error))),
        };
        match result.and_then(|()| take_frames(&link, filled)) {
            Ok(rest) => buffer = rest,
            Err(error) => return link.end(error),
        }
    }
}

/// Delivers every whole frame in `filled` and gives a buffer that starts with what is left and has room for more.
fn take_frames(link: &Link, filled: Buffer) -> Result<Buffer> {
    let Some(first) = frame_end(link, &filled)? else { return Ok(with_room(filled, 4)) };
    if first > filled.len() {
        let missing = first - filled.len();
        return Ok(with_room(filled, missing));
    }
    let bytes = filled.freeze();
    let mut from = 0;
    let mut end = first;
    loop {
        link.deliver(bytes.slice(from + 4..end))?;
        from = end;
        match frame_end(link, &bytes[from..])? {
            Some(length) if from + length <= bytes.len() => end = from + length,
            more => {
                let rest = &bytes[from..];
                let needed = more.unwrap_or(4).max(RECEIVE_BYTES);
                let mut buffer = Buffer::with_capacity(rest.len() + RECEIVE_BYTES.min(needed));
                buffer.extend_from_slice(rest);
                return Ok(buffer);
            }
        }
    }
}

/// Grows at most twofold: a length that announces much gets memory only as bytes arrive.
fn with_room(mut buffer: Buffer, missing: usize) -> Buffer {
    if buffer.spare() == 0 {
        let step = missing.min(buffer.len().max(RECEIVE_BYTES));
        buffer.reserve(step);
    }
    buffer
}

/// Where the frame at the start of `bytes` ends, length field included, if the length is there.
fn frame_end(link: &Link, bytes: &[u8]) -> Result<Option<usize>> {
    let Some(length) = bytes.first_chunk().map(|bytes| i32::from_be_bytes(*bytes)) else { return Ok(None) };
    let limit = link.config.response_bytes_max;
    match usize::try_from(length) {
        Ok(length) if length <= limit => Ok(Some(length + 4)),
        _ => Err(Error::Malformed {
            from: link.broker.clone(),
            what: format!(
                "an answer of {length} bytes, above the limit of {limit}; is this a Kafka broker without TLS?"
            ),
        }),
    }
}
