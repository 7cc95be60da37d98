//! How many connections there are: in all, from one address, and on each core.
//!
//! Owns the count of one broker, and which core serves the next connection: the one that serves fewest. It lives on the
//! first core, which accepts all connections, so that a limit means the same number whatever the number of cores. Never
//! touches a socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::mailbox::CoreIndex;

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
    limits: Cell<AdmissionLimits>,
    open: RefCell<Open>,
    admitted: Cell<u64>,
    turned_away: Cell<u64>,
}

#[derive(Default)]
struct Open {
    total: usize,
    per_address: BTreeMap<IpAddr, usize>,
    per_core: Vec<usize>,
}

impl Admission {
    /// Nothing is open on any of `cores` cores.
    pub(crate) fn new(limits: AdmissionLimits, cores: usize) -> Self {
        assert!(limits.total > 0 && limits.per_address > 0, "a broker that admits nobody serves nobody");
        assert!(cores > 0, "a broker has a core");
        let open = Open { per_core: vec![0; cores], ..Open::default() };
        Self { limits: Cell::new(limits), open: RefCell::new(open), admitted: Cell::new(0), turned_away: Cell::new(0) }
    }

    /// Goes by other limits from now on. Who is connected stays, even above them.
    pub(crate) fn set_limits(&self, limits: AdmissionLimits) {
        assert!(limits.total > 0 && limits.per_address > 0, "a broker that admits nobody serves nobody");
        self.limits.set(limits);
    }

    /// Counts a connection in; gives the core that is to serve it.
    ///
    /// # Errors
    /// Which limit is reached; the connection is not counted.
    pub(crate) fn admit(&self, address: IpAddr) -> Result<CoreIndex, Turned> {
        let admitted = self.try_admit(address);
        let count = if admitted.is_ok() { &self.admitted } else { &self.turned_away };
        count.set(count.get() + 1);
        admitted
    }

    fn try_admit(&self, address: IpAddr) -> Result<CoreIndex, Turned> {
        let limits = self.limits.get();
        let mut open = self.open.borrow_mut();
        if open.total >= limits.total {
            return Err(Turned::Total { limit: limits.total });
        }
        let of_address = open.per_address.entry(address.to_canonical()).or_default();
        if *of_address >= limits.per_address {
            return Err(Turned::PerAddress { limit: limits.per_address });
        }
        *of_address += 1;
        open.total += 1;
        let counts = open.per_core.iter_mut().enumerate();
        let (core, count) = counts.min_by_key(|(_, count)| **count).expect("there is a core");
        *count += 1;
        Ok(CoreIndex(core))
    }

    /// Connections that were counted in so far.
    pub(crate) fn admitted(&self) -> u64 {
        self.admitted.get()
    }

    /// Connections that were turned away so far.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.get()
    }

    /// Counts a connection out again.
    ///
    /// # Panics
    /// When the address or the core has no open connection: the count would be wrong for ever.
    pub(crate) fn release(&self, address: IpAddr, core: CoreIndex) {
        let mut open = self.open.borrow_mut();
        let address = address.to_canonical();
        let of_address = open.per_address.get_mut(&address).expect("a released connection was admitted");
        *of_address -= 1;
        if *of_address == 0 {
            open.per_address.remove(&address);
        }
        open.total -= 1;
        let of_core = &mut open.per_core[core.0];
        *of_core = of_core.checked_sub(1).expect("a released connection was on its core");
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
        let only = Ok(CoreIndex(0));
        let admission = Admission::new(AdmissionLimits { total: 3, per_address: 2 }, 1);
        assert_eq!(admission.admit(address(1)), only);
        assert_eq!(admission.admit(address(1)), only);
        assert_eq!(admission.admit(address(1)), Err(Turned::PerAddress { limit: 2 }));
        assert_eq!(admission.admit(address(2)), only);
        assert_eq!(admission.admit(address(3)), Err(Turned::Total { limit: 3 }));
        admission.release(address(1), CoreIndex(0));
        assert_eq!(admission.admit(address(3)), only);
        for last in 1..=3 {
            admission.release(address(last), CoreIndex(0));
        }
        assert!(admission.open.borrow().per_address.is_empty(), "an address without connections costs nothing");
        assert_eq!(admission.open.borrow().total, 0);
    }

    #[test]
    fn other_limits_count_at_once_for_those_who_come() {
        let admission = Admission::new(AdmissionLimits { total: 2, per_address: 2 }, 1);
        assert!(admission.admit(address(1)).is_ok() && admission.admit(address(1)).is_ok());
        admission.set_limits(AdmissionLimits { total: 1, per_address: 1 });
        assert_eq!(admission.admit(address(2)), Err(Turned::Total { limit: 1 }));
        admission.set_limits(AdmissionLimits { total: 3, per_address: 3 });
        assert!(admission.admit(address(1)).is_ok());
    }

    #[test]
    fn one_host_is_one_address_in_both_families() {
        let admission = Admission::new(AdmissionLimits { total: 9, per_address: 1 }, 1);
        assert_eq!(admission.admit("::ffff:10.0.0.1".parse().unwrap()), Ok(CoreIndex(0)));
        assert_eq!(admission.admit(address(1)), Err(Turned::PerAddress { limit: 1 }));
    }

    #[test]
    fn the_core_with_the_fewest_connections_gets_the_next() {
        let admission = Admission::new(AdmissionLimits { total: 9, per_address: 9 }, 3);
        let admit = || admission.admit(address(1)).unwrap().0;
        assert_eq!([admit(), admit(), admit(), admit()], [0, 1, 2, 0]);
        admission.release(address(1), CoreIndex(2));
        assert_eq!([admit(), admit()], [2, 1]);
    }
}
