//! The simulated backend: no host can be made yet, and so nothing of it can exist.

use std::net::SocketAddr;

use crate::io::Wait;
use crate::op::{Op, OpKey, Slots};
use crate::socket::{ListenOptions, Listener};
use crate::timer::Monotonic;
use crate::wake::WakeList;

/// One core's part of the simulation.
pub(crate) enum SimBackend {}

/// A file of a simulated disk.
#[derive(Clone, Debug)]
pub(crate) enum SimFile {}

/// One end of a simulated connection.
#[derive(Clone, Debug)]
pub(crate) enum SimSocket {}

/// A listener of a simulated host.
#[derive(Clone, Debug)]
pub(crate) enum SimListener {}

impl SimBackend {
    pub(crate) fn start(&self, _slots: &Slots, _key: OpKey, _op: Op) {
        match *self {}
    }

    pub(crate) fn cancel(&self, _slots: &Slots, _key: OpKey) {
        match *self {}
    }

    pub(crate) fn turn(&self, _slots: &Slots, _wakes: &WakeList, _wait: Wait) {
        match *self {}
    }

    pub(crate) fn close(&self, _slots: &Slots) {
        match *self {}
    }

    pub(crate) fn now(&self) -> Monotonic {
        match *self {}
    }

    pub(crate) fn wall_clock(&self) -> i64 {
        match *self {}
    }

    pub(crate) fn fill_random(&self, _bytes: &mut [u8]) {
        match *self {}
    }

    pub(crate) fn listen(&self, _address: SocketAddr, _options: ListenOptions) -> std::io::Result<Listener> {
        match *self {}
    }
}

impl SimSocket {
    pub(crate) fn shutdown(&self) {
        match *self {}
    }
}
