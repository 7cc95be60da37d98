//! Many who want the same thing made durable share one act: those who come while it is under way share the next.
//!
//! Owns the order of such acts and who hears of which outcome. Never does any IO itself.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use heddle_io::sync::Semaphore;

use crate::error::Error;

/// Orders the acts of one kind on one core.
pub(crate) struct Group<T> {
    turn: Semaphore,
    /// What the next act will do.
    forming: RefCell<Rc<Batch<T>>>,
}

struct Batch<T> {
    items: RefCell<Vec<T>>,
    outcome: OnceCell<Result<(), Error>>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Batch { items: RefCell::default(), outcome: OnceCell::new() }
    }
}

impl<T: Clone> Group<T> {
    pub(crate) fn new() -> Group<T> {
        Group { turn: Semaphore::new(1), forming: RefCell::default() }
    }

    /// Whether an act is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.turn.available() == 0
    }

    /// Has `act` done for `item`, together with the items of all who came before it began. It is the `act` of one of them.
    ///
    /// # Errors
    /// The act's, for everybody who shared it.
    pub(crate) async fn join(&self, item: T, act: impl AsyncFnOnce(Vec<T>) -> Result<(), Error>) -> Result<(), Error> {
        self.join_after(item, async || {}, act).await
    }

    /// The same, but those who come while `gathering` lasts share the act as well.
    ///
    /// # Errors
    /// The act's, for everybody who shared it.
    pub(crate) async fn join_after(
        &self,
        item: T,
        gathering: impl AsyncFnOnce(),
        act: impl AsyncFnOnce(Vec<T>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let batch = Rc::clone(&self.forming.borrow());
        batch.items.borrow_mut().push(item);
        let _turn = self.turn.acquire(1).await;
        if let Some(outcome) = batch.outcome.get() {
            return outcome.clone();
        }
        gathering().await;
        if Rc::ptr_eq(&batch, &self.forming.borrow()) {
            *self.forming.borrow_mut() = Rc::default();
        }
        // Whoever began it before us may have been dropped in the middle: then it is done again, whole.
        let items = batch.items.borrow().clone();
        let outcome = act(items).await;
        batch.outcome.get_or_init(|| outcome).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::pin::Pin;
    use std::task::Poll;

    use heddle_io::{Backend, Executor, IoConfig};

    use super::*;

    #[test]
    fn those_who_come_meanwhile_share_the_next_act() {
        let executor = Executor::new(IoConfig { backend: Backend::Blocking, ..IoConfig::default() }).unwrap();
        let io = executor.io();
        executor.run(async {
            let group = Rc::new(Group::new());
            let acts = Rc::new(RefCell::new(Vec::new()));
            let open = Rc::new(Cell::new(false));
            let join = |number: u32| {
                let (group, acts, open, io) = (Rc::clone(&group), Rc::clone(&acts), Rc::clone(&open), io.clone());
                io.clone().spawn(async move {
                    let act = async |items| {
                        acts.borrow_mut().push(items);
                        while !open.get() {
                            io.yield_now().await;
                        }
                        if number == 1 { Err(Error::Offline("the second act".into())) } else { Ok(()) }
                    };
                    group.join(number, act).await
                })
            };
            let first = join(0);
            while acts.borrow().is_empty() {
                io.yield_now().await;
            }
            let others = [join(1), join(2), join(3)];
            for _ in 0..5 {
                io.yield_now().await;
            }
            open.set(true);
            assert!(first.await.is_ok());
            for other in others {
                assert!(other.await.is_err(), "all who shared it hear of its outcome");
            }
            assert_eq!(*acts.borrow(), [vec![0], vec![1, 2, 3]]);
        });
    }

    /// Polls a future once.
    async fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> bool {
        poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
    }

    #[test]
    fn an_act_that_was_dropped_is_done_again() {
        let executor = Executor::new(IoConfig { backend: Backend::Blocking, ..IoConfig::default() }).unwrap();
        executor.run(async {
            let (group, open) = (Group::new(), Cell::new(false));
            let wait = async |_| {
                poll_fn(|_| if open.get() { Poll::Ready(()) } else { Poll::Pending }).await;
                Ok(())
            };
            let mut first = Box::pin(group.join(0, wait));
            let mut dropped = Box::pin(group.join(1, async |_| pending().await));
            let mut last = Box::pin(group.join(2, async |items| {
                assert_eq!(items, [1, 2], "the act that was dropped had begun for both");
                Ok(())
            }));
            assert!(!poll_once(&mut first).await && !poll_once(&mut dropped).await && !poll_once(&mut last).await);
            open.set(true);
            assert!(poll_once(&mut first).await && !poll_once(&mut dropped).await);
            drop(dropped);
            assert!(last.await.is_ok());
        });
    }
}
