//! Snapshots of the metadata: the image as the fewest records that make it, so that a start need not replay every change
//! there ever was.
//!
//! Owns the bytes between image and file, in `rkyv`'s format: read whole, checked, used where they lie. Nothing but
//! records changes an image, those of a snapshot included. Knows nothing of files; who stores a snapshot adds a checksum.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use heddle_record::{Offset, TopicId};
use rkyv::Archived;
use rkyv::rancor;
use rkyv::util::AlignedVec;

use crate::image::MetadataImage;
use crate::record::MetadataRecord;

/// The metadata up to an offset of its log.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// Everything below [`Snapshot::end_offset`].
    pub image: MetadataImage,
    /// The first offset of the metadata log that is not in it.
    pub end_offset: Offset,
    /// Deleted topics whose files may still be there.
    pub removed: BTreeSet<TopicId>,
}

/// End offset, number of records that ever made the image, removed topics, values of the records that make it now.
type Stored = (i64, u64, Vec<[u8; 16]>, Vec<Vec<u8>>);

/// Bytes that are no snapshot, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoSnapshot(String);

impl fmt::Display for NoSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for NoSnapshot {}

impl Snapshot {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let values = self.image.as_records().iter().map(MetadataRecord::encode).collect();
        let removed = self.removed.iter().map(|id| id.bytes()).collect();
        let stored: Stored = (self.end_offset.get(), self.image.records(), removed, values);
        rkyv::to_bytes::<rancor::Error>(&stored).expect("lists of bytes are always written").to_vec()
    }

    /// The snapshot with these bytes.
    ///
    /// # Errors
    /// They are none, or not one of metadata that fits together.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, NoSnapshot> {
        let mut aligned: AlignedVec = AlignedVec::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        let stored = rkyv::access::<Archived<Stored>, rancor::Error>(&aligned).map_err(|error| no_snapshot(&error))?;
        let mut image = MetadataImage::default();
        for value in stored.3.iter() {
            let record = MetadataRecord::decode(value).map_err(|error| no_snapshot(&error))?;
            image.apply(&record).map_err(|error| no_snapshot(&error))?;
        }
        let end_offset = Offset::new(stored.0.to_native());
        let records = stored.1.to_native();
        if end_offset < Offset::ZERO || records < image.records() {
            return Err(NoSnapshot("its counts do not fit".to_string()));
        }
        let removed = stored.2.iter().map(|id| TopicId::new(*id)).collect();
        Ok(Snapshot { image: image.made_of(records), end_offset, removed })
    }
}

fn no_snapshot(error: &dyn fmt::Display) -> NoSnapshot {
    NoSnapshot(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BrokerRegistration, Endpoint, PartitionState};
    use alloc::vec;
    use heddle_record::{BrokerId, LeaderEpoch, PartitionIndex, ProducerId};

    fn state(epoch: i32) -> PartitionState {
        let broker = BrokerId::new(1);
        PartitionState {
            replicas: vec![broker],
            in_sync_replicas: vec![broker],
            leader: broker,
            leader_epoch: LeaderEpoch::new(epoch),
            partition_epoch: epoch,
        }
    }

    /// One of everything, some of it changed and some gone again.
    fn snapshot() -> Snapshot {
        let (kept, gone) = (TopicId::new([1; 16]), TopicId::new([2; 16]));
        let setting = |value: Option<&str>| value.map(ToString::to_string);
        let partition = |topic, index, epoch| MetadataRecord::Partition {
            topic,
            partition: PartitionIndex::new(index),
            state: state(epoch),
        };
        let registration = BrokerRegistration {
            epoch: 7,
            incarnation: [3; 16],
            endpoints: vec![Endpoint { listener: "PLAINTEXT".into(), host: "::1".into(), port: 9092 }],
            rack: Some("a".into()),
        };
        let records = [
            MetadataRecord::Topic { name: "kept".into(), id: kept },
            partition(kept, 0, 0),
            partition(kept, 1, 0),
            partition(kept, 0, 5),
            MetadataRecord::TopicConfig { topic: kept, name: "retention.ms".into(), value: setting(Some("9")) },
            MetadataRecord::Topic { name: "gone".into(), id: gone },
            partition(gone, 0, 0),
            MetadataRecord::RemoveTopic { id: gone },
            MetadataRecord::BrokerConfig { broker: None, name: "log.retention.ms".into(), value: setting(Some("8")) },
            MetadataRecord::BrokerConfig {
                broker: Some(BrokerId::new(1)),
                name: "log.segment.bytes".into(),
                value: setting(Some("70000")),
            },
            MetadataRecord::ProducerIds { broker: BrokerId::new(1), next: ProducerId::new(2_000) },
            MetadataRecord::RegisterBroker { id: BrokerId::new(1), registration },
            MetadataRecord::FeatureLevel { name: "metadata.version".into(), level: 4 },
        ];
        let mut image = MetadataImage::default();
        records.iter().for_each(|record| image.apply(record).unwrap());
        Snapshot { image, end_offset: Offset::new(13), removed: [gone].into() }
    }

    #[test]
    fn an_image_comes_back_as_it_was() {
        for snapshot in
            [snapshot(), Snapshot { image: MetadataImage::default(), end_offset: Offset::ZERO, removed: [].into() }]
        {
            let decoded = Snapshot::decode(&snapshot.encode()).unwrap();
            decoded.image.check_invariants();
            assert_eq!(decoded, snapshot);
        }
    }

    #[test]
    fn a_snapshot_has_no_more_records_than_the_image_needs() {
        let snapshot = snapshot();
        assert_eq!((snapshot.image.as_records().len(), snapshot.image.records()), (9, 13));
    }

    #[test]
    fn what_is_no_snapshot_is_refused_and_never_a_panic() {
        let bytes = snapshot().encode();
        for len in 0..bytes.len() {
            // What is short may by chance be another snapshot, never a fault.
            let _ = Snapshot::decode(&bytes[..len]);
        }
        for position in 0..bytes.len() {
            for bit in [0, 3, 7] {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                // That is for the checksum around it to find; here it is a snapshot or none.
                let _ = Snapshot::decode(&damaged);
            }
        }
        assert!(Snapshot::decode(&[]).is_err());
        assert!(Snapshot::decode(&[0xff; 64]).is_err());
    }
}
