//! Many crash states of few stories: what the disk may hold after a power cut at any moment of an engine's life, each state
//! looked at once.
//!
//! Owns the way from a story to its states. `crash.rs` looks deeper at fewer: it recovers twice, cuts recoveries, lives on.
//!
//! ```text
//! life 1 ── moment ── moment ── ... ── moment ──┐ one of them is cut, or killed; recovered; and the next life begins there
//!             └ many cuts: any subset of unflushed sectors, names and lengths ─▶ new to us? ─▶ recover, hold to the history
//! ```
//!
//! After a kill the page cache is still there, and so all that the engine finds at its start is not on the disk yet: the
//! moments of that start are cut as well.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use heddle_io::Io;
use heddle_io::sim::{DiskCopy, FaultModel, Host, Simulator};

use crate::engine_life::Life;
use crate::engine_recovery::{Verdict, recover};
use crate::history::History;

/// Cuts tried at one moment, at most.
const CUTS_PER_MOMENT: u64 = 24;

/// So many cuts in a row that leave nothing new end a moment.
const REPEATS_MAX: u64 = 4;

/// Moments are visited in steps of so many, a prime, or the next prime where that divides their number.
const STRIDES: [usize; 2] = [617, 619];

/// Lives of one data directory in one story.
const LIVES: i32 = 3;

/// Of the states of a story, one in so many is looked at in each start after a kill.
const STARTS_SHARE: u64 = 12;

/// Lives of an engine, and what must hold after each.
pub trait Scenario: Clone + 'static {
    /// What the outside has seen, which no power cut takes back.
    type History: Clone + Default + 'static;

    /// A number that changes with whatever was promised.
    fn digest(history: &Self::History) -> u64;

    /// Lives one life on a data directory.
    fn live(self, io: Io, history: Rc<RefCell<Self::History>>) -> impl Future<Output = Verdict> + 'static;

    /// Opens what the disk has, holds it against the history, and gives the history of what is left.
    fn recover(self, io: Io, history: Self::History) -> impl Future<Output = Verdict<Self::History>> + 'static;

    /// The life after this one.
    #[must_use]
    fn next(&self) -> Self;
}

impl Scenario for Life {
    type History = History;

    fn digest(history: &History) -> u64 {
        history.digest()
    }

    async fn live(self, io: Io, history: Rc<RefCell<History>>) -> Verdict {
        Life::live(self, io, history).await.map_err(|refused| refused.0)
    }

    async fn recover(self, io: Io, mut history: History) -> Verdict<History> {
        let contents = recover(io, history.clone(), self.engine).await?;
        contents.iter().for_each(|(name, content)| history.log(name).adopt(content));
        Ok(history)
    }

    fn next(&self) -> Life {
        Life::next(self)
    }
}

/// What to enumerate.
#[derive(Clone)]
pub struct Enumeration<S> {
    /// What the disk keeps.
    pub model: FaultModel,
    /// What the engine is told of it; `None` for the truth.
    pub claimed: Option<FaultModel>,
    /// The first life of each story.
    pub life: S,
    /// Distinct states to look at, at least, unless a promise is broken before.
    pub states: u64,
    /// The seed of the first story.
    pub seed: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Distinct contents of the disk.
    pub states: u64,
    /// Moments at which power was cut.
    pub moments: u64,
    /// Stories told.
    pub stories: u64,
    /// Writes past the page cache in them.
    pub direct_writes: u64,
}

/// A moment at which power may be lost: the disk with all that is unflushed and in flight, and what was promised by then.
struct Moment<H> {
    disk: DiskCopy,
    history: Rc<H>,
    promises: u64,
}

impl<S: Scenario> Enumeration<S> {
    /// Looks at states until there are enough.
    ///
    /// # Errors
    /// The first broken promise, with the seed of its story.
    pub fn run(&self) -> Verdict<Looked> {
        let mut seen = Seen::default();
        let mut looked = Looked::default();
        let mut seed = self.seed;
        while looked.states < self.states {
            self.tell(seed, &mut seen, &mut looked).map_err(|broken| format!("seed {seed}: {broken}"))?;
            looked.stories += 1;
            looked.states = seen.disks.len() as u64;
            seed += 1;
        }
        Ok(looked)
    }

