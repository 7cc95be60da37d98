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

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The peer went, or the broker stopped.
    Finished,
    /// It was too slow or silent for too long.
    Cut,
    /// What it sent was no request that can be answered.
    Fault,
    /// A handler panicked: our fault.
    Panicked,
}

/// Every way, with its name.
pub(crate) const FAREWELLS: [(Farewell, &str); 4] = [
    (Farewell::Finished, "finished"),
    (Farewell::Cut, "cut"),
    (Farewell::Fault, "fault"),
    (Farewell::Panicked, "panicked"),
];

/// The connections of one core.
#[derive(Default)]
pub(crate) struct Sessions {
    open: RefCell<BTreeMap<u64, Rc<Session>>>,
    next: Cell<u64>,
    draining: Cell<bool>,
    ended: Notify,
    /// How many ended, and how.
    farewells: [Cell<u64>; FAREWELLS.len()],
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

    /// Counts a connection that is over.
    pub(crate) fn count_farewell(&self, how: Farewell) {
        let count = &self.farewells[how as usize];
        count.set(count.get() + 1);
    }

    /// How many connections ended, in the order of [`FAREWELLS`].
    pub(crate) fn farewells(&self) -> [u64; FAREWELLS.len()] {
        self.farewells.each_ref().map(Cell::get)
    }

    /// Open connections by listener.
    pub(crate) fn by_listener(&self) -> BTreeMap<String, usize> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for session in self.open.borrow().values() {
            match counts.get_mut(&session.listener.name) {
                Some(count) => *count += 1,
                None => drop(counts.insert(session.listener.name.clone(), 1)),
            }
        }
        counts
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
