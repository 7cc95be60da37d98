//! Where a setting's value comes from: a topic's own, this broker's, all brokers', the start's, or the default; the
//! first that has one wins. Values here were checked when they were set.
//!
//! ```text
//! topic > broker (dynamic) > cluster (dynamic, all brokers) > start (file, --set) > default
//! ```

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Scope, Setting, broker_setting, topic_settings};

/// The values that one layer sets, by setting name.
pub type Values = BTreeMap<String, String>;

/// The layer that a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The topic's own value.
    Topic,
    /// Changed on this broker while it ran.
    DynamicBroker,
    /// Changed for all brokers while they ran.
    DynamicCluster,
    /// Given at the start.
    Static,
    /// Nobody set it.
    Default,
    /// The subscription's own value.
    ClientMetrics,
    /// The group's own value.
    Group,
}

impl Source {
    /// The number that `DescribeConfigs` and `CreateTopics` send for this source.
    pub const fn code(self) -> i8 {
        match self {
            Self::Topic => 1,
            Self::DynamicBroker => 2,
            Self::DynamicCluster => 3,
            Self::Static => 4,
            Self::Default => 5,
            Self::ClientMetrics => 7,
            Self::Group => 8,
        }
    }
}

/// One layer's value for a setting or for one that it takes its value from.
#[derive(Clone, PartialEq, Debug)]
pub struct Synonym<'a> {
    /// The setting that has the value.
    pub setting: &'static Setting,
    /// The value in that setting's own unit.
    pub value: &'a str,
    /// The layer.
    pub source: Source,
}

/// What a setting comes to.
#[derive(Clone, PartialEq, Debug)]
pub struct Effective<'a> {
    /// The value in the setting's own unit; `None`: unset.
    pub value: Option<Cow<'a, str>>,
    /// The layer that it comes from.
    pub source: Source,
    /// Every layer's value, the winner first.
    pub synonyms: Vec<Synonym<'a>>,
}

/// All layers below a topic's own.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// Changed on this broker while it ran.
    pub broker: &'a Values,
    /// Changed for all brokers while they ran.
    pub cluster: &'a Values,
    /// Given at the start.
    pub start: &'a Values,
}

impl<'a> Layers<'a> {
    /// What a broker setting comes to.
    pub fn broker_setting(&self, setting: &'static Setting) -> Effective<'a> {
        let chain = alias_chain(setting);
        let mut synonyms = Vec::new();
        self.collect(&chain, &mut synonyms);
        // A setting that is unset itself says so, even where an alias has a value.
        if synonyms.iter().all(|synonym| synonym.setting.name != setting.name) {
            synonyms.clear();
        }
        settle(setting, synonyms)
    }

    /// What a setting of a topic, a group or a subscription comes to, `own` being its own values.
    pub fn topic_setting(&self, own: &'a Values, setting: &'static Setting) -> Effective<'a> {
        let mut synonyms = Vec::new();
        if let Some(value) = own.get(setting.name) {
            synonyms.push(Synonym { setting, value, source: own_source(setting.scope) });
        }
        if setting.scope == Scope::Group && setting.synonyms.is_empty() {
            let default = setting.default.map(|value| Synonym { setting, value, source: Source::Default });
            synonyms.extend(default);
        }
        let chain: Vec<&'static Setting> = setting.synonyms.iter().filter_map(|name| broker_setting(name)).collect();
        self.collect(&chain, &mut synonyms);
        settle(setting, synonyms)
    }

    /// The effective text of a broker setting; `None`: unset or unknown.
    pub fn broker_value(&self, name: &str) -> Option<Cow<'a, str>> {
        broker_setting(name).and_then(|setting| self.broker_setting(setting).value)
    }

    fn collect(&self, chain: &[&'static Setting], synonyms: &mut Vec<Synonym<'a>>) {
        let layers = [
            (self.broker, Source::DynamicBroker),
            (self.cluster, Source::DynamicCluster),
            (self.start, Source::Static),
        ];
        for (values, source) in layers {
            let set = chain.iter().filter_map(|&setting| Some((setting, values.get(setting.name)?)));
            synonyms.extend(set.map(|(setting, value)| Synonym { setting, value, source }));
        }
        let defaults = chain.iter().filter_map(|&setting| Some((setting, setting.default?)));
        synonyms.extend(defaults.map(|(setting, value)| Synonym { setting, value, source: Source::Default }));
    }
}

