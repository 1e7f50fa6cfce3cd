use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use crate::body::{RequestBody, ResponseBody};
use crate::exchange::{Admission, Answer, Exchange, InFlight, Progress, admit, refuse};
use crate::future::ResponseFuture;
use crate::model::error::BoxError;
use crate::policy::config::Config;
use crate::store::{AnyStore, KeyStore};

/// The service that [`IdempotencyLayer`](crate::IdempotencyLayer) makes of another.
///
/// Its error is the other's: every failure of its own is a response. Its readiness too.
pub struct Idempotency<S, K = AnyStore> {
    pub(crate) inner: S,
    pub(crate) store: Arc<K>,
    pub(crate) config: Arc<Config>,
    pub(crate) in_flight: InFlight,
}

impl<S: Clone, K> Clone for Idempotency<S, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            in_flight: self.in_flight.clone(),
        }
    }
}

impl<S: fmt::Debug, K> fmt::Debug for Idempotency<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, K, B, R> Service<Request<B>> for Idempotency<S, K>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    K: KeyStore,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
    R: Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.config.methods.protect(request.method()) {
            return ResponseFuture::pass_through(self.inner.call(request.map(RequestBody::new)));
        }
        let (request, body) = request.into_parts();
        match admit(&self.config, &self.in_flight, &request, &body.size_hint()) {
            Admission::PassThrough => {
                let request = Request::from_parts(request, RequestBody::new(body));
                ResponseFuture::pass_through(self.inner.call(request))
            }
            Admission::Refuse(rejection) => {
                let answer = refuse(&self.config, &rejection, &request);
                ResponseFuture::refused(answer.map(ResponseBody::from))
            }
            Admission::Run(admitted) => {
                let progress = Progress::new();
                let exchange = Exchange {
                    store: Arc::clone(&self.store),
                    config: Arc::clone(&self.config),
                    progress: Arc::clone(&progress),
                    admitted,
                    service: self.take_ready(),
                    request,
                    body,
                };
                let exchange = exchange.run();
                ResponseFuture::exchange(Box::pin(Answering { exchange }), progress)
            }
        }
    }
}

pin_project! {
    /// An exchange whose answer gets its body. A struct, since an `async` block would keep
    /// the exchange twice.
    struct Answering<F> {
        #[pin]
        exchange: F,
    }
}

impl<F, R, E> Future for Answering<F>
where
    F: Future<Output = Result<Answer<R>, E>>,
    R: Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.project().exchange.poll(cx));
        Poll::Ready(answer.map(|answer| answer.map(ResponseBody::from)))
    }
}

impl<S: Clone, K> Idempotency<S, K> {
    /// The service that was polled ready is the one to be called; its clone, which was
    /// not, stays behind:
    /// <https://docs.rs/tower/0.5/tower/trait.Service.html#be-careful-when-cloning-inner-services>
    fn take_ready(&mut self) -> S {
        let not_ready = self.inner.clone();
        std::mem::replace(&mut self.inner, not_ready)
    }
}
