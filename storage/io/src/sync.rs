//! What tasks of one core wait on: [`Notify`], [`oneshot`], [`Semaphore`], [`Watch`].
//!
//! Never crosses threads: everything here is `Rc` inside. Waiters are served in the order in which they came.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The waiters of one primitive, first come first served.
#[derive(Default)]
struct Waiters {
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    waker: RefCell<Option<Waker>>,
    /// Set by whoever served it.
    served: Cell<bool>,
    /// What it waits for: permits of a semaphore.
    wanted: usize,
}

impl Waiters {
    fn enqueue(&self, context: &Context<'_>, wanted: usize) -> Rc<Waiter> {
        let waker = RefCell::new(Some(context.waker().clone()));
        let waiter = Rc::new(Waiter { waker, served: Cell::new(false), wanted });
        self.queue.borrow_mut().push_back(Rc::clone(&waiter));
        waiter
    }

    /// Serves the first; false if nobody waits.
    fn serve_first(&self) -> bool {
        let first = self.queue.borrow_mut().pop_front();
        first.map(|waiter| waiter.serve()).is_some()
    }

    fn serve_all(&self) {
        let all = std::mem::take(&mut *self.queue.borrow_mut());
        all.iter().for_each(|waiter| waiter.serve());
    }

    fn first_wanted(&self) -> Option<usize> {
        self.queue.borrow().front().map(|waiter| waiter.wanted)
    }

    fn remove(&self, waiter: &Rc<Waiter>) {
        self.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, waiter));
    }
}

impl Waiter {
    fn serve(&self) {
        self.served.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn renew(&self, context: &Context<'_>) {
        match &mut *self.waker.borrow_mut() {
            Some(waker) => waker.clone_from(context.waker()),
            vacant => *vacant = Some(context.waker().clone()),
        }
    }
}

/// Tells waiting tasks that something has changed. Remembers nothing: whoever comes later waits for the next time.
///
/// Take the [`Notified`] future *before* looking at the condition, or look at it again after every wait: on one core
/// nothing happens between a check and a `notify.wait().await` that has no other await in between.
#[derive(Clone, Default)]
pub struct Notify {
    waiters: Rc<Waiters>,
}

impl Notify {
    /// Nobody waits yet.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Waits for the next notification. Counts from this call, not from the first poll.
    pub fn wait(&self) -> Notified {
        let waker = RefCell::new(None);
        let waiter = Rc::new(Waiter { waker, served: Cell::new(false), wanted: 0 });
        self.waiters.queue.borrow_mut().push_back(Rc::clone(&waiter));
        Notified { waiters: Rc::clone(&self.waiters), waiter }
    }

    /// Wakes everybody who waits now.
    pub fn notify_all(&self) {
        self.waiters.serve_all();
    }

    /// Wakes the one who has waited longest. False if nobody waits.
    pub fn notify_one(&self) -> bool {
        self.waiters.serve_first()
    }
}

/// The future of [`Notify::wait`].
pub struct Notified {
    waiters: Rc<Waiters>,
    waiter: Rc<Waiter>,
}

impl Future for Notified {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.served.get() {
            return Poll::Ready(());
        }
        self.waiter.renew(context);
        Poll::Pending
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        if !self.waiter.served.get() {
            self.waiters.remove(&self.waiter);
        }
    }
}

/// A channel for one value.
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let shared = Rc::new(Oneshot { value: RefCell::new(None), waker: RefCell::new(None), closed: Cell::new(false) });
    (OneshotSender { shared: Rc::clone(&shared) }, OneshotReceiver { shared })
}

struct Oneshot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    /// One of the two ends is gone.
    closed: Cell<bool>,
}

/// The sending end of [`oneshot`].
pub struct OneshotSender<T> {
    shared: Rc<Oneshot<T>>,
}

/// The receiving end of [`oneshot`]: a future of the value, or of [`Closed`] if the sender was dropped without sending.
pub struct OneshotReceiver<T> {
    shared: Rc<Oneshot<T>>,
}

/// The other end is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the other end is gone")
    }
}

impl std::error::Error for Closed {}

