//! Every decision a cluster makes, as plain functions over plain values, and the table of settings.
//!
//! No file, socket, clock, thread or randomness: `now` and new ids are arguments, and what a decision changes comes back
//! as records for the caller to store.
//!
//! - [`settings`]: the one table of settings; values, layers, `server.properties`.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod settings;
