//! The server: sockets, engine and cluster joined, one loop per core. The only glue.
//!
//! Two walks through it:
//!
//! - *Produce*: `connection.rs` reads a frame and finds its handler in the table of `api.rs`; `api/produce.rs` splits the
//!   request by partition and asks the cores that own them, through `mailbox.rs` when it is another one; `partition.rs`
//!   appends and waits for the high watermark as `acks` says; the rest is the engine's.
//! - *Fetch*: `api/fetch.rs` asks the owners and parks in `waiters.rs` while there is not enough; `partition.rs` clamps
//!   what may be seen; the bytes leave from their files.
//!
//! A core is a value ([`seats`]): it gets its `Io` from outside, and one thread can run many. [`run`] makes a process of
//! a broker: threads, signals, readiness.
#![forbid(unsafe_code)]

mod admission;
mod api;
mod change;
mod concurrently;
pub mod config;
mod connection;
mod controller;
mod coordinator;
mod core;
mod error;
mod fetch_sessions;
mod guard;
mod listener;
pub mod log_levels;
mod mailbox;
mod message;
mod metadata_snapshots;
mod metrics;
mod partition;
mod partitions;
mod peer_log;
mod producer_ids;
mod receive_budget;
mod record_faults;
mod requests;
mod routing;
mod seat;
mod server;
mod sessions;
mod topic_settings;
mod traffic;
mod waiters;

pub use config::BrokerConfig;
pub use error::{BrokerError, StartError, StopError};
pub use listener::Listening;
pub use seat::{FirstSeat, Seat, Started, seats};
pub use server::{Chosen, run};
