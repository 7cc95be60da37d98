//! DescribeConfigs (key 32): every setting of a topic, a broker, a group, a subscription or a logger, what it comes to
//! and why.
//!
//! Owns which settings are listed and what is hidden. The values come from the image and from the start, the rest from
//! the table of settings.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use heddle_cluster::MetadataImage;
use heddle_cluster::controller::{Fault, ResourceKind, check_topic_name};
use heddle_cluster::record::Resource;
use heddle_cluster::settings::layers::{Effective, Source, Synonym, Values};
use heddle_cluster::settings::{
    Mode, Setting, broker_setting, broker_settings, client_metrics_settings, group_settings, has_known_prefix,
    topic_settings,
};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResourceResult, DescribeConfigsResponse,
    DescribeConfigsResult, DescribeConfigsSynonym,
};

use super::{Answer, Call, Refusal, outcome};
use crate::log_levels::LogLevel;

/// Resources and settings that one answer may hold: those of more than 11,000 topics.
const SETTINGS_MAX: usize = 400_000;
/// The type of a setting that is in no table.
const UNKNOWN_TYPE: i8 = 0;
/// The source of a logger's level.
const LOGGER_SOURCE: i8 = 6;

/// Serves a question for settings.
pub(crate) async fn handle(call: &Call) -> Result<Answer, Refusal> {
    let request: DescribeConfigsRequest<'_> = call.decode()?;
    let image = call.core.image();
    let mut found: Vec<(DescribeConfigsResource<'_>, Result<Vec<Entry<'_>>, Fault>)> = Vec::new();
    let mut size = 0;
    for resource in request.resources.iter() {
        let entries = describe(call, &image, &resource);
        size += 1 + entries.as_ref().map_or(0, Vec::len);
        if size > SETTINGS_MAX {
            return Err(Refusal::TooMany { what: "settings", limit: SETTINGS_MAX });
        }
        found.push((resource, entries));
    }
    let detail = Detail { synonyms: request.include_synonyms, documentation: request.include_documentation };
    let results: Vec<DescribeConfigsResult<'_>> =
        found.iter().map(|(resource, entries)| result(resource, entries, detail)).collect();
    call.answer(&DescribeConfigsResponse { results: results.into(), ..DescribeConfigsResponse::default() })
}

/// What a client wants to know of each setting besides its value.
#[derive(Clone, Copy)]
struct Detail {
    synonyms: bool,
    documentation: bool,
}

/// A setting of a resource.
struct Entry<'a> {
    name: &'a str,
    kind: Kind,
    effective: Effective<'a>,
    /// The layers that have a value, the nearest first; only of a name of no table.
    layers: Vec<Source>,
    documentation: Cow<'static, str>,
    read_only: bool,
}

/// What a setting is.
#[derive(Clone, Copy)]
enum Kind {
    /// In the table.
    Setting(&'static Setting),
    /// In no table: its value is a secret, for all that is known.
    Unknown,
    /// The level of a logger.
    Logger,
}

fn describe<'a>(
    call: &'a Call,
    image: &'a MetadataImage,
    resource: &DescribeConfigsResource<'_>,
) -> Result<Vec<Entry<'a>>, Fault> {
    let wanted: Option<BTreeSet<&str>> =
        resource.configuration_keys.as_ref().filter(|keys| !keys.is_empty()).map(|keys| keys.iter().collect());
    let name = resource.resource_name;
    let mut entries = match ResourceKind::from_code(resource.resource_type) {
        Some(ResourceKind::Topic) => topic(call, image, name)?,
        Some(ResourceKind::Broker) if name.is_empty() => cluster(image),
        Some(ResourceKind::Broker) => {
            check_broker(call, name)?;
            broker(call, image)
        }
        Some(ResourceKind::BrokerLogger) => {
            check_logger_broker(call, name)?;
            loggers(call)
        }
        // Neither a subscription nor a group need exist to have settings.
        Some(ResourceKind::ClientMetrics) => {
            check_named(name, "Client metrics subscription name must not be empty")?;
            configured(call, image, &Resource::ClientMetrics(name.to_owned()), client_metrics_settings())
        }
        Some(ResourceKind::Group) => {
            check_named(name, "Group name must not be empty")?;
            configured(call, image, &Resource::Group(name.to_owned()), group_settings())
        }
        None => return Err(invalid(format!("Unknown resource type {}", resource.resource_type))),
    };
    entries.retain(|entry| wanted.as_ref().is_none_or(|wanted| wanted.contains(entry.name)));
    Ok(entries)
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::with(ErrorCode::InvalidRequest, message)
}

