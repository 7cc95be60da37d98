//! Brokers: their registration, and the producer ids that each hands out.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, ProducerId};

use super::{Context, Decision, Fault, Response};
use crate::record::{BrokerRegistration, Endpoint, MetadataRecord};

/// Producer ids that a broker gets at a time.
pub const PRODUCER_ID_BLOCK: i64 = 1_000;

/// A broker that has started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegisterBroker {
    /// The broker.
    pub id: BrokerId,
    /// This run of its process.
    pub incarnation: [u8; 16],
    /// Its addresses.
    pub endpoints: Vec<Endpoint>,
    /// Its rack.
    pub rack: Option<String>,
}

pub(super) fn register(context: &Context<'_>, command: RegisterBroker) -> Decision {
    let RegisterBroker { id, incarnation, endpoints, rack } = command;
    let before = context.image.broker(id);
    if let Some(known) = before.filter(|known| known.incarnation == incarnation) {
        return Decision { records: Vec::new(), response: Response::RegisterBroker { epoch: known.epoch } };
    }
    let epoch = before.map_or(0, |known| known.epoch + 1);
    let registration = BrokerRegistration { epoch, incarnation, endpoints, rack };
    let records = vec![MetadataRecord::RegisterBroker { id, registration }];
    Decision { records, response: Response::RegisterBroker { epoch } }
}

pub(super) fn allocate_producer_ids(context: &Context<'_>, broker: BrokerId) -> Decision {
    let first = context.image.next_producer_id();
    let decided = match first.get().checked_add(PRODUCER_ID_BLOCK) {
        _ if context.image.broker(broker).is_none() => Err(Fault::new(ErrorCode::BrokerIdNotRegistered)),
        None => Err(Fault::with(ErrorCode::UnknownServerError, "all producer ids are used up")),
        Some(next) => Ok(MetadataRecord::ProducerIds { broker, next: ProducerId::new(next) }),
    };
    let (records, response) = match decided {
        Ok(record) => (vec![record], Ok(first)),
        Err(fault) => (Vec::new(), Err(fault)),
    };
    Decision { records, response: Response::AllocateProducerIds(response) }
}