impl<T> OneshotSender<T> {
    /// Sends the value.
    ///
    /// # Errors
    ///
    /// The value comes back if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(value);
        }
        *self.shared.value.borrow_mut() = Some(value);
        Ok(())
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.get()
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        self.shared.closed.set(true);
        let waker = self.shared.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, Closed>> {
        if let Some(value) = self.shared.value.borrow_mut().take() {
            return Poll::Ready(Ok(value));
        }
        if self.shared.closed.get() {
            return Poll::Ready(Err(Closed));
        }
        *self.shared.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        self.shared.closed.set(true);
        drop(self.shared.value.borrow_mut().take());
    }
}

/// Permits that tasks take and give back. First come, first served: a large request is not starved by small ones.
#[derive(Clone)]
pub struct Semaphore {
    inner: Rc<SemaphoreInner>,
}

struct SemaphoreInner {
    available: Cell<usize>,
    waiters: Waiters,
}

impl Semaphore {
    /// A semaphore with `permits` to give.
    pub fn new(permits: usize) -> Semaphore {
        Semaphore { inner: Rc::new(SemaphoreInner { available: Cell::new(permits), waiters: Waiters::default() }) }
    }

    /// Permits that nobody holds.
    pub fn available(&self) -> usize {
        self.inner.available.get()
    }

    /// Takes `count` permits, waiting for them behind everybody who came before.
    ///
    /// Waits for ever if there are not so many in all.
    pub fn acquire(&self, count: usize) -> Acquire {
        Acquire { semaphore: self.inner.clone(), count, waiter: None, finished: false }
    }

    /// Takes `count` permits if they are there and nobody waits.
    pub fn try_acquire(&self, count: usize) -> Option<Permits> {
        let free = self.inner.waiters.first_wanted().is_none() && self.inner.available.get() >= count;
        free.then(|| self.inner.take(count))
    }

    /// Adds permits for good.
    pub fn add(&self, count: usize) {
        self.inner.give_back(count);
    }
}

impl SemaphoreInner {
    fn take(self: &Rc<SemaphoreInner>, count: usize) -> Permits {
        self.available.set(self.available.get() - count);
        Permits { semaphore: Rc::clone(self), count }
    }

    /// Permits are handed to waiters here, not when they run: nobody overtakes them in between.
    fn give_back(&self, count: usize) {
        self.available.set(self.available.get() + count);
        while let Some(wanted) = self.waiters.first_wanted() {
            if self.available.get() < wanted {
                break;
            }
            self.available.set(self.available.get() - wanted);
            self.waiters.serve_first();
        }
    }
}

/// Permits in somebody's hand; given back when dropped.
pub struct Permits {
    semaphore: Rc<SemaphoreInner>,
    count: usize,
}

impl Permits {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Keeps them for good: the semaphore has that many fewer from now on.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.semaphore.give_back(self.count);
    }
}

/// The future of [`Semaphore::acquire`].
pub struct Acquire {
    semaphore: Rc<SemaphoreInner>,
    count: usize,
    waiter: Option<Rc<Waiter>>,
    finished: bool,
}

impl Future for Acquire {
    type Output = Permits;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permits> {
        match &self.waiter {
            Some(waiter) if waiter.served.get() => {
                self.finished = true;
                Poll::Ready(Permits { semaphore: Rc::clone(&self.semaphore), count: self.count })
            }
            Some(waiter) => {
                waiter.renew(context);
                Poll::Pending
            }
            None => {
                let nobody_waits = self.semaphore.waiters.first_wanted().is_none();
                if nobody_waits && self.semaphore.available.get() >= self.count {
                    self.finished = true;
                    return Poll::Ready(self.semaphore.take(self.count));
                }
                self.waiter = Some(self.semaphore.waiters.enqueue(context, self.count));
                Poll::Pending
            }
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if self.finished {
            return;
        }
        if waiter.served.get() {
            self.semaphore.give_back(self.count);
        } else {
            self.semaphore.waiters.remove(&waiter);
            // Whoever stood behind may fit now.
            self.semaphore.give_back(0);
        }
    }
}

/// A value that tasks watch for changes.
#[derive(Clone)]
pub struct Watch<T> {
    inner: Rc<WatchInner<T>>,
}

struct WatchInner<T> {
    value: RefCell<T>,
    changed: Notify,
}

impl<T: Clone> Watch<T> {
    /// A watched value.
    pub fn new(value: T) -> Watch<T> {
        Watch { inner: Rc::new(WatchInner { value: RefCell::new(value), changed: Notify::new() }) }
    }