fn check_broker(call: &Call, name: &str) -> Result<(), Fault> {
    let own = call.core.broker_id().get();
    match name.parse::<i32>() {
        Ok(id) if id == own => Ok(()),
        Ok(id) => Err(invalid(format!("Unexpected broker id, expected {own} or empty string, but received {id}"))),
        Err(_) => Err(invalid(format!("Broker id must be an integer, but it is: {name}"))),
    }
}

fn check_logger_broker(call: &Call, name: &str) -> Result<(), Fault> {
    let own = call.core.broker_id().get();
    check_named(name, "Broker id must not be empty")?;
    match name.parse::<i32>() {
        Ok(id) if id != own => Err(invalid(format!("Unexpected broker id, expected {own} but received {id}"))),
        _ => check_broker(call, name),
    }
}

fn check_named(name: &str, otherwise: &str) -> Result<(), Fault> {
    if name.is_empty() { Err(invalid(otherwise)) } else { Ok(()) }
}

fn topic<'a>(call: &'a Call, image: &'a MetadataImage, name: &str) -> Result<Vec<Entry<'a>>, Fault> {
    check_topic_name(name)
        .map_err(|reason| Fault::with(ErrorCode::InvalidTopicException, format!("Topic name is invalid: {reason}")))?;
    let topic = image.topic_named(name).ok_or(Fault::new(ErrorCode::UnknownTopicOrPartition))?;
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let listed = topic_settings().filter(|setting| !setting.internal || topic.config.contains_key(setting.name));
    let entry = |setting| Entry::known(setting, layers.topic_setting(&topic.config, setting));
    Ok(listed.map(entry).collect())
}

/// A group or a subscription.
fn configured<'a>(
    call: &'a Call,
    image: &'a MetadataImage,
    of: &Resource,
    settings: impl Iterator<Item = &'static Setting>,
) -> Vec<Entry<'a>> {
    let layers = image.layers(call.core.broker_id(), &call.core.config().settings);
    let own = image.resource_config(of);
    settings.map(|setting| Entry::known(setting, layers.topic_setting(own, setting))).collect()
}

/// Every logger of this process, with its level.
fn loggers(call: &Call) -> Vec<Entry<'static>> {
    let entry = |(name, level): (&'static str, LogLevel)| Entry {
        name,
        kind: Kind::Logger,
        effective: Effective {
            value: Some(Cow::Borrowed(level.name())),
            source: Source::Default,
            synonyms: Vec::new(),
        },
        layers: Vec::new(),
        documentation: Cow::Borrowed(""),
        read_only: false,
    };
    call.core.config().log_levels.all().into_iter().map(entry).collect()
}

/// What was changed for all brokers at once, and nothing else.
fn cluster(image: &MetadataImage) -> Vec<Entry<'_>> {
    image.cluster_config().iter().map(|(name, value)| Entry::of_cluster(name, value)).collect()
}

fn broker<'a>(call: &'a Call, image: &'a MetadataImage) -> Vec<Entry<'a>> {
    let own = call.core.broker_id();
    let start = &call.core.config().settings;
    let layers = image.layers(own, start);
    let entry = |setting: &'static Setting| {
        let mut effective = layers.broker_setting(setting);
        if matches!(setting.name, "node.id" | "broker.id") {
            // The data directory has the last word on the id.
            effective.value = Some(Cow::Owned(own.to_string()));
        }
        Entry::known(setting, effective)
    };
    let listed = broker_settings().map(entry);
    let listed = listed.filter(|entry| {
        !matches!(entry.kind, Kind::Setting(setting) if setting.internal) || entry.effective.source != Source::Default
    });
    let mut entries: Vec<Entry<'_>> = listed.collect();
    // The nearest layer first.
    let layers = [
        (image.broker_config(own), Source::DynamicBroker),
        (image.cluster_config(), Source::DynamicCluster),
        (start, Source::Static),
    ];
    let mut unknown: BTreeMap<&str, Vec<(Source, &str)>> = BTreeMap::new();
    for (values, source) in layers {
        for (name, value) in unknown_names(values) {
            unknown.entry(name).or_default().push((source, value));
        }
    }
    entries.extend(unknown.into_iter().map(|(name, values)| Entry::unknown(name, values)));
    entries
}

