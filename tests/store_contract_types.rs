//! What the types promise: threads, clones, object safety, and that everything can be
//! printed. It is shown by compiling.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::future::Ready;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use tower::{Layer, Service};
use tower_idempotency::store::{
    AnyStore, ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse,
    MemoryStore, Owner, Ownership, Phase, Record, ScopeId, Snapshot, StoreError, StoreErrorKind,
};
use tower_idempotency::{
    ConflictPolicy, FailurePolicy, FinalAnswers, Fingerprinter, HeaderKey, Idempotency,
    IdempotencyKey, IdempotencyLayer, InFlight, InvalidKey, KeyExtractor, Operation, OutagePolicy,
    Outcome, ProblemJson, RecordId, RecordPolicy, Rejection, RejectionKind, RejectionResponse,
    RequestBody, RequestDigest, ResponseBody, ResponseFuture, Retention, Scope, ScopeExtractor,
    SharedByAllCallers, Verdict,
};

type B = Full<Bytes>;

fn threads<T: Send + Sync + Unpin + 'static>() {}
fn sends<T: Send + 'static>() {}
fn clones<T: Clone>() {}
fn copies<T: Copy>() {}
fn compares<T: Eq>() {}
fn hashes<T: Eq + Hash>() {}
fn debugs<T: Debug>() {}
fn fails<T: Error + Send + Sync + 'static>() {}

/// Neither `Clone` nor `Sync`, as few promises as a service may make.
struct Bare;

/// A store that is not `Clone`.
struct NotClone(MemoryStore);

impl KeyStore for NotClone {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        self.0.claim(request).await
    }
    async fn extend(
        &self,
        h: &Hold,
        lease: Duration,
        kept: Duration,
    ) -> Result<Ownership, StoreError> {
        self.0.extend(h, lease, kept).await
    }
    async fn complete(
        &self,
        h: &Hold,
        record: &Record,
        kept: Duration,
    ) -> Result<Completion, StoreError> {
        self.0.complete(h, record, kept).await
    }
    async fn fail(&self, h: &Hold, seal: bool, kept: Duration) -> Result<Ownership, StoreError> {
        self.0.fail(h, seal, kept).await
    }
    async fn release(&self, h: &Hold) -> Result<Ownership, StoreError> {
        self.0.release(h).await
    }
    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        self.0.lookup(id).await
    }
    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        self.0.forget(id).await
    }
    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        kept: Duration,
    ) -> Result<bool, StoreError> {
        self.0.resolve(id, record, kept).await
    }
}

#[test]
fn the_layer_and_its_services_go_anywhere() {
    threads::<IdempotencyLayer>();
    threads::<IdempotencyLayer<MemoryStore>>();
    threads::<IdempotencyLayer<NotClone>>();
    clones::<IdempotencyLayer<NotClone>>();
    debugs::<IdempotencyLayer<NotClone>>();
    threads::<Idempotency<(), NotClone>>();
    clones::<Idempotency<(), NotClone>>();
    debugs::<Idempotency<(), NotClone>>();
    clones::<Idempotency<()>>();
    threads::<InFlight>();
    clones::<InFlight>();
    debugs::<InFlight>();
    threads::<Operation>();
    clones::<Operation>();
    debugs::<Operation>();
}

#[test]
fn futures_and_bodies_can_be_sent_and_ask_for_no_bounds_where_they_are_named() {
    sends::<ResponseFuture<Ready<Result<Response<B>, Infallible>>, B, Infallible>>();
    debugs::<ResponseFuture<Bare, Bare, Bare>>();
    sends::<RequestBody<B>>();
    sends::<ResponseBody<B>>();
    debugs::<RequestBody<Bare>>();
    debugs::<ResponseBody<Bare>>();
    // A body without a value of its own can be made.
    let _ = ResponseBody::<Bare>::default();
    fn body<D: Body<Data = Bytes, Error = E>, E>() {}
    body::<RequestBody<B>, Infallible>();
    body::<RequestBody<Empty<std::io::Cursor<Vec<u8>>>>, Infallible>();
    body::<ResponseBody<B>, Box<dyn Error + Send + Sync>>();
}

#[test]
fn stores_are_shared_and_erased() {
    threads::<AnyStore>();
    clones::<AnyStore>();
    debugs::<AnyStore>();
    threads::<MemoryStore>();
    clones::<MemoryStore>();
    debugs::<MemoryStore>();
    fn stores<K: KeyStore>() {}
    stores::<AnyStore>();
    stores::<MemoryStore>();
    stores::<Arc<NotClone>>();
    stores::<Arc<AnyStore>>();
    let erased: IdempotencyLayer =
        IdempotencyLayer::new(NotClone(MemoryStore::new()), SharedByAllCallers).erased();
    let again: IdempotencyLayer = erased.erased();
    assert!(format!("{again:?}").contains("AnyStore"));
}

