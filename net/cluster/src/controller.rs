//! The controller: every change of the cluster's metadata, decided by one pure function.
//!
//! [`step`] looks at the image and a command and returns a [`Decision`]: records and a response. It changes nothing. The
//! caller's duties, in this order:
//!
//! 1. store the records, all or none, and wait until they survive power loss,
//! 2. apply them to the image,
//! 3. only then send the response.
//!
//! A second command is decided on the image that the first one left. Ids come in the command: no randomness here.

mod brokers;
mod configs;
mod features;
mod placement;
mod resource_configs;
mod topics;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use heddle_protocol::ErrorCode;
use heddle_record::{BrokerId, ProducerId, Timestamp};

pub use brokers::{PRODUCER_ID_BLOCK, RegisterBroker};
pub use configs::{AlterConfigs, AlterResource, AlteredResource, ConfigChange, Operation, Others, ResourceKind};
pub use features::{FeatureUpdate, update_features};
pub use placement::{Election, elect, reassign};
pub use topics::{
    Assignment, CreatePartitions, CreateTopics, CreatedTopic, DeleteTopic, DeletedTopic, MorePartitions, NewTopic,
    PARTITIONS_PER_REQUEST_MAX, TopicShape, check_topic_name,
};

use crate::image::MetadataImage;
use crate::record::MetadataRecord;
use crate::settings::layers::{Layers, Values};

/// What a decision is made on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The cluster as it is.
    pub image: &'a MetadataImage,
    /// The time.
    pub now: Timestamp,
    /// The broker that decides.
    pub broker: BrokerId,
    /// The settings that this broker was started with.
    pub start: &'a Values,
}

impl<'a> Context<'a> {
    fn layers(&self) -> Layers<'a> {
        self.image.layers(self.broker, self.start)
    }

    /// A whole number among the broker's settings.
    fn number(&self, name: &str) -> i64 {
        let value = self.layers().broker_value(name).expect("the setting has a default");
        value.trim().parse().expect("a value is checked before it is stored")
    }
}

/// A change that somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// New topics; answered by [`Response::CreateTopics`].
    CreateTopics(CreateTopics),
    /// Topics to be deleted; answered by [`Response::DeleteTopics`].
    DeleteTopics(Vec<DeleteTopic>),
    /// More partitions for topics; answered by [`Response::CreatePartitions`].
    CreatePartitions(CreatePartitions),
    /// Settings to be changed; answered by [`Response::AlterConfigs`].
    AlterConfigs(AlterConfigs),
    /// A block of producer ids for a broker; answered by [`Response::AllocateProducerIds`].
    AllocateProducerIds {
        /// The broker.
        broker: BrokerId,
    },
    /// A broker has started; answered by [`Response::RegisterBroker`].
    RegisterBroker(RegisterBroker),
}

/// The answer to the [`Command`] of the same name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// One for each name of the command.
    CreateTopics(Vec<CreatedTopic>),
    /// One for each topic of the command.
    DeleteTopics(Vec<DeletedTopic>),
    /// One for each name of the command.
    CreatePartitions(Vec<(String, Result<(), Fault>)>),
    /// One for each resource of the command, in its order.
    AlterConfigs(Vec<AlteredResource>),
    /// The first of [`PRODUCER_ID_BLOCK`] ids, or why there are none.
    AllocateProducerIds(Result<ProducerId, Fault>),
    /// The epoch of the registration.
    RegisterBroker {
        /// Grows with each registration of a broker.
        epoch: i64,
    },
}

/// What a command comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What to store and then to apply, all or none, before the response is sent.
    pub records: Vec<MetadataRecord>,
    /// What to answer.
    pub response: Response,
}

/// The peer's fault: an error code of Kafka with words for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The code that goes into the response.
    pub code: ErrorCode,
    /// The words beside it, where Kafka has any.
    pub message: Option<String>,
}

impl Fault {
    /// A fault that the code alone explains.
    pub const fn new(code: ErrorCode) -> Self {
        Self { code, message: None }
    }

    /// A fault with an explanation.
    pub fn with(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.name())?;
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// Decides one command.
pub fn step(context: &Context<'_>, command: Command) -> Decision {
    match command {
        Command::CreateTopics(command) => topics::create(context, command),
        Command::DeleteTopics(topics) => topics::delete(context, &topics),
        Command::CreatePartitions(command) => topics::create_partitions(context, command),
        Command::AlterConfigs(command) => configs::alter(context, command),
        Command::AllocateProducerIds { broker } => brokers::allocate_producer_ids(context, broker),
        Command::RegisterBroker(command) => brokers::register(context, command),
    }
}
