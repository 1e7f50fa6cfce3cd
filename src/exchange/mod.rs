//! One keyed request, from its key to its answer.
//!
//! [`admit`] decides without touching the body whether a request is the layer's business.
//! If so, [`Exchange::run`] reads the body, claims the key, runs the handler and concludes
//! the claim. The future is polled by whoever serves the request, and moved into a task
//! of its own if that one drops it while [`Progress::may_hold`] says that it must not end.

mod capture;
mod claimant;
mod collect;
mod decide;
mod enter;
mod entered;
mod in_flight;
mod lease;
mod operation;
mod poll;
mod proof;
mod run;
mod stream;
mod trace;

use std::future::{Future, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use http_body::{Body, SizeHint};
use tower::Service;

pub(crate) use self::capture::{
    Answer, AnswerBody, IDEMPOTENCY_BODY, IDEMPOTENCY_STORED, IDEMPOTENT_REPLAYED,
};
use self::claimant::{Acquisition, Claimant};
pub(crate) use self::collect::Collected;
use self::collect::declared_len;
pub(crate) use self::enter::recorded;
use self::in_flight::Counted;
pub use self::in_flight::InFlight;
pub use self::operation::Operation;
pub(crate) use self::operation::Progress;
pub(crate) use self::poll::{Panic, in_time};
pub(crate) use self::proof::{Entry, Proof, prove};
pub(crate) use self::stream::{Recorder, Report};
pub(crate) use self::trace::Span;
use crate::model::error::BoxError;
use crate::model::key::{IdempotencyKey, InvalidKey};
use crate::policy::behaviour::Outcome;
use crate::policy::config::Config;
use crate::policy::rejection::{Rejection, RejectionKind};
use crate::store::{ClaimRequest, KeyStore, Owner, RecordId, ScopeId};

/// What is to be done with a request, as far as its head tells.
pub(crate) enum Admission {
    /// None of the layer's business.
    PassThrough,
    Refuse(Rejection),
    Run(Admitted),
}

/// A request that gets an exchange.
pub(crate) struct Admitted {
    /// Absent where the key may be in the body.
    identity: Option<Identity>,
    declared_len: Option<u64>,
    counted: Counted,
}

/// Which record a request is about.
struct Identity {
    key: IdempotencyKey,
    id: RecordId,
    scope: ScopeId,
}

/// Everything that can be decided before the first poll of the body, so that a refused
/// client is never asked to send it.
pub(crate) fn admit(
    config: &Config,
    in_flight: &InFlight,
    request: &request::Parts,
    body: &SizeHint,
) -> Admission {
    let identity = match config.key.key(request) {
        Ok(None) if config.key.reads_body(request) => None,
        key => match identify(config, request, key) {
            Ok(Some(identity)) => Some(identity),
            Ok(None) => return Admission::PassThrough,
            Err(rejection) => return Admission::Refuse(rejection),
        },
    };
    let declared_len = declared_len(&request.headers, body);
    let least_len = declared_len.unwrap_or(0).max(body.lower());
    if least_len > config.request_body_limit as u64 {
        return Admission::Refuse(RejectionKind::RequestTooLarge.into());
    }
    match in_flight.enter(config.max_in_flight) {
        Some(counted) => Admission::Run(Admitted {
            identity,
            declared_len,
            counted,
        }),
        None => Admission::Refuse(RejectionKind::Overloaded.into()),
    }
}

/// Which record the request is about, by the key that was found. `None` where it is not
/// this layer's business: it has no key, or a layer outside, on the same record, has it in
/// hand.
fn identify(
    config: &Config,
    request: &request::Parts,
    key: Result<Option<IdempotencyKey>, InvalidKey>,
) -> Result<Option<Identity>, Rejection> {
    let key =
        key.map_err(|invalid| Rejection::with_detail(RejectionKind::InvalidKey, invalid.reason()))?;
    let Some(key) = key else {
        return match config.requires_key(&request.method) {
            true => Err(RejectionKind::MissingKey.into()),
            false => Ok(None),
        };
    };
    let scope = config
        .scope
        .scope(request)
        .ok_or(RejectionKind::UnknownCaller)?;
    let (id, scope) = RecordId::with_scope(&config.namespace, &scope, &key);
    let outside: Option<&Operation> = request.extensions.get();
    let is_handled_outside = outside.is_some_and(|operation| *operation.id() == id);
    Ok((!is_handled_outside).then_some(Identity { key, id, scope }))
}

pub(crate) fn refuse<R>(
    config: &Config,
    rejection: &Rejection,
    request: &request::Parts,
) -> Answer<R> {
    let mut answer = config.rejection.response(rejection, request);
    answer
        .extensions_mut()
        .insert(Outcome::Rejected(rejection.kind()));
    answer.map(|body| AnswerBody::Whole(Collected::new(body, None)))
}

/// A keyed request under way. `S` is ready to be called.
pub(crate) struct Exchange<K, S, B> {
    pub(crate) store: Arc<K>,
    pub(crate) config: Arc<Config>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) admitted: Admitted,
    pub(crate) service: S,
    pub(crate) request: request::Parts,
    pub(crate) body: B,
}

