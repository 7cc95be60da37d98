//! The producer ids that one core hands out.
//!
//! Owns what is left of the core's block. Never counts ids of the cluster: the controller does, and gives no id twice.

use std::cell::RefCell;
use std::ops::Range;

use heddle_cluster::controller::{Command, Fault, PRODUCER_ID_BLOCK, Response};
use heddle_io::sync::Semaphore;
use heddle_protocol::ErrorCode;
use heddle_record::ProducerId;

use crate::core::Core;
use crate::mailbox::FIRST_CORE;

/// One core's block. What is left of it when the process ends is never handed out.
pub(crate) struct ProducerIds {
    left: RefCell<Range<i64>>,
    /// Held while a block is asked for, so that one is asked for at a time.
    asking: Semaphore,
}

impl Default for ProducerIds {
    fn default() -> Self {
        Self { left: RefCell::new(0..0), asking: Semaphore::new(1) }
    }
}

impl ProducerIds {
    /// An id that nobody had before.
    ///
    /// # Errors
    /// The controller has no block for this broker.
    pub(crate) async fn next(&self, core: &Core) -> Result<ProducerId, Fault> {
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let _asking = self.asking.acquire(1).await;
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let command = Command::AllocateProducerIds { broker: core.broker_id() };
        let Response::AllocateProducerIds(first) = core.ask(FIRST_CORE, command).await? else {
            unreachable!("the controller answers in kind");
        };
        let first = first?.get();
        self.left.replace(first..first + PRODUCER_ID_BLOCK);
        self.take().ok_or(Fault::new(ErrorCode::UnknownServerError))
    }

    fn take(&self) -> Option<ProducerId> {
        self.left.borrow_mut().next().map(ProducerId::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_handed_out_once() {
        let ids = ProducerIds::default();
        assert_eq!(ids.take(), None);
        ids.left.replace(4_000..4_002);
        assert_eq!(ids.take(), Some(ProducerId::new(4_000)));
        assert_eq!(ids.take(), Some(ProducerId::new(4_001)));
        assert_eq!(ids.take(), None);
    }
}
