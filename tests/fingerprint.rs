//! A request that differs never runs under the key of another, and never sees its answer.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;

use axum::Router;
use axum::extract::OriginalUri;
use axum::routing::post as on_post;
use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::Full;
use proptest::prelude::*;
use support::faults::{Call, FaultStore};
use support::pieces::{Script, Step, assert_ran, assert_refused, assert_replays, cases, handler};
use support::stores::store;
use support::{Runs, counting, created, post, send};
use tower::ServiceExt;
use tower_idempotency::store::{AnyStore, Fingerprint};
use tower_idempotency::{
    Fingerprinter, IdempotencyLayer, RejectionKind, RequestDigest, SharedByAllCallers,
    fingerprint_fn,
};

/// Method, target, content type, body.
type Tuple = (
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static str,
);

const BASE: Tuple = (
    "POST",
    "/orders?page=1",
    Some("application/json"),
    r#"{"a":1,"b":2}"#,
);

fn request((method, uri, content_type, body): Tuple) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .header("idempotency-key", "k");
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(Full::from(body)).unwrap()
}

/// Runs `first`, sends `other` twice, and `first` again: its answer must be untouched.
async fn assert_mismatch(first: Tuple, other: Tuple) {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    let answer = send(&service, request(first)).await;
    assert_ran(&answer, 1, true);
    for _ in 0..2 {
        let refused = send(&service, request(other)).await;
        assert_refused(&refused, RejectionKind::KeyReused);
    }
    assert_replays(&answer, &send(&service, request(first)).await);
    assert_eq!(runs.get(), 1, "{first:?} and {other:?}");
    assert_eq!(store.count(Call::Complete), 1);
    assert_eq!(layer.in_flight().count(), 0);
}

