//! The open connections of one core.
//!
//! Owns the list, the sweep that cuts slow and idle peers, and the wait for the last to end. Never serves one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::Io;
use heddle_io::sync::Notify;

use crate::config::BrokerConfig;
use crate::connection::Session;

/// How often connections are looked at for being slow, silent or idle.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The connections of one core.
#[derive(Default)]
pub(crate) struct Sessions {
    open: RefCell<BTreeMap<u64, Rc<Session>>>,
    next: Cell<u64>,
    draining: Cell<bool>,
    ended: Notify,
}

impl Sessions {
    /// A number that no other connection of this core has had.
    pub(crate) fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    pub(crate) fn add(&self, session: &Rc<Session>) {
        self.open.borrow_mut().insert(session.number, Rc::clone(session));
        if self.draining.get() {
            session.leave();
        }
    }

    pub(crate) fn remove(&self, session: &Session) {
        self.open.borrow_mut().remove(&session.number);
        self.ended.notify_all();
    }

    /// Looks at every connection once a second, for as long as the core runs.
    pub(crate) async fn sweep(&self, io: &Io, config: &BrokerConfig) {
        loop {
            io.sleep(SWEEP_INTERVAL).await;
            let now = io.now();
            for session in self.open.borrow().values() {
                session.sweep(now, config);
            }
        }
    }

    /// Lets every connection answer what it has taken and waits for the last to end; cuts those that take longer than
    /// `patience`.
    pub(crate) async fn drain(&self, io: &Io, patience: Duration) {
        self.draining.set(true);
        self.open.borrow().values().for_each(|session| session.leave());
        if io.timeout(patience, self.all_ended()).await.is_err() {
            self.open.borrow().values().for_each(|session| session.cut("the broker is stopping"));
            self.all_ended().await;
        }
    }

    async fn all_ended(&self) {
        while !self.open.borrow().is_empty() {
            self.ended.wait().await;
        }
    }
}
