//! Changes of settings while the cluster runs: those of topics, of one broker and of all brokers. Groups and
//! subscriptions have a file of their own.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, TopicId};

use super::resource_configs;
use super::topics::{check_topic_name, unknown_topic_setting};
use super::{Context, Decision, Fault, Response};
use crate::record::MetadataRecord;
use crate::settings::layers::Values;
use crate::settings::topic::check_together;
use crate::settings::value::list_items;
use crate::settings::{Mode, Setting, ValueType, broker_setting, has_known_prefix, topic_setting};

/// Settings to be changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlterConfigs {
    /// The changes by resource.
    pub resources: Vec<AlterResource>,
    /// Decide, but change nothing.
    pub validate_only: bool,
}

/// Changes of one resource: all or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlterResource {
    /// The resource's type, as the protocol numbers it.
    pub kind: i8,
    /// The resource's name.
    pub name: String,
    /// The changes.
    pub changes: Vec<ConfigChange>,
    /// What becomes of settings that no change names.
    pub others: Others,
}

/// What becomes of a resource's settings that a request does not name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// They stay (IncrementalAlterConfigs).
    Kept,
    /// They go back to their defaults (AlterConfigs).
    Removed,
}

impl AlterResource {
    /// The values that the changes are made to.
    pub(super) fn base(&self, now: &Values) -> Values {
        match self.others {
            Others::Kept => now.clone(),
            Others::Removed => Values::new(),
        }
    }
}

/// A change of one setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigChange {
    /// The setting.
    pub name: String,
    /// What to do; a number of the protocol.
    pub operation: i8,
    /// The value.
    pub value: Option<String>,
}

/// What became of a resource's changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlteredResource {
    /// The resource's type, as the protocol numbers it.
    pub kind: i8,
    /// The resource's name.
    pub name: String,
    /// Why nothing was changed.
    pub result: Result<(), Fault>,
}

/// What a resource is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResourceKind {
    /// A topic, by name.
    Topic,
    /// A broker, by id; all brokers with an empty name.
    Broker,
    /// A broker's loggers.
    BrokerLogger,
    /// A subscription to clients' metrics.
    ClientMetrics,
    /// A group.
    Group,
}

impl ResourceKind {
    /// The type that the protocol gives this number.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            2 => Some(Self::Topic),
            4 => Some(Self::Broker),
            8 => Some(Self::BrokerLogger),
            16 => Some(Self::ClientMetrics),
            32 => Some(Self::Group),
            _ => None,
        }
    }

    /// The number that the protocol has for it.
    pub const fn code(self) -> i8 {
        match self {
            Self::Topic => 2,
            Self::Broker => 4,
            Self::BrokerLogger => 8,
            Self::ClientMetrics => 16,
            Self::Group => 32,
        }
    }
}

/// What to do with a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Set it.
    Set,
    /// Remove the value that was set.
    Delete,
    /// Add items to a list.
    Append,
    /// Take items from a list.
    Subtract,
}

impl Operation {
    /// The operation that the protocol gives this number.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Set),
            1 => Some(Self::Delete),
            2 => Some(Self::Append),
            3 => Some(Self::Subtract),
            _ => None,
        }
    }

    /// The number that the protocol has for it.
    pub const fn code(self) -> i8 {
        match self {
            Self::Set => 0,
            Self::Delete => 1,
            Self::Append => 2,
            Self::Subtract => 3,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Set => "SET",
            Self::Delete => "DELETE",
            Self::Append => "APPEND",
            Self::Subtract => "SUBTRACT",
        }
    }
}

pub(super) fn alter(context: &Context<'_>, command: AlterConfigs) -> Decision {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<(i8, String)> = command
        .resources
        .iter()
        .map(|resource| (resource.kind, resource.name.clone()))
        .filter(|resource| !seen.insert(resource.clone()))
        .collect();
    let mut records = Vec::new();
    let mut results = Vec::new();
    for resource in command.resources {
        let decided = if twice.contains(&(resource.kind, resource.name.clone())) {
            Err(Fault::with(ErrorCode::InvalidRequest, "Each resource must appear at most once."))
        } else {
            alter_resource(context, &resource)
        };
        let result = decided.map(|changes| records.extend(changes));
        results.push(AlteredResource { kind: resource.kind, name: resource.name, result });
    }
    let records = if command.validate_only { Vec::new() } else { records };
    Decision { records, response: Response::AlterConfigs(results) }
}

pub(super) fn invalid_request(message: impl Into<String>) -> Fault {
    Fault::with(ErrorCode::InvalidRequest, message)
}

pub(super) fn invalid_config(message: impl Into<String>) -> Fault {
    Fault::with(ErrorCode::InvalidConfig, message)
}

