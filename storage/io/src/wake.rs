//! How a core is woken: by its own tasks, by other cores, by helper threads.
//!
//! Owns the list of tasks that are ready to run ([`WakeList`]) and the handshake that decides whether a sleeping core
//! needs a kick. Never runs a task.
//!
//! The list is a stack that anybody pushes to with one compare-and-swap and that only the owner empties, whole, with
//! one swap (so there is no ABA). That the owner sleeps is one more value of the same word, so that the handshake is
//! decided by the order in which two read-modify-writes reach it, and needs no fence:
//!
//! ```text
//!   word        owner                        waker
//!   empty       -> asleep, and sleeps        -> task
//!   task        does not sleep, takes all    -> task over task
//!   asleep      -> empty when it wakes       -> task, and kicks the kernel
//!   closed      (the core is gone)           nothing
//! ```
//!
//! A waker that comes before the owner's step keeps it awake; one that comes after finds `asleep` and kicks.
#![expect(unsafe_code, reason = "the list holds reference counts as raw pointers")]

use std::sync::Arc;
use std::task::{Wake, Waker};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What makes a sleeping core's system call return.
pub(crate) trait Kick: Send + Sync {
    /// Makes the core's current or next sleep end at once.
    fn kick(&self);
}

/// The tasks of one core that are ready, and whether the core sleeps.
pub(crate) struct WakeList {
    /// The word: null when empty, [`asleep`], [`closed`], or the newest of the pushed tasks; each task in the list holds
    /// one reference count.
    top: AtomicPtr<TaskHeader>,
    /// Somebody kicked since the owner last asked.
    kicked: AtomicBool,
    kick: Box<dyn Kick>,
}

/// The part of a task that other threads may touch: enough to say that it is ready.
pub(crate) struct TaskHeader {
    /// Where the owner finds the task: index and generation in its slab.
    pub(crate) key: u64,
    /// Whether the task is in the list already.
    queued: AtomicBool,
    /// The task below in the list, while queued.
    below: AtomicPtr<TaskHeader>,
    list: Arc<WakeList>,
}

impl WakeList {
    pub(crate) fn new(kick: Box<dyn Kick>) -> Arc<WakeList> {
        Arc::new(WakeList { top: AtomicPtr::new(std::ptr::null_mut()), kicked: AtomicBool::new(false), kick })
    }

    /// Whether no task is ready. Exact for the owner, a hint for others.
    pub(crate) fn is_empty(&self) -> bool {
        !is_task(self.top.load(Ordering::Acquire))
    }

    /// Lets go of everything and takes nothing from now on: the core is gone, its wakers may live on.
    pub(crate) fn close(&self) {
        self.take_all(drop);
        let mut node = self.top.swap(closed(), Ordering::AcqRel);
        while is_task(node) {
            // SAFETY: as in `take_all`: the swap made these nodes ours, each with the count that `push` put in.
            let header = unsafe { Arc::from_raw(node) };
            node = header.below.load(Ordering::Relaxed);
        }
    }

    /// Takes all ready tasks, the one that was woken first first, and hands each to `run`.
    ///
    /// For the owner, awake. A task that is woken again from here on is queued again.
    pub(crate) fn take_all(&self, mut run: impl FnMut(Arc<TaskHeader>)) {
        if self.is_empty() {
            return;
        }
        let mut oldest: *mut TaskHeader = std::ptr::null_mut();
        let mut node = self.top.swap(std::ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: every pointer in the list came from `Arc::into_raw` in `push`, whose count the list still holds;
            // the swap above made this thread the only one that sees these nodes.
            let header = unsafe { &*node };
            let below = header.below.load(Ordering::Relaxed);
            header.below.store(oldest, Ordering::Relaxed);
            oldest = node;
            node = below;
        }
        while !oldest.is_null() {
            // SAFETY: as above; this takes the count that `push` put in, once for each node.
            let header = unsafe { Arc::from_raw(oldest) };
            oldest = header.below.load(Ordering::Relaxed);
            // A swap, not a store: whoever found the task queued already wrote what it announces before its own swap, and
            // this one must see those writes.
            header.queued.swap(false, Ordering::AcqRel);
            run(header);
        }
    }

