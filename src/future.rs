use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use crate::body::ResponseBody;
use crate::exchange::{Progress, Span};

pin_project! {
    /// The response future of [`Idempotency`](crate::Idempotency).
    ///
    /// Dropped while its request may hold a key, it goes on in a task of its own, in the
    /// span of the request: the key would otherwise be held by nobody, and the client who
    /// comes back would find nothing. Task-locals from outside are gone there. Outside of
    /// a runtime it is just dropped; then the lease ends and the
    /// [`FailurePolicy`](crate::FailurePolicy) decides.
    pub struct ResponseFuture<F, B, E> {
        #[pin]
        kind: Kind<F, B, E>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F, B, E> {
        PassThrough { #[pin] inner: F },
        Refused { response: Option<Response<ResponseBody<B>>> },
        Exchange { attached: Attached<B, E> },
    }
}

pub(crate) type BoxedExchange<B, E> =
    Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

impl<F, B, E> ResponseFuture<F, B, E> {
    pub(crate) fn pass_through(inner: F) -> Self {
        Self {
            kind: Kind::PassThrough { inner },
        }
    }

    pub(crate) fn refused(response: Response<ResponseBody<B>>) -> Self {
        Self {
            kind: Kind::Refused {
                response: Some(response),
            },
        }
    }

    pub(crate) fn exchange(exchange: BoxedExchange<B, E>, progress: Arc<Progress>) -> Self
    where
        B: 'static,
        E: 'static,
    {
        let attached = Attached {
            exchange: Some(exchange),
            progress,
            span: Span::current(),
            detach: |exchange, span| {
                span.spawn(async move {
                    // What the client would have got goes on from its own drop.
                    drop(exchange.await);
                });
            },
        };
        Self {
            kind: Kind::Exchange { attached },
        }
    }
}

impl<F, B, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProj::PassThrough { inner } => {
                let response = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::original)))
            }
            KindProj::Refused { response } => Poll::Ready(Ok(response.take().expect(POLLED_AGAIN))),
            KindProj::Exchange { attached } => attached.poll(cx),
        }
    }
}

const POLLED_AGAIN: &str = "ResponseFuture polled after completion";

/// An exchange and the way to let it go on alone. A type of its own, so that dropping it
/// asks for no bounds.
struct Attached<B, E> {
    exchange: Option<BoxedExchange<B, E>>,
    progress: Arc<Progress>,
    span: Span,
    detach: fn(BoxedExchange<B, E>, Span),
}

impl<B, E> Attached<B, E> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<B>>, E>> {
        // Out of its place while it is polled: a future that panicked is not put back, and
        // so neither polled nor detached again.
        let mut exchange = self.exchange.take().expect(POLLED_AGAIN);
        let answer = exchange.as_mut().poll(cx);
        if answer.is_pending() {
            self.exchange = Some(exchange);
        }
        answer
    }
}

impl<B, E> Drop for Attached<B, E> {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take().filter(|_| self.progress.may_hold()) {
            self.progress.client_is_gone();
            (self.detach)(exchange, self.span.clone());
        }
    }
}