fn alter_resource(context: &Context<'_>, resource: &AlterResource) -> Result<Vec<MetadataRecord>, Fault> {
    let mut names = BTreeSet::new();
    if !resource.changes.iter().all(|change| names.insert(change.name.as_str())) {
        return Err(invalid_request("Error due to duplicate config keys"));
    }
    match ResourceKind::from_code(resource.kind) {
        Some(ResourceKind::Topic) => alter_topic(context, resource),
        Some(ResourceKind::Broker) => alter_broker(context, resource),
        Some(ResourceKind::ClientMetrics) => resource_configs::alter_client_metrics(context, resource),
        Some(ResourceKind::Group) => resource_configs::alter_group(context, resource),
        // Levels of loggers are each broker's own, and no metadata.
        Some(ResourceKind::BrokerLogger) | None => {
            Err(invalid_request(format!("Unknown resource type {}", resource.kind)))
        }
    }
}

fn alter_topic(context: &Context<'_>, resource: &AlterResource) -> Result<Vec<MetadataRecord>, Fault> {
    let name = &resource.name;
    if name.is_empty() {
        return Err(invalid_request("Default topic resources are not allowed."));
    }
    check_topic_name(name)
        .map_err(|reason| Fault::with(ErrorCode::InvalidTopicException, format!("Topic name is invalid: {reason}")))?;
    let topic = context.image.topic_named(name).ok_or_else(|| {
        Fault::with(ErrorCode::UnknownTopicOrPartition, format!("The topic '{name}' does not exist."))
    })?;
    let mut after = resource.base(&topic.config);
    for change in &resource.changes {
        // A value that a newer version set can always be removed.
        let setting = topic_setting(&change.name);
        if setting.is_none() && Operation::from_code(change.operation) != Some(Operation::Delete) {
            return Err(invalid_config(unknown_topic_setting(&change.name)));
        }
        let inherited = || {
            let none = Values::new();
            setting.and_then(|setting| context.layers().topic_setting(&none, setting).value.map(|v| v.to_string()))
        };
        changed(&mut after, change, setting, inherited)?;
    }
    check_together(&context.layers(), &after).map_err(invalid_config)?;
    Ok(topic_records(topic.id, &topic.config, &after))
}

fn alter_broker(context: &Context<'_>, resource: &AlterResource) -> Result<Vec<MetadataRecord>, Fault> {
    let broker = named_broker(context, &resource.name)?;
    let before = broker.map_or(context.image.cluster_config(), |broker| context.image.broker_config(broker));
    let mut after = resource.base(before);
    for change in &resource.changes {
        let setting = broker_setting(&change.name);
        match Operation::from_code(change.operation) {
            Some(Operation::Delete) => {}
            _ => check_dynamic(change, setting, broker)?,
        }
        let inherited =
            || setting.and_then(|setting| context.layers().broker_setting(setting).value.map(|v| v.to_string()));
        changed(&mut after, change, setting, inherited).map_err(|fault| of_broker(fault, change, setting))?;
    }
    Ok(broker_records(broker, before, &after))
}

/// The broker that a resource's name stands for; `None`: all brokers.
fn named_broker(context: &Context<'_>, name: &str) -> Result<Option<BrokerId>, Fault> {
    if name.is_empty() {
        return Ok(None);
    }
    let id = name.parse::<i32>().map(BrokerId::new);
    let id = id.map_err(|_| invalid_request(format!("Node id must be an integer, but it is: {name}")))?;
    if context.image.broker(id).is_none() {
        return Err(invalid_request(format!("Unexpected broker id, expected {}, but received {id}", context.broker)));
    }
    Ok(Some(id))
}

/// Whether a setting may change while brokers run: in one of them, or in all of them. A name that nobody knows may, for
/// what reads it is not known either: a plug-in, or an older or newer tool.
fn check_dynamic(change: &ConfigChange, setting: Option<&Setting>, broker: Option<BrokerId>) -> Result<(), Fault> {
    let name = &change.name;
    let Some(setting) = setting else {
        let is_list_edit =
            matches!(Operation::from_code(change.operation), Some(Operation::Append | Operation::Subtract));
        return match broker {
            _ if is_list_edit => Err(invalid_config(format!("Unknown config name: {name}"))),
            None if has_known_prefix(name) && name.starts_with("listener.") => Err(only_per_broker(name)),
            _ => Ok(()),
        };
    };
    match setting.mode {
        Mode::ReadOnly => Err(invalid_request(format!("Cannot update these configs dynamically: [{name}]"))),
        Mode::PerBroker if is_key_store(name) => Err(invalid_request(format!(
            "These security configs can be dynamically updated only per-listener using the listener prefix: [{name}]"
        ))),
        Mode::PerBroker if broker.is_none() => Err(only_per_broker(name)),
        // Nothing must be created in a directory that is cordoned, and there is no other.
        Mode::PerBroker
            if name == "cordoned.log.dirs" && change.value.as_deref().is_some_and(|dirs| !dirs.is_empty()) =>
        {
            Err(invalid_request("The only data directory of a broker cannot be cordoned."))
        }
        Mode::PerBroker | Mode::ClusterWide => Ok(()),
    }
}

