//! Settings as they are given at the start, by name, from a file and from flags, and their way into a [`BrokerConfig`].
//!
//! Owns the order (the later wins), the refusals and the warnings. The table of names, types and ranges is
//! [`heddle_cluster::settings`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heddle_cluster::settings::layers::{Layers, Source, Values};
use heddle_cluster::settings::properties::{self, BadEscape};
use heddle_cluster::settings::value::{InvalidValue, boolean, list_items};
use heddle_cluster::settings::{Role, Scope, UnknownSetting, broker_setting, broker_settings, has_known_prefix};
use heddle_engine::{DeviceChoice, EngineConfig};
use heddle_io::Backend;
use heddle_record::BrokerId;

use super::listeners::{self, ADVERTISED_LISTENERS};
use super::{BrokerConfig, MetricsConfig, PlantedPanic};
use crate::log_levels::{LogLevel, LogLevels};

/// What the broker may use where no setting says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may run on, at least 1.
    pub cores: usize,
    /// Bytes of memory that this process may use.
    pub memory_bytes: u64,
}

/// Settings by name, each known and well formed.
#[derive(Debug, Clone, Default)]
pub struct StartSettings {
    values: Values,
}

/// Why settings are refused: one line that says where and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// File and line, or the flag; empty where several settings together are at fault.
    origin: String,
    what: String,
}

impl ConfigError {
    pub(super) fn new(what: impl fmt::Display) -> Self {
        Self { origin: String::new(), what: what.to_string() }
    }