    /// Announces that the owner is going to sleep. False if it must not: something is ready.
    ///
    /// After true the owner sleeps in a call that [`Kick::kick`] ends, and then calls [`WakeList::awake`]. What others
    /// did before they called [`WakeList::kick_if_sleeping`] in vain is seen by whoever looks after true came back.
    pub(crate) fn try_sleep(&self) -> bool {
        self.top.compare_exchange(std::ptr::null_mut(), asleep(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The owner is awake again and needs no kick.
    pub(crate) fn awake(&self) {
        if self.top.load(Ordering::Relaxed) == asleep() {
            // Fails if a waker came in between: then its task is there, and its kick on the way.
            let _ = self.top.compare_exchange(asleep(), std::ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Ends the owner's sleep if it sleeps. For wake-ups that carry no task (a helper thread's result).
    pub(crate) fn kick_if_sleeping(&self) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // Written even if nothing changes: the owner's next `try_sleep` reads it, and with it sees what was announced.
            let next = if top == asleep() { std::ptr::null_mut() } else { top };
            match self.top.compare_exchange_weak(top, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => top = now,
            }
        }
        if top == asleep() {
            self.kick();
        }
    }

    fn kick(&self) {
        self.kicked.store(true, Ordering::Relaxed);
        self.kick.kick();
    }

    /// Whether somebody kicked since the last call. A hint: says nothing about what is in the list.
    pub(crate) fn was_kicked(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.kicked.swap(false, Ordering::Relaxed)
    }

    fn push(&self, header: Arc<TaskHeader>) {
        let node = Arc::into_raw(header).cast_mut();
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            if top == closed() {
                // SAFETY: the count that `into_raw` above gave up, taken back: the node is in no list.
                drop(unsafe { Arc::from_raw(node) });
                return;
            }
            // SAFETY: the count behind `node` is ours until the exchange below succeeds, and its `below` is ours because
            // `queued` was false when we set it: nobody else pushes it, and it is in no list.
            unsafe { &*node }.below.store(below(top), Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, node, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => top = now,
            }
        }
        if top == asleep() {
            self.kick();
        }
    }
}

/// The word of a core that is in the kernel, or about to be, and must be kicked: an address that no task has.
fn asleep() -> *mut TaskHeader {
    std::ptr::without_provenance_mut(usize::MAX - 1)
}

/// The word of a closed list: an address that no task has.
fn closed() -> *mut TaskHeader {
    std::ptr::without_provenance_mut(usize::MAX)
}

fn is_task(top: *mut TaskHeader) -> bool {
    !top.is_null() && top != asleep() && top != closed()
}

/// The task that a new one is laid on.
fn below(top: *mut TaskHeader) -> *mut TaskHeader {
    if top == asleep() { std::ptr::null_mut() } else { top }
}

impl TaskHeader {
    pub(crate) fn new(key: u64, list: &Arc<WakeList>) -> Arc<TaskHeader> {
        Arc::new(TaskHeader {
            key,
            queued: AtomicBool::new(false),
            below: AtomicPtr::new(std::ptr::null_mut()),
            list: Arc::clone(list),
        })
    }

    /// Puts the task into the list unless it is there.
    pub(crate) fn schedule(self: &Arc<TaskHeader>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.push(Arc::clone(self));
        }
    }
}

impl Wake for TaskHeader {
    fn wake(self: Arc<TaskHeader>) {
        self.schedule();
    }

    fn wake_by_ref(self: &Arc<TaskHeader>) {
        self.schedule();
    }
}

/// Wakes one task from any thread. Cheap to clone; waking a task that is gone does nothing.
#[derive(Clone, Debug)]
pub struct RemoteWaker {
    waker: Waker,
}

impl RemoteWaker {
    pub(crate) fn new(waker: Waker) -> RemoteWaker {
        RemoteWaker { waker }
    }