    /// Tells one story and cuts it at every moment, or until a third of the states was found in each life.
    fn tell(&self, seed: u64, seen: &mut Seen, looked: &mut Looked) -> Verdict {
        let (simulator, host) = self.host(seed);
        let mut life = self.life.clone();
        let mut history = S::History::default();
        for number in 1..=LIVES {
            let moments = record::<S, _>(&simulator, &host, history, |io, history| life.clone().live(io, history));
            let moments = moments.map_err(|refused| format!("a life on a sound disk is refused: {refused}"))?;
            looked.direct_writes += host.counters().direct_writes;
            let cut = (seed << 32) ^ ((number as u64) << 24);
            looked.moments += self
                .cut_all(&moments, cut, self.states.div_ceil(LIVES as u64), seen)
                .map_err(|broken| format!("life {number}, {broken}"))?;
            // The next life begins where power was lost in this one, or the process was killed, or after its end.
            let at = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(number as u32 * 8) as usize % moments.len();
            let at = if (seed + number as u64).is_multiple_of(3) { moments.len() - 1 } else { at };
            if host.is_up() {
                host.power_cut();
            }
            let (disk, end) = (&moments[at].disk, seed ^ number as u64);
            let is_killed = end & 1 == 1;
            host.insert_disk(&if is_killed { disk.after_kill(end) } else { disk.after_power_cut(end) });
            host.restart();
            history = (*moments[at].history).clone();
            let starting = |io, history: Rc<RefCell<S::History>>| {
                let life = life.clone();
                async move {
                    let seen = history.borrow().clone();
                    let left = life.recover(io, seen).await?;
                    *history.borrow_mut() = left;
                    Ok(())
                }
            };
            let moments = record::<S, _>(&simulator, &host, history, starting)?;
            if is_killed {
                looked.moments += self
                    .cut_all(&moments, cut | 1 << 23, self.states.div_ceil(STARTS_SHARE), seen)
                    .map_err(|broken| format!("the start after life {number}, {broken}"))?;
            }
            history = moments.last().expect("a start has moments").history.as_ref().clone();
            host.power_cut();
            host.restart();
            life = life.next();
        }
        Ok(())
    }

    fn host(&self, seed: u64) -> (Simulator, Host) {
        let simulator = Simulator::new(seed);
        let host = simulator.host("broker");
        host.set_fault_model(self.model);
        host.set_claimed_model(self.claimed);
        (simulator, host)
    }

    /// Cuts at every moment, or until `states` new ones were found. Returns how many moments that were.
    fn cut_all(&self, moments: &[Moment<S::History>], first: u64, states: u64, seen: &mut Seen) -> Verdict<u64> {
        let enough = seen.disks.len() as u64 + states;
        // Few states are spread over the whole life.
        let stride = STRIDES[usize::from(moments.len().is_multiple_of(STRIDES[0]))];
        for place in 0..moments.len() {
            if seen.disks.len() as u64 >= enough {
                return Ok(place as u64);
            }
            // From the end on: there everything is promised.
            let index = (moments.len() - 1 + place * stride) % moments.len();
            let verdict = self.cut(&moments[index], first ^ ((index as u64) << 5), seen);
            verdict.map_err(|broken| format!("moment {index}: {broken}"))?;
        }
        Ok(moments.len() as u64)
    }

    fn cut(&self, moment: &Moment<S::History>, first: u64, seen: &mut Seen) -> Verdict {
        let mut repeats = 0;
        for cut in 0..CUTS_PER_MOMENT {
            let left = moment.disk.after_power_cut(first + cut);
            let digest = left.digest();
            seen.disks.insert(digest);
            if !seen.states.insert(digest ^ moment.promises.rotate_left(32)) {
                repeats += 1;
                if repeats == REPEATS_MAX {
                    break;
                }
                continue;
            }
            repeats = 0;
            let (simulator, host) = self.host(first + cut);
            host.insert_disk(&left);
            let io = host.start_core();
            let recovery = self.life.clone().recover(io.clone(), moment.history.as_ref().clone());
            let recovered = simulator.run(&io, recovery).map_err(|stopped| format!("recovery: {stopped}"));
            recovered.and_then(|recovered| recovered).map_err(|broken| format!("cut {cut}: {broken}"))?;
        }
        Ok(())
    }
}

/// States that were looked at.
#[derive(Default)]
struct Seen {
    /// What disks held.
    disks: HashSet<u64>,
    /// The same, with what had been promised.
    states: HashSet<u64>,
}

/// Does something on a host that has just started, and keeps every moment at which the disk or a promise has changed.
fn record<S: Scenario, F: Future<Output = Verdict> + 'static>(
    simulator: &Simulator,
    host: &Host,
    history: S::History,
    doing: impl FnOnce(Io, Rc<RefCell<S::History>>) -> F,
) -> Verdict<Vec<Moment<S::History>>> {
    let history = Rc::new(RefCell::new(history));
    let io = host.start_core();
    let done = Rc::new(RefCell::new(None));
    let task = {
        let (doing, done) = (doing(io.clone(), Rc::clone(&history)), Rc::clone(&done));
        io.spawn(async move {
            let outcome = doing.await;
            *done.borrow_mut() = Some(outcome);
        })
    };
    let mut moments: Vec<Moment<S::History>> = Vec::new();
    let mut last = (u64::MAX, 0);
    let outcome = loop {
        let now = (host.counters().steps, S::digest(&history.borrow()));
        if now != last {
            last = now;
            let history = Rc::new(history.borrow().clone());
            moments.push(Moment { disk: host.copy_disk(), history, promises: now.1 });
        }
        if let Some(outcome) = done.take() {
            break outcome;
        }
        if !simulator.step() {
            return Err("it never ends".to_owned());
        }
    };
    drop(task);
    outcome.map(|()| moments)
}
