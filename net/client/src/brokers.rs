//! The connections of a client: one for each address and purpose, made when first needed and again after they ended.
//!
//! Owns the waits between attempts. Never retries a request; its callers know whether that is right.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::sync::Semaphore;
use heddle_io::{Io, Monotonic};

use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::Result;

/// A broker's host and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a connection is used for. A broker answers one connection's requests in order, so a fetch that waits for
/// records must not stand before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Metadata and admin calls.
    Control,
    /// One producer's batches.
    Produce(u32),
    /// One consumer's fetches.
    Fetch(u32),
    /// One member of a group.
    Group(u32),
}

/// All connections of a client.
pub(crate) struct Brokers {
    io: Io,
    config: Rc<ClientConfig>,
    slots: RefCell<BTreeMap<(Purpose, Address), Rc<Slot>>>,
}

/// One address and purpose.
struct Slot {
    /// One attempt at a time.
    attempt: Semaphore,
    connection: RefCell<Option<Connection>>,
    failures: Cell<u32>,
    /// When the next attempt may be made.
    not_before: Cell<Monotonic>,
}

impl Brokers {
    pub(crate) fn new(io: Io, config: Rc<ClientConfig>) -> Self {
        Self { io, config, slots: RefCell::default() }
    }

    /// The connection to `address` for `purpose`; made now if there is none, after the wait that earlier failures ask for.
    ///
    /// # Errors
    /// The attempt failed.
    pub(crate) async fn connection(&self, address: &Address, purpose: Purpose) -> Result<Connection> {
        let slot = self.slot(address, purpose);
        if let Some(connection) = slot.alive() {
            return Ok(connection);
        }
        let _one_attempt = slot.attempt.acquire(1).await;
        if let Some(connection) = slot.alive() {
            return Ok(connection);
        }
        self.io.sleep_until(slot.not_before.get()).await;
        let opened = Connection::open(&self.io, address, &self.config).await;
        match &opened {
            Ok(connection) => {
                slot.failures.set(0);
                *slot.connection.borrow_mut() = Some(connection.clone());
            }
            Err(_) => {
                let wait = backoff(&self.config, slot.failures.get(), self.io.random_u64());
                slot.failures.set(slot.failures.get().saturating_add(1));
                slot.not_before.set(self.io.now() + wait);
            }
        }
        opened
    }

    /// Forgets the connections of a purpose that has ended.
    pub(crate) fn forget(&self, purpose: Purpose) {
        let forgotten: Vec<_> = {
            let mut slots = self.slots.borrow_mut();
            slots.extract_if(.., |(of, _), _| *of == purpose).collect()
        };
        // Closing wakes tasks that may look at the slots: not while they are borrowed.
        drop(forgotten);
    }

    fn slot(&self, address: &Address, purpose: Purpose) -> Rc<Slot> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry((purpose, address.clone())).or_insert_with(|| {
            Rc::new(Slot {
                attempt: Semaphore::new(1),
                connection: RefCell::new(None),
                failures: Cell::new(0),
                not_before: Cell::new(self.io.now()),
            })
        });
        Rc::clone(slot)
    }
}

impl Slot {
    fn alive(&self) -> Option<Connection> {
        self.connection.borrow().as_ref().filter(|it| it.is_alive()).cloned()
    }
}

/// How long to wait before the next attempt after `failures + 1` failures: doubling, bounded, spread by a fifth so that
/// many clients do not come at once.
pub(crate) fn backoff(config: &ClientConfig, failures: u32, random: u64) -> Duration {
    let doubled = config.backoff_min.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    let spread = 80 + (random % 41) as u32;
    doubled.min(config.backoff_max) * spread / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let config = ClientConfig {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_millis(1_000),
            ..ClientConfig::default()
        };
        let waits: Vec<_> = (0..6).map(|failures| backoff(&config, failures, 20).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff(&config, 0, 0).as_millis(), 80);
        assert_eq!(backoff(&config, 0, 40).as_millis(), 120);
        assert_eq!(backoff(&config, u32::MAX, 20).as_millis(), 1_000);
    }

    #[test]
    fn addresses_print_as_they_are_written() {
        assert_eq!(Address { host: "::1".to_owned(), port: 9092 }.to_string(), "[::1]:9092");
        assert_eq!(Address { host: "kafka".to_owned(), port: 1 }.to_string(), "kafka:1");
    }
}
