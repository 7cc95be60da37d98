//! Who waits for news of a partition: long polls, on this core and on others.
//!
//! Owns both ends: [`Armed`] is a partition's list of polls that wait for it, [`Polls`] a core's list of the polls it is
//! working on. A poll is woken once and arms itself again with its next read; it hears which of its partitions changed,
//! and reads only those. Never reads a log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_io::Monotonic;
use heddle_io::sync::Notify;

use crate::core::Core;
use crate::mailbox::Wake;
use crate::message::Poll;

/// Armed polls of one partition below which expired ones are not looked for.
const PURGE_MIN: usize = 32;

/// The polls that wait for one partition.
#[derive(Default)]
pub(crate) struct Armed {
    polls: RefCell<Vec<(Poll, usize)>>,
    /// How many there may be before the expired ones are dropped: twice as many as were left the last time.
    purge_at: Cell<usize>,
}

impl Armed {
    /// Adds a poll, which keeps the partition in `slot`.
    pub(crate) fn arm(&self, poll: Poll, slot: usize, now: Monotonic) {
        let mut polls = self.polls.borrow_mut();
        if polls.len() >= self.purge_at.get().max(PURGE_MIN) {
            polls.retain(|(poll, _)| poll.expires > now);
            self.purge_at.set(2 * polls.len());
        }
        polls.push((poll, slot));
    }

    /// Wakes every poll, and forgets it.
    pub(crate) fn wake_all(&self, core: &Core) {
        for (poll, slot) in self.polls.take() {
            core.wake(poll, slot);
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
}

impl News {
    /// Waits until there is news, and takes it: the slots that changed, in order, each once.
    pub(crate) async fn next(&self) -> Vec<usize> {
        while self.changed.borrow().is_empty() {
            self.arrived.wait().await;
        }
        let mut slots = self.changed.take();
        slots.sort_unstable();
        slots.dedup();
        slots
    }
}

/// A poll on the list of its core; off it when this drops.
pub(crate) struct Listed {
    core: Core,
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
        Self { core: core.clone(), number, news }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.core.polls().waiting.borrow_mut().remove(&self.number);
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
