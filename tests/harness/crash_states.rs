//! Many crash states of few stories: what the disk may hold after a power cut at any moment of an engine's life, each state
//! looked at once.
//!
//! Owns the way from a story to its states. `crash.rs` looks deeper at fewer: it recovers twice, cuts recoveries, lives on.
//!
//! ```text
//! life 1 ── moment ── moment ── ... ── moment ──┐ one of them is cut, recovered, and the next life begins there
//!             └ many cuts: any subset of unflushed sectors, names and lengths ─▶ new to us? ─▶ recover, hold to the history
//! ```

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use heddle_io::sim::{DiskCopy, FaultModel, Host, Simulator};

use crate::engine_life::{Life, Shared};
use crate::engine_recovery::{Verdict, recover_on};
use crate::history::History;

/// Cuts tried at one moment, at most.
const CUTS_PER_MOMENT: u64 = 24;

/// So many cuts in a row that leave nothing new end a moment.
const REPEATS_MAX: u64 = 4;

/// Moments are visited in steps of so many, a prime, or the next prime where that divides their number.
const STRIDES: [usize; 2] = [617, 619];

/// Lives of one data directory in one story.
const LIVES: i32 = 3;

/// What to enumerate.
#[derive(Clone)]
pub struct Enumeration {
    /// What the disk keeps.
    pub model: FaultModel,
    /// What the engine is told of it; `None` for the truth.
    pub claimed: Option<FaultModel>,
    /// The first life of each story.
    pub life: Life,
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
struct Moment {
    disk: DiskCopy,
    history: Rc<History>,
    promises: u64,
}

impl Enumeration {
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
        let mut history = History::default();
        for number in 1..=LIVES {
            let moments = record(&simulator, &host, &life, history)?;
            looked.direct_writes += host.counters().direct_writes;
            let enough = seen.disks.len() as u64 + self.states.div_ceil(LIVES as u64);
            // Few states are spread over the whole life.
            let stride = STRIDES[usize::from(moments.len().is_multiple_of(STRIDES[0]))];
            for place in 0..moments.len() {
                if seen.disks.len() as u64 >= enough {
                    break;
                }
                let index = place * stride % moments.len();
                let cut = (seed << 32) ^ ((number as u64) << 24) ^ ((index as u64) << 5);
                let verdict = self.cut(&moments[index], cut, seen);
                verdict.map_err(|broken| format!("life {number}, moment {index}: {broken}"))?;
                looked.moments += 1;
            }
            // The next life begins where power was lost in this one, or after its end.
            let at = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(number as u32 * 8) as usize % moments.len();
            let at = if (seed + number as u64).is_multiple_of(3) { moments.len() - 1 } else { at };
            if host.is_up() {
                host.power_cut();
            }
            host.insert_after_power_cut(&moments[at].disk, seed ^ number as u64);
            host.restart();
            history = (*moments[at].history).clone();
            let contents = recover_on(&host, &history, &self.life.engine)?;
            contents.iter().for_each(|(name, content)| history.log(name).adopt(content));
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

    fn cut(&self, moment: &Moment, first: u64, seen: &mut Seen) -> Verdict {
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
            let (_simulator, host) = self.host(first + cut);
            host.insert_disk(&left);
            recover_on(&host, &moment.history, &self.life.engine).map_err(|broken| format!("cut {cut}: {broken}"))?;
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

/// Lives a life and keeps every moment at which the disk or a promise has changed.
fn record(simulator: &Simulator, host: &Host, life: &Life, history: History) -> Verdict<Vec<Moment>> {
    let history: Shared = Rc::new(RefCell::new(history));
    let io = host.start_core();
    let done = Rc::new(RefCell::new(None));
    let task = {
        let (life, io, history, done) = (life.clone(), io.clone(), Rc::clone(&history), Rc::clone(&done));
        io.clone().spawn(async move {
            let lived = life.live(io, history).await;
            *done.borrow_mut() = Some(lived);
        })
    };
    let mut moments: Vec<Moment> = Vec::new();
    let mut last = (u64::MAX, 0);
    let lived = loop {
        let now = (host.counters().steps, history.borrow().digest());
        if now != last {
            last = now;
            let history = Rc::new(history.borrow().clone());
            moments.push(Moment { disk: host.copy_disk(), history, promises: now.1 });
        }
        if let Some(lived) = done.take() {
            break lived;
        }
        if !simulator.step() {
            return Err("a life that never ends".to_owned());
        }
    };
    drop(task);
    lived.map_err(|refused| format!("a life on a sound disk is refused: {}", refused.0))?;
    Ok(moments)
}
