//! The run: the handler is called under a lease, its answer judged, the claim concluded.
//!
//! What is large is lent and not given: an `async fn` keeps its arguments twice, and an
//! exchange is one allocation.

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::task::Poll;

use http::{Request, Response, StatusCode, response};
use http_body::Body;
use tower::Service;

use super::capture::{self, Answer, AnswerBody};
use super::collect::{self, Collected, Read, declared_len, has_no_body};
use super::decide::{Conclusion, HeadVerdict, answered, broke_off, head_verdict, no_answer};
use super::lease::{Lease, Settlement};
use super::poll::{Panic, alongside, catching};
use super::{entered, refuse, stream};
use crate::model::error::BoxError;
use crate::model::record::RecordHead;
use crate::policy::behaviour::Outcome;
use crate::policy::rejection::RejectionKind;
use crate::store::KeyStore;

/// What came of calling the handler.
pub(super) enum Ran<R, E> {
    /// It was not called.
    NotRun(Result<Answer<R>, E>),
    Done {
        answer: Result<Answer<R>, E>,
        settlement: Settlement,
    },
    /// It has concluded the run itself; `stored` is false where that is not certain.
    Entered {
        answer: Result<Answer<R>, E>,
        stored: bool,
    },
    /// Its body is sent while it is recorded.
    Streaming(Streaming<R>),
}

pub(super) struct Streaming<R> {
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

/// `request` is taken when the handler is called.
pub(super) async fn execute<K, S, Q, R>(
    lease: Lease<K>,
    service: &mut S,
    request: &mut Option<Request<Q>>,
    waited: bool,
) -> Result<Answer<R>, S::Error>
where
    K: KeyStore,
    S: Service<Request<Q>, Response = Response<R>>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let next = {
        let run = pin!(call(&lease, service, request, waited));
        alongside(conclude(&lease, run), || lease.renew()).await
    };
    match next {
        Next::Answer(answer) => answer,
        Next::Panic(panic) => resume_unwind(panic),
        Next::Stream(streaming) => Ok(stream(lease, streaming)),
    }
}

/// Tells the store how the run ended, unless its end is yet to come.
async fn conclude<K, R, E>(
    lease: &Lease<K>,
    run: Pin<&mut impl Future<Output = Ran<R, E>>>,
) -> Next<R, E>
where
    K: KeyStore,
{
    let (settlement, mut next, ran) = match catching(run).await {
        Ok(Ran::Streaming(streaming)) => return Next::Stream(streaming),
        Ok(Ran::NotRun(answer)) => (Conclusion::Release, Next::Answer(answer), false),
        Ok(Ran::Done { answer, settlement }) => (settlement, Next::Answer(answer), true),
        Ok(Ran::Entered { mut answer, stored }) => {
            lease.is_over();
            if let Ok(answer) = &mut answer {
                capture::mark(answer, lease.hold.attempt, true, stored);
            }
            return Next::Answer(answer);
        }
        Err(panic) => {
            if entered::outlives_panic(lease).await {
                lease.is_over();
                return Next::Panic(panic);
            }
            (no_answer(lease.config.on_failure), Next::Panic(panic), true)
        }
    };
    let recorded = matches!(settlement, Conclusion::Record(_));
    let acknowledged = lease.settle(settlement).await;
    if let Next::Answer(Ok(answer)) = &mut next
        && ran
    {
        capture::mark(answer, lease.hold.attempt, recorded, acknowledged);
    }
    next
}