    /// The value now.
    pub fn value(&self) -> T {
        self.inner.value.borrow().clone()
    }

    /// Sets the value and wakes whoever watches.
    pub fn set(&self, value: T) {
        *self.inner.value.borrow_mut() = value;
        self.inner.changed.notify_all();
    }

    /// Waits until `reached` is true of the value, and gives it. Looks at once.
    pub async fn until(&self, mut reached: impl FnMut(&T) -> bool) -> T {
        loop {
            let changed = self.inner.changed.wait();
            let value = self.value();
            if reached(&value) {
                return value;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notification_reaches_those_who_wait_and_nobody_later() {
        let notify = Notify::new();
        let mut before = pin!(notify.wait());
        assert!(poll(before.as_mut()).is_pending());
        notify.notify_all();
        let mut after = pin!(notify.wait());
        assert!(poll(before).is_ready());
        assert!(poll(after.as_mut()).is_pending());
        assert!(notify.notify_one());
        assert!(!notify.notify_one());
        assert!(poll(after).is_ready());
    }

    #[test]
    fn a_dropped_waiter_takes_no_notification() {
        let notify = Notify::new();
        let dropped = notify.wait();
        let mut second = pin!(notify.wait());
        drop(dropped);
        assert!(notify.notify_one());
        assert!(poll(second.as_mut()).is_ready());
    }

    #[test]
    fn a_oneshot_carries_its_value_or_says_that_it_never_will() {
        let (sender, receiver) = oneshot();
        let mut receiver = pin!(receiver);
        assert!(poll(receiver.as_mut()).is_pending());
        sender.send(7).unwrap();
        assert_eq!(poll(receiver), Poll::Ready(Ok(7)));

        let (sender, receiver) = oneshot::<u8>();
        drop(sender);
        assert_eq!(poll(pin!(receiver)), Poll::Ready(Err(Closed)));

        let (sender, receiver) = oneshot();
        drop(receiver);
        assert_eq!(sender.send(8), Err(8));
    }

    #[test]
    fn permits_are_served_in_order_and_come_back() {
        let semaphore = Semaphore::new(3);
        let held = semaphore.try_acquire(2).unwrap();
        let mut large = pin!(semaphore.acquire(3));
        let mut small = pin!(semaphore.acquire(1));
        assert!(poll(large.as_mut()).is_pending());
        assert!(poll(small.as_mut()).is_pending(), "one permit is free, but the large request came first");
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        let Poll::Ready(all) = poll(large.as_mut()) else { panic!("three are free") };
        assert!(poll(small.as_mut()).is_pending());
        drop(all);
        assert!(poll(small).is_ready());
        assert_eq!(semaphore.available(), 3);
    }

    #[test]
    fn a_dropped_acquire_lets_those_behind_it_pass() {
        let semaphore = Semaphore::new(1);
        let mut small = pin!(semaphore.acquire(1));
        {
            let mut large = pin!(semaphore.acquire(2));
            assert!(poll(large.as_mut()).is_pending());
            assert!(poll(small.as_mut()).is_pending());
        }
        assert!(poll(small.as_mut()).is_ready());

        // Served, but dropped before it was polled again: nothing is lost.
        let held = semaphore.try_acquire(1).unwrap();
        {
            let mut served = pin!(semaphore.acquire(1));
            assert!(poll(served.as_mut()).is_pending());
            drop(held);
        }
        assert_eq!(semaphore.available(), 1);
    }

    #[test]
    fn a_watch_gives_the_value_that_was_waited_for() {
        let watch = Watch::new(1);
        let mut reached = pin!(watch.until(|value| *value >= 3));
        assert!(poll(reached.as_mut()).is_pending());
        watch.set(2);
        assert!(poll(reached.as_mut()).is_pending());
        watch.set(4);
        assert_eq!(poll(reached), Poll::Ready(4));
    }
}
