//! The three ways of polling that an exchange needs beyond `await`.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use crate::store::{StoreError, StoreErrorKind};

pub(crate) type Panic = Box<dyn Any + Send>;

/// Polls once, without waiting.
pub(super) async fn once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls `beside` as long as `main` takes; the first poll is `main`'s, so that work which
/// is ready at once arms no timer.
pub(super) async fn alongside<F: Future>(main: F, beside: impl Future<Output = ()>) -> F::Output {
    let mut main = pin!(main);
    let mut beside = pin!(beside);
    let mut beside_runs = true;
    poll_fn(|cx| {
        if let Poll::Ready(output) = main.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        if beside_runs && beside.as_mut().poll(cx).is_ready() {
            beside_runs = false;
        }
        Poll::Pending
    })
    .await
}

/// What the future gives, or what it panicked with. A future that has panicked is not
/// polled again.
pub(super) async fn catching<F: Future>(future: F) -> Result<F::Output, Panic> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    )
    .await
}

/// A store's call within its time. A call that is given up may still be applied.
pub(super) async fn in_time<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut call = pin!(call);
    // A store in memory answers at once and needs no timer.
    if let Poll::Ready(answer) = once(call.as_mut()).await {
        return answer;
    }
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(StoreError::new(StoreErrorKind::Ambiguous, elapsed)),
    }
}