/// Calls the handler and reads its answer as far as it is to be read before its head is
/// sent. Everything that can panic on the user's side is in here.
async fn call<K, S, Q, R>(
    lease: &Lease<K>,
    service: &mut S,
    request: &mut Option<Request<Q>>,
    waited: bool,
) -> Ran<R, S::Error>
where
    K: KeyStore,
    S: Service<Request<Q>, Response = Response<R>>,
    R: Body,
    R::Error: Into<BoxError>,
{
    // It is ready when it comes, unless its caller had to wait: then it is a clone. To ask
    // a ready one again does no harm. A waiter whose client has left asks no further.
    let left = || waited && lease.progress.is_client_gone();
    let ready = poll_fn(|cx| match left() {
        true => Poll::Ready(Ok(())),
        false => service.poll_ready(cx),
    });
    if let Err(error) = ready.await {
        return Ran::NotRun(Err(error));
    }
    let Some(request) = request.take() else {
        return Ran::NotRun(Ok(Response::new(AnswerBody::Whole(Collected::default()))));
    };
    // Nobody is there to read it; or the lease has ended before the run began, and another
    // may have run, and may be done.
    if left() || lease.progress.live_left().is_zero() {
        let (request, _) = request.into_parts();
        let kind = RejectionKind::InProgress;
        return Ran::NotRun(Ok(refuse(&lease.config, &kind.into(), &request)));
    }
    // In a block: the future is gone, with the permits in it, when its answer is read.
    let answered = {
        let answering = pin!(service.call(request));
        answering.await
    };
    let answered = match lease.progress.entry() {
        None => answered,
        Some(entry) => match Box::pin(entered::conclude(lease, entry, answered)).await {
            Ok(ran) => return ran,
            Err(answered) => answered,
        },
    };
    match answered {
        Ok(response) => judge(lease, response).await,
        Err(error) => {
            let settlement = no_answer(lease.config.on_failure);
            Ran::Done {
                answer: Err(error),
                settlement,
            }
        }
    }
}

async fn judge<K, R, E>(lease: &Lease<K>, response: Response<R>) -> Ran<R, E>
where
    R: Body,
    R::Error: Into<BoxError>,
{
    let config = &*lease.config;
    let on_failure = config.on_failure;
    let limit = config.response_body_limit;
    let done = |parts, body, settlement| {
        let answer = Ok(Response::from_parts(parts, body));
        Ran::Done { answer, settlement }
    };

    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return done(parts, AnswerBody::Original(body), Conclusion::Release);
    }
    let head = head_verdict(&parts, &*config.record_when);
    let hint = body.size_hint();
    let mut begun = Collected::default();
    if body.is_end_stream() {
        let record = || capture::whole(&parts, &begun, config);
        let settlement = answered(head.verdict, on_failure, record);
        return done(parts, AnswerBody::Whole(begun), settlement);
    }
    let has_no_body = has_no_body(parts.status);
    let declared_len = match has_no_body {
        true => Some(0),
        false => declared_len(&parts.headers, &hint),
    };
    if let Some(len) = declared_len.filter(|&len| len > limit as u64) {
        let record = || capture::omitted(&parts, Some(len), config);
        let settlement = answered(head.verdict, on_failure, record);
        return done(parts, AnswerBody::Original(body), settlement);
    }
    // A body that turns out to be longer has to move on in the middle of it.
    let mut body = Box::pin(body);
    let expected = hint.exact().filter(|_| !has_no_body);
    let read = collect::response(body.as_mut(), expected, config, &mut begun).await;
    let missing = declared_len.map(|len| len.saturating_sub(begun.len() as u64));
    match read {
        Read::Ended(None) if missing.unwrap_or(0) == 0 => {
            let verdict = head.at_end(begun.trailers(), &*config.record_when);
            let record = || capture::whole(&parts, &begun, config);
            let settlement = answered(verdict, on_failure, record);
            if hint.exact().is_none() {
                begun.keep_len_untold();
            }
            done(parts, AnswerBody::Whole(begun), settlement)
        }
        Read::Ended(error) => {
            // Nobody sees a body break off that nobody reads, and its length is not told.
            let record = || capture::whole(&parts, &begun, config);
            let (settlement, missing) = match has_no_body {
                true => (answered(head.verdict, on_failure, record), hint.exact()),
                false => (broke_off(head.verdict, on_failure), missing),
            };
            done(
                parts,
                AnswerBody::Broken {
                    body: begun,
                    missing,
                    error,
                },
                settlement,
            )
        }
        // A server may ask for no more of it.
        Read::Pending if declared_len == Some(begun.len() as u64) => {
            let record = || capture::whole(&parts, &begun, config);
            let settlement = answered(head.verdict, on_failure, record);
            done(parts, AnswerBody::Pending { begun, body }, settlement)
        }
        Read::Pending | Read::Unfinished => {
            // What is longer than it said has no length that could be counted on.
            let declared_len = declared_len.filter(|_| expected.is_none());
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

fn stream<K: KeyStore, R>(lease: Lease<K>, streaming: Streaming<R>) -> Answer<R> {
    let Streaming {
        mut parts,
        begun,
        body,
        verdict,
        declared_len,
    } = streaming;
    let streamed = stream::Streamed {
        head: RecordHead::new(&parts, lease.config.replay_cookies),
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
