//! What a test needs to say when something happens: gates that hold a handler, a witness
//! of what a server drops, and a wait for a condition.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::Runs;
use super::faults::yield_once;

/// Returns once the condition holds, and fails the test if it does not come to hold.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to pass: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Holds whoever comes, until it is told to let one more pass, or all.
#[derive(Clone, Debug)]
pub struct Gate {
    arrivals: Runs,
    passes: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            arrivals: Runs::default(),
            passes: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    pub async fn pass(&self) {
        self.arrivals.add();
        self.passes.acquire().await.unwrap().forget();
    }

    /// Lets so many pass, now or when they come.
    pub fn open(&self, passes: usize) {
        self.passes.add_permits(passes);
    }

    pub fn open_for_all(&self) {
        self.open(1 << 20);
    }

    /// How many have come so far.
    pub fn arrivals(&self) -> usize {
        self.arrivals.get()
    }

    pub async fn until_arrived(&self, arrivals: usize) {
        until("somebody is at the gate", || self.arrivals() >= arrivals).await;
    }
}

/// Counts the answers that a server dropped before their end.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    pub futures_dropped: Runs,
    pub bodies_dropped: Runs,
}

struct Armed(Option<Runs>);

impl Armed {
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Some(dropped) = &self.0 {
            dropped.add();
        }
    }
}

impl Witness {
    /// Around everything: what is dropped here was dropped by the server itself.
    pub fn around(&self, app: Router) -> Router {
        let witness = self.clone();
        app.layer(from_fn(move |request: Request, next: Next| {
            let witness = witness.clone();
            async move {
                let mut future = Armed(Some(witness.futures_dropped));
                let answer = next.run(request).await;
                future.disarm();
                let mut body = Armed(Some(witness.bodies_dropped));
                answer.map(|answer| {
                    let mut answer = Box::pin(answer);
                    let frames = futures_util::stream::poll_fn(move |cx| {
                        let frame = http_body::Body::poll_frame(answer.as_mut(), cx);
                        if matches!(frame, std::task::Poll::Ready(None)) {
                            body.disarm();
                        }
                        frame
                    });
                    Body::new(http_body_util::StreamBody::new(frames))
                })
            }
        }))
    }

    pub async fn until_a_future_is_dropped(&self) {
        until("the server drops the exchange", || {
            self.futures_dropped.get() > 0
        })
        .await;
    }

    pub async fn until_a_body_is_dropped(&self) {
        until("the server drops the body", || {
            self.bodies_dropped.get() > 0
        })
        .await;
    }
}

/// A body of unknown length: each part waits at the gate before it comes. Nothing of it is
/// there at once, its end no more than its parts.
pub fn gated(gate: &Gate, parts: &'static [&'static str]) -> Body {
    let gate = gate.clone();
    Body::from_stream(futures_util::stream::unfold(0, move |at| {
        let gate = gate.clone();
        async move {
            yield_once().await;
            let part = parts.get(at)?;
            gate.pass().await;
            Some((
                Ok::<_, std::io::Error>(Bytes::from_static(part.as_bytes())),
                at + 1,
            ))
        }
    }))
}

/// A body of unknown length that is there at once, with trailers.
pub fn with_trailers(parts: &'static [&'static str], trailers: http::HeaderMap) -> Body {
    let parts = parts.iter().map(|part| {
        Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(part.as_bytes())))
    });
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(parts));
    Body::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))))
}