/// Values whose names are in no table.
fn unknown_names(values: &Values) -> impl Iterator<Item = (&str, &str)> {
    let all = values.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| broker_setting(name).is_none())
}

impl<'a> Entry<'a> {
    fn known(setting: &'static Setting, effective: Effective<'a>) -> Self {
        let effective = effective.described(setting);
        let read_only = setting.mode == Mode::ReadOnly;
        Entry {
            name: setting.name,
            kind: Kind::Setting(setting),
            effective,
            layers: Vec::new(),
            documentation: setting.documentation(),
            read_only,
        }
    }

    fn of_cluster(name: &'a str, value: &'a str) -> Self {
        let source = Source::DynamicCluster;
        match broker_setting(name) {
            None => Entry::unknown(name, vec![(source, value)]),
            Some(setting) => {
                let synonyms = vec![Synonym { setting, value, source }];
                Entry::known(setting, Effective { value: Some(Cow::Borrowed(value)), source, synonyms })
            }
        }
    }

    /// A name of no table, with its values, the nearest layer's first.
    fn unknown(name: &'a str, values: Vec<(Source, &'a str)>) -> Self {
        let (source, value) = *values.first().expect("a name is known by its values");
        Entry {
            name,
            kind: Kind::Unknown,
            effective: Effective { value: Some(Cow::Borrowed(value)), source, synonyms: Vec::new() },
            layers: values.into_iter().map(|(source, _)| source).collect(),
            documentation: Cow::Borrowed(""),
            read_only: !has_known_prefix(name),
        }
    }

    fn is_sensitive(&self) -> bool {
        match self.kind {
            Kind::Setting(setting) => setting.is_sensitive(),
            Kind::Unknown => true,
            Kind::Logger => false,
        }
    }
}

fn result<'a>(
    resource: &DescribeConfigsResource<'a>,
    found: &'a Result<Vec<Entry<'a>>, Fault>,
    detail: Detail,
) -> DescribeConfigsResult<'a> {
    let entries = found.as_deref().unwrap_or_default();
    DescribeConfigsResult {
        error_code: outcome::code(found),
        error_message: Some(outcome::message(found).unwrap_or_default()),
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        configs: entries.iter().map(|entry| entry.shown(detail)).collect(),
    }
}

impl Entry<'_> {
    fn shown(&self, detail: Detail) -> DescribeConfigsResourceResult<'_> {
        let synonyms = self.effective.synonyms.iter().filter(|_| detail.synonyms);
        let layers = self.layers.iter().filter(|_| detail.synonyms);
        let of_layer = |source: &Source| DescribeConfigsSynonym { name: self.name, value: None, source: source.code() };
        DescribeConfigsResourceResult {
            name: self.name,
            value: self.effective.value.as_deref().filter(|_| !self.is_sensitive()),
            read_only: self.read_only,
            config_source: match self.kind {
                Kind::Logger => LOGGER_SOURCE,
                Kind::Setting(_) | Kind::Unknown => self.effective.source.code(),
            },
            is_sensitive: self.is_sensitive(),
            synonyms: synonyms
                .map(|known| DescribeConfigsSynonym {
                    name: known.setting.name,
                    value: Some(known.value).filter(|_| !self.is_sensitive()),
                    source: known.source.code(),
                })
                .chain(layers.map(of_layer))
                .collect(),
            config_type: match self.kind {
                Kind::Setting(setting) => setting.value_type.code(),
                Kind::Unknown | Kind::Logger => UNKNOWN_TYPE,
            },
            documentation: match self.kind {
                Kind::Setting(_) => detail.documentation.then_some(self.documentation.as_ref()),
                Kind::Unknown => None,
                Kind::Logger => Some(""),
            },
        }
    }
}
