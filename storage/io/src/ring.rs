//! A bounded ring from one core to another: one sender, one receiver, no lock.
//!
//! Owns the slots and the wake-up of both ends. Never allocates after it was made, but one waker each time an end goes
//! to sleep.
//!
//! ```text
//!         head (receiver's)        tail (sender's)
//!           ▼                        ▼
//!   [ .. ][ T ][ T ][ T ][ T ][ T ][ .. ]      tail - head = messages inside
//! ```
//!
//! Sending does not wake the receiver: [`RingSender::flush_wakeups`] does, once for many messages, and only if it waits.
//! An end that waits leaves its waker in a cell (`WakerCell`) and looks again; the other end acts and looks into the
//! cell: with a sequentially consistent fence on both sides, at least one of the two sees the other.
#![expect(unsafe_code, reason = "slots that hold a value or not, owned by turns")]

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

#[cfg(not(loom))]
use plain_cell::UnsafeCell;

/// The standard cell with loom's interface.
#[cfg(not(loom))]
mod plain_cell {
    pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        pub(super) fn with<R>(&self, look: impl FnOnce(*const T) -> R) -> R {
            look(self.0.get())
        }

        pub(super) fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
            change(self.0.get())
        }
    }
}

/// A ring with room for `capacity` messages, rounded up to a power of two.
///
/// # Panics
///
/// If `capacity` is 0.
pub fn channel<T: Send>(capacity: usize) -> (RingSender<T>, RingReceiver<T>) {
    assert!(capacity > 0, "a ring holds at least one message");
    let capacity = capacity.next_power_of_two();
    let slots = (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let ring = Arc::new(Ring {
        slots,
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
        receiver_waits: WakerCell::default(),
        sender_waits: WakerCell::default(),
        sender_gone: AtomicBool::new(false),
        receiver_gone: AtomicBool::new(false),
    });
    let sender = RingSender { ring: Arc::clone(&ring), tail: 0, head_seen: 0, unannounced: false };
    (sender, RingReceiver { ring, head: 0, tail_seen: 0 })
}

/// A cache line of its own, so that the two ends do not invalidate each other's.
#[repr(align(128))]
struct Padded<T>(T);

struct Ring<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Messages taken since the start, wrapping; written by the receiver.
    head: Padded<AtomicUsize>,
    /// Messages sent since the start, wrapping; written by the sender.
    tail: Padded<AtomicUsize>,
    receiver_waits: WakerCell,
    sender_waits: WakerCell,
    sender_gone: AtomicBool,
    receiver_gone: AtomicBool,
}

// SAFETY: slot `i` is touched by the sender alone while it is outside of head..tail and by the receiver alone while it
// is inside; the release store and acquire load of `tail` and `head` hand it over.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: a ring owns its messages, and they are Send.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    fn slot(&self, position: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[position & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (self.head.0.load(Ordering::Relaxed), self.tail.0.load(Ordering::Relaxed));
        while head != tail {
            // SAFETY: both ends are gone, and slots in head..tail hold messages that nobody took.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The ring was full, or its receiver is gone ([`RingSender::is_closed`]); the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

/// The sending end. May move to the sender's core once; then stays there.
pub struct RingSender<T> {
    ring: Arc<Ring<T>>,
    /// The sender's own copy of `tail`.
    tail: usize,
    /// `head` when last looked at: never ahead of the truth.
    head_seen: usize,
    /// Messages were sent that the receiver was not told of.
    unannounced: bool,
}

impl<T> RingSender<T> {
    /// Puts a message in. The receiver hears of it at the next [`RingSender::flush_wakeups`], or when it looks.
    ///
    /// # Errors
    ///
    /// [`Full`] with the message: no room, or nobody there to take it.
    pub fn try_send(&mut self, message: T) -> Result<(), Full<T>> {
        if self.is_full() || self.is_closed() {
            return Err(Full(message));
        }
        // SAFETY: the slot is outside of head..tail, so the receiver does not touch it before the store below.
        self.ring.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(message) });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.0.store(self.tail, Ordering::Release);
        self.unannounced = true;
        Ok(())
    }

    fn is_full(&mut self) -> bool {
        let capacity = self.ring.slots.len();
        if self.tail.wrapping_sub(self.head_seen) == capacity {
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
        }
        self.tail.wrapping_sub(self.head_seen) == capacity
    }

    /// Wakes the receiver if it waits and was sent anything since the last call. Call it once after a batch of sends.
    pub fn flush_wakeups(&mut self) {
        if std::mem::take(&mut self.unannounced) {
            fence(Ordering::SeqCst);
            self.ring.receiver_waits.wake();
        }
    }

    /// Waits until there is room (or the receiver is gone). Flushes wake-ups first.
    pub async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_ready(context)).await;
    }

    /// The poll of [`RingSender::ready`].
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.flush_wakeups();
        if !self.is_full() || self.is_closed() {
            return Poll::Ready(());
        }
        self.ring.sender_waits.park(context.waker());
        fence(Ordering::SeqCst);
        if !self.is_full() || self.is_closed() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether the receiver is gone. Messages inside are dropped with the ring.
    pub fn is_closed(&self) -> bool {
        self.ring.receiver_gone.load(Ordering::Acquire)
    }

    /// Messages that fit.
    pub fn capacity(&self) -> usize {
        self.ring.slots.len()
    }
}

impl<T> Drop for RingSender<T> {
    fn drop(&mut self) {
        self.ring.sender_gone.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.ring.receiver_waits.wake();
    }
}

