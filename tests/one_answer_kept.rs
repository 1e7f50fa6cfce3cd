//! Of all that comes under a key, one request and one answer are kept, and nothing else
//! is held in memory for them.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use support::pieces::{Script, Step, assert_replays, handler};
use support::scripted::{idle, secs};
use support::stores::store_pair;
use support::{Runs, post, read, send};
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{KeyStore, MemoryStore};
use tower_idempotency::{ConflictPolicy, IdempotencyLayer, RequestBody, SharedByAllCallers};

fn layer<K: KeyStore>(store: K) -> IdempotencyLayer<K> {
    IdempotencyLayer::new(store, SharedByAllCallers)
}

/// Eight at once on two nodes, with one of two requests.
async fn race(nodes: [IdempotencyLayer; 2], conflict: ConflictPolicy, key: usize) {
    let runs = Runs::default();
    let services = nodes.each_ref().map(|layer| {
        let runs = runs.clone();
        layer.layer(tower::service_fn(
            move |request: Request<RequestBody<Full<Bytes>>>| {
                runs.add();
                async move {
                    yield_now().await;
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, Infallible>(support::created(body))
                }
            },
        ))
    });
    let start = Arc::new(Barrier::new(8));
    let mut racers = JoinSet::new();
    for racer in 0..8 {
        let (service, start) = (services[racer / 4].clone(), start.clone());
        let amount = racer % 2;
        racers.spawn(async move {
            start.wait().await;
            let request = post(&format!("k{key}"), amount.to_string());
            (amount, send(&service, request).await)
        });
    }
    let answers = racers.join_all().await;
    let is_first = |answer: &&(usize, support::Answer)| {
        answer.1.status == StatusCode::CREATED && !answer.1.is_replay()
    };
    let ran: Vec<_> = answers.iter().filter(is_first).collect();
    assert_eq!((ran.len(), runs.get()), (1, 1));
    let owner = ran[0].0;
    for (amount, answer) in &answers {
        match answer.status {
            // Nobody sees the answer of the other request.
            StatusCode::CREATED => {
                assert_eq!(*amount, owner);
                assert_eq!(answer.text(), amount.to_string());
            }
            StatusCode::CONFLICT => {
                assert_eq!((*amount, conflict), (owner, ConflictPolicy::Reject));
            }
            status => {
                assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
                assert_ne!(*amount, owner);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_requests_that_race_for_a_key_one_owns_it() {
    let wait = ConflictPolicy::Wait { at_most: secs(60) };
    for conflict in [ConflictPolicy::Reject, wait] {
        let (here, there) = store_pair();
        let nodes = [here, there].map(|store| layer(store).on_conflict(conflict));
        let mut keys = JoinSet::new();
        for key in 0..200 {
            keys.spawn(race(nodes.clone(), conflict, key));
        }
        keys.join_all().await;
        for layer in &nodes {
            idle(layer).await;
        }
    }
}

/// A large buffer that is counted when it is given back.
struct Buffer(Vec<u8>, Runs);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.1.add();
    }
}

const LARGE: usize = 1 << 20;

/// A few bytes of a large buffer, as a server or a database driver hands them out.
fn slice(given_back: &Runs) -> Bytes {
    let buffer = Buffer(vec![b'x'; LARGE], given_back.clone());
    Bytes::from_owner(buffer).slice(LARGE / 2..LARGE / 2 + 4)
}

/// Sends a request out of large buffers to a handler that answers out of large buffers, and
/// a retry. Five buffers are given back by then.
async fn assert_no_buffer_is_kept<B>(body: impl Fn(Bytes) -> B + Clone + Send + 'static)
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let (store, given_back) = (MemoryStore::new(), Runs::default());
    let layer = layer(store.clone());
    let (service, runs) = handler(&layer, {
        let given_back = given_back.clone();
        move |_, _: Request<RequestBody<Script>>| {
            let mut answer = Response::new(body(slice(&given_back)));
            let value = HeaderValue::from_maybe_shared(slice(&given_back)).unwrap();
            answer.headers_mut().insert("x-note", value);
            answer
        }
    });
    let request = || {
        let frames = [
            Step::Data(slice(&given_back)),
            Step::Data(slice(&given_back)),
        ];
        let mut request = post("k", "").map(|_: Full<Bytes>| Script::new(frames));
        let value = HeaderValue::from_maybe_shared(slice(&given_back)).unwrap();
        request.headers_mut().insert("x-note", value);
        request
    };
    let first = service.clone().oneshot(request()).await.unwrap();
    let first = read(first).await;
    assert_eq!(
        (first.text(), first.header("x-note")),
        ("xxxx", Some("xxxx"))
    );
    idle(&layer).await;
    // What was read by the test itself holds on to the value of the header field.
    drop(first);
    assert_eq!(given_back.get(), 5);
    assert!(store.bytes() < 256, "{} bytes are kept", store.bytes());

    let retry = read(service.clone().oneshot(request()).await.unwrap()).await;
    assert!(retry.is_replay());
    assert_eq!(
        (retry.text(), retry.header("x-note")),
        ("xxxx", Some("xxxx"))
    );
    drop(retry);
    assert_eq!((given_back.get(), runs.get()), (8, 1));
}

#[tokio::test]
async fn a_record_keeps_no_buffer_that_an_answer_or_a_request_came_in() {
    assert_no_buffer_is_kept(Full::new).await;
    assert_no_buffer_is_kept(|data| Script::new([Step::Data(data)])).await;
    assert_no_buffer_is_kept(|data| {
        Script::new([
            Step::Waits,
            Step::Data(data.slice(..2)),
            Step::Waits,
            Step::Data(data.slice(2..)),
            Step::Waits,
        ])
    })
    .await;
}

#[tokio::test]
async fn replays_share_the_one_answer_that_is_kept() {
    let store = MemoryStore::new();
    let layer = layer(store.clone());
    let (service, runs) = handler(&layer, |_, _: Request<_>| {
        Response::new(Full::new(Bytes::from(vec![b'x'; LARGE])))
    });
    let first = send(&service, post("k", "")).await;
    let kept = store.bytes();
    let mut replays = Vec::new();
    for _ in 0..3 {
        let replay = send(&service, post("k", "")).await;
        assert_replays(&first, &replay);
        replays.push(replay.body);
    }
    assert_eq!((store.bytes(), store.len(), runs.get()), (kept, 1, 1));
    let places: Vec<_> = replays.iter().map(|body| body.as_ptr()).collect();
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    assert_ne!(first.body.as_ptr(), places[0]);
}
