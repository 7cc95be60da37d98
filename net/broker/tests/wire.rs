//! The broker as its clients meet it, byte by byte, on the simulator: virtual time, a simulated disk and network.
//!
//! Whole brokers of several cores run on one thread; what they say is read with the codec and nothing else.
#![forbid(unsafe_code)]

mod wire {
    pub(crate) mod connections;
    pub(crate) mod controller;
    pub(crate) mod data;
    pub(crate) mod faults;
    pub(crate) mod fetch_sessions;
    pub(crate) mod group_cuts;
    pub(crate) mod groups;
    pub(crate) mod kafkas_answers;
    pub(crate) mod snapshots;
    pub(crate) mod walls;
    pub(crate) mod world;
}
