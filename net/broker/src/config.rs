//! What a broker was told: checked values, made once from flags, files and settings.
//!
//! Owns the limits of every queue and buffer of the broker that a person can set. Never reads a file or a socket.

mod listeners;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::settings::layers::Values;
use heddle_engine::EngineConfig;
use heddle_io::Backend;
use heddle_record::BrokerId;

use crate::log_levels::LogLevels;

pub use start::{ConfigError, Machine, StartSettings, describe_settings};

/// A broker's settings, checked.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where logs are kept.
    pub data_dir: PathBuf,
    /// The cluster this broker must belong to; nothing takes what the data directory says.
    pub cluster_id: Option<String>,
    /// The broker's number; nothing takes what the data directory says, 1 in a new one.
    pub broker_id: Option<BrokerId>,
    /// `broker.rack`.
    pub rack: Option<String>,
    /// Threads; at least one.
    pub cores: usize,
    /// How to do IO.
    pub backend: Backend,
    /// Where to listen; at least one.
    pub listeners: Vec<ListenerConfig>,
    /// What is told about this broker, and where.
    pub metrics: MetricsConfig,
    /// Connections in all (`max.connections`).
    pub connections_max: usize,
    /// Connections from one address (`max.connections.per.ip`).
    pub connections_per_address_max: usize,
    /// How long a connection may be silent (`connections.max.idle.ms`).
    pub connection_idle_max: Duration,
    /// Bytes of one request (`socket.request.max.bytes`).
    pub request_bytes_max: usize,
    /// Bytes of all requests together that are not answered yet (`queued.max.request.bytes`).
    pub receive_bytes_max: usize,
    /// Requests of one connection that may wait for their answers (`connection.requests.max`).
    pub connection_requests_max: usize,
    /// How long a request may take to arrive, from its first byte to its last (`frame.receive.timeout.ms`).
    pub frame_time_max: Duration,
    /// How long a client may take no bytes while there are some for it (`send.stall.timeout.ms`).
    pub send_stall_max: Duration,
    /// Questions that one core may have open at another (`mailbox.capacity`).
    pub mailbox_capacity: usize,
    /// How long stopping may take (`shutdown.timeout.ms`).
    pub stop_time_max: Duration,
    /// Bytes of records in one fetch response (`fetch.max.bytes`).
    pub fetch_bytes_max: usize,
    /// Fetch sessions of all connections together (`max.incremental.fetch.session.cache.slots`).
    pub fetch_sessions_max: usize,
    /// Bytes of metadata records after which the metadata is stored in one piece
    /// (`metadata.log.max.record.bytes.between.snapshots`).
    pub metadata_snapshot_bytes: u64,
    /// A panic to plant, for tests of what follows.
    #[doc(hidden)]
    pub planted_panic: PlantedPanic,
    /// What each core's engine may use; `core` and `cores` are filled in by the core.
    pub engine: EngineConfig,
    /// How much is logged.
    pub log_levels: Arc<LogLevels>,
    /// What was set by name, in a file or with flags: the layer of settings below all that changed while brokers ran.
    pub settings: Values,
}

/// Where a test plants a panic, to show which wall it meets (docs/decisions/0005-panics.md).
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlantedPanic {
    /// The broker as it is.
    #[default]
    None,
    /// In the handler of DescribeCluster: on the side of the connection.
    Connection,
    /// Where a core answers ListOffsets: on the side of the partitions.
    Core,
    /// In a task that a core always runs, after its first turn.
    VitalTask,
}

/// What is told about a broker, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where metrics and health are served over HTTP, as host and port; port 0 lets the system choose
    /// (`metrics.listener`).
    pub listener: Option<(String, u16)>,
    /// Topics with series of their own (`metrics.topics.max`).
    pub topics_max: usize,
    /// Partitions with series of their own (`metrics.partitions.max`).
    pub partitions_max: usize,
    /// Committed offsets with series of their own (`metrics.group.partitions.max`).
    pub group_partitions_max: usize,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its name.
    pub name: String,
    /// The host to bind: an address, a name, or empty for every address of the machine.
    pub host: String,
    /// The port to bind; 0 lets the system choose.
    pub port: u16,
    /// What clients are told to connect to; nothing means the address that they have connected to.
    pub advertised: Option<(String, u16)>,
    /// Whether the listener may be missing where the machine cannot have it: the default listener on `[::1]`.
    pub is_optional: bool,
}
