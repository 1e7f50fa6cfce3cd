//! One caller's record never answers another.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use proptest::prelude::*;
use support::faults::{Call, FaultStore};
use support::pieces::{assert_ran, assert_refused, assert_replays, cases, handler};
use support::stores::store;
use support::{counting, created, post, send};
use tower_idempotency::store::{Forgot, KeyStore, Phase};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, Operation, RecordId, RejectionKind, Scope, ScopeExtractor,
    SharedByAllCallers, by_extension, by_trusted_header, scope_fn,
};

fn from(accounts: &[&[u8]]) -> Request<Full<Bytes>> {
    let mut request = post("k", "charge 5");
    for account in accounts {
        let account = HeaderValue::from_bytes(account).unwrap();
        request.headers_mut().append("x-account", account);
    }
    request
}

#[tokio::test]
async fn two_callers_never_meet_and_each_gets_its_own_answer_again() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"));
    let (service, runs) = counting(&layer);
    let callers: [&[u8]; 6] = [b"ann", b"bob", b"Ann", b"ann ", b"\xe9", b"ann,bob"];
    let mut firsts = Vec::new();
    for caller in callers {
        let first = send(&service, from(&[caller])).await;
        assert_ran(&first, 1, true);
        firsts.push(first);
    }
    for (caller, first) in callers.into_iter().zip(&firsts) {
        assert_replays(first, &send(&service, from(&[caller])).await);
        // Nor does another's mismatch show.
        let mut other = from(&[caller]);
        *other.uri_mut() = "/refunds".parse().unwrap();
        let refused = send(&service, other).await;
        assert_refused(&refused, RejectionKind::KeyReused);
    }
    assert_eq!((runs.get(), store.count(Call::Complete)), (6, 6));
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test]
async fn another_request_of_another_caller_is_no_mismatch() {
    let layer = IdempotencyLayer::new(store(), by_trusted_header("x-account"));
    let (service, runs) = counting(&layer);
    assert_ran(&send(&service, from(&[b"ann"])).await, 1, true);
    let mut other = from(&[b"bob"]);
    *other.uri_mut() = "/refunds".parse().unwrap();
    assert_ran(&send(&service, other).await, 1, true);
    assert_eq!(runs.get(), 2);
}

async fn assert_unknown(scope: impl ScopeExtractor, request: Request<Full<Bytes>>) {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), scope);
    let (service, runs) = counting(&layer);
    let refused = send(&service, request).await;
    assert_refused(&refused, RejectionKind::UnknownCaller);
    assert_eq!((runs.get(), layer.in_flight().count()), (0, 0));
    let calls = [Call::Claim, Call::Lookup, Call::Release];
    assert_eq!(calls.map(|call| store.count(call)), [0; 3]);
}

#[tokio::test]
async fn no_scope_is_refused_before_the_store_is_asked() {
    let by_header = || by_trusted_header("x-account");
    assert_unknown(by_header(), from(&[])).await;
    assert_unknown(by_header(), from(&[b""])).await;
    assert_unknown(by_header(), from(&[b"ann", b"bob"])).await;
    assert_unknown(by_header(), from(&[b"ann", b"ann"])).await;
    assert_unknown(by_header(), from(&[b"", b"ann"])).await;
    assert_unknown(by_header(), from(&[b"ann", b""])).await;
    assert_unknown(scope_fn(|_| None), from(&[])).await;
    assert_unknown(by_extension(|user: &User| Scope::new(user.0)), from(&[])).await;
}

#[tokio::test]
async fn a_request_without_a_key_needs_no_scope() {
    let layer = IdempotencyLayer::new(store(), by_trusted_header("x-account"));
    let (service, runs) = counting(&layer);
    let mut request = from(&[]);
    request.headers_mut().remove("idempotency-key");
    assert_eq!(send(&service, request).await.outcome, None);
    assert_eq!(runs.get(), 1);
}

