//! What may not be left half done.
//!
//! Owns the rule of docs/decisions/0005-panics.md: a panic while a partition, the engine or the metadata is being
//! changed ends the process, at once and loudly. A restart recovers from the disk; a process that went on would serve
//! from state that nobody can vouch for.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

/// A future in which a panic ends the process.
pub(crate) struct Vital<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
}

/// Guards `future`.
pub(crate) fn vital<T>(future: impl Future<Output = T> + 'static) -> Vital<T> {
    Vital { future: Box::pin(future) }
}

impl<T> Future for Vital<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let fuse = Fuse;
        let poll = self.future.as_mut().poll(context);
        std::mem::forget(fuse);
        poll
    }
}

/// Runs `future`, as part of a task that is not guarded: a panic in it ends the process.
pub(crate) async fn guarded<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let fuse = Fuse;
        let poll = future.as_mut().poll(context);
        std::mem::forget(fuse);
        poll
    })
    .await
}

/// Runs `act`, as part of a task that is not guarded: a panic in it ends the process.
pub(crate) fn guarded_call<T>(act: impl FnOnce() -> T) -> T {
    let fuse = Fuse;
    let done = act();
    std::mem::forget(fuse);
    done
}

/// Ends the process if it is dropped by an unwinding stack.
struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        tracing::error!("a core panicked while it changed its state; the process ends here, a restart recovers");
        std::process::abort();
    }
}
