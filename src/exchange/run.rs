//! The run: the handler is called under a lease, its answer judged, the claim concluded.

use std::panic::resume_unwind;
use std::pin::Pin;

use http::{Request, Response, StatusCode, response};
use http_body::Body;
use tower::Service;

use super::capture::{self, Answer, AnswerBody};
use super::collect::{self, Collected, Read, declared_len};
use super::decide::{Conclusion, HeadVerdict, answered, broke_off, head_verdict, no_answer};
use super::lease::Lease;
use super::poll::{Panic, alongside, catching};
use super::{ready, stream};
use crate::model::error::BoxError;
use crate::model::record::RecordHead;
use crate::policy::behaviour::Outcome;
use crate::policy::verdict::Verdict;
use crate::store::KeyStore;

/// What came of calling the handler.
enum Ran<R, E> {
    /// The client of a waiter left before the handler was called.
    NotRun,
    NotReady(E),
    Error(E),
    /// Not to be read: an upgrade.
    Upgraded(response::Parts, R),
    Whole {
        parts: response::Parts,
        body: Collected,
        verdict: Verdict,
    },
    Broken {
        parts: response::Parts,
        body: AnswerBody<R>,
        verdict: Verdict,
    },
    /// Longer than may be recorded, by its own word.
    TooLong {
        parts: response::Parts,
        body: R,
        len: u64,
        verdict: Verdict,
    },
    Streaming(Streaming<R>),
}

struct Streaming<R> {
    parts: response::Parts,
    begun: Collected,
    body: Pin<Box<R>>,
    verdict: HeadVerdict,
    declared_len: Option<u64>,
}

/// How an exchange goes on once its handler is done.
enum Next<R, E> {
    Answer(Result<Answer<R>, E>),
    Panic(Panic),
    Stream(Streaming<R>),
}

pub(super) async fn execute<K, S, Q, R>(
    lease: Lease<K>,
    service: S,
    request: Request<Q>,
    waited: bool,
) -> Result<Answer<R>, S::Error>
where
    K: KeyStore,
    S: Service<Request<Q>, Response = Response<R>>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let concluded = async {
        match catching(call(&lease, service, request, waited)).await {
            Ok(ran) => conclude(&lease, ran).await,
            Err(panic) => {
                lease.settle(no_answer(lease.config.on_failure)).await;
                Next::Panic(panic)
            }
        }
    };
    match alongside(concluded, lease.renew()).await {
        Next::Answer(answer) => answer,
        Next::Panic(panic) => resume_unwind(panic),
        Next::Stream(streaming) => Ok(stream(lease, streaming)),
    }
}

/// Calls the handler and reads its answer as far as it is to be read before its head is
/// sent. Everything that can panic on the user's side is in here.
async fn call<K, S, Q, R>(
    lease: &Lease<K>,
    mut service: S,
    request: Request<Q>,
    waited: bool,
) -> Ran<R, S::Error>
where
    S: Service<Request<Q>, Response = Response<R>>,
    R: Body,
    R::Error: Into<BoxError>,
{
    if let Err(error) = ready(&mut service).await {
        return Ran::NotReady(error);
    }
    if waited && lease.progress.is_client_gone() {
        return Ran::NotRun;
    }
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(error) => return Ran::Error(error),
    };
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Ran::Upgraded(parts, body);
    }
    let policy = &*lease.config.record_when;
    let head = head_verdict(&parts, policy);
    let hint = body.size_hint();
    let limit = lease.config.response_body_limit as u64;
    if body.is_end_stream() {
        return Ran::Whole {
            parts,
            body: Collected::default(),
            verdict: head.verdict,
        };
    }
    let declared_len = declared_len(&parts.headers, &hint);
    if let Some(len) = declared_len.filter(|&len| len > limit) {
        let verdict = head.verdict;
        return Ran::TooLong {
            parts,
            body,
            len,
            verdict,
        };
    }
    let mut begun = Collected::default();
    let mut body = Box::pin(body);
    let Some(expected) = hint.exact() else {
        return Ran::Streaming(Streaming {
            parts,
            begun,
            body,
            verdict: head,
            declared_len,
        });
    };
    match collect::response(body.as_mut(), expected, &mut begun).await {
        Read::Whole => {
            let verdict = match begun.trailers() {
                Some(trailers) if !head.is_final => policy.verdict_at_end(head.verdict, trailers),
                _ => head.verdict,
            };
            Ran::Whole {
                parts,
                body: begun,
                verdict,
            }
        }
        Read::Broken(error) => {
            let missing = expected - begun.len() as u64;
            let body = AnswerBody::Broken {
                body: begun,
                missing,
                error,
            };
            Ran::Broken {
                parts,
                body,
                verdict: head.verdict,
            }
        }
        Read::Longer => {
            let declared_len = None;
            Ran::Streaming(Streaming {
                parts,
                begun,
                body,
                verdict: head,
                declared_len,
            })
        }
    }
}

async fn conclude<K, R, E>(lease: &Lease<K>, ran: Ran<R, E>) -> Next<R, E>
where
    K: KeyStore,
{
    let config = &*lease.config;
    let policy = config.on_failure;
    let (mut parts, body, settlement) = match ran {
        Ran::Streaming(streaming) => return Next::Stream(streaming),
        Ran::NotRun => {
            lease.settle(Conclusion::Release).await;
            // Nobody is there to read it.
            return Next::Answer(Ok(Response::new(AnswerBody::Whole(Collected::default()))));
        }
        Ran::NotReady(error) => {
            lease.settle(Conclusion::Release).await;
            return Next::Answer(Err(error));
        }
        Ran::Error(error) => {
            lease.settle(no_answer(policy)).await;
            return Next::Answer(Err(error));
        }
        Ran::Upgraded(parts, body) => (parts, AnswerBody::Original(body), Conclusion::Release),
        Ran::Whole {
            parts,
            body,
            verdict,
        } => {
            let settlement = answered(verdict, policy, || capture::whole(&parts, &body, config));
            (parts, AnswerBody::Whole(body), settlement)
        }
        Ran::Broken {
            parts,
            body,
            verdict,
        } => (parts, body, broke_off(verdict, policy)),
        Ran::TooLong {
            parts,
            body,
            len,
            verdict,
        } => {
            let settlement = answered(verdict, policy, || capture::omitted(&parts, len, config));
            (parts, AnswerBody::Original(body), settlement)
        }
    };
    let recorded = matches!(settlement, Conclusion::Record(_));
    let acknowledged = lease.settle(settlement).await;
    capture::mark(&mut parts, lease.hold.attempt, recorded, acknowledged);
    Next::Answer(Ok(Response::from_parts(parts, body)))
}

fn stream<K: KeyStore, R>(lease: Lease<K>, streaming: Streaming<R>) -> Answer<R> {
    let Streaming {
        mut parts,
        begun,
        body,
        verdict,
        declared_len,
    } = streaming;
    let streamed = stream::Streamed {
        head: RecordHead::new(&parts, lease.config.replay_cookies, 0),
        verdict,
        retention: capture::retention(&parts, &lease.config),
        declared_len,
    };
    let attempt = lease.hold.attempt;
    let recorder = stream::record(lease, streamed);
    parts.extensions.insert(Outcome::Executed {
        attempt,
        stored: None,
    });
    Response::from_parts(
        parts,
        AnswerBody::Recording {
            begun,
            body,
            recorder,
        },
    )
}