impl Effective<'_> {
    /// The same as `DescribeConfigs` tells it: what comes before the first value of the setting's own name, or of the
    /// broker setting of the same unit, is left out. So `retention.ms` that comes from `log.retention.hours` counts as a
    /// default without synonyms, as on Kafka.
    #[must_use]
    pub fn described(self, setting: &Setting) -> Self {
        let own = match setting.scope {
            Scope::Broker => setting.name,
            Scope::Topic | Scope::Group | Scope::ClientMetrics => {
                setting.synonyms.first().copied().unwrap_or(setting.name)
            }
        };
        let mut synonyms = self.synonyms;
        let set_by_topic = synonyms.iter().take_while(|synonym| synonym.source == own_source(setting.scope)).count();
        let hidden = synonyms.iter().skip(set_by_topic).take_while(|synonym| synonym.setting.name != own).count();
        synonyms.drain(set_by_topic..set_by_topic + hidden);
        let source = synonyms.first().map_or(Source::Default, |first| first.source);
        Effective { value: self.value, source, synonyms }
    }
}

/// The source of a value that a topic, a group or a subscription has by itself; a broker's are layers of their own.
const fn own_source(scope: Scope) -> Source {
    match scope {
        Scope::Broker | Scope::Topic => Source::Topic,
        Scope::Group => Source::Group,
        Scope::ClientMetrics => Source::ClientMetrics,
    }
}

fn settle<'a>(setting: &'static Setting, synonyms: Vec<Synonym<'a>>) -> Effective<'a> {
    match synonyms.first() {
        Some(first) => Effective { value: Some(converted(first, setting)), source: first.source, synonyms },
        None => Effective { value: setting.default.map(Cow::Borrowed), source: Source::Default, synonyms },
    }
}

/// A broker setting and those that stand in for it, as `log.retention.ms`, `.minutes`, `.hours`.
fn alias_chain(setting: &'static Setting) -> Vec<&'static Setting> {
    debug_assert_eq!(setting.scope, Scope::Broker);
    let from_here = |list: &'static [&'static str]| {
        list.iter().position(|name| *name == setting.name).and_then(|index| list.get(index..))
    };
    let names = topic_settings().find_map(|topic| from_here(topic.synonyms)).unwrap_or_default();
    let aliases = names.iter().skip(1).filter_map(|name| broker_setting(name));
    core::iter::once(setting).chain(aliases).collect()
}

