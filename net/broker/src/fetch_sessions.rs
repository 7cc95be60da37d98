//! The fetch sessions of one core (KIP-227): which there are, and whose place a new one may take.
//!
//! Owns their ids, the bounds on how many there are and on their partitions, and Kafka's rules of eviction. A session lives
//! on the core of the connection that used it last: it moves when another core's connection names it. Never reads a log;
//! `api/fetch.rs` does what a session asks for. Decision record: docs/decisions/0011-fetch-sessions.md.

mod session;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use heddle_io::Monotonic;
use heddle_record::LogId;

pub(crate) use session::{EPOCH_FINAL, EPOCH_INITIAL, FetchSession, Found, Naming, TopicKey, next_epoch};

use crate::core::{Core, WeakCore};
use crate::message::{DisarmRequest, Poll, SurrenderRequest};
use crate::waiters::{Listed, News};

/// A session that nobody used for so long makes room for any other; one that is older may make room for one that is
/// larger. Kafka's time.
const UNUSED_MAX: Duration = Duration::from_mins(2);
/// Partitions of all sessions of a core together: about 300 bytes each.
const PARTITIONS_MAX: usize = 400_000;

/// The sessions of one core.
pub(crate) struct FetchSessions {
    slots: usize,
    open: RefCell<Open>,
}

#[derive(Default)]
struct Open {
    sessions: BTreeMap<i32, Slot>,
    /// The one that was not used for longest comes first.
    by_use: BTreeSet<(Monotonic, i32)>,
    /// Sessions that are old enough to make room, the smallest first.
    evictable: BTreeSet<(usize, i32)>,
    partitions: usize,
    evicted: u64,
}

/// What a [`FetchSessions`] has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FetchSessionsSample {
    pub(crate) sessions: usize,
    /// In all sessions.
    pub(crate) partitions: usize,
    /// Sessions that had to make room for others so far.
    pub(crate) evicted: u64,
}

struct Slot {
    live: Rc<Live>,
    created: Monotonic,
    used: Monotonic,
    /// Partitions, when it was used last.
    len: usize,
}

/// A session at work on this core, and the poll that its partitions wake.
pub(crate) struct Live {
    core: WeakCore,
    listed: Listed,
    pub(crate) session: RefCell<FetchSession>,
}

impl FetchSessions {
    /// No session, and room for so many.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots, open: RefCell::default() }
    }

    /// Sessions, partitions in them, and sessions that were evicted so far.
    pub(crate) fn sample(&self) -> FetchSessionsSample {
        let open = self.open.borrow();
        FetchSessionsSample { sessions: open.sessions.len(), partitions: open.partitions, evicted: open.evicted }
    }

    /// Whether a new session of so many partitions would get a place.
    pub(crate) fn has_room(&self, len: usize, now: Monotonic) -> bool {
        let open = self.open.borrow();
        let fits = open.sessions.len() < self.slots && open.partitions + len <= PARTITIONS_MAX;
        self.slots > 0 && len <= PARTITIONS_MAX && (fits || open.weakest(len, now).is_some())
    }

    /// Keeps a session under a new id, which is 0 if there is no place for it. May evict others.
    pub(crate) fn keep(&self, live: &Rc<Live>, now: Monotonic, mut random: impl FnMut() -> u64) -> i32 {
        let len = live.session.borrow().len();
        if !self.make_room(len, |open| open.weakest(len, now)) {
            return 0;
        }
        let mut open = self.open.borrow_mut();
        let id = loop {
            // 1 to 2^31-1.
            let id = i32::try_from(random() >> 33).expect("31 bits");
            if id != 0 && !open.sessions.contains_key(&id) {
                break id;
            }
        };
        live.session.borrow_mut().id = id;
        open.insert(id, Slot { live: Rc::clone(live), created: now, used: now, len });
        id
    }

    /// Goes on with a session that was another core's, whatever has to make room.
    fn adopt(&self, core: &Core, session: FetchSession) -> Option<Rc<Live>> {
        let (id, len, now) = (session.id, session.len(), core.io().now());
        if !self.make_room(len, |open| open.by_use.first().map(|(_, id)| *id)) {
            return None;
        }
        let live = Live::new(core, session);
        self.open.borrow_mut().insert(id, Slot { live: Rc::clone(&live), created: now, used: now, len });
        Some(live)
    }

    /// Evicts sessions until another of `len` partitions fits; false where it never will.
    fn make_room(&self, len: usize, weakest: impl Fn(&Open) -> Option<i32>) -> bool {
        loop {
            let mut open = self.open.borrow_mut();
            if open.sessions.len() < self.slots && open.partitions + len <= PARTITIONS_MAX {
                return true;
            }
            let Some(id) = weakest(&open) else { return false };
            let evicted = open.remove(id);
            open.evicted += 1;
            // What it has armed is taken back when it drops, which asks for this core's lists.
            drop(open);
            drop(evicted);
        }
    }

    /// A session of this core.
    pub(crate) fn find(&self, id: i32) -> Option<Rc<Live>> {
        self.open.borrow().sessions.get(&id).map(|slot| Rc::clone(&slot.live))
    }

    /// Takes a session from this core.
    pub(crate) fn remove(&self, id: i32) -> Option<Rc<Live>> {
        self.open.borrow_mut().remove(id)
    }

    /// Gives a session up to another core: nothing of it stays here.
    pub(crate) fn surrender(&self, core: &Core, id: i32) -> Option<Box<FetchSession>> {
        let live = self.remove(id)?;
        let mut session = live.session.borrow_mut().leave();
        disarm(core, live.listed.number, session.take_armed());
        live.news().hand_over();
        Some(Box::new(session))
    }

    /// Notes that a session is used, and how large it is by now.
    pub(crate) fn touch(&self, id: i32, now: Monotonic) {
        let mut open = self.open.borrow_mut();
        if let Some(mut slot) = open.take(id) {
            slot.used = now;
            slot.len = slot.live.session.borrow().len();
            open.insert(id, slot);
        }
    }
}