#[derive(Clone)]
struct User(&'static str);

#[tokio::test]
async fn what_authentication_left_in_the_extensions_is_a_scope() {
    let scope = by_extension(|user: &User| Scope::new(user.0));
    let layer = IdempotencyLayer::new(store(), scope);
    let (service, runs) = counting(&layer);
    let of = |user, token: &'static str| {
        let mut request = from(&[]);
        request.extensions_mut().insert(User(user));
        let token = HeaderValue::from_static(token);
        request.headers_mut().insert("authorization", token);
        request
    };
    let ann = send(&service, of("ann", "Bearer 1")).await;
    assert_ran(&ann, 1, true);
    assert_ran(&send(&service, of("bob", "Bearer 2")).await, 1, true);
    // A token that was refreshed in between changes nothing.
    assert_replays(&ann, &send(&service, of("ann", "Bearer 3")).await);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn a_scope_that_panics_does_so_before_the_store_is_asked() {
    use tower::ServiceExt;

    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), scope_fn(|_| panic!("no session")));
    let (service, runs) = counting(&layer);
    let sent = async move { service.oneshot(from(&[])).await };
    assert!(tokio::spawn(sent).await.unwrap_err().is_panic());
    assert_eq!((runs.get(), store.count(Call::Claim)), (0, 0));
    assert_eq!(layer.in_flight().count(), 0);
}

#[tokio::test]
async fn namespaces_on_one_store_do_not_meet() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"));
    let layers = [
        layer.clone(),
        layer.clone().namespace("pay"),
        layer.clone().namespace("mail"),
        layer.namespace([0xff, 0]),
    ];
    for layer in &layers {
        let (service, runs) = counting(layer);
        let first = send(&service, from(&[b"ann"])).await;
        assert_ran(&first, 1, true);
        assert_replays(&first, &send(&service, from(&[b"ann"])).await);
        assert_eq!(runs.get(), 1);
    }
    assert_eq!(store.count(Call::Complete), 4);
    // Layers of one namespace share their records.
    let twin = IdempotencyLayer::new(store.clone(), by_trusted_header("x-account"));
    let (service, runs) = counting(&twin.namespace("pay"));
    assert!(send(&service, from(&[b"ann"])).await.is_replay());
    assert_eq!((runs.get(), store.count(Call::Complete)), (0, 4));
}

