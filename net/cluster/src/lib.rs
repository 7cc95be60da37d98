//! Every decision a cluster makes, as plain functions over plain values, and the table of settings.
//!
//! No file, socket, clock, thread or randomness: `now` and new ids are arguments, and what a decision changes comes back
//! as records for the caller to store.
//!
//! - [`controller`]: `step`, which decides every change.
//! - [`group`]: consumer groups: rebalances, and committed offsets.
//! - [`image`]: the cluster's metadata, which only records change.
//! - [`record`]: those records, and their bytes.
//! - [`snapshot`]: the image in one piece.
//! - [`settings`]: the one table of settings; values, layers, `server.properties`.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod controller;
pub mod group;
pub mod image;
pub mod record;
pub mod settings;
pub mod snapshot;

pub use image::{MetadataImage, TopicImage};
pub use record::{BrokerRegistration, Endpoint, MetadataRecord, PartitionState};
pub use snapshot::Snapshot;