    fn at(origin: &str, what: impl fmt::Display) -> Self {
        Self { origin: origin.to_owned(), what: what.to_string() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.origin.is_empty() {
            write!(formatter, "{}: ", self.origin)?;
        }
        formatter.write_str(&self.what)
    }
}

impl std::error::Error for ConfigError {}

/// Memory for arriving requests: this share of the machine's, but not below and not above these.
const RECEIVE_MEMORY_SHARE: u64 = 10;
const RECEIVE_MEMORY_MIN: u64 = 256 << 20;
const RECEIVE_MEMORY_MAX: u64 = 4 << 30;

impl StartSettings {
    /// Sets one setting; wins over what was set before. `origin` says where it was found, for a refusal.
    ///
    /// # Errors
    /// The name is unknown, or the setting does not take the value.
    pub fn set(&mut self, name: &str, value: &str, origin: &str) -> Result<(), ConfigError> {
        let value = value.trim();
        match broker_setting(name) {
            Some(setting) => setting.check(value).map_err(|error: InvalidValue| ConfigError::at(origin, error))?,
            None if has_known_prefix(name) => {}
            None => return Err(ConfigError::at(origin, UnknownSetting::new(name, Scope::Broker))),
        }
        // The two names of one setting: the one that was set last counts.
        match name {
            "node.id" => drop(self.values.remove("broker.id")),
            "broker.id" => drop(self.values.remove("node.id")),
            _ => {}
        }
        self.values.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Sets everything that a file in Java's `.properties` syntax sets, a Kafka `server.properties` for example.
    ///
    /// # Errors
    /// As [`StartSettings::set`], with the line.
    pub fn read_properties(&mut self, file: &str, text: &str) -> Result<(), ConfigError> {
        let properties = properties::parse(text).map_err(|BadEscape { line }| {
            ConfigError::at(&format!("{file}:{line}"), "\\u needs four hexadecimal digits")
        })?;
        for property in properties {
            self.set(&property.name, &property.value, &format!("{file}:{}", property.line))?;
        }
        Ok(())
    }

    /// Names that were set and do nothing yet, in order.
    pub fn without_effect(&self) -> impl Iterator<Item = &str> {
        let stored = |name: &str| broker_setting(name).is_none_or(|setting| setting.role == Role::Stored);
        let changed =
            |name: &str, value: &str| broker_setting(name).is_none_or(|setting| setting.default != Some(value));
        let set = self.values.iter().filter(move |(name, value)| stored(name) && changed(name, value));
        set.map(|(name, _)| name.as_str())
    }

    /// The configuration that these settings come to on this machine.
    ///
    /// # Errors
    /// Settings that do not go together, or that this broker cannot follow.
    pub fn check(self, machine: Machine) -> Result<BrokerConfig, ConfigError> {
        let read = Reader { values: &self.values };
        if !read.list("cordoned.log.dirs").is_empty() {
            return Err(ConfigError::new(
                "cordoned.log.dirs: the only data directory cannot be cordoned; leave it unset",
            ));
        }
        let cores = match read.size("cores") {
            0 => machine.cores.max(1),
            cores => cores,
        };
        let listeners = listeners::check(&read)?;
        let derived = listeners::advertised(&read, &listeners).map(|text| (ADVERTISED_LISTENERS.to_owned(), text));
        let config = BrokerConfig {
            data_dir: read.data_dir()?,
            cluster_id: None,
            broker_id: read.broker_id()?,
            rack: read.text("broker.rack").filter(|rack| !rack.is_empty()),
            cores,
            backend: match read.text("io.backend").as_deref() {
                Some("uring") => Backend::Uring,
                Some("blocking") => Backend::Blocking,
                _ => Backend::Auto,
            },
            listeners,
            metrics: MetricsConfig {
                listener: listeners::metrics(&read)?,
                topics_max: read.size("metrics.topics.max"),
                partitions_max: read.size("metrics.partitions.max"),
                group_partitions_max: read.size("metrics.group.partitions.max"),
            },
            connections_max: read.size("max.connections").max(1),
            connections_per_address_max: read.size("max.connections.per.ip").max(1),
            connection_idle_max: read.duration("connections.max.idle.ms"),
            request_bytes_max: read.size("socket.request.max.bytes"),
            receive_bytes_max: read.receive_bytes(machine),
            connection_requests_max: read.size("connection.requests.max"),
            frame_time_max: read.duration("frame.receive.timeout.ms"),
            send_stall_max: read.duration("send.stall.timeout.ms"),
            mailbox_capacity: read.size("mailbox.capacity"),
            stop_time_max: read.duration("shutdown.timeout.ms"),
            fetch_bytes_max: read.size("fetch.max.bytes"),
            fetch_sessions_max: read.size("max.incremental.fetch.session.cache.slots"),
            engine: EngineConfig {
                retention_check_interval: read.duration("log.retention.check.interval.ms"),
                producer_id_expiration: read.duration("producer.id.expiration.ms"),
                device: match read.text("log.device").as_deref() {
                    Some("direct") => DeviceChoice::Direct,
                    Some("buffered") => DeviceChoice::Buffered,
                    _ => DeviceChoice::Auto,
                },
                tail_bytes_max: read.tail_bytes(machine) / cores,
                scrub_bytes_per_second: u64::try_from(read.number("log.scrub.bytes.per.second")).unwrap_or(0),
                ..EngineConfig::default()
            },
            metadata_snapshot_bytes: read.number("metadata.log.max.record.bytes.between.snapshots").unsigned_abs(),
            planted_panic: PlantedPanic::None,
            log_levels: Arc::new(LogLevels::new(LogLevel::Info, |_| {})),
            settings: Values::new(),
        };
        let mut settings = self.values;
        settings.extend(derived);
        Ok(BrokerConfig { settings, ..config })
    }
}

/// The ends of logs take at most this part of the memory, all cores together, where nothing else is set.
const TAIL_MEMORY_SHARE: u64 = 4;

/// Reads checked texts.
pub(super) struct Reader<'a> {
    values: &'a Values,
}

/// No broker has run yet: nothing was changed while one did.
static NONE: Values = Values::new();

impl Reader<'_> {
    fn layers(&self) -> Layers<'_> {
        Layers { broker: &NONE, cluster: &NONE, start: self.values }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.layers().broker_value(name).map(|value| value.into_owned())
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        list_items(&self.text(name).unwrap_or_default()).map(str::to_owned).collect()
    }

    /// Whether anybody set it.
    pub(super) fn is_set(&self, name: &str) -> bool {
        let setting = broker_setting(name).expect("every name in this file is in the table");
        self.layers().broker_setting(setting).source != Source::Default
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| boolean(&text) == Ok(true))
    }

    fn number(&self, name: &str) -> i64 {
        let text = self.text(name).expect("every number that is read here has a default");
        text.parse().expect("a value is checked before it is kept")
    }

    /// A number where below 0 means no limit.
    fn size(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).unwrap_or(usize::MAX)
    }

    /// A time where below 0 means no limit.
    fn duration(&self, name: &str) -> Duration {
        Duration::from_millis(u64::try_from(self.number(name)).unwrap_or(u64::MAX))
    }

    /// Memory of all cores for the ends of logs, in bytes.
    fn tail_bytes(&self, machine: Machine) -> usize {
        let share = usize::try_from(machine.memory_bytes / TAIL_MEMORY_SHARE).unwrap_or(usize::MAX);
        usize::try_from(self.number("tail.memory.max.bytes")).unwrap_or(share)
    }

    fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        let name = if self.is_set("log.dirs") { "log.dirs" } else { "log.dir" };
        match self.list(name).as_slice() {
            [one] => Ok(PathBuf::from(one)),
            [] => Err(ConfigError::new(format!("{name} names no directory"))),
            several => Err(ConfigError::new(format!(
                "{name} names {} directories; this broker keeps its data in one: name one of them",
                several.len()
            ))),
        }
    }

    fn broker_id(&self) -> Result<Option<BrokerId>, ConfigError> {
        let Some(name) = ["node.id", "broker.id"].into_iter().find(|name| self.is_set(name)) else { return Ok(None) };
        match self.number(name) {
            // Kafka's way to say "give me one".
            -1 => Ok(None),
            id => match i32::try_from(id) {
                Ok(id @ 0..) => Ok(Some(BrokerId::new(id))),
                _ => Err(ConfigError::new(format!("{name} is {id}; a broker's id is 0 or more"))),
            },
        }
    }

    fn receive_bytes(&self, machine: Machine) -> usize {
        let given = ["queued.max.request.bytes", "receive.memory.max.bytes"].into_iter().map(|name| self.number(name));
        let share = (machine.memory_bytes / RECEIVE_MEMORY_SHARE).clamp(RECEIVE_MEMORY_MIN, RECEIVE_MEMORY_MAX);
        let bytes = given.filter_map(|bytes| u64::try_from(bytes).ok()).find(|&bytes| bytes > 0).unwrap_or(share);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// Every broker setting for people: name, default, unit and what it is for.
pub fn describe_settings() -> impl Iterator<Item = String> {
    broker_settings().map(|setting| {
        let default = setting.default.unwrap_or("unset");
        format!("{} = {default} {}\n    {}", setting.name, setting.unit.symbol(), setting.documentation())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ListenerConfig;

    const MACHINE: Machine = Machine { cores: 2, memory_bytes: 16 << 30 };

    fn settings(pairs: &[(&str, &str)]) -> Result<StartSettings, ConfigError> {
        let mut settings = StartSettings::default();
        for (name, value) in pairs {
            settings.set(name, value, "--set")?;
        }
        Ok(settings)
    }

    fn config(pairs: &[(&str, &str)]) -> Result<BrokerConfig, String> {
        settings(pairs).and_then(|settings| settings.check(MACHINE)).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_need_no_settings() {
        let config = config(&[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("./heddle-data"));
        assert_eq!((config.cores, config.broker_id, config.rack), (2, None, None));
        assert_eq!(config.request_bytes_max, 104_857_600);
        assert_eq!(config.connection_idle_max, Duration::from_secs(600));
        assert_eq!(config.receive_bytes_max, (16 << 30) / 10);
        let listeners: Vec<(&str, u16)> = config.listeners.iter().map(|l| (l.host.as_str(), l.port)).collect();
        assert_eq!(listeners, [("127.0.0.1", 9092), ("::1", 9092)]);
    }

    #[test]
    fn refusals_name_the_place_and_the_way_out() {
        assert_eq!(
            config(&[("num.partition", "1")]).unwrap_err(),
            "--set: unknown setting num.partition; did you mean num.partitions?"
        );
        assert_eq!(
            config(&[("num.partitions", "0")]).unwrap_err(),
            "--set: Invalid value 0 for configuration num.partitions: Value must be at least 1"
        );
        assert!(config(&[("log.dirs", "/a,/b")]).unwrap_err().contains("name one of them"));
        assert!(config(&[("broker.id", "-7")]).unwrap_err().contains("0 or more"));
        let mut settings = StartSettings::default();
        let refused = settings.read_properties("server.properties", "a=1").unwrap_err();
        assert_eq!(refused.to_string(), "server.properties:1: unknown setting a");
    }

    #[test]
    fn the_later_wins() {
        assert_eq!(config(&[("node.id", "3"), ("broker.id", "4")]).unwrap().broker_id, Some(BrokerId::new(4)));
        assert_eq!(config(&[("broker.id", "4"), ("node.id", "3")]).unwrap().broker_id, Some(BrokerId::new(3)));
        assert_eq!(config(&[("broker.id", "-1")]).unwrap().broker_id, None);
        assert_eq!(config(&[("cores", "5"), ("cores", "0")]).unwrap().cores, 2);
        assert_eq!(config(&[("log.dir", "/a"), ("log.dirs", "/b")]).unwrap().data_dir, PathBuf::from("/b"));
    }

    /// What Kafka 4.3 ships as `config/server.properties`, without its comments.
    const SERVER_PROPERTIES: &str = "\
        process.roles=broker,controller\nnode.id=1\ncontroller.quorum.bootstrap.servers=localhost:9093\n\
        listeners=PLAINTEXT://localhost:9092,CONTROLLER://:9093\ninter.broker.listener.name=PLAINTEXT\n\
        advertised.listeners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\n\
        controller.listener.names=CONTROLLER\n\
        listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT\n\
        num.network.threads=3\nnum.io.threads=8\nsocket.send.buffer.bytes=102400\nsocket.receive.buffer.bytes=102400\n\
        socket.request.max.bytes=104857600\nlog.dirs=/tmp/kraft-combined-logs\nnum.partitions=1\n\
        num.recovery.threads.per.data.dir=2\noffsets.topic.replication.factor=1\n\
        share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n\
        transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\nlog.retention.hours=168\n\
        log.segment.bytes=1073741824\nlog.retention.check.interval.ms=300000\n";

    #[test]
    fn kafkas_own_file_works() {
        let mut settings = StartSettings::default();
        settings.read_properties("server.properties", SERVER_PROPERTIES).unwrap();
        let without_effect: Vec<&str> = settings.without_effect().collect();
        assert!(without_effect.contains(&"controller.quorum.bootstrap.servers"), "{without_effect:?}");
        assert!(!without_effect.contains(&"num.io.threads"), "it has its default value");
        let config = settings.check(MACHINE).unwrap();
        let listener = ListenerConfig {
            name: "PLAINTEXT".into(),
            host: "localhost".into(),
            port: 9092,
            advertised: Some(("localhost".into(), 9092)),
            is_optional: false,
        };
        assert_eq!((config.listeners, config.broker_id), (vec![listener], Some(BrokerId::new(1))));
        assert_eq!(config.settings.get("log.retention.hours").map(String::as_str), Some("168"));
    }
}