impl<T> fmt::Debug for RingSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingSender").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// The receiving end. May move to the receiver's core once; then stays there.
pub struct RingReceiver<T> {
    ring: Arc<Ring<T>>,
    /// The receiver's own copy of `head`.
    head: usize,
    /// `tail` when last looked at: never ahead of the truth.
    tail_seen: usize,
}

impl<T> RingReceiver<T> {
    /// Takes the oldest message, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: the slot is inside of head..tail: the sender filled it before its release store of `tail`, which we
        // saw, and does not touch it before the store of `head` below. It is read once, as `head` moves on.
        let message = self.ring.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(message)
    }

    /// Waits for the oldest message. `None` when the sender is gone and all is taken.
    pub async fn recv(&mut self) -> Option<T> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// The poll of [`RingReceiver::recv`]. A sender that waits for room is woken when the ring is empty.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.try_recv() {
            return Poll::Ready(Some(message));
        }
        self.ring.receiver_waits.park(context.waker());
        fence(Ordering::SeqCst);
        // One fence for both: the sender may have sent since, and it may wait for the room that was made.
        self.ring.sender_waits.wake();
        // Gone is read before the last look at the messages: what was sent before it is not overlooked.
        let sender_gone = self.ring.sender_gone.load(Ordering::SeqCst);
        match self.try_recv() {
            Some(message) => Poll::Ready(Some(message)),
            None if sender_gone => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for RingReceiver<T> {
    fn drop(&mut self) {
        self.ring.receiver_gone.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.ring.sender_waits.wake();
    }
}

impl<T> fmt::Debug for RingReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingReceiver").field("capacity", &self.ring.slots.len()).finish_non_exhaustive()
    }
}

/// The waker of an end that waits, or nothing. Whoever swaps it out owns it.
struct WakerCell {
    waker: AtomicPtr<Waker>,
}

impl Default for WakerCell {
    fn default() -> WakerCell {
        WakerCell { waker: AtomicPtr::new(std::ptr::null_mut()) }
    }
}

impl WakerCell {
    fn park(&self, waker: &Waker) {
        let parked = Box::into_raw(Box::new(waker.clone()));
        drop(WakerCell::own(self.waker.swap(parked, Ordering::SeqCst)));
    }

    fn wake(&self) {
        if self.waker.load(Ordering::SeqCst).is_null() {
            return;
        }
        if let Some(waker) = WakerCell::own(self.waker.swap(std::ptr::null_mut(), Ordering::SeqCst)) {
            waker.wake();
        }
    }

    /// Takes over what a swap gave.
    fn own(parked: *mut Waker) -> Option<Box<Waker>> {
        // SAFETY: only `park` puts a pointer in, from `Box::into_raw`, and the swap that gave it here took it out, so
        // that nobody else owns it.
        (!parked.is_null()).then(|| unsafe { Box::from_raw(parked) })
    }
}

impl Drop for WakerCell {
    fn drop(&mut self) {
        drop(WakerCell::own(self.waker.swap(std::ptr::null_mut(), Ordering::SeqCst)));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_in_order_and_the_ring_is_bounded() {
        let (mut sender, mut receiver) = channel(3);
        assert_eq!(sender.capacity(), 4);
        for round in 0..10 {
            for i in 0..4 {
                sender.try_send(round * 4 + i).unwrap();
            }
            assert_eq!(sender.try_send(99), Err(Full(99)));
            for i in 0..4 {
                assert_eq!(receiver.try_recv(), Some(round * 4 + i));
            }
            assert_eq!(receiver.try_recv(), None);
        }
    }

    #[test]
    fn each_end_learns_that_the_other_is_gone() {
        let mut context = Context::from_waker(Waker::noop());
        let (mut sender, mut receiver) = channel(2);
        sender.try_send(1).unwrap();
        drop(sender);
        assert_eq!(receiver.poll_recv(&mut context), Poll::Ready(Some(1)));
        assert_eq!(receiver.poll_recv(&mut context), Poll::Ready(None));

        let (mut sender, receiver) = channel(1);
        sender.try_send(1).unwrap();
        assert!(sender.poll_ready(&mut context).is_pending());
        drop(receiver);
        assert!(sender.poll_ready(&mut context).is_ready());
        assert_eq!(sender.try_send(2), Err(Full(2)));
        assert!(sender.is_closed());
    }

    #[test]
    fn messages_that_nobody_took_are_dropped_once() {
        let counted = Arc::new(());
        let (mut sender, mut receiver) = channel(4);
        for _ in 0..3 {
            sender.try_send(Arc::clone(&counted)).unwrap();
        }
        drop(receiver.try_recv());
        assert_eq!(Arc::strong_count(&counted), 3);
        drop((sender, receiver));
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn a_million_messages_between_two_threads() {
        let (mut sender, mut receiver) = channel(64);
        let thread = crate::threads::spawn_core("ring-sender", None, move || {
            for message in 0..1_000_000_u64 {
                while let Err(Full(_)) = sender.try_send(message) {
                    std::hint::spin_loop();
                }
            }
        })
        .unwrap();
        for expected in 0..1_000_000_u64 {
            let message = loop {
                match receiver.try_recv() {
                    Some(message) => break message,
                    None => std::hint::spin_loop(),
                }
            };
            assert_eq!(message, expected);
        }
        thread.join().unwrap();
    }
}