impl<K, S, B> Exchange<K, S, B>
where
    K: KeyStore,
    B: Body,
{
    /// A block and not an `async fn`, which would keep all of this twice.
    pub(crate) fn run<Q, R>(self) -> impl Future<Output = Result<Answer<R>, S::Error>>
    where
        S: Service<Request<Q>, Response = Response<R>> + Clone,
        Q: From<Collected>,
        R: Body,
        R::Error: Into<BoxError>,
    {
        let Self {
            store,
            config,
            progress,
            admitted,
            mut service,
            mut request,
            body,
        } = self;
        let Admitted {
            identity,
            declared_len,
            counted,
        } = admitted;
        async move {
            let body = collect::request(body, declared_len, config.request_body_limit).await;
            let (data, trailers) = match body {
                Ok(body) => body,
                Err(kind) => return Ok(refuse(&config, &kind.into(), &request)),
            };
            let identity = match identity {
                Some(identity) => identity,
                None => {
                    let key = config.key.key_in_body(&request, &data);
                    match identify(&config, &request, key) {
                        Ok(Some(identity)) => identity,
                        Ok(None) => {
                            let request = buffered(request, data, trailers);
                            return Box::pin(unprotected(service, request)).await;
                        }
                        Err(rejection) => return Ok(refuse(&config, &rejection, &request)),
                    }
                }
            };
            let claim = match claim_request(&config, &identity, &request, &data) {
                Ok(claim) => claim,
                Err(kind) => return Ok(refuse(&config, &kind.into(), &request)),
            };

            let mut claimant = Claimant::new(store, config, progress, counted);
            match claimant.acquire(&claim, &mut service).await {
                Acquisition::Run { hold, sent } => {
                    let (lease, waited) = claimant.into_lease(hold, sent);
                    let operation =
                        Operation::new(identity.key, &lease.hold, &lease.progress, &lease.config);
                    request.extensions.insert(operation);
                    let mut request = Some(buffered(request, data, trailers));
                    run::execute(lease, &mut service, &mut request, waited).await
                }
                Acquisition::Replay(record) => Ok(capture::replay(&record)),
                Acquisition::Refuse(kind) => Ok(refuse(claimant.config(), &kind.into(), &request)),
                Acquisition::RunUnprotected => {
                    let request = buffered(request, data, trailers);
                    let mut answer = Box::pin(unprotected(service, request)).await?;
                    capture::set_mark(&mut answer, IDEMPOTENCY_STORED, "false");
                    answer.extensions_mut().insert(Outcome::Unprotected);
                    Ok(answer)
                }
            }
        }
    }
}

fn buffered<Q: From<Collected>>(
    request: request::Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Request<Q> {
    Request::from_parts(request, Collected::new(body, trailers).into())
}

async fn unprotected<S, Q, R>(mut service: S, request: Request<Q>) -> Result<Answer<R>, S::Error>
where
    S: Service<Request<Q>, Response = Response<R>>,
{
    // Whoever waited has a clone that is not ready.
    poll_fn(|cx| service.poll_ready(cx)).await?;
    let answer = service.call(request).await?;
    Ok(answer.map(AnswerBody::Original))
}

fn claim_request(
    config: &Config,
    identity: &Identity,
    request: &request::Parts,
    body: &[u8],
) -> Result<ClaimRequest, RejectionKind> {
    let fingerprint = config.fingerprint.fingerprint(request, body);
    let owner = Owner::random().map_err(|_| RejectionKind::StoreUnavailable)?;
    let mut claim = ClaimRequest::new(identity.id, identity.scope, fingerprint, owner);
    claim.lease = config.lease;
    claim.retention = config.retention;
    claim.lapse = decide::lapse(config.on_failure);
    Ok(claim)
}
