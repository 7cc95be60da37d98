//! Work that many cores want and one does: [`Rounds`], one round in flight at a time, each for all who asked before it began.
//!
//! Owns who runs the next round and who waits for it. Knows nothing of the work; the flush of a device is the one it is for.
//! The lock is held for a few instructions, never across a wait: once for each core that joins and once for each round's
//! end, however many appends hang on it.

use std::fmt;
use std::future::Future;
use std::task::{Poll, Waker};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// Rounds of some work, for all cores of a process. The first that fails is the last: every later one fails the same way.
pub struct Rounds<E> {
    turns: Mutex<Turns<E>>,
}

struct Turns<E> {
    /// Rounds that were begun, and how many of them are done.
    begun: u64,
    done: u64,
    in_flight: bool,
    failed: Option<Failed<E>>,
    /// Who waits for the round in flight.
    waiting: Vec<Waker>,
}

/// Why there are no more rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed<E> {
    /// A round failed.
    With(E),
    /// Who ran a round gave it up before its end: how it ended is not known.
    GivenUp,
}

enum Turn {
    Covered,
    Mine(u64),
    Wait,
}

impl<E: Clone> Rounds<E> {
    /// Before the first round.
    pub fn new() -> Rounds<E> {
        let turns = Turns { begun: 0, done: 0, in_flight: false, failed: None, waiting: Vec::new() };
        Rounds { turns: Mutex::new(turns) }
    }

    /// Returns after a round that began after this call; runs it with `run` if nobody else does.
    ///
    /// # Errors
    /// That round failed, or an earlier one.
    pub async fn join<F>(&self, run: impl FnOnce() -> F) -> Result<(), Failed<E>>
    where
        F: Future<Output = Result<(), E>>,
    {
        let ticket = self.lock().begun + 1;
        let turn = std::future::poll_fn(|context| {
            let turn = self.lock().turn(ticket, context.waker());
            match turn {
                Ok(Turn::Wait) => Poll::Pending,
                other => Poll::Ready(other),
            }
        });
        match turn.await? {
            Turn::Mine(number) => {
                let mut running = Running { rounds: self, number: Some(number) };
                let result = run().await.map_err(Failed::With);
                running.end(result.clone());
                result
            }
            Turn::Covered | Turn::Wait => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Turns<E>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Clone> Turns<E> {
    fn turn(&mut self, ticket: u64, waker: &Waker) -> Result<Turn, Failed<E>> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.done >= ticket {
            return Ok(Turn::Covered);
        }
        if self.in_flight {
            self.waiting.push(waker.clone());
            return Ok(Turn::Wait);
        }
        self.in_flight = true;
        self.begun += 1;
        Ok(Turn::Mine(self.begun))
    }
}

/// A round in flight; dropping it before its end is a failure.
struct Running<'a, E: Clone> {
    rounds: &'a Rounds<E>,
    number: Option<u64>,
}

impl<E: Clone> Running<'_, E> {
    fn end(&mut self, result: Result<(), Failed<E>>) {
        let Some(number) = self.number.take() else { return };
        let mut turns = self.rounds.lock();
        turns.in_flight = false;
        match result {
            Ok(()) => turns.done = number,
            Err(failed) => turns.failed = Some(failed),
        }
        let waiting = std::mem::take(&mut turns.waiting);
        drop(turns);
        for waker in waiting {
            waker.wake();
        }
    }
}

impl<E: Clone> Drop for Running<'_, E> {
    fn drop(&mut self) {
        self.end(Err(Failed::GivenUp));
    }
}

impl<E: Clone> Default for Rounds<E> {
    fn default() -> Rounds<E> {
        Rounds::new()
    }
}

impl<E> fmt::Debug for Rounds<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounds").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::oneshot;
    use crate::{Backend, Executor, IoConfig};
    use std::cell::Cell;
    use std::rc::Rc;

    fn run<F: Future>(test: impl FnOnce(crate::Io) -> F) -> F::Output {
        let executor = Executor::new(IoConfig { backend: Backend::Blocking, ..IoConfig::default() })
            .expect("the blocking backend is always there");
        executor.run(test(executor.io()))
    }

    #[test]
    fn who_comes_while_a_round_runs_waits_for_the_next_and_shares_it() {
        run(|io| async move {
            let (rounds, count) = (Rc::new(Rounds::<()>::new()), Rc::new(Cell::new(0)));
            let (release, held) = oneshot();
            let first = io.spawn({
                let (rounds, count) = (Rc::clone(&rounds), Rc::clone(&count));
                async move {
                    let work = || async {
                        count.set(count.get() + 1);
                        let _released = held.await;
                        Ok(())
                    };
                    rounds.join(work).await
                }
            });
            io.yield_now().await;
            let others: Vec<_> = (0..5)
                .map(|_| {
                    let (rounds, count) = (Rc::clone(&rounds), Rc::clone(&count));
                    io.spawn(async move {
                        rounds
                            .join(|| async {
                                count.set(count.get() + 1);
                                Ok(())
                            })
                            .await
                    })
                })
                .collect();
            io.yield_now().await;
            assert_eq!(count.get(), 1, "one at a time");
            assert!(release.send(()).is_ok());
            assert_eq!(first.await, Ok(()));
            for other in others {
                assert_eq!(other.await, Ok(()));
            }
            assert!((2..=3).contains(&count.get()), "five shared {} rounds", count.get() - 1);
        });
    }

    #[test]
    fn after_a_failure_or_a_round_given_up_nobody_is_told_that_all_is_well() {
        run(|_io| async move {
            let rounds = Rounds::new();
            assert_eq!(rounds.join(|| async { Err(5) }).await, Err(Failed::With(5)));
            assert_eq!(rounds.join(|| async { Ok(()) }).await, Err(Failed::With(5)));
            let rounds = Rounds::<i32>::new();
            {
                let mut given_up = std::pin::pin!(rounds.join(std::future::pending::<Result<(), i32>>));
                let mut context = std::task::Context::from_waker(Waker::noop());
                assert!(given_up.as_mut().poll(&mut context).is_pending());
            }
            assert_eq!(rounds.join(|| async { Ok(()) }).await, Err(Failed::GivenUp));
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use loom::thread;

    /// What a core wrote before it joined is covered by a round that began after: here a round notes what it found written.
    #[test]
    fn loom_every_write_is_covered_by_a_round_that_began_after_it() {
        loom::model(|| {
            let rounds = Arc::new(Rounds::<()>::new());
            let written = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let durable = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let running = Arc::new(AtomicUsize::new(0));
            let cores = [0, 1].map(|core| {
                let (rounds, written, durable, running) =
                    (Arc::clone(&rounds), Arc::clone(&written), Arc::clone(&durable), Arc::clone(&running));
                move || {
                    written[core].store(true, Ordering::Release);
                    let flush = || async {
                        assert_eq!(running.fetch_add(1, Ordering::AcqRel), 0, "one round at a time");
                        let found = [0, 1].map(|core| written[core].load(Ordering::Acquire));
                        for (core, found) in found.into_iter().enumerate() {
                            durable[core].fetch_or(found, Ordering::AcqRel);
                        }
                        running.fetch_sub(1, Ordering::AcqRel);
                        Ok(())
                    };
                    assert_eq!(block_on(rounds.join(flush)), Ok(()));
                    assert!(durable[core].load(Ordering::Acquire), "acknowledged and not covered");
                }
            });
            let [first, second] = cores;
            let other = thread::spawn(first);
            second();
            other.join().unwrap();
        });
    }
}
