//! A client for any cluster that speaks Kafka's protocol: producer, consumer, admin.
//!
//! Everything runs on one core of [`heddle_io`] as plain futures; nothing is shared between threads and nothing here
//! starts one. Records are laid out by `heddle-record`, messages by `heddle-protocol`.
//!
//! - [`Client`] (`client.rs`): connections by address and purpose (`brokers.rs`, `connection.rs`, `versions.rs`), what is
//!   known of the cluster (`metadata.rs`), calls that are tried again.
//! - [`Producer`] (`producer.rs`): [`Producer::send`] picks the partition (`partitioner.rs`), a lane for each partition
//!   decides about batches, order, sequences and retries (`producer/lane.rs`), a courier for each broker carries them
//!   (`producer/courier.rs`).
//! - [`Consumer`] (`consumer.rs`): reads partitions that it is told to, ahead of its user by a bounded number of bytes.
//! - [`Admin`] (`admin.rs`): topics, settings, offsets, the cluster.
//! - [`Groups`] (`groups.rs`): consumer groups as an administrator sees them.
//! - [`Membership`] (`membership.rs`): one member of a consumer group.
//! - [`Error`] (`error.rs`): what went wrong in plain words, and whether trying again can help.
//!
//! ```no_run
//! use heddle_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
//! use heddle_io::{Executor, IoConfig};
//!
//! let executor = Executor::new(IoConfig::default())?;
//! let io = executor.io();
//! executor.run(async {
//!     let client = Client::connect(&io, "127.0.0.1:9092", ClientConfig::default()).await?;
//!     let producer = client.producer(ProducerConfig::default())?;
//!     let record = ProducerRecord { topic: "hello", value: Some(b"world"), ..ProducerRecord::default() };
//!     let written = producer.send(&record).await?.await?;
//!     assert!(written.offset.is_some());
//!     producer.close().await
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod admin;
mod brokers;
mod client;
mod config;
mod connection;
mod consumer;
mod error;
mod groups;
mod log_dirs;
mod membership;
mod metadata;
mod partitioner;
mod producer;
mod versions;

pub use admin::{
    Admin, Cluster, CreatedTopic, ListedOffset, Mode, NewTopic, OffsetQuery, Resource, Setting, SettingChange,
    SettingSource,
};
pub use brokers::Address;
pub use client::{Client, Creation};
pub use config::{Acks, ClientConfig, ConsumerConfig, Isolation, OutOfRange, ProducerConfig};
pub use consumer::{Consumer, ConsumerRecord, FetchedBatch, Position};
pub use error::{Error, Result};
pub use groups::{GroupDescription, GroupListing, GroupMember, GroupOffset, Groups};
pub use log_dirs::LogSizes;
pub use membership::{Membership, Place};
pub use metadata::{Broker, Partition, Topic, nearest};
pub use partitioner::{murmur2, partition_for_key};
pub use producer::{Delivery, Producer, ProducerRecord, RecordMetadata};
pub use versions::BrokerVersions;
