//! Handlers and bodies that do what a test tells them, step by step.

pub mod variant;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::{Sleep, sleep};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::store::KeyStore;
use tower_idempotency::{IdempotencyLayer, Operation, Outcome, RequestBody, ResponseBody};

use super::stores;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a scripted body does next.
#[derive(Debug, Clone)]
pub enum Step {
    Data(Bytes),
    Trailers(&'static str, &'static str),
    /// Pending once, and woken at once.
    Yield,
    Sleep(Duration),
    Fail,
    Panic,
    /// Four bytes every so often, for ever.
    Endless(Duration),
}

pub fn data(data: &'static str) -> Step {
    Step::Data(Bytes::from_static(data.as_bytes()))
}

/// A body that plays its steps.
#[derive(Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
    exact: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Script {
    /// Of unknown length.
    pub fn stream(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Of a length that it knows: what its steps have, and `missing` more.
    pub fn sized(steps: impl IntoIterator<Item = Step>, missing: u64) -> Self {
        let mut body = Self::stream(steps);
        let len = |step: &Step| match step {
            Step::Data(data) => data.len() as u64,
            _ => 0,
        };
        body.exact = Some(body.steps.iter().map(len).sum::<u64>() + missing);
        body
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        let data = match self.steps.pop_front() {
            None => return Poll::Ready(None),
            Some(Step::Data(data)) => data,
            Some(Step::Trailers(name, value)) => {
                let mut trailers = HeaderMap::new();
                trailers.insert(name, HeaderValue::from_static(value));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Sleep(by)) => {
                self.sleep = Some(Box::pin(sleep(by)));
                return self.poll_frame(cx);
            }
            Some(Step::Fail) => return Poll::Ready(Some(Err("the body broke off".into()))),
            Some(Step::Panic) => panic!("the body panicked"),
            Some(Step::Endless(every)) => {
                self.steps.push_front(Step::Endless(every));
                self.sleep = Some(Box::pin(sleep(every)));
                Bytes::from_static(b"tick")
            }
        };
        if let Some(exact) = &mut self.exact {
            *exact -= data.len() as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

pub fn answer<B>(status: u16, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert("x-answer", HeaderValue::from_static("true"));
    response
}

pub fn full(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, Full::new(body.into()))
}

/// The layer around a handler that gets the operation of its request.
pub fn handling<Q, K, F, A, B>(
    layer: &IdempotencyLayer<K>,
    handler: F,
) -> impl Service<
    Request<Q>,
    Response = Response<ResponseBody<B>>,
    Error = Infallible,
    Future: Send + 'static,
>
+ Clone
+ Send
+ Sync
+ 'static
+ use<Q, K, F, A, B>
where
    Q: Body<Data: Send, Error: Send> + Send + 'static,
    K: KeyStore,
    F: Fn(Option<Operation>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Error: Into<BoxError>> + Send + 'static,
{
    layer.layer(tower::service_fn(
        move |request: Request<RequestBody<Q>>| {
            let answer = handler(request.extensions().get().cloned());
            async move { Ok::<_, Infallible>(answer.await) }
        },
    ))
}

pub const fn executed(attempt: u64, stored: Option<bool>) -> Option<Outcome> {
    Some(Outcome::Executed { attempt, stored })
}

/// What a client sees of an answer, whether or not it comes to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub exact_len: Option<u64>,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    pub error: Option<String>,
}

impl Seen {
    pub async fn of<B>(response: Response<B>) -> (Self, response::Parts)
    where
        B: Body<Error: Into<BoxError>>,
    {
        let (parts, body) = response.into_parts();
        let mut body = std::pin::pin!(body);
        let mut seen = Self {
            status: parts.status,
            headers: parts.headers.clone(),
            exact_len: body.size_hint().exact(),
            body: Bytes::new(),
            trailers: None,
            error: None,
        };
        let mut read = Vec::new();
        while let Some(frame) = body.as_mut().frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(mut data)) => {
                    use bytes::Buf;
                    read.extend_from_slice(&data.copy_to_bytes(data.remaining()));
                }
                Ok(Err(frame)) => seen.trailers = frame.into_trailers().ok(),
                Err(error) => {
                    seen.error = Some(error.into().to_string());
                    break;
                }
            }
        }
        seen.body = read.into();
        (seen, parts)
    }

    /// The same without the mark that the layer may set on the first answer.
    pub fn unmarked(mut self) -> Self {
        self.headers.remove("idempotency-stored");
        self
    }
}