#[tokio::test]
async fn an_operator_finds_the_record_by_namespace_scope_and_key() {
    let store = store();
    let scope = |account: &[u8]| Scope::new("tenant").and(account);
    let layer = IdempotencyLayer::new(
        store.clone(),
        scope_fn(move |request| {
            let account = request.headers.get("x-account")?;
            Some(scope(account.as_bytes()))
        }),
    )
    .namespace("payments");
    let (service, runs) = handler(&layer, |_, request: Request<_>| {
        let operation: &Operation = request.extensions().get().unwrap();
        created(operation.id().as_bytes().to_vec())
    });
    let first = send(&service, from(&[b"ann"])).await;
    let key = IdempotencyKey::new("k").unwrap();
    let id = RecordId::new("payments", &scope(b"ann"), &key);
    assert_eq!(first.body, id.as_bytes()[..]);
    let snapshot = store.lookup(&id).await.unwrap().unwrap();
    assert!(matches!(snapshot.phase, Phase::Completed(record) if record.status() == 201));

    let others = [
        RecordId::new("", &scope(b"ann"), &key),
        RecordId::new("payments", &scope(b"bob"), &key),
        RecordId::new("payments", &Scope::new("tenantann"), &key),
        RecordId::new(
            "payments",
            &scope(b"ann"),
            &IdempotencyKey::new("K").unwrap(),
        ),
    ];
    for other in others {
        assert_eq!(store.lookup(&other).await.unwrap(), None);
        assert_eq!(store.forget(&other).await.unwrap(), Forgot::Absent);
    }
    assert_eq!(store.forget(&id).await.unwrap(), Forgot::Forgotten);
    assert_eq!(store.forget(&id).await.unwrap(), Forgot::Absent);
    assert_ran(&send(&service, from(&[b"ann"])).await, 1, true);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn the_scope_of_all_callers_is_no_callers_own() {
    let store = store();
    let shared = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = counting(&shared);
    let first = send(&service, from(&[b"ann"])).await;
    assert_replays(&first, &send(&service, from(&[b"bob"])).await);
    assert_eq!(runs.get(), 1);
    let empty = scope_fn(|_| Some(Scope::new("")));
    let (service, runs) = counting(&IdempotencyLayer::new(store, empty));
    assert_ran(&send(&service, from(&[])).await, 1, true);
    assert_eq!(runs.get(), 1);
}

/// One text, cut into parts at every combination of places.
fn cuts(text: &str) -> Vec<Vec<&str>> {
    if text.is_empty() {
        return vec![vec![]];
    }
    (1..=text.len())
        .flat_map(|at| {
            let (head, rest) = text.split_at(at);
            cuts(rest).into_iter().map(move |mut parts| {
                parts.insert(0, head);
                parts
            })
        })
        .collect()
}

fn scope(parts: &[&str]) -> Scope {
    let mut parts = parts.iter();
    let first = Scope::new(parts.next().unwrap());
    parts.fold(first, Scope::and)
}

#[test]
fn parts_of_a_scope_do_not_run_into_each_other() {
    let key = IdempotencyKey::new("k").unwrap();
    let mut ids = HashSet::new();
    let all = cuts("aaaaaaaaaa");
    for parts in &all {
        assert!(
            ids.insert(RecordId::new("", &scope(parts), &key)),
            "{parts:?}"
        );
    }
    assert_eq!(ids.len(), 512);
    // Empty parts count, and a part may hold what stands for a length.
    for parts in [
        &[""][..],
        &["", ""],
        &["", "aaaaaaaaaa"],
        &["aaaaaaaaaa", ""],
    ] {
        assert!(
            ids.insert(RecordId::new("", &scope(parts), &key)),
            "{parts:?}"
        );
    }
    let length = "a\0\0\0\0\0\0\0\x01b";
    assert_ne!(scope(&[length]), scope(&["a", "b"]));
    // Nor can a namespace hold the first part of a scope.
    let longer = RecordId::new("n\0\0\0\0\0\0\0\x01a", &scope(&["b"]), &key);
    assert_ne!(longer, RecordId::new("n", &scope(&["a", "b"]), &key));
    assert!(!format!("{:?}", Scope::new("account-7")).contains("account"));
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn no_byte_can_move_between_namespace_scope_and_key(
        text in "a[ab]{2,80}",
        one in prop::array::uniform2(any::<prop::sample::Index>()),
        other in prop::array::uniform2(any::<prop::sample::Index>()),
    ) {
        let cut = |cuts: [prop::sample::Index; 2]| {
            let mut cuts = cuts.map(|cut| cut.index(text.len()));
            cuts.sort_unstable();
            let [a, b] = cuts;
            (&text[..a], &text[a..b], &text[b..])
        };
        let id = |(namespace, scope, key): (&str, &str, &str)| {
            RecordId::new(namespace, &Scope::new(scope), &IdempotencyKey::new(key).unwrap())
        };
        let (one, other) = (cut(one), cut(other));
        prop_assert_eq!(one == other, id(one) == id(other));
    }
}

#[tokio::test]
async fn an_operator_finds_the_record_of_a_shared_key() {
    let store = store();
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).namespace("payments");
    let (service, runs) = support::counting(&layer);
    support::send(&service, support::post("k", "charge 5")).await;
    let key = IdempotencyKey::new("k").unwrap();
    let id = RecordId::new("payments", &Scope::from(SharedByAllCallers), &key);
    assert!(store.lookup(&id).await.unwrap().is_some());
    assert_eq!(runs.get(), 1);
}