fn only_per_broker(name: &str) -> Fault {
    invalid_request(format!(
        "Cannot update these configs at default cluster level, broker id must be specified: [{name}]"
    ))
}

/// Keys and certificates, which belong to single listeners.
fn is_key_store(name: &str) -> bool {
    name == "ssl.key.password" || name.starts_with("ssl.keystore.") || name.starts_with("ssl.truststore.")
}

/// A value that a broker's setting cannot have is an invalid request, where a topic's is an invalid config: as on Kafka.
fn of_broker(fault: Fault, change: &ConfigChange, setting: Option<&Setting>) -> Fault {
    let list_edit = match Operation::from_code(change.operation) {
        Some(Operation::Append) => Some("append"),
        Some(Operation::Subtract) => Some("subtract"),
        _ => None,
    };
    match list_edit {
        Some(operation) if setting.is_none_or(|setting| setting.value_type != ValueType::List) => {
            let name = &change.name;
            invalid_config(format!("Config value {operation} is not allowed for config key: {name}"))
        }
        _ if fault.code == ErrorCode::InvalidConfig => Fault { code: ErrorCode::InvalidRequest, ..fault },
        _ => fault,
    }
}

/// Makes one change in a layer's values. `inherited`: what the setting comes to where the layer has no value.
pub(super) fn changed(
    values: &mut Values,
    change: &ConfigChange,
    setting: Option<&Setting>,
    inherited: impl Fn() -> Option<String>,
) -> Result<(), Fault> {
    let operation = Operation::from_code(change.operation).ok_or(Fault::new(ErrorCode::UnknownServerError))?;
    let name = &change.name;
    let new = match operation {
        Operation::Delete => {
            values.remove(name);
            return Ok(());
        }
        Operation::Set => given(change)?.to_string(),
        Operation::Append | Operation::Subtract => {
            if setting.is_none_or(|setting| setting.value_type != ValueType::List) {
                let operation = operation.name();
                return Err(invalid_config(format!("Can't {operation} to key {name} because its type is not LIST.")));
            }
            let now = values.get(name).cloned().or_else(inherited).unwrap_or_default();
            let items = given(change)?;
            if operation == Operation::Append && items.split(',').any(|item| item.trim().is_empty()) {
                return Err(invalid_config(format!("Configuration '{name}' values must not be empty.")));
            }
            edited(&now, operation, items)
        }
    };
    let Some(setting) = setting else {
        values.insert(name.clone(), new);
        return Ok(());
    };
    setting.check(&new).map_err(|error| invalid_config(error.to_string()))?;
    // Blanks around a text may be meant; around a number they are not.
    let is_text = matches!(setting.value_type, ValueType::String | ValueType::Class | ValueType::Password);
    values.insert(name.clone(), if is_text { new } else { new.trim().to_string() });
    Ok(())
}

fn given(change: &ConfigChange) -> Result<&str, Fault> {
    let value = change.value.as_deref();
    value.ok_or_else(|| invalid_request(format!("Null value not supported for : {}", change.name)))
}

/// A list with items added that it lacks, or taken away.
fn edited(list: &str, operation: Operation, items: &str) -> String {
    let mut now: Vec<&str> = list_items(list).collect();
    for item in list_items(items) {
        match operation {
            Operation::Subtract => now.retain(|known| *known != item),
            _ if now.contains(&item) => {}
            _ => now.push(item),
        }
    }
    now.join(",")
}

/// The settings that differ between two states of a layer, with what they are after.
pub(super) fn differences<'a>(
    before: &'a Values,
    after: &'a Values,
) -> impl Iterator<Item = (String, Option<String>)> + 'a {
    let removed = before.keys().filter(|name| !after.contains_key(*name)).map(|name| (name.clone(), None));
    let set = after.iter().filter(|(name, value)| before.get(*name) != Some(*value));
    removed.chain(set.map(|(name, value)| (name.clone(), Some(value.clone()))))
}

fn topic_records(topic: TopicId, before: &Values, after: &Values) -> Vec<MetadataRecord> {
    differences(before, after).map(|(name, value)| MetadataRecord::TopicConfig { topic, name, value }).collect()
}

fn broker_records(broker: Option<BrokerId>, before: &Values, after: &Values) -> Vec<MetadataRecord> {
    differences(before, after).map(|(name, value)| MetadataRecord::BrokerConfig { broker, name, value }).collect()
}
