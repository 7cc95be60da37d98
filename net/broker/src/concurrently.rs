//! Several futures as one.
//!
//! Owns the polling of a fixed set of futures inside one task; never spawns.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

/// Runs two futures side by side until both have succeeded or one has failed.
///
/// # Errors
/// The first error.
pub(crate) async fn try_both<E>(
    mut first: Pin<&mut impl Future<Output = Result<(), E>>>,
    mut second: Pin<&mut impl Future<Output = Result<(), E>>>,
) -> Result<(), E> {
    let mut done = [false; 2];
    poll_fn(move |context| {
        if !done[0]
            && let Poll::Ready(result) = first.as_mut().poll(context)
        {
            result?;
            done[0] = true;
        }
        if !done[1]
            && let Poll::Ready(result) = second.as_mut().poll(context)
        {
            result?;
            done[1] = true;
        }
        if done == [true; 2] { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Runs futures side by side; their outputs, in order. The first poll polls each once, in order.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut is_done = true;
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().map(|output| output.expect("each future has ended")).collect()
}

/// Which of two futures was first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// The output of whichever future is done first, the first one where both are; the other is dropped.
pub(crate) async fn either<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(move |context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(output));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// Polls a future once: its output if that was enough.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *future).poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::{Context, Waker};

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn both_succeed_or_the_first_error_ends_it() {
        let done = || ready(Ok::<(), u8>(()));
        assert_eq!(now(try_both(pin!(done()), pin!(done()))), Some(Ok(())));
        assert_eq!(now(try_both(pin!(pending()), pin!(ready(Err(7))))), Some(Err(7)));
        assert_eq!(now(try_both(pin!(done()), pin!(pending()))), None);
    }

    #[test]
    fn the_first_of_two_wins() {
        assert_eq!(now(either(ready(1), ready(2))), Some(Either::First(1)));
        assert_eq!(now(either(pending::<u8>(), ready(2))), Some(Either::Second(2)));
        assert_eq!(now(either(pending::<u8>(), pending::<u8>())), None);
    }

    #[test]
    fn one_poll_is_one_poll() {
        assert_eq!(now(poll_once(&mut ready(3))), Some(Some(3)));
        assert_eq!(now(poll_once(&mut pending::<u8>())), Some(None));
    }
}
