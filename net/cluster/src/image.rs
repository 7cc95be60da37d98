//! The metadata image: what all records so far add up to. [`MetadataImage::apply`] is the only way to change it.
//!
//! Owns topics, partitions, their settings, brokers, producer-id blocks and feature levels. Never decides anything and
//! never knows which core a partition lives on. A clone shares the topics, so that each change can be published whole.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Bound;

use heddle_record::{BrokerId, PartitionIndex, ProducerId, TopicId};

use crate::record::{BrokerRegistration, MetadataRecord, PartitionState, Resource};
use crate::settings::layers::{Layers, Values};

/// The cluster as all records up to a point make it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MetadataImage {
    topics: BTreeMap<TopicId, Arc<TopicImage>>,
    ids: BTreeMap<Arc<str>, TopicId>,
    partition_count: usize,
    brokers: BTreeMap<BrokerId, BrokerRegistration>,
    broker_configs: BTreeMap<BrokerId, Values>,
    cluster_config: Values,
    resource_configs: BTreeMap<Resource, Values>,
    next_producer_id: i64,
    features: BTreeMap<String, i16>,
    records: u64,
}

/// A topic.
#[derive(Clone, PartialEq, Debug)]
pub struct TopicImage {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// Its partitions, each at its index.
    pub partitions: Vec<PartitionState>,
    /// Its own settings.
    pub config: Values,
}

impl TopicImage {
    /// The partition at this index.
    pub fn partition(&self, index: PartitionIndex) -> Option<&PartitionState> {
        usize::try_from(index.get()).ok().and_then(|index| self.partitions.get(index))
    }
}

impl TopicImage {
    /// Adds the records that make this topic.
    fn add_records(&self, records: &mut Vec<MetadataRecord>) {
        records.push(MetadataRecord::Topic { name: String::from(&*self.name), id: self.id });
        records.extend((0..).zip(&self.partitions).map(|(index, state)| MetadataRecord::Partition {
            topic: self.id,
            partition: PartitionIndex::new(index),
            state: state.clone(),
        }));
        records.extend(self.config.iter().map(|(name, value)| MetadataRecord::TopicConfig {
            topic: self.id,
            name: name.clone(),
            value: Some(value.clone()),
        }));
    }
}

/// A record that does not fit what came before: the log is not what was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DoesNotFit {
    /// The record.
    pub record: MetadataRecord,
    /// Why.
    pub reason: &'static str,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata record does not fit, {}: {:?}", self.reason, self.record)
    }
}

impl core::error::Error for DoesNotFit {}

