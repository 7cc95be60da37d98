//! Who waits for news of a partition: long polls, on this core and on others.
//!
//! Owns both ends: [`Armed`] is a partition's list of polls that wait for it, [`Polls`] a core's list of the polls it is
//! working on. A poll is woken once and arms itself again with its next read; it hears which of its partitions changed,
//! and reads only those. A fetch session's poll outlives its fetches, and is armed at most once for each partition. Never
//! reads a log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_io::Monotonic;
use heddle_io::sync::Notify;

use crate::core::{Core, WeakCore};
use crate::mailbox::{CoreIndex, Wake};
use crate::message::Poll;

/// Armed polls of one partition below which expired ones are not looked for.
const PURGE_MIN: usize = 32;

/// The polls that wait for one partition.
#[derive(Default)]
pub(crate) struct Armed {
    /// By core, the core's number for the poll, and slot: until when each waits.
    polls: RefCell<BTreeMap<(CoreIndex, u64, usize), Monotonic>>,
    /// How many there may be before the expired ones are dropped: twice as many as were left the last time.
    purge_at: Cell<usize>,
}

impl Armed {
    /// Adds a poll, which keeps the partition in `slot`.
    pub(crate) fn arm(&self, poll: Poll, slot: usize, now: Monotonic) {
        let mut polls = self.polls.borrow_mut();
        if polls.len() >= self.purge_at.get().max(PURGE_MIN) {
            polls.retain(|_, expires| *expires > now);
            self.purge_at.set(2 * polls.len());
        }
        polls.insert((poll.core, poll.number, slot), poll.expires);
    }

    /// Forgets a poll.
    pub(crate) fn disarm(&self, core: CoreIndex, number: u64, slot: usize) {
        self.polls.borrow_mut().remove(&(core, number, slot));
    }

    /// Wakes every poll, and forgets it.
    pub(crate) fn wake_all(&self, core: &Core) {
        for (to, poll, slot) in self.polls.take().into_keys() {
            core.wake(to, Wake { poll, slot });
        }
    }
}

/// The long polls that this core works on.
#[derive(Default)]
pub(crate) struct Polls {
    waiting: RefCell<BTreeMap<u64, Rc<News>>>,
    next: Cell<u64>,
}

/// What a poll has heard since it looked last.
#[derive(Default)]
pub(crate) struct News {
    changed: RefCell<Vec<usize>>,
    arrived: Notify,
    /// Counts listeners: only the last one hears anything.
    turn: Cell<u64>,
}

/// A listener's turn. The first one needs no [`News::hand_over`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turn(u64);

impl News {
    /// Waits until there is news, and takes it: the slots that changed, in order, each once. Nothing once somebody else
    /// listens.
    pub(crate) async fn next(&self, turn: Turn) -> Option<Vec<usize>> {
        loop {
            if self.turn.get() != turn.0 {
                return None;
            }
            if !self.changed.borrow().is_empty() {
                return Some(self.take());
            }
            self.arrived.wait().await;
        }
    }

    /// Takes the news that there is.
    pub(crate) fn take(&self) -> Vec<usize> {
        let mut slots = self.changed.take();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Ends the wait of whoever listens, and starts the turn of the next.
    pub(crate) fn hand_over(&self) -> Turn {
        self.turn.set(self.turn.get() + 1);
        self.arrived.notify_all();
        Turn(self.turn.get())
    }
}

/// A poll on the list of its core; off it when this drops.
pub(crate) struct Listed {
    core: WeakCore,
    pub(crate) number: u64,
    pub(crate) news: Rc<News>,
}

impl Listed {
    /// Puts a new poll on the list.
    pub(crate) fn new(core: &Core) -> Self {
        let polls = core.polls();
        let number = polls.next.get();
        polls.next.set(number + 1);
        let news = Rc::new(News::default());
        polls.waiting.borrow_mut().insert(number, Rc::clone(&news));
        Self { core: core.downgrade(), number, news }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.polls().waiting.borrow_mut().remove(&self.number);
        }
    }
}

impl Polls {
    /// Tells a poll that one of its partitions changed. It may have been answered meanwhile.
    pub(crate) fn tell(&self, wake: Wake) {
        if let Some(news) = self.waiting.borrow().get(&wake.poll) {
            news.changed.borrow_mut().push(wake.slot);
            news.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll as TaskPoll, Waker};

    use super::*;

    fn poll(number: u64, expires: u64) -> Poll {
        Poll { core: CoreIndex(1), number, expires: Monotonic::from_nanos(expires) }
    }

    #[test]
    fn a_poll_is_armed_once_for_a_slot_however_often_it_reads() {
        let armed = Armed::default();
        let now = Monotonic::from_nanos(0);
        (0..10).for_each(|_| armed.arm(poll(7, u64::MAX), 3, now));
        armed.arm(poll(7, u64::MAX), 4, now);
        assert_eq!(armed.polls.borrow().len(), 2);
        armed.disarm(CoreIndex(1), 7, 3);
        armed.disarm(CoreIndex(0), 7, 4);
        assert_eq!(armed.polls.borrow().keys().copied().collect::<Vec<_>>(), [(CoreIndex(1), 7, 4)]);
    }

    #[test]
    fn polls_that_expired_do_not_gather() {
        let armed = Armed::default();
        armed.arm(poll(0, u64::MAX), 0, Monotonic::from_nanos(0));
        for time in 1..10_000 {
            armed.arm(poll(time, time + 1), 0, Monotonic::from_nanos(time));
            assert!(armed.polls.borrow().len() <= PURGE_MIN + 2);
        }
        assert!(armed.polls.borrow().contains_key(&(CoreIndex(1), 0, 0)), "one that never expires stays");
    }

    #[test]
    fn only_the_last_listener_hears_anything() {
        let news = News::default();
        let context = &mut Context::from_waker(Waker::noop());
        let mut first = pin!(news.next(Turn::default()));
        assert_eq!(first.as_mut().poll(context), TaskPoll::Pending);
        let turn = news.hand_over();
        news.changed.borrow_mut().extend([5, 2, 5]);
        assert_eq!(first.as_mut().poll(context), TaskPoll::Ready(None));
        assert_eq!(pin!(news.next(turn)).poll(context), TaskPoll::Ready(Some(vec![2, 5])));
    }
}
