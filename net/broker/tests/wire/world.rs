//! A simulated world with one broker, and raw connections to it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use heddle_broker::config::{Machine, PlantedPanic, StartSettings};
use heddle_broker::{BrokerError, seats};
use heddle_io::sim::{Host, Simulator};
use heddle_io::sync::Notify;
use heddle_io::{Buffer, Io, Lease, Socket};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use heddle_protocol::messages::produce::{PartitionProduceData, ProduceRequest, ProduceResponse, TopicProduceData};
use heddle_protocol::{ApiKey, Message, Reader, Records, Request, Writer, frame};
use heddle_record::{BatchBuilder, BatchOptions, Timestamp};

/// A broker and a machine for its clients.
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) broker: Host,
    /// The core that clients run on.
    pub(crate) io: Io,
    pub(crate) address: SocketAddr,
    stop: Notify,
    ended: Rc<RefCell<Option<Result<(), BrokerError>>>>,
}

impl World {
    /// A broker with `cores` cores that serves.
    pub(crate) fn new(seed: u64, cores: usize, settings: &[(&str, &str)]) -> Self {
        let mut world = Self::empty(seed);
        world.start(cores, settings);
        world
    }

    /// A machine for a broker, and one for its clients.
    pub(crate) fn empty(seed: u64) -> Self {
        let simulator = Simulator::new(seed);
        let broker = simulator.host("broker");
        let io = simulator.host("client").start_core();
        let address = SocketAddr::new(broker.address(), 9092);
        Self { simulator, broker, io, address, stop: Notify::new(), ended: Rc::default() }
    }

    /// Starts the broker, which must not be running.
    pub(crate) fn start(&mut self, cores: usize, settings: &[(&str, &str)]) {
        let started = self.try_start(cores, settings, PlantedPanic::None);
        started.unwrap_or_else(|error| panic!("the broker did not start: {error}"));
    }

    /// Starts the broker, which must not be running, with a panic that waits in it.
    ///
    /// # Errors
    /// Why it does not start.
    pub(crate) fn try_start(
        &mut self,
        cores: usize,
        settings: &[(&str, &str)],
        planted_panic: PlantedPanic,
    ) -> Result<(), BrokerError> {
        let mut start = StartSettings::default();
        let listener = self.address.to_string();
        let own = [("log.dirs", "/data"), ("listeners", listener.as_str()), ("insecure", "true")];
        for (name, value) in own.iter().chain(settings) {
            start.set(name, value, "test").expect("the settings of a test are right");
        }
        let mut config =
            start.check(Machine { cores, memory_bytes: 1 << 30 }).expect("the settings of a test are right");
        config.planted_panic = planted_panic;
        let (first, others) = seats(config);
        for seat in others {
            let io = self.broker.start_core();
            drop(io.spawn(seat.run(io.clone())));
        }
        let io = self.broker.start_core();
        let serves = Rc::new(Cell::new(false));
        let (serving, ended, stop) = (Rc::clone(&serves), Rc::clone(&self.ended), self.stop.wait());
        self.ended.replace(None);
        let run = first.run(io.clone(), move |_| serving.set(true), stop);
        drop(io.spawn(async move {
            let result = run.await;
            ended.replace(Some(result));
        }));
        while !serves.get() {
            if let Some(ended) = self.ended.take() {
                return ended;
            }
            assert!(self.simulator.step(), "the broker neither serves nor says why");
        }
        Ok(())
    }

    /// Tells the broker to stop; gives its end, after at most 10 s of virtual time.
    pub(crate) fn stop(&self) -> Result<(), BrokerError> {
        self.stop.notify_all();
        let end = self.simulator.now() + Duration::from_secs(10);
        while self.ended.borrow().is_none() {
            assert!(self.simulator.now() < end, "stopping takes more than 10 s");
            assert!(self.simulator.step(), "the broker never ends");
        }
        self.ended.take().expect("it has ended")
    }

    /// Runs a client to its end.
    pub(crate) fn run<T: 'static>(&self, client: impl Future<Output = T> + 'static) -> T {
        self.simulator.run(&self.io, client).expect("the client's machine lives")
    }

    /// A new connection.
    pub(crate) async fn connect(io: Io, address: SocketAddr) -> Connection {
        Self::try_connect(io, address).await.expect("the broker listens")
    }

    /// A new connection; nothing where nobody listens.
    pub(crate) async fn try_connect(io: Io, address: SocketAddr) -> Option<Connection> {
        let socket = io.connect(address).await.ok()?;
        Some(Connection { io, socket, received: Buffer::with_capacity(1 << 16), next: 0 })
    }
}

/// A connection that sends what it is told, and expects answers in the order of its requests.
pub(crate) struct Connection {
    pub(crate) io: Io,
    pub(crate) socket: Socket,
    received: Buffer,
    next: i32,
}

impl Connection {
    /// Sends bytes as they are.
    pub(crate) async fn send_bytes(&self, bytes: Vec<u8>) {
        self.io.send(&self.socket, vec![Lease::from_vec(bytes)]).await.expect("the broker takes bytes");
    }