    /// Makes the task run soon on its core.
    pub fn wake(&self) {
        self.waker.wake_by_ref();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counted(Arc<AtomicUsize>);

    impl Kick for Counted {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted_list() -> (Arc<WakeList>, Arc<AtomicUsize>) {
        let kicks = Arc::new(AtomicUsize::new(0));
        (WakeList::new(Box::new(Counted(Arc::clone(&kicks)))), kicks)
    }

    fn taken(list: &WakeList) -> Vec<u64> {
        let mut keys = Vec::new();
        list.take_all(|header| keys.push(header.key));
        keys
    }

    #[test]
    fn tasks_run_in_the_order_in_which_they_were_woken_each_once() {
        let (list, _) = counted_list();
        let headers: Vec<_> = (0..3).map(|key| TaskHeader::new(key, &list)).collect();
        for key in [2, 0, 1, 0, 2] {
            headers[key].schedule();
        }
        assert_eq!(taken(&list), [2, 0, 1]);
        headers[1].schedule();
        assert_eq!(taken(&list), [1]);
        assert!(list.is_empty());
    }

    #[test]
    fn only_a_core_that_sleeps_is_kicked_and_only_once() {
        let (list, kicks) = counted_list();
        let (first, second) = (TaskHeader::new(1, &list), TaskHeader::new(2, &list));
        first.schedule();
        assert!(!list.try_sleep(), "a task is ready");
        assert_eq!(taken(&list), [1]);
        assert!(list.try_sleep());
        first.schedule();
        second.schedule();
        assert_eq!(kicks.load(Ordering::SeqCst), 1);
        list.awake();
        assert_eq!(taken(&list), [1, 2]);
    }

    #[test]
    fn a_closed_list_keeps_nothing() {
        let (list, _) = counted_list();
        let header = TaskHeader::new(1, &list);
        header.schedule();
        list.close();
        assert_eq!(Arc::strong_count(&header), 1);
        let late = TaskHeader::new(2, &list);
        late.schedule();
        assert_eq!(Arc::strong_count(&late), 1);
        assert!(list.is_empty());
        list.close();
    }
}

/// The handshake under the model checker: `RUSTFLAGS="--cfg loom" cargo test -p heddle-io --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    /// Preemptions in the models of three threads. Without a bound they pass too, in some minutes each; with this one they
    /// take seconds.
    const PREEMPTIONS_OF_THREE: usize = 4;

    /// A model of three threads; LOOM_MAX_PREEMPTIONS sets another bound.
    fn model_of_three(body: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound.get_or_insert(PREEMPTIONS_OF_THREE);
        model.check(body);
    }

    /// Where a core of the model sleeps. Not `park`: in loom an `unpark` that comes late also ends the wait of a `join`,
    /// which then finds that nothing has ended.
    #[derive(Default)]
    struct Bed {
        kicked: Mutex<bool>,
        changed: Condvar,
    }

    impl Kick for Arc<Bed> {
        fn kick(&self) {
            *self.kicked.lock().expect("no panic holds this") = true;
            self.changed.notify_one();
        }
    }

    impl Bed {
        fn sleep(&self) {
            let mut kicked = self.kicked.lock().expect("no panic holds this");
            while !*kicked {
                kicked = self.changed.wait(kicked).expect("no panic holds this");
            }
            *kicked = false;
        }
    }

    fn list_and_bed() -> (Arc<WakeList>, Arc<Bed>) {
        let bed = Arc::new(Bed::default());
        (WakeList::new(Box::new(Arc::clone(&bed))), bed)
    }

    /// Sleeps as a core does, until `seen` tasks were taken.
    fn run_until(list: &WakeList, bed: &Bed, seen: usize) {
        let mut taken = 0;
        while taken < seen {
            list.take_all(|_| taken += 1);
            if taken < seen && list.try_sleep() {
                bed.sleep();
                list.awake();
            }
        }
    }

    /// A lost wake-up is a core that sleeps for ever: loom reports a deadlock.
    #[test]
    fn loom_two_threads_wake_two_tasks_of_a_core_that_falls_asleep() {
        model_of_three(|| {
            let (list, bed) = list_and_bed();
            let threads = [1, 2].map(|key| {
                let header = TaskHeader::new(key, &list);
                thread::spawn(move || header.schedule())
            });
            run_until(&list, &bed, 2);
            threads.into_iter().for_each(|thread| thread.join().expect("the waker ends"));
            list.close();
        });
    }

    /// One task is woken twice by another thread; in between the core may take it and fall asleep again.
    #[test]
    fn loom_a_core_that_falls_asleep_twice_is_woken_twice() {
        loom::model(|| {
            let (list, bed) = list_and_bed();
            let header = TaskHeader::new(1, &list);
            let written = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
            let thread = thread::spawn({
                let (header, written) = (Arc::clone(&header), Arc::clone(&written));
                move || {
                    for value in 1..=2 {
                        written.store(value, Ordering::Relaxed);
                        header.schedule();
                    }
                }
            });
            while written.load(Ordering::Relaxed) < 2 {
                run_until(&list, &bed, 1);
            }
            thread.join().expect("the waker ends");
            list.close();
        });
    }

    /// Two threads announce something to one task: whatever the order, the task sees both.
    #[test]
    fn loom_a_task_that_is_queued_already_still_sees_what_the_second_waker_wrote() {
        model_of_three(|| {
            let (list, bed) = list_and_bed();
            let header = TaskHeader::new(1, &list);
            let written = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let threads = [0, 1].map(|index| {
                let (header, written) = (Arc::clone(&header), Arc::clone(&written));
                thread::spawn(move || {
                    written[index].store(true, Ordering::Relaxed);
                    header.schedule();
                })
            });
            while !written.iter().all(|flag| flag.load(Ordering::Relaxed)) {
                run_until(&list, &bed, 1);
            }
            threads.into_iter().for_each(|thread| thread.join().expect("the waker ends"));
            list.close();
        });
    }

    /// What carries no task, a helper thread's result: the core sees it before it sleeps, or is kicked.
    #[test]
    fn loom_a_result_that_is_announced_without_a_task_is_seen_or_ends_the_sleep() {
        loom::model(|| {
            let (list, bed) = list_and_bed();
            let done = Arc::new(AtomicBool::new(false));
            let helper = thread::spawn({
                let (list, done) = (Arc::clone(&list), Arc::clone(&done));
                move || {
                    done.store(true, Ordering::Relaxed);
                    list.kick_if_sleeping();
                }
            });
            assert!(list.try_sleep(), "no task is ready");
            while !done.load(Ordering::Relaxed) {
                bed.sleep();
                list.awake();
            }
            helper.join().expect("the helper ends");
            list.close();
        });
    }

    #[test]
    fn loom_a_list_that_closes_lets_go_of_every_task() {
        loom::model(|| {
            let (list, _) = list_and_bed();
            let header = TaskHeader::new(1, &list);
            let late = Arc::clone(&header);
            let thread = thread::spawn(move || late.schedule());
            list.close();
            thread.join().expect("the waker ends");
            assert_eq!(Arc::strong_count(&header), 1);
        });
    }
}
