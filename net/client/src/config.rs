//! Every limit and time of the client, with Kafka's name where Kafka has one.

use std::time::Duration;

use heddle_record::Compression;

/// How to reach a cluster, and how patient to be with it.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What brokers call this client in their logs and quotas (`client.id`).
    pub client_id: String,
    /// How long to wait for a connection, from the name's resolution to the broker's list of versions.
    pub connect_timeout: Duration,
    /// How long to wait for an answer, on top of what the request itself asks the broker to wait (`request.timeout.ms`).
    pub request_timeout: Duration,
    /// How long to try again what can be tried again, in admin calls and metadata (`default.api.timeout.ms`).
    pub retry_timeout: Duration,
    /// The first wait after a failure; doubles up to `backoff_max` (`retry.backoff.ms`, `reconnect.backoff.ms`).
    pub backoff_min: Duration,
    /// The longest wait between two attempts (`retry.backoff.max.ms`, `reconnect.backoff.max.ms`).
    pub backoff_max: Duration,
    /// Metadata older than this is asked for again before it is used (`metadata.max.age.ms`).
    pub metadata_age_max: Duration,
    /// The largest answer that is read; a connection that announces more is closed.
    pub response_bytes_max: usize,
    /// Bytes of requests on one connection that were not answered yet; more waits.
    pub in_flight_bytes_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            client_id: "heddle".to_owned(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(60),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            metadata_age_max: Duration::from_secs(300),
            response_bytes_max: 128 * 1024 * 1024,
            in_flight_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Who must have a batch before its records count as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// Nobody: the broker does not even answer, and offsets stay unknown.
    None,
    /// The partition's leader.
    Leader,
    /// Every in-sync replica.
    #[default]
    All,
}

impl Acks {
    /// The number on the wire.
    pub(crate) fn to_wire(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

/// How a producer batches, compresses, retries.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// Who must have a batch before its records count as written (`acks`).
    pub acks: Acks,
    /// How batches are compressed (`compression.type`).
    pub compression: Compression,
    /// How hard the codec tries; its default where there is none (`compression.<codec>.level`).
    pub compression_level: Option<i32>,
    /// How long a batch waits for more records (`linger.ms`).
    pub linger: Duration,
    /// A batch of this many bytes, before compression, is sent at once (`batch.size`).
    pub batch_bytes_max: usize,
    /// The largest record, and the largest request unless one batch is larger (`max.request.size`).
    pub request_bytes_max: usize,
    /// Bytes of records that were taken and are not yet settled; `send` waits when there are more (`buffer.memory`).
    pub buffer_bytes_max: usize,
    /// A record that is not written this long after `send` took it fails (`delivery.timeout.ms`).
    pub delivery_timeout: Duration,
    /// How long the broker may wait for replicas (`request.timeout.ms`).
    pub replication_timeout: Duration,
    /// Number batches so that a broker recognises one that arrives twice, and keeps their order (`enable.idempotence`).
    /// Needs [`Acks::All`]; without it the producer keeps order by having one batch of a partition in flight.
    pub idempotence: bool,
    /// Requests to one broker that were not answered yet, 1 to 5 (`max.in.flight.requests.per.connection`).
    pub in_flight_max: usize,
    /// Let the broker create topics that do not exist, if it is set up to.
    pub create_topics: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            compression: Compression::None,
            compression_level: None,
            linger: Duration::from_millis(5),
            batch_bytes_max: 64 * 1024,
            request_bytes_max: 1024 * 1024,
            buffer_bytes_max: 32 * 1024 * 1024,
            delivery_timeout: Duration::from_secs(120),
            replication_timeout: Duration::from_secs(30),
            idempotence: true,
            in_flight_max: 5,
            create_topics: true,
        }
    }
}

/// What a consumer does when the offset it wants is not in the log (`auto.offset.reset`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutOfRange {
    /// It fails.
    #[default]
    Fail,
    /// It goes on with the first readable record.
    Beginning,
    /// It goes on with what arrives from now on.
    End,
}

/// Whose records a consumer sees (`isolation.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Everybody's, transactions that are open or were aborted included.
    #[default]
    ReadUncommitted,
    /// No record of a transaction that is open or was aborted.
    ReadCommitted,
}

impl Isolation {
    /// The number on the wire.
    pub(crate) fn to_wire(self) -> i8 {
        match self {
            Isolation::ReadUncommitted => 0,
            Isolation::ReadCommitted => 1,
        }
    }
}

/// How a consumer fetches.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// How long a broker may hold an answer that has too little in it (`fetch.max.wait.ms`).
    pub wait_max: Duration,
    /// How much is too little (`fetch.min.bytes`).
    pub bytes_min: usize,
    /// The most bytes in one answer, unless one batch is larger (`fetch.max.bytes`).
    pub fetch_bytes_max: usize,
    /// The most bytes of one partition in one answer, unless one batch is larger (`max.partition.fetch.bytes`).
    pub partition_bytes_max: usize,
    /// Bytes that were fetched and not yet taken, in all partitions; nothing more is fetched when there are more.
    pub prefetch_bytes_max: usize,
    /// The most bytes that one batch may hold once decompressed; a batch that holds more fails its partition.
    pub decompressed_bytes_max: usize,
    /// What to do when the wanted offset is not in the log.
    pub out_of_range: OutOfRange,
    /// Whose records are seen.
    pub isolation: Isolation,
    /// Compare every batch with its checksum (`check.crcs`).
    pub check_crc: bool,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            wait_max: Duration::from_millis(500),
            bytes_min: 1,
            fetch_bytes_max: 50 * 1024 * 1024,
            partition_bytes_max: 1024 * 1024,
            prefetch_bytes_max: 16 * 1024 * 1024,
            decompressed_bytes_max: 256 * 1024 * 1024,
            out_of_range: OutOfRange::Fail,
            isolation: Isolation::ReadUncommitted,
            check_crc: true,
        }
    }
}
