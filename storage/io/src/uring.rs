//! The io_uring backend.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{IoConfig, Wait};
use crate::op::{Op, OpKey, Slots};
use crate::wake::WakeList;

/// One core's ring.
pub(crate) enum UringBackend {}

impl UringBackend {
    pub(crate) fn open(_config: &IoConfig, _reason: String) -> Result<(UringBackend, Arc<WakeList>)> {
        Err(Error::new("set up io_uring", std::io::ErrorKind::Unsupported, "this build has no ring"))
    }

    pub(crate) fn reason(&self) -> String {
        match *self {}
    }

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
}