    /// Sends a request and gives its correlation id.
    pub(crate) async fn send<'a, R: Request<'a>>(&mut self, version: i16, request: &R) -> i32 {
        let correlation_id = self.next;
        self.next += 1;
        let mut writer = Writer::new();
        frame::encode_request(&mut writer, version, correlation_id, Some("test"), request).expect("it can be said");
        self.send_bytes(writer.into_bytes()).await;
        correlation_id
    }

    /// The next frame; nothing when the broker has closed the connection.
    pub(crate) async fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    let frame = rest[..length].to_vec();
                    self.received.consume(4 + length);
                    return Some(frame);
                }
            }
            if self.received.spare() == 0 {
                self.received.reserve(1 << 16);
            }
            let buffer = std::mem::replace(&mut self.received, Buffer::with_capacity(0));
            let (result, buffer) = self.io.recv(&self.socket, buffer).await;
            self.received = buffer;
            if !result.is_ok_and(|count| count > 0) {
                return None;
            }
        }
    }

    /// Sends a request and gives the frame of its answer.
    pub(crate) async fn call<'a, R: Request<'a>>(&mut self, version: i16, request: &R) -> Answer {
        let correlation_id = self.send(version, request).await;
        let answer = self.answer(R::KEY, version).await;
        assert_eq!(answer.correlation_id(), correlation_id, "answers come in order");
        answer
    }

    /// Sends a request and gives the frame of its answer; nothing when the connection is over.
    pub(crate) async fn try_call<'a, R: Request<'a>>(&mut self, version: i16, request: &R) -> Option<Answer> {
        let mut writer = Writer::new();
        frame::encode_request(&mut writer, version, self.next, Some("test"), request).expect("it can be said");
        self.io.send(&self.socket, vec![Lease::from_vec(writer.into_bytes())]).await.ok()?;
        Some(Answer { key: R::KEY, version, frame: self.receive().await? })
    }

    /// The next answer, to a request of this API and version.
    pub(crate) async fn answer(&mut self, key: ApiKey, version: i16) -> Answer {
        Answer { key, version, frame: self.receive().await.expect("the broker answers") }
    }

    /// Whether the broker closes the connection without a word.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.receive().await.is_none()
    }
}

/// A response, to be decoded where it lies.
pub(crate) struct Answer {
    key: ApiKey,
    version: i16,
    frame: Vec<u8>,
}

impl Answer {
    pub(crate) fn correlation_id(&self) -> i32 {
        i32::from_be_bytes(*self.frame.first_chunk().expect("a response has a header"))
    }

    /// The response. All bytes must belong to it.
    pub(crate) fn decode<'a, M: Message<'a>>(&'a self) -> M {
        let mut reader = Reader::new(&self.frame);
        frame::decode_response_header(&mut reader, self.key, self.version).expect("a header");
        let response = M::decode(&mut reader, self.version).expect("a response");
        assert!(reader.remaining().is_empty(), "{} bytes follow the response", reader.remaining().len());
        response
    }
}

/// A batch of records with these values.
pub(crate) fn batch(values: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for value in values {
        builder.push(Timestamp::new(1_000), None, Some(value.as_bytes()), &[]).expect("a record fits");
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).expect("a batch can be built");
    bytes
}

/// A produce request for one partition.
pub(crate) fn produce<'a>(topic: &'a str, partition: i32, acks: i16, records: &'a [u8]) -> ProduceRequest<'a> {
    let partition = PartitionProduceData { index: partition, records: Some(Records::Bytes(records)) };
    let topic = TopicProduceData { name: topic, partition_data: vec![partition].into(), ..Default::default() };
    ProduceRequest { acks, timeout_ms: 5_000, topic_data: vec![topic].into(), ..Default::default() }
}

/// The error and the base offset of a produce response with one partition.
pub(crate) fn produced(answer: &Answer) -> (i16, i64) {
    let response: ProduceResponse<'_> = answer.decode();
    let topic = response.responses.first().expect("a topic");
    let partition = topic.partition_responses.first().expect("a partition");
    (partition.error_code, partition.base_offset)
}

/// Has the broker make a topic, with as many partitions as `num.partitions` says.
pub(crate) async fn create_topic(connection: &mut Connection, name: &str) {
    for _ in 0..100 {
        let topic = MetadataRequestTopic { name: Some(name), ..Default::default() };
        let request =
            MetadataRequest { topics: Some(vec![topic].into()), allow_auto_topic_creation: true, ..Default::default() };
        let answer = connection.call(9, &request).await;
        let response: MetadataResponse<'_> = answer.decode();
        let topic = response.topics.first().expect("the topic that was asked for");
        if topic.error_code == 0 && topic.partitions.iter().all(|partition| partition.error_code == 0) {
            return;
        }
        connection.io.sleep(Duration::from_millis(10)).await;
    }
    panic!("topic {name} never has a leader");
}