/// A synonym's value in another setting's unit: hours and minutes become milliseconds.
fn converted<'a>(synonym: &Synonym<'a>, to: &Setting) -> Cow<'a, str> {
    let units = synonym.setting.unit.milliseconds().zip(to.unit.milliseconds());
    match (units, synonym.value.trim().parse::<i64>()) {
        (Some((from, to)), Ok(number)) if from != to => {
            let converted = if number < 0 { number } else { number.saturating_mul(from) / to };
            Cow::Owned(converted.to_string())
        }
        _ => Cow::Borrowed(synonym.value.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::topic_setting;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn shown(effective: &Effective<'_>) -> (Option<String>, Source, Vec<String>) {
        let synonyms = effective.synonyms.iter();
        let synonyms = synonyms.map(|s| alloc::format!("{}={}/{:?}", s.setting.name, s.value, s.source)).collect();
        (effective.value.as_deref().map(ToString::to_string), effective.source, synonyms)
    }

    #[test]
    fn the_nearest_layer_wins() {
        let own = values(&[("retention.ms", "1")]);
        let broker = values(&[("log.retention.ms", "2")]);
        let cluster = values(&[("log.retention.ms", "3")]);
        let start = values(&[("log.retention.hours", "24")]);
        let none = Values::new();
        let setting = topic_setting("retention.ms").unwrap();
        let value = |own, broker, cluster| {
            let layers = Layers { broker, cluster, start: &start };
            shown(&layers.topic_setting(own, setting))
        };
        assert_eq!(value(&own, &broker, &cluster).0.as_deref(), Some("1"));
        assert_eq!(value(&none, &broker, &cluster).0.as_deref(), Some("2"));
        assert_eq!(value(&none, &none, &cluster).0.as_deref(), Some("3"));
        assert_eq!(
            value(&none, &none, &none),
            (
                Some("86400000".into()),
                Source::Static,
                ["log.retention.hours=24/Static".into(), "log.retention.hours=168/Default".into()].into()
            )
        );
        assert_eq!(
            value(&own, &broker, &cluster).2,
            [
                "retention.ms=1/Topic",
                "log.retention.ms=2/DynamicBroker",
                "log.retention.ms=3/DynamicCluster",
                "log.retention.hours=24/Static",
                "log.retention.hours=168/Default"
            ]
        );
    }

    /// What Kafka 4.3 answers for `retention.ms` and `segment.ms`, set and unset.
    #[test]
    fn a_value_in_another_unit_is_described_as_a_default() {
        let (none, own) = (Values::new(), values(&[("retention.ms", "1000")]));
        let start = values(&[("log.retention.hours", "24"), ("log.segment.bytes", "70000")]);
        let layers = Layers { broker: &none, cluster: &none, start: &start };
        let described = |own, name| {
            let setting = topic_setting(name).unwrap();
            shown(&layers.topic_setting(own, setting).described(setting))
        };
        assert_eq!(described(&none, "retention.ms"), (Some("86400000".into()), Source::Default, Vec::new()));
        assert_eq!(described(&own, "retention.ms").2, ["retention.ms=1000/Topic"]);
        assert_eq!(described(&none, "segment.ms"), (Some("604800000".into()), Source::Default, Vec::new()));
        let bytes = described(&none, "segment.bytes");
        assert_eq!((bytes.1, bytes.2.len()), (Source::Static, 2));
        let hours = broker_setting("log.retention.hours").unwrap();
        let hours = shown(&layers.broker_setting(hours).described(hours));
        assert_eq!(hours.2, ["log.retention.hours=24/Static", "log.retention.hours=168/Default"]);
    }

    #[test]
    fn milliseconds_beat_minutes_beat_hours() {
        let none = Values::new();
        let setting = topic_setting("retention.ms").unwrap();
        let value = |start: &Values| {
            Layers { broker: &none, cluster: &none, start }.topic_setting(&none, setting).value.map(Cow::into_owned)
        };
        let mut start = values(&[("log.retention.hours", "1"), ("log.retention.minutes", "2")]);
        assert_eq!(value(&start).as_deref(), Some("120000"));
        start.insert("log.retention.ms".into(), "3".into());
        assert_eq!(value(&start).as_deref(), Some("3"));
        assert_eq!(value(&values(&[("log.retention.hours", "-1")])).as_deref(), Some("-1"), "never");
        assert_eq!(value(&none).as_deref(), Some("604800000"));
    }

    #[test]
    fn an_unset_broker_setting_is_unset() {
        let none = Values::new();
        let start = values(&[("log.retention.hours", "24")]);
        let layers = Layers { broker: &none, cluster: &none, start: &start };
        let ms = layers.broker_setting(broker_setting("log.retention.ms").unwrap());
        assert_eq!(shown(&ms), (None, Source::Default, Vec::new()));
        let hours = layers.broker_setting(broker_setting("log.retention.hours").unwrap());
        assert_eq!(shown(&hours).2, ["log.retention.hours=24/Static", "log.retention.hours=168/Default"]);
    }

    #[test]
    fn every_topic_setting_agrees_with_its_brokers_default() {
        let none = Values::new();
        let layers = Layers { broker: &none, cluster: &none, start: &none };
        for setting in topic_settings() {
            let effective = layers.topic_setting(&none, setting);
            assert_eq!(effective.value.as_deref(), setting.default, "{}", setting.name);
            assert_eq!(effective.source, Source::Default, "{}", setting.name);
        }
    }
}