/// Waits until no exchange is left, in an hour at most; on paused time that costs nothing.
pub async fn idle<K>(layer: &IdempotencyLayer<K>) {
    let idle = layer.in_flight();
    let waited = tokio::time::timeout(Duration::from_secs(3600), idle.idle()).await;
    assert!(waited.is_ok(), "{} exchanges never ended", idle.count());
    assert_eq!(idle.count(), 0);
}

/// Lets every task run that can, and every store answer, without any time passing.
pub async fn let_run() {
    loop {
        let mut all_answered = true;
        for _ in 0..40 {
            tokio::task::yield_now().await;
            all_answered &= !stores::is_asked();
        }
        if all_answered {
            return;
        }
    }
}

/// The service of [`plan`].
pub type Planned = tower::util::BoxCloneSyncService<
    Request<Full<Bytes>>,
    Response<ResponseBody<Full<Bytes>>>,
    Infallible,
>;

/// A handler whose n-th run takes the n-th time and answers with the n-th status and
/// `run N attempt A`; later runs are as the last one.
pub fn plan<K: KeyStore, const N: usize>(
    layer: &IdempotencyLayer<K>,
    plan: [(Duration, u16); N],
) -> (Planned, super::Runs) {
    let ([service], runs) = plan_on([layer], plan);
    (service, runs)
}

/// The same handler on several nodes, whose runs are counted together.
pub fn plan_on<K: KeyStore, const M: usize, const N: usize>(
    nodes: [&IdempotencyLayer<K>; M],
    plan: [(Duration, u16); N],
) -> ([Planned; M], super::Runs) {
    let runs = super::Runs::default();
    let handler = {
        let runs = runs.clone();
        move |operation: Option<Operation>| {
            let run = runs.add();
            let (time, status) = plan[run.min(N) - 1];
            async move {
                if !time.is_zero() {
                    sleep(time).await;
                }
                let attempt = operation.map_or(0, |operation| operation.attempt());
                full(status, format!("run {run} attempt {attempt}"))
            }
        }
    };
    let services = nodes.map(|layer| Planned::new(handling(layer, handler.clone())));
    (services, runs)
}

/// Sends a request of this key in a task of its own, and lets it come as far as it can.
pub async fn spawn<S, R>(service: &S, key: &'static str) -> tokio::task::JoinHandle<super::Answer>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    R: Body<Data: Send, Error: std::fmt::Debug> + Send,
{
    let response = service.clone().oneshot(super::post(key, "charge 5"));
    let answer = tokio::spawn(async move { super::read(response.await.unwrap()).await });
    let_run().await;
    answer
}

/// A process that has claimed the key and is not heard of again: it neither renews nor
/// concludes. It runs as long as the service that is given back is kept.
pub async fn dead_run<K: KeyStore + Clone>(
    store: K,
    set: impl FnOnce(
        IdempotencyLayer<super::faults::FaultStore<K>>,
    ) -> IdempotencyLayer<super::faults::FaultStore<K>>,
    key: &'static str,
) {
    use super::faults::{Call, Fault, FaultStore};
    let store = FaultStore::new(store);
    store.always(Call::Extend, Fault::Hangs);
    let layer = set(IdempotencyLayer::new(
        store,
        tower_idempotency::SharedByAllCallers,
    ));
    let (service, runs) = plan(&layer, [(Duration::from_secs(1_000_000_000), 201)]);
    spawn(&service, key).await;
    assert_eq!(runs.get(), 1);
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