#[test]
fn the_words_of_the_contract_are_values() {
    hashes::<RecordId>();
    copies::<RecordId>();
    debugs::<RecordId>();
    hashes::<ScopeId>();
    copies::<ScopeId>();
    debugs::<ScopeId>();
    hashes::<Fingerprint>();
    copies::<Fingerprint>();
    debugs::<Fingerprint>();
    hashes::<Owner>();
    copies::<Owner>();
    debugs::<Owner>();
    copies::<Lapse>();
    copies::<Ownership>();
    copies::<Completion>();
    copies::<Forgot>();
    for_debug_and_clone::<(ClaimRequest, Hold, Claimed, Snapshot, Phase, Record)>();
    threads::<(ClaimRequest, Hold, Claimed, Snapshot, Phase, Record)>();
    compares::<(ClaimRequest, Hold, Claimed, Snapshot, Phase, Record)>();
    debugs::<(Lapse, Ownership, Completion, Forgot)>();
    hashes::<(Lapse, Ownership, Completion, Forgot)>();
}

fn for_debug_and_clone<T: Debug + Clone>() {}

#[test]
fn the_choices_of_a_user_are_values() {
    copies::<(FailurePolicy, ConflictPolicy, OutagePolicy)>();
    copies::<(Verdict, Retention, Outcome, RejectionKind)>();
    debugs::<(FailurePolicy, ConflictPolicy, OutagePolicy)>();
    debugs::<(Verdict, Retention, Outcome, RejectionKind, Rejection)>();
    hashes::<(Verdict, Outcome, RejectionKind, FailurePolicy)>();
    fn defaults<T: Default>() {}
    defaults::<(FailurePolicy, ConflictPolicy, OutagePolicy)>();
    defaults::<(HeaderKey, RequestDigest, FinalAnswers, ProblemJson)>();
    for_debug_and_clone::<(HeaderKey, RequestDigest, FinalAnswers, ProblemJson)>();
    for_debug_and_clone::<(SharedByAllCallers, Scope, IdempotencyKey)>();
    hashes::<(Scope, IdempotencyKey)>();
    threads::<(Scope, IdempotencyKey)>();
    assert_eq!(FailurePolicy::default(), FailurePolicy::RunAgain);
    assert_eq!(ConflictPolicy::default(), ConflictPolicy::Reject);
    assert_eq!(OutagePolicy::default(), OutagePolicy::Reject);
}

#[test]
fn errors_are_errors() {
    fails::<StoreError>();
    fails::<InvalidKey>();
    copies::<StoreErrorKind>();
    hashes::<StoreErrorKind>();
    fn displays<T: Display>() {}
    displays::<Rejection>();
    displays::<RecordId>();
    let error = StoreError::new(StoreErrorKind::Ambiguous, std::io::Error::other("cause"));
    assert_eq!(error.source().unwrap().to_string(), "cause");
    assert!(error.source().unwrap().is::<std::io::Error>());
    assert!(StoreError::from(StoreErrorKind::Full).source().is_none());
}

#[test]
fn every_plug_point_can_be_a_trait_object() {
    fn _key(_: &dyn KeyExtractor) {}
    fn _scope(_: Box<dyn ScopeExtractor>) {}
    fn _fingerprint(_: Arc<dyn Fingerprinter>) {}
    fn _record(_: &dyn RecordPolicy) {}
    fn _rejection(_: Pin<Box<dyn RejectionResponse>>) {}
    threads::<Box<dyn KeyExtractor>>();
    threads::<Box<dyn ScopeExtractor>>();
    threads::<Box<dyn Fingerprinter>>();
    threads::<Box<dyn RecordPolicy>>();
    threads::<Box<dyn RejectionResponse>>();
}

#[test]
fn the_error_of_the_service_is_the_error_of_the_handler() {
    #[derive(Debug)]
    struct Own;
    type Silent = Empty<std::io::Cursor<Vec<u8>>>;
    fn handler(_: Request<RequestBody<B>>) -> Ready<Result<Response<Silent>, Own>> {
        std::future::ready(Err(Own))
    }
    fn service<S>(service: S) -> S
    where
        S: Service<Request<B>, Error = Own, Future: Send + 'static> + Clone + Send + Sync + 'static,
    {
        service
    }
    let layer = IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers);
    let _ = service(layer.layer(tower::service_fn(handler)));
    let _ = service(layer.erased().layer(tower::service_fn(handler)));
}

#[tokio::test]
async fn calls_of_a_store_can_be_sent_to_another_thread() {
    fn send<T: Send>(_: &T) {}
    let store = AnyStore::new(NotClone(MemoryStore::new()));
    let id = RecordId::from_bytes([0; 32]);
    send(&store.lookup(&id));
    send(&store.forget(&id));
    send(&store.purge_expired(1));
    send(&store.changed(&id, Duration::ZERO));
    let store = NotClone(MemoryStore::new());
    send(&store.lookup(&id));
    send(&store.purge_expired(1));
    send(&store.changed(&id, Duration::ZERO));
}