async fn assert_same(first: Request<Full<Bytes>>, other: Request<Full<Bytes>>) {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    let answer = send(&service, first).await;
    assert_ran(&answer, 1, true);
    assert_replays(&answer, &send(&service, other).await);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn every_part_of_the_request_counts() {
    let (method, uri, content_type, body) = BASE;
    let others = [
        ("PUT", uri, content_type, body),
        ("PATCH", uri, content_type, body),
        ("DELETE", uri, content_type, body),
        (method, "/refunds?page=1", content_type, body),
        (method, "/orders/?page=1", content_type, body),
        (method, "/Orders?page=1", content_type, body),
        (method, "/orders?page=2", content_type, body),
        (method, "/orders?page=1&", content_type, body),
        (method, "/orders", content_type, body),
        (method, "/orders%3Fpage=1", content_type, body),
        (method, uri, None, body),
        (method, uri, Some("application/merge-patch+json"), body),
        (method, uri, Some("text/json"), body),
        (method, uri, content_type, r#"{"a":1,"b":3}"#),
        (method, uri, content_type, ""),
        ("PUT", "/refunds", None, "something else"),
    ];
    for other in others {
        assert_mismatch(BASE, other).await;
        assert_mismatch(other, BASE).await;
    }
}

#[tokio::test]
async fn a_body_counts_byte_for_byte() {
    let with = |body| (BASE.0, BASE.1, BASE.2, body);
    // What means the same to a JSON parser is another request here.
    for body in [
        r#"{"b":2,"a":1}"#,
        r#"{"a": 1, "b": 2}"#,
        r#"{"a":1.0,"b":2}"#,
        "{\"a\":1,\"b\":2}\n",
    ] {
        assert_mismatch(BASE, with(body)).await;
    }
    let form = |body| ("POST", "/", Some("application/x-www-form-urlencoded"), body);
    for other in [
        "amount=6&to=ann",
        "to=ann&amount=5",
        "amount=5&to=ann&",
        "amount=5",
    ] {
        assert_mismatch(form("amount=5&to=ann"), form(other)).await;
    }
    assert_same(request(form("amount=5")), request(form("amount=5"))).await;
    // An upload of the same size, and of another type of its part.
    let upload = |body| ("POST", "/", Some("multipart/form-data; boundary=x"), body);
    let file = upload("--x\r\ncontent-type: text/plain\r\n\r\naaaa\r\n--x--");
    let content = upload("--x\r\ncontent-type: text/plain\r\n\r\nbbbb\r\n--x--");
    let part_type = upload("--x\r\ncontent-type: text/troff\r\n\r\naaaa\r\n--x--");
    assert_mismatch(file, content).await;
    assert_mismatch(file, part_type).await;
}

#[tokio::test]
async fn an_empty_body_is_a_body_like_any_other() {
    let empty = ("POST", "/", None, "");
    assert_same(request(empty), request(empty)).await;
    assert_mismatch(empty, ("POST", "/", None, "\0")).await;
    assert_mismatch(empty, ("POST", "/", None, " ")).await;
}

#[tokio::test]
async fn parameters_and_letter_case_of_the_media_type_do_not_count() {
    for content_type in [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8;x=\"a;b\"",
        "Application/JSON",
        "application/json ; x",
        " application/json",
    ] {
        let other = (BASE.0, BASE.1, Some(content_type), BASE.3);
        assert_same(request(BASE), request(other)).await;
        assert_same(request(other), request(BASE)).await;
    }
}

#[tokio::test]
async fn other_header_fields_host_scheme_and_version_do_not_count() {
    let mut other = request((
        BASE.0,
        "https://other.example/orders?page=1",
        BASE.2,
        BASE.3,
    ));
    let headers = other.headers_mut();
    headers.insert("host", "other.example".parse().unwrap());
    headers.insert("authorization", "Bearer refreshed".parse().unwrap());
    headers.insert("traceparent", "00-1-2-01".parse().unwrap());
    headers.insert("content-length", "13".parse().unwrap());
    *other.version_mut() = http::Version::HTTP_2;
    assert_same(request(BASE), other).await;
}

#[tokio::test]
async fn the_frames_a_body_comes_in_do_not_count() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = handler(&layer, |_, _: Request<_>| created("paid"));
    let in_frames = |frames: &[&'static str]| {
        post("k", "").map(|_: Full<Bytes>| Script::data(frames.iter().copied()))
    };
    let first = send(&service, in_frames(&["charge 5"])).await;
    assert_ran(&first, 1, true);
    for frames in [
        &["charge", " 5"][..],
        &["", "c", "", "harge 5", ""],
        &["charge 5", ""],
    ] {
        assert_replays(&first, &send(&service, in_frames(frames)).await);
    }
    let mut sized = post("k", "").map(|_: Full<Bytes>| Script::data(["charge 5"]).sized(8));
    let length = http::HeaderValue::from_static("8");
    sized.headers_mut().insert("content-length", length);
    assert_replays(&first, &send(&service, sized).await);
    let waits = [Step::Waits, Step::Data("charge 5".into()), Step::Waits];
    let slow = post("k", "").map(|_: Full<Bytes>| Script::new(waits));
    assert_replays(&first, &send(&service, slow).await);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn another_key_makes_the_same_request_run_again() {
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers);
    let (service, runs) = counting(&layer);
    assert_ran(&send(&service, post("k1", "")).await, 1, true);
    assert_ran(&send(&service, post("k2", "")).await, 1, true);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn a_fingerprint_of_your_own_may_leave_a_field_out() {
    fn but_the_last_line(body: &[u8]) -> &[u8] {
        let end = body.iter().rposition(|&byte| byte == b'\n');
        &body[..end.unwrap_or(body.len())]
    }
    let layer = IdempotencyLayer::new(store(), SharedByAllCallers).fingerprint(fingerprint_fn(
        |request, body| RequestDigest::default().fingerprint(request, but_the_last_line(body)),
    ));
    let (service, runs) = counting(&layer);
    let first = send(&service, post("k", "charge 5\nsent at 12:00")).await;
    assert_ran(&first, 1, true);
    let retry = send(&service, post("k", "charge 5\nsent at 12:01")).await;
    assert_replays(&first, &retry);
    let other = send(&service, post("k", "charge 6\nsent at 12:00")).await;
    assert_refused(&other, RejectionKind::KeyReused);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_fingerprint_that_panics_does_so_before_the_store_is_asked() {
    let store = FaultStore::new(store());
    let layer = IdempotencyLayer::new(store.clone(), SharedByAllCallers).fingerprint(
        fingerprint_fn(|_, body| match body {
            b"bad" => panic!("cannot read this"),
            _ => Fingerprint::from_bytes([1; 32]),
        }),
    );
    let (service, runs) = counting(&layer);
    let sent = tokio::spawn(service.clone().oneshot(post("k", "bad")));
    let panic = sent.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"cannot read this"));
    let calls = [Call::Claim, Call::Release, Call::Lookup, Call::Fail];
    assert_eq!(calls.map(|call| store.count(call)), [0; 4]);
    assert_eq!(runs.get(), 0);
    assert_eq!(layer.in_flight().count(), 0);
    assert_ran(&send(&service, post("k", "good")).await, 1, true);
    assert_eq!(runs.get(), 1);
}

type Layer = IdempotencyLayer;

/// `/pay`, twice: nested under `/a` and under `/b`, each with a layer attached inside.
fn nested(layers: [Layer; 2]) -> (Router, [Runs; 2]) {
    let runs = [Runs::default(), Runs::default()];
    let mut app = Router::new();
    for ((prefix, layer), runs) in ["/a", "/b"].into_iter().zip(layers).zip(runs.clone()) {
        let pay = on_post(async move || format!("{prefix} {}", runs.add()));
        app = app.nest(prefix, Router::new().route("/pay", pay).route_layer(layer));
    }
    (app, runs)
}

async fn pay(app: &Router, prefix: &str) -> support::Answer {
    let request = Request::post(format!("{prefix}/pay"))
        .header("idempotency-key", "k")
        .body(axum::body::Body::from("5"))
        .unwrap();
    send(app, request).await
}

fn layer(store: &AnyStore) -> Layer {
    IdempotencyLayer::new(store.clone(), SharedByAllCallers)
}

#[tokio::test]
async fn inside_of_two_nested_routers_the_same_inner_path_looks_alike() {
    let store = store();
    let (app, [a, b]) = nested([layer(&store), layer(&store)]);
    let first = pay(&app, "/a").await;
    assert_ran(&first, 1, true);
    // The trap that the three remedies below are for.
    assert_replays(&first, &pay(&app, "/b").await);
    assert_eq!((a.get(), b.get()), (1, 0));
}

#[tokio::test]
async fn a_layer_outside_of_the_nesting_keeps_the_routes_apart() {
    let runs = [Runs::default(), Runs::default()];
    let mut app = Router::new();
    for (prefix, runs) in ["/a", "/b"].into_iter().zip(runs.clone()) {
        let pay = on_post(async move || format!("{prefix} {}", runs.add()));
        app = app.nest(prefix, Router::new().route("/pay", pay));
    }
    let app = app.layer(layer(&store()));
    let first = pay(&app, "/a").await;
    assert_ran(&first, 1, true);
    assert_refused(&pay(&app, "/b").await, RejectionKind::KeyReused);
    assert_replays(&first, &pay(&app, "/a").await);
    assert_eq!(runs.map(|runs| runs.get()), [1, 0]);
}

#[tokio::test]
async fn a_namespace_for_each_nested_router_keeps_the_routes_apart() {
    let store = store();
    let layers = ["a", "b"].map(|name| layer(&store).namespace(name));
    let (app, runs) = nested(layers);
    for prefix in ["/a", "/b"] {
        let first = pay(&app, prefix).await;
        assert_ran(&first, 1, true);
        assert_eq!(first.text(), format!("{prefix} 1"));
        assert_replays(&first, &pay(&app, prefix).await);
    }
    assert_eq!(runs.map(|runs| runs.get()), [1, 1]);
}

#[tokio::test]
async fn the_original_uri_keeps_nested_routes_apart() {
    let store = store();
    let original = RequestDigest::default().uri_from(|request| {
        let uri: Option<&OriginalUri> = request.extensions.get();
        uri.map(|uri| uri.0.clone())
    });
    let layers = [(); 2].map(|()| layer(&store).fingerprint(original.clone()));
    let (app, [a, b]) = nested(layers);
    let first = pay(&app, "/a").await;
    assert_ran(&first, 1, true);
    assert_refused(&pay(&app, "/b").await, RejectionKind::KeyReused);
    assert_replays(&first, &pay(&app, "/a").await);
    assert_eq!((a.get(), b.get()), (1, 0));
}

fn fingerprint(method: &str, target: &str, media_type: &str, body: &str) -> [u8; 32] {
    let (parts, ()) = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(target.parse::<Uri>().unwrap())
        .header("content-type", media_type)
        .body(())
        .unwrap()
        .into_parts();
    *RequestDigest::default()
        .fingerprint(&parts, body.as_bytes())
        .as_bytes()
}

/// One text, cut into the four parts of a request; a target begins with a slash, and a
/// method is not empty.
fn cut(text: &str, [a, b, c]: [usize; 3]) -> (String, String, String, String) {
    let target = format!("/{}", &text[a..b]);
    (
        text[..a].into(),
        target,
        text[b..c].into(),
        text[c..].into(),
    )
}

#[test]
fn no_byte_can_move_from_one_part_to_the_next() {
    let mut seen = HashMap::new();
    for text in ["aaaaaaaaaaaaaa", "a/a/a/a/a/a/a/", "POSTapayabtype"] {
        let text = text.replace('/', ".");
        for a in 1..=text.len() {
            for b in a..=text.len() {
                for c in b..=text.len() {
                    let tuple = cut(&text, [a, b, c]);
                    let (method, target, media_type, body) = &tuple;
                    // The media type is compared without its case.
                    let key = (
                        method.clone(),
                        target.clone(),
                        media_type.to_lowercase(),
                        body.clone(),
                    );
                    let print = fingerprint(method, target, media_type, body);
                    let other = seen.insert(print, key.clone());
                    assert!(other.is_none_or(|other| other == key), "{key:?}");
                }
            }
        }
    }
    assert!(seen.len() > 1000, "{}", seen.len());
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn two_requests_share_a_fingerprint_only_if_they_are_equal(
        text in "[a-c]{1,3}[a-c./=]{0,300}",
        one in prop::array::uniform3(any::<prop::sample::Index>()),
        other in prop::array::uniform3(any::<prop::sample::Index>()),
        near in any::<bool>(),
    ) {
        let end_of_token = text.find(['.', '/', '=']).unwrap_or(text.len());
        let at = |cuts: [prop::sample::Index; 3]| {
            let [a, b, c] = cuts.map(|cut| cut.index(text.len() + 1));
            let a = a.clamp(1, end_of_token);
            let b = b.max(a);
            [a, b, c.max(b)]
        };
        let one = at(one);
        // Either cut anywhere, or by one byte elsewhere.
        let other = if near {
            [one[0], one[1], (one[2] + 1).min(text.len())]
        } else {
            at(other)
        };
        let (one, other) = (cut(&text, one), cut(&text, other));
        let of = |(method, target, media_type, body): &(String, String, String, String)| {
            fingerprint(method, target, media_type, body)
        };
        prop_assert_eq!(one == other, of(&one) == of(&other), "{:?} {:?}", one, other);
    }
}
