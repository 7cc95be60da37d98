//! Time as a core sees it: the monotonic clock, sleeping, timeouts.
//!
//! Owns the ordered set of sleepers. Never reads a clock itself: [`Io::now`] asks the backend, so that the simulator
//! owns time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::Io;

/// A point on this core's monotonic clock, in nanoseconds since an arbitrary start.
///
/// Never goes back and knows no calendar; points of different processes cannot be compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Monotonic(u64);

impl Monotonic {
    /// The point `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Monotonic {
        Monotonic(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this point; zero if `earlier` is later.
    pub const fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Monotonic;

    /// Saturates at the end of the clock (584 years).
    fn add(self, span: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Monotonic {
    type Output = Duration;

    /// The same as [`Monotonic::since`].
    fn sub(self, earlier: Monotonic) -> Duration {
        self.since(earlier)
    }
}

/// The time limit of [`Io::timeout`] passed first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time limit passed")
    }
}

impl std::error::Error for Elapsed {}

/// The sleepers of one core, ordered by deadline, then by the order in which they went to sleep.
#[derive(Default)]
pub(crate) struct Timers {
    inner: RefCell<Sleepers>,
}

#[derive(Default)]
struct Sleepers {
    /// Tells sleepers with one deadline apart.
    next_sequence: u64,
    by_deadline: BTreeMap<TimerKey, Waker>,
}

type TimerKey = (Monotonic, u64);

impl Timers {
    /// The earliest deadline that anybody sleeps for.
    pub(crate) fn next_deadline(&self) -> Option<Monotonic> {
        self.inner.borrow().by_deadline.first_key_value().map(|(key, _)| key.0)
    }

    /// Wakes everybody whose deadline is `now` or earlier.
    pub(crate) fn fire(&self, now: Monotonic) {
        loop {
            let waker = {
                let mut inner = self.inner.borrow_mut();
                match inner.by_deadline.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }

    fn insert(&self, deadline: Monotonic, waker: Waker) -> TimerKey {
        let mut inner = self.inner.borrow_mut();
        let key = (deadline, inner.next_sequence);
        inner.next_sequence += 1;
        inner.by_deadline.insert(key, waker);
        key
    }

    /// Renews the waker of a sleeper; false if it has fired already.
    fn renew(&self, key: TimerKey, waker: &Waker) -> bool {
        let mut inner = self.inner.borrow_mut();
        match inner.by_deadline.get_mut(&key) {
            Some(stored) => {
                stored.clone_from(waker);
                true
            }
            None => false,
        }
    }

    fn remove(&self, key: TimerKey) {
        let removed = self.inner.borrow_mut().by_deadline.remove(&key);
        drop(removed);
    }

    /// How many sleepers there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().by_deadline.len()
    }
}

/// The future of [`Io::sleep`] and [`Io::sleep_until`].
pub(crate) struct Sleep {
    io: Io,
    deadline: Monotonic,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(io: Io, deadline: Monotonic) -> Sleep {
        Sleep { io, deadline, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.io.now() >= self.deadline {
            return Poll::Ready(());
        }
        let timers = self.io.timers();
        let renewed = self.key.is_some_and(|key| timers.renew(key, context.waker()));
        if !renewed {
            self.key = Some(timers.insert(self.deadline, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.io.timers().remove(key);
        }
    }
}

/// Runs `future` against a deadline.
pub(crate) async fn timeout<F: Future>(io: &Io, deadline: Monotonic, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut sleep = std::pin::pin!(Sleep::new(io.clone(), deadline));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_spans() {
        let start = Monotonic::from_nanos(5);
        let later = start + Duration::from_micros(1);
        assert_eq!(later - start, Duration::from_micros(1));
        assert_eq!(start - later, Duration::ZERO);
        assert_eq!(later + Duration::MAX, Monotonic::from_nanos(u64::MAX));
    }

    #[test]
    fn sleepers_fire_in_order_and_only_when_due() {
        let timers = Timers::default();
        let late = timers.insert(Monotonic::from_nanos(20), Waker::noop().clone());
        let early = timers.insert(Monotonic::from_nanos(10), Waker::noop().clone());
        assert_eq!(timers.next_deadline(), Some(Monotonic::from_nanos(10)));
        timers.fire(Monotonic::from_nanos(10));
        assert_eq!(timers.next_deadline(), Some(Monotonic::from_nanos(20)));
        assert!(!timers.renew(early, Waker::noop()));
        assert!(timers.renew(late, Waker::noop()));
        timers.remove(late);
        assert_eq!(timers.len(), 0);
    }
}
