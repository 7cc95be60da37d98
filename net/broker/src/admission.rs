//! How many connections there are, in all and from one address.
//!
//! Owns the count of one broker; it lives on the first core and the others ask it through the mailbox, so that a limit
//! means the same number whatever the number of cores. Never touches a socket.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Limits on simultaneous connections. Both are at least one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmissionLimits {
    /// In all.
    pub(crate) total: usize,
    /// From one address.
    pub(crate) per_address: usize,
}

/// Why a connection is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    /// The broker is full.
    Total {
        /// The limit that was reached.
        limit: usize,
    },
    /// This address is.
    PerAddress {
        /// The limit that was reached.
        limit: usize,
    },
}

impl std::fmt::Display for Turned {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Total { limit } => write!(formatter, "{limit} connections are open (max.connections)"),
            Self::PerAddress { limit } => {
                write!(formatter, "{limit} connections from this address are open (max.connections.per.ip)")
            }
        }
    }
}

/// The connections that are open now.
pub(crate) struct Admission {
    limits: AdmissionLimits,
    open: RefCell<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    per_address: BTreeMap<IpAddr, usize>,
}

impl Admission {
    /// Nothing is open.
    pub(crate) fn new(limits: AdmissionLimits) -> Self {
        assert!(limits.total > 0 && limits.per_address > 0, "a broker that admits nobody serves nobody");
        Self { limits, open: RefCell::default() }
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// Which limit is reached; the connection is not counted.
    pub(crate) fn admit(&self, address: IpAddr) -> Result<(), Turned> {
        let mut open = self.open.borrow_mut();
        if open.total >= self.limits.total {
            return Err(Turned::Total { limit: self.limits.total });
        }
        let of_address = open.per_address.entry(address.to_canonical()).or_default();
        if *of_address >= self.limits.per_address {
            return Err(Turned::PerAddress { limit: self.limits.per_address });
        }
        *of_address += 1;
        open.total += 1;
        Ok(())
    }

    /// Counts a connection out again.
    ///
    /// # Panics
    /// When the address has no open connection: the count would be wrong for ever.
    pub(crate) fn release(&self, address: IpAddr) {
        let mut open = self.open.borrow_mut();
        let address = address.to_canonical();
        let of_address = open.per_address.get_mut(&address).expect("a released connection was admitted");
        *of_address -= 1;
        if *of_address == 0 {
            open.per_address.remove(&address);
        }
        open.total -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn case_80_slots_come_back() {
        let admission = Admission::new(AdmissionLimits { total: 3, per_address: 2 });
        assert_eq!(admission.admit(address(1)), Ok(()));
        assert_eq!(admission.admit(address(1)), Ok(()));
        assert_eq!(admission.admit(address(1)), Err(Turned::PerAddress { limit: 2 }));
        assert_eq!(admission.admit(address(2)), Ok(()));
        assert_eq!(admission.admit(address(3)), Err(Turned::Total { limit: 3 }));
        admission.release(address(1));
        assert_eq!(admission.admit(address(3)), Ok(()));
        admission.release(address(1));
        admission.release(address(2));
        admission.release(address(3));
        assert!(admission.open.borrow().per_address.is_empty(), "an address without connections costs nothing");
        assert_eq!(admission.open.borrow().total, 0);
    }

    #[test]
    fn one_host_is_one_address_in_both_families() {
        let admission = Admission::new(AdmissionLimits { total: 9, per_address: 1 });
        assert_eq!(admission.admit("::ffff:10.0.0.1".parse().unwrap()), Ok(()));
        assert_eq!(admission.admit(address(1)), Err(Turned::PerAddress { limit: 1 }));
    }
}