impl MetadataImage {
    /// Every topic, by id.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<TopicImage>> {
        self.topics.values()
    }

    /// Every topic, by name, from the first whose name is at least `from`.
    pub fn topics_by_name<'a>(&'a self, from: &str) -> impl Iterator<Item = &'a Arc<TopicImage>> + use<'a> {
        self.ids.range::<str, _>((Bound::Included(from), Bound::Unbounded)).filter_map(|(_, id)| self.topics.get(id))
    }

    /// The topic with this id.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<TopicImage>> {
        self.topics.get(&id)
    }

    /// The topic with this name.
    pub fn topic_named(&self, name: &str) -> Option<&Arc<TopicImage>> {
        self.ids.get(name).and_then(|id| self.topics.get(id))
    }

    /// Partitions of all topics together.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// Every broker, by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = (BrokerId, &BrokerRegistration)> {
        self.brokers.iter().map(|(&id, registration)| (id, registration))
    }

    /// The broker with this id.
    pub fn broker(&self, id: BrokerId) -> Option<&BrokerRegistration> {
        self.brokers.get(&id)
    }

    /// Settings of one broker that were changed while it ran.
    pub fn broker_config(&self, id: BrokerId) -> &Values {
        self.broker_configs.get(&id).unwrap_or(&NO_VALUES)
    }

    /// Settings of all brokers that were changed while they ran.
    pub fn cluster_config(&self) -> &Values {
        &self.cluster_config
    }

    /// Settings of a group, or of a subscription to clients' metrics.
    pub fn resource_config(&self, resource: &Resource) -> &Values {
        self.resource_configs.get(resource).unwrap_or(&NO_VALUES)
    }

    /// The groups and subscriptions that have settings, in order.
    pub fn configured_resources(&self) -> impl Iterator<Item = &Resource> {
        self.resource_configs.keys()
    }

    /// The layers below a topic's own settings, as this broker sees them; `start` is what it was started with.
    pub fn layers<'a>(&'a self, broker: BrokerId, start: &'a Values) -> Layers<'a> {
        Layers { broker: self.broker_config(broker), cluster: &self.cluster_config, start }
    }

    /// The first producer id that no broker has.
    pub fn next_producer_id(&self) -> ProducerId {
        ProducerId::new(self.next_producer_id)
    }

    /// The level of every feature, by name.
    pub fn features(&self) -> impl ExactSizeIterator<Item = (&str, i16)> {
        self.features.iter().map(|(name, &level)| (name.as_str(), level))
    }

    /// How many records this image is made of; grows with each one applied.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The records that make this image, as few as do.
    pub fn as_records(&self) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        let features = self.features.iter();
        records.extend(features.map(|(name, &level)| MetadataRecord::FeatureLevel { name: name.clone(), level }));
        let brokers = self.brokers.iter();
        records
            .extend(brokers.map(|(&id, broker)| MetadataRecord::RegisterBroker { id, registration: broker.clone() }));
        let setting = |broker, (name, value): (&String, &String)| MetadataRecord::BrokerConfig {
            broker,
            name: name.clone(),
            value: Some(value.clone()),
        };
        records.extend(self.cluster_config.iter().map(|entry| setting(None, entry)));
        for (broker, values) in &self.broker_configs {
            records.extend(values.iter().map(|entry| setting(Some(*broker), entry)));
        }
        for (resource, values) in &self.resource_configs {
            records.extend(values.iter().map(|(name, value)| MetadataRecord::ResourceConfig {
                resource: resource.clone(),
                name: name.clone(),
                value: Some(value.clone()),
            }));
        }
        if self.next_producer_id > 0 {
            records.push(MetadataRecord::ProducerIds { broker: BrokerId::NONE, next: self.next_producer_id() });
        }
        self.topics.values().for_each(|topic| topic.add_records(&mut records));
        records
    }

    /// The same, with the count of the records that made it first.
    pub(crate) fn made_of(self, records: u64) -> MetadataImage {
        MetadataImage { records, ..self }
    }

    /// Adds one record.
    ///
    /// # Errors
    /// The record contradicts the image, which stays as it was.
    pub fn apply(&mut self, record: &MetadataRecord) -> Result<(), DoesNotFit> {
        self.try_apply(record).map_err(|reason| DoesNotFit { record: record.clone(), reason })?;
        self.records += 1;
        Ok(())
    }

    fn try_apply(&mut self, record: &MetadataRecord) -> Result<(), &'static str> {
        match record {
            MetadataRecord::Topic { name, id } => return self.add_topic(name, *id),
            MetadataRecord::Partition { topic, partition, state } => {
                return self.set_partition(*topic, *partition, state);
            }
            MetadataRecord::RemoveTopic { id } => {
                let topic = self.topics.remove(id).ok_or("there is no such topic")?;
                self.ids.remove(&topic.name);
                self.partition_count -= topic.partitions.len();
            }
            MetadataRecord::TopicConfig { topic, name, value } => {
                let topic = self.topics.get_mut(topic).ok_or("there is no such topic")?;
                set(&mut Arc::make_mut(topic).config, name, value.as_ref());
            }
            MetadataRecord::BrokerConfig { broker: None, name, value } => {
                set(&mut self.cluster_config, name, value.as_ref());
            }
            MetadataRecord::BrokerConfig { broker: Some(broker), name, value } => {
                let values = self.broker_configs.entry(*broker).or_default();
                set(values, name, value.as_ref());
                if values.is_empty() {
                    self.broker_configs.remove(broker);
                }
            }
            MetadataRecord::ResourceConfig { resource, name, value } => {
                let values = self.resource_configs.entry(resource.clone()).or_default();
                set(values, name, value.as_ref());
                if values.is_empty() {
                    self.resource_configs.remove(resource);
                }
            }
            MetadataRecord::ProducerIds { next, .. } => {
                if next.get() < self.next_producer_id {
                    return Err("producer ids never come back");
                }
                self.next_producer_id = next.get();
            }
            MetadataRecord::RegisterBroker { id, registration } => {
                if self.brokers.get(id).is_some_and(|before| before.epoch >= registration.epoch) {
                    return Err("broker epochs grow");
                }
                self.brokers.insert(*id, registration.clone());
            }
            MetadataRecord::FeatureLevel { name, level: 0 } => {
                self.features.remove(name);
            }
            MetadataRecord::FeatureLevel { name, level } => {
                self.features.insert(name.clone(), *level);
            }
        }
        Ok(())
    }

    fn add_topic(&mut self, name: &str, id: TopicId) -> Result<(), &'static str> {
        if id.is_zero() || self.topics.contains_key(&id) {
            return Err("the topic id is taken");
        } else if self.ids.contains_key(name) {
            return Err("the topic name is taken");
        }
        let name: Arc<str> = Arc::from(name);
        let topic = TopicImage { name: Arc::clone(&name), id, partitions: Vec::new(), config: Values::new() };
        self.topics.insert(id, Arc::new(topic));
        self.ids.insert(name, id);
        Ok(())
    }

    fn set_partition(&mut self, id: TopicId, at: PartitionIndex, to: &PartitionState) -> Result<(), &'static str> {
        let topic = self.topics.get_mut(&id).ok_or("there is no such topic")?;
        let index = usize::try_from(at.get()).map_err(|_| "a partition index is not negative")?;
        if !to.replicas.contains(&to.leader) && to.leader != BrokerId::NONE {
            return Err("the leader has no replica");
        }
        match topic.partition(at) {
            None if index != topic.partitions.len() => return Err("partitions come in order"),
            None => {
                Arc::make_mut(topic).partitions.push(to.clone());
                self.partition_count += 1;
            }
            Some(from) if from.leader_epoch > to.leader_epoch || from.partition_epoch >= to.partition_epoch => {
                return Err("epochs of a partition grow");
            }
            Some(_) => {
                let slot = Arc::make_mut(topic).partitions.get_mut(index).expect("the partition was just seen");
                *slot = to.clone();
            }
        }
        Ok(())
    }

    /// Checks what must hold between the parts of an image.
    ///
    /// # Panics
    /// When it does not: a fault of ours.
    pub fn check_invariants(&self) {
        assert_eq!(self.ids.len(), self.topics.len(), "each topic has one name");
        let mut partitions = 0;
        for (id, topic) in &self.topics {
            assert_eq!(topic.id, *id);
            assert_eq!(self.ids.get(&topic.name), Some(id));
            partitions += topic.partitions.len();
            for partition in &topic.partitions {
                assert!(!partition.replicas.is_empty(), "{} has a partition without replicas", topic.name);
                assert!(partition.in_sync_replicas.iter().all(|replica| partition.replicas.contains(replica)));
            }
        }
        assert_eq!(partitions, self.partition_count);
        assert!(self.next_producer_id >= 0);
    }
}