impl Open {
    /// The session that makes room for a new one of `len` partitions, by Kafka's rules.
    fn weakest(&self, len: usize, now: Monotonic) -> Option<i32> {
        let (used, unused) = self.by_use.first()?;
        if now.since(*used) > UNUSED_MAX {
            return Some(*unused);
        }
        self.evictable.first().filter(|(smallest, _)| *smallest <= len).map(|(_, id)| *id)
    }

    fn insert(&mut self, id: i32, slot: Slot) {
        self.by_use.insert((slot.used, id));
        if slot.used.since(slot.created) > UNUSED_MAX {
            self.evictable.insert((slot.len, id));
        }
        self.partitions += slot.len;
        self.sessions.insert(id, slot);
    }

    fn take(&mut self, id: i32) -> Option<Slot> {
        let slot = self.sessions.remove(&id)?;
        self.by_use.remove(&(slot.used, id));
        self.evictable.remove(&(slot.len, id));
        self.partitions -= slot.len;
        Some(slot)
    }

    fn remove(&mut self, id: i32) -> Option<Rc<Live>> {
        self.take(id).map(|slot| slot.live)
    }
}

impl Live {
    /// A session that partitions can wake.
    pub(crate) fn new(core: &Core, session: FetchSession) -> Rc<Self> {
        Rc::new(Self { core: core.downgrade(), listed: Listed::new(core), session: RefCell::new(session) })
    }

    /// What it hears of its partitions.
    pub(crate) fn news(&self) -> &Rc<News> {
        &self.listed.news
    }

    /// What its partitions wake, for as long as it lives.
    pub(crate) fn poll(&self, core: &Core) -> Poll {
        Poll { core: core.index(), number: self.listed.number, expires: Monotonic::from_nanos(u64::MAX) }
    }

    /// Takes back wake-ups for partitions that were forgotten.
    pub(crate) fn disarm_forgotten(&self, core: &Core) {
        let forgotten = self.session.borrow_mut().take_forgotten();
        disarm(core, self.listed.number, forgotten);
    }
}

impl Drop for Live {
    /// Takes all wake-ups back: they never expire.
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            disarm(&core, self.listed.number, self.session.borrow_mut().take_armed());
        }
    }
}

/// Has the owners of logs forget the wake-ups of a poll of this core.
fn disarm(core: &Core, poll: u64, armed: Vec<(LogId, usize)>) {
    if armed.is_empty() {
        return;
    }
    let mut by_owner: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (log, slot) in armed {
        by_owner.entry(core.owner(log)).or_default().push((log, slot));
    }
    let asking = core.clone();
    drop(core.spawn_vital(async move {
        for (owner, entries) in by_owner {
            asking.ask(owner, DisarmRequest { core: asking.index(), poll, entries }).await;
        }
    }));
}

/// The session that a request names, wherever on this broker it is; afterwards it is here.
pub(crate) async fn find(core: &Core, id: i32) -> Option<Rc<Live>> {
    if let Some(live) = core.fetch_sessions().find(id) {
        return Some(live);
    }
    let session = take_from_others(core, id).await?;
    core.fetch_sessions().adopt(core, *session)
}

/// Ends a session, wherever on this broker it is.
pub(crate) async fn close(core: &Core, id: i32) {
    match core.fetch_sessions().remove(id) {
        Some(live) => _ = live.news().hand_over(),
        None => _ = take_from_others(core, id).await,
    }
}

async fn take_from_others(core: &Core, id: i32) -> Option<Box<FetchSession>> {
    let mut asked = Vec::new();
    for other in core.others() {
        asked.push(core.post(other, SurrenderRequest(id)).await);
    }
    let mut found = None;
    for asked in asked {
        found = found.or(asked.answer::<SurrenderRequest>().await);
    }
    found
}
