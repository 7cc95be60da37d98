//! What a round of decisions comes to: the image that it led to, and the topics that a core has to look at again.
//!
//! Owns which topics a record touches, so that opening and dropping logs costs what changed and not what there is. Never
//! opens anything itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use heddle_cluster::{MetadataImage, MetadataRecord, TopicImage};
use heddle_record::TopicId;

/// An image, and what in it is new since the one before.
#[derive(Debug)]
pub(crate) struct Change {
    image: Arc<MetadataImage>,
    touched: Touched,
}

#[derive(Debug, Clone)]
enum Touched {
    /// A layer of settings below those of the topics has changed, and these topics.
    Every(BTreeSet<TopicId>),
    These(BTreeSet<TopicId>),
}

impl Change {
    /// Everything in `image`, for a core that knows nothing yet.
    pub(crate) fn whole(image: Arc<MetadataImage>) -> Self {
        Self { image, touched: Touched::Every(BTreeSet::new()) }
    }

    /// What `records` changed, which led to `image`.
    pub(crate) fn of(image: Arc<MetadataImage>, records: &[MetadataRecord]) -> Self {
        let topics = records.iter().filter_map(topic_of).collect();
        let is_below_topics = |record: &MetadataRecord| matches!(record, MetadataRecord::BrokerConfig { .. });
        let touched = if records.iter().any(is_below_topics) { Touched::Every(topics) } else { Touched::These(topics) };
        Self { image, touched }
    }

    /// The way back from this change, to the image `before` it.
    pub(crate) fn undone(&self, before: Arc<MetadataImage>) -> Self {
        Self { image: before, touched: self.touched.clone() }
    }

    /// The image that it led to.
    pub(crate) fn image(&self) -> &Arc<MetadataImage> {
        &self.image
    }

    /// The topics of the image whose partitions or settings may not be what they were.
    pub(crate) fn topics(&self) -> Box<dyn Iterator<Item = &Arc<TopicImage>> + '_> {
        match &self.touched {
            Touched::Every(_) => Box::new(self.image.topics()),
            Touched::These(topics) => Box::new(topics.iter().filter_map(|id| self.image.topic(*id))),
        }
    }

    /// The topics that may have fewer partitions than before, or be gone.
    pub(crate) fn shrunk(&self) -> impl Iterator<Item = TopicId> + '_ {
        let (Touched::Every(topics) | Touched::These(topics)) = &self.touched;
        topics.iter().copied()
    }
}

fn topic_of(record: &MetadataRecord) -> Option<TopicId> {
    match record {
        MetadataRecord::Topic { id, .. } | MetadataRecord::RemoveTopic { id } => Some(*id),
        MetadataRecord::Partition { topic, .. } | MetadataRecord::TopicConfig { topic, .. } => Some(*topic),
        MetadataRecord::BrokerConfig { .. }
        | MetadataRecord::ResourceConfig { .. }
        | MetadataRecord::ProducerIds { .. }
        | MetadataRecord::RegisterBroker { .. }
        | MetadataRecord::FeatureLevel { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_record::{BrokerId, ProducerId};

    fn id(number: u16) -> TopicId {
        let [high, low] = (number + 1).to_be_bytes();
        TopicId::new([7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
    }

    fn topic(number: u16) -> MetadataRecord {
        MetadataRecord::Topic { name: format!("topic-{number}"), id: id(number) }
    }

    fn setting(topic: Option<u16>) -> MetadataRecord {
        let (name, value) = ("retention.ms".to_owned(), Some("1".to_owned()));
        match topic {
            Some(topic) => MetadataRecord::TopicConfig { topic: id(topic), name, value },
            None => MetadataRecord::BrokerConfig { broker: None, name: "log.retention.ms".to_owned(), value },
        }
    }

    /// A thousand topics, and `records` on top.
    fn change(records: &[MetadataRecord]) -> Change {
        let mut image = MetadataImage::default();
        (0..1_000).map(topic).for_each(|record| image.apply(&record).expect("the topic is new"));
        records.iter().for_each(|record| image.apply(record).expect("it fits"));
        Change::of(Arc::new(image), records)
    }

    fn names(change: &Change) -> Vec<&str> {
        change.topics().map(|topic| topic.name.as_ref()).collect()
    }

    #[test]
    fn a_change_names_what_it_changed_and_no_more() {
        let created = change(&[topic(1_000), topic(1_001)]);
        assert_eq!(names(&created), ["topic-1000", "topic-1001"]);
        let altered = change(&[setting(Some(3))]);
        assert_eq!(names(&altered), ["topic-3"]);
        let removed = change(&[MetadataRecord::RemoveTopic { id: id(5) }]);
        assert_eq!((names(&removed).len(), removed.shrunk().collect::<Vec<_>>()), (0, vec![id(5)]));
        let next = ProducerId::new(1_000);
        let ids = change(&[MetadataRecord::ProducerIds { broker: BrokerId::new(1), next }]);
        assert_eq!((ids.topics().count(), ids.shrunk().count()), (0, 0));
    }

    #[test]
    fn a_setting_of_brokers_reaches_every_topic() {
        let changed = change(&[setting(None), MetadataRecord::RemoveTopic { id: id(5) }]);
        assert_eq!(changed.topics().count(), 999);
        assert_eq!(changed.shrunk().collect::<Vec<_>>(), [id(5)]);
        assert_eq!(Change::whole(Arc::clone(changed.image())).topics().count(), 999);
    }

    #[test]
    fn the_way_back_looks_at_the_same_topics() {
        let created = change(&[topic(1_000)]);
        let mut before = MetadataImage::default();
        (0..1_000).map(topic).for_each(|record| before.apply(&record).expect("the topic is new"));
        let undone = created.undone(Arc::new(before));
        assert_eq!((undone.topics().count(), undone.shrunk().collect::<Vec<_>>()), (0, vec![id(1_000)]));
    }
}
