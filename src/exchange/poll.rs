//! The ways of polling that an exchange needs beyond `await`.
//!
//! They are structs, since an `async fn` keeps its arguments twice: an exchange is
//! allocated for every keyed request, and its size is copied.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::store::{StoreError, StoreErrorKind};

pub(crate) type Panic = Box<dyn Any + Send>;

/// Polls once, without waiting.
pub(super) async fn once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls what `beside` gives for as long as `main` takes. It is not even made before
/// `main` has to wait, so that work which is ready at once arms no timer.
pub(super) fn alongside<F, M, B>(main: F, beside: M) -> Alongside<F, M, B>
where
    F: Future,
    M: FnOnce() -> B,
    B: Future<Output = ()>,
{
    Alongside {
        main,
        beside: Beside::NotYet { make: Some(beside) },
    }
}

pin_project! {
    pub(super) struct Alongside<F, M, B> {
        #[pin]
        main: F,
        beside: Beside<M, B>,
    }
}

enum Beside<M, B> {
    NotYet { make: Option<M> },
    Running(Pin<Box<B>>),
    Done,
}

impl<F, M, B> Future for Alongside<F, M, B>
where
    F: Future,
    M: FnOnce() -> B,
    B: Future<Output = ()>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.main.poll(cx) {
            return Poll::Ready(output);
        }
        if let Beside::NotYet { make } = this.beside {
            *this.beside = make
                .take()
                .map_or(Beside::Done, |make| Beside::Running(Box::pin(make())));
        }
        if let Beside::Running(beside) = this.beside
            && beside.as_mut().poll(cx).is_ready()
        {
            *this.beside = Beside::Done;
        }
        Poll::Pending
    }
}

/// What the future gives, or what it panicked with. A future that has panicked must not
/// be polled again.
pub(super) fn catching<F: Future>(future: F) -> Catching<F> {
    Catching { future }
}

pin_project! {
    pub(super) struct Catching<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Catching<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

/// A store's call within its time. A call that is given up may still be applied, and one
/// that panics may have been: it does not cost the caller the answer of its handler.
pub(crate) fn in_time<F, T>(limit: Duration, call: F) -> InTime<F>
where
    F: Future<Output = Result<T, StoreError>>,
{
    InTime {
        call,
        limit,
        timer: None,
    }
}

pin_project! {
    pub(crate) struct InTime<F> {
        #[pin]
        call: F,
        limit: Duration,
        // A store in memory answers at once and needs none.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F, T> Future for InTime<F>
where
    F: Future<Output = Result<T, StoreError>>,
{
    type Output = Result<T, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let call = this.call;
        match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
            Ok(Poll::Ready(answer)) => return Poll::Ready(answer),
            Ok(Poll::Pending) => {}
            Err(_) => {
                let error = StoreError::new(StoreErrorKind::Ambiguous, "the store panicked");
                return Poll::Ready(Err(error));
            }
        }
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(sleep(*this.limit)));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(StoreErrorKind::Ambiguous.into()))
    }
}