static NO_VALUES: Values = Values::new();

fn set(values: &mut Values, name: &str, value: Option<&String>) {
    match value {
        Some(value) => values.insert(name.into(), value.clone()),
        None => values.remove(name),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use heddle_record::LeaderEpoch;

    const LOOM: TopicId = TopicId::new([1; 16]);

    fn state(leader_epoch: i32, partition_epoch: i32) -> PartitionState {
        let broker = BrokerId::new(1);
        PartitionState {
            replicas: vec![broker],
            in_sync_replicas: vec![broker],
            leader: broker,
            leader_epoch: LeaderEpoch::new(leader_epoch),
            partition_epoch,
        }
    }

    fn partition(index: i32, state: PartitionState) -> MetadataRecord {
        MetadataRecord::Partition { topic: LOOM, partition: PartitionIndex::new(index), state }
    }

    fn image(records: &[MetadataRecord]) -> MetadataImage {
        let mut image = MetadataImage::default();
        for record in records {
            image.apply(record).unwrap();
            image.check_invariants();
        }
        image
    }

    #[test]
    fn topics_come_and_go() {
        let topic = MetadataRecord::Topic { name: "loom".into(), id: LOOM };
        let mut image = image(&[topic.clone(), partition(0, state(0, 0)), partition(1, state(0, 0))]);
        assert_eq!(image.topic_named("loom").unwrap().partitions.len(), 2);
        assert_eq!(image.partition_count(), 2);
        let before = image.clone();
        image.apply(&MetadataRecord::RemoveTopic { id: LOOM }).unwrap();
        image.check_invariants();
        assert_eq!((image.topics().len(), image.partition_count()), (0, 0));
        assert!(image.topic_named("loom").is_none());
        assert_eq!(before.topics().len(), 1, "a published image does not change");
        image.apply(&topic).expect("a name is free again");
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let topic = MetadataRecord::Topic { name: "loom".into(), id: LOOM };
        let image = image(&[topic.clone(), partition(0, state(3, 3))]);
        let unfit = [
            topic,
            MetadataRecord::Topic { name: "loom".into(), id: TopicId::new([2; 16]) },
            MetadataRecord::Topic { name: "other".into(), id: TopicId::ZERO },
            partition(2, state(0, 0)),
            partition(-1, state(0, 0)),
            partition(0, state(2, 4)),
            partition(0, state(3, 3)),
            MetadataRecord::RemoveTopic { id: TopicId::new([3; 16]) },
            MetadataRecord::ProducerIds { broker: BrokerId::new(1), next: ProducerId::new(-1) },
        ];
        for record in unfit {
            let mut after = image.clone();
            assert_eq!(after.apply(&record).unwrap_err().record, record);
            assert_eq!(after, image);
        }
    }

    #[test]
    fn topics_by_name_start_anywhere() {
        let names = ["b", "a", "d"];
        let records = names
            .iter()
            .zip(1..)
            .map(|(name, id)| MetadataRecord::Topic { name: (*name).into(), id: TopicId::new([id; 16]) });
        let image = image(&records.collect::<Vec<_>>());
        let from = |from| image.topics_by_name(from).map(|topic| topic.name.as_ref()).collect::<Vec<_>>();
        assert_eq!(
            (from(""), from("b"), from("c"), from("e")),
            (vec!["a", "b", "d"], vec!["b", "d"], vec!["d"], vec![])
        );
    }
}
