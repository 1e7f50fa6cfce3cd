//! A replay is the recorded answer, and the first caller's answer is the handler's own.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use axum::Router;
use axum::routing::post as on_post;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::Full;
use support::pieces::{Script, Step, assert_ran, assert_replays, handler};
use support::server::Server;
use support::stores::store;
use support::{Answer, post, read, send};
use tower::ServiceExt;
use tower_idempotency::{IdempotencyLayer, Outcome, SharedByAllCallers};

type Fields = &'static [(&'static str, &'static [u8])];

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

fn map(fields: &[(&'static str, &'static [u8])]) -> HeaderMap {
    fields
        .iter()
        .map(|&(name, value)| {
            let value = HeaderValue::from_bytes(value).unwrap();
            (HeaderName::from_static(name), value)
        })
        .fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
}

/// Every name with all of its values in their order.
fn listed(headers: &HeaderMap) -> Vec<(String, Vec<Vec<u8>>)> {
    let mut listed: Vec<_> = headers
        .keys()
        .map(|name| {
            let values = headers.get_all(name).iter();
            let values = values.map(|value| value.as_bytes().to_vec()).collect();
            (name.as_str().to_owned(), values)
        })
        .collect();
    listed.sort();
    listed
}

/// The answer to a first request and to its retry, and nothing ran twice.
async fn both(layer: &IdempotencyLayer, answer: Response<Script>) -> [Answer; 2] {
    let sent = answer.headers().clone();
    let status = answer.status();
    let (service, runs) = handler(layer, move |_, _: Request<_>| answer.clone());
    let first = send(&service, post("k", "")).await;
    assert_eq!(
        listed(&first.headers),
        listed(&sent),
        "the first answer was changed"
    );
    assert_eq!(first.status, status);
    layer.in_flight().idle().await;
    let retry = send(&service, post("k", "")).await;
    assert_replays(&first, &retry);
    assert_eq!((runs.get(), layer.in_flight().count()), (1, 0));
    [first, retry]
}

fn with_fields(fields: Fields) -> Response<Script> {
    let mut answer = Response::new(Script::data(["body"]).sized(4));
    *answer.headers_mut() = map(fields);
    answer
}

/// What a replay holds of these fields.
async fn assert_kept(layer: IdempotencyLayer, fields: Fields, kept: Fields) {
    let [_, mut retry] = both(&layer, with_fields(fields)).await;
    let mark = retry.headers.remove("idempotent-replayed");
    assert_eq!(mark.unwrap(), "true");
    assert_eq!(listed(&retry.headers), listed(&map(kept)));
}

#[tokio::test]
async fn fields_keep_their_number_their_order_and_their_bytes() {
    const FIELDS: Fields = &[
        ("link", b"</1>; rel=\"next\", </2>; rel=\"prev\""),
        ("link", b"</3>"),
        ("etag", b"\"b\""),
        ("link", b"</1>; rel=\"next\", </2>; rel=\"prev\""),
        ("vary", b"b"),
        ("vary", b"a"),
        ("x-bytes", b"\xff\xfe caf\xc3\xa9 \x80"),
        ("x-empty", b""),
        ("x-quotes", b"\"a, b\"; c=\"\\\"\""),
        ("x-tab", b"a\tb"),
        ("www-authenticate", b"Basic realm=\"a, b\""),
        ("trailer", b"x-checksum"),
        ("content-type", b"text/plain; charset=utf-8"),
        ("retry-after", b"120"),
        ("cache-control", b"private"),
        ("x-request-id", b"of-the-first"),
    ];
    assert_kept(layer(), FIELDS, FIELDS).await;
}

#[tokio::test]
async fn what_belongs_to_the_connection_or_is_computed_anew_is_not_recorded() {
    const FIELDS: Fields = &[
        ("connection", b"keep-alive, X-Hop"),
        ("connection", b"close,x-HOP-two , ,\xff"),
        ("x-hop", b"1"),
        ("x-hop-two", b"2"),
        ("x-hop-two", b"3"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"keep-alive"),
        ("proxy-authenticate", b"Basic"),
        ("proxy-authorization", b"Basic x"),
        ("te", b"trailers"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("content-length", b"4"),
        ("date", b"Tue, 15 Nov 1994 08:12:31 GMT"),
        ("age", b"12"),
        ("set-cookie", b"id=1"),
        ("x-hop-three", b"stays"),
        ("close-reason", b"stays"),
        ("last-modified", b"Tue, 15 Nov 1994 08:12:31 GMT"),
    ];
    const KEPT: Fields = &[
        ("x-hop-three", b"stays"),
        ("close-reason", b"stays"),
        ("last-modified", b"Tue, 15 Nov 1994 08:12:31 GMT"),
    ];
    assert_kept(layer(), FIELDS, KEPT).await;
}

#[tokio::test]
async fn cookies_are_replayed_where_that_was_chosen() {
    const COOKIES: Fields = &[
        ("set-cookie", b"a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
        ("set-cookie", b"b=2; Path=/"),
    ];
    assert_kept(layer(), COOKIES, &[]).await;
    assert_kept(layer().replay_cookies(true), COOKIES, COOKIES).await;
}

#[tokio::test]
async fn a_mark_that_the_handler_set_itself_is_not_doubled() {
    const FIELDS: Fields = &[
        ("idempotent-replayed", b"no"),
        ("idempotent-replayed", b"no"),
    ];
    let [_, retry] = both(&layer(), with_fields(FIELDS)).await;
    let marks = retry.headers.get_all("idempotent-replayed").iter().count();
    assert_eq!(marks, 1);
}

#[tokio::test]
async fn a_sensitive_value_stays_sensitive() {
    let mut answer = with_fields(&[("x-open", b"1")]);
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    answer.headers_mut().insert("x-secret", secret);
    let [_, retry] = both(&layer(), answer).await;
    assert!(retry.headers["x-secret"].is_sensitive());
    assert!(!retry.headers["x-open"].is_sensitive());
}

#[tokio::test]
async fn an_answer_without_a_body_stays_without_one() {
    let bodies = [
        Script::new([]),
        Script::new([]).sized(0),
        Script::data(["", ""]),
        Script::new([Step::Waits]),
    ];
    for status in [200, 201, 204, 205, 304] {
        for body in bodies.clone() {
            let answer = Response::builder().status(status).body(body).unwrap();
            let [first, retry] = both(&layer(), answer).await;
            assert!(first.body.is_empty());
            assert_eq!(retry.headers.len(), 1, "{:?}", retry.headers);
        }
    }
}

#[tokio::test]
async fn the_status_is_the_first_one_and_the_version_that_of_the_connection() {
    for status in [200, 202, 226, 299, 308, 418, 451] {
        for version in [
            Version::HTTP_09,
            Version::HTTP_10,
            Version::HTTP_11,
            Version::HTTP_2,
            Version::HTTP_3,
        ] {
            let (service, runs) = handler(&layer(), move |_, _: Request<_>| {
                let answer = Response::builder().status(status).version(version);
                answer.body(Full::<Bytes>::default()).unwrap()
            });
            // A server puts its own version in the place of the default, and some panic over
            // one that they do not speak.
            for expected in [version, Version::default()] {
                let answer = service.clone().oneshot(post("k", "")).await.unwrap();
                assert_eq!(answer.status().as_u16(), status);
                assert_eq!(answer.version(), expected);
            }
            assert_eq!(runs.get(), 1);
        }
    }
}

#[tokio::test]
async fn every_replay_is_the_same() {
    let body = Script::data(["one ", "", "two ", "\0\r\n three"]).sized(17);
    let (service, runs) = handler(&layer(), move |run, _: Request<_>| {
        let answer = Response::builder().status(StatusCode::CREATED);
        answer.header("x-run", run).body(body.clone()).unwrap()
    });
    let first = send(&service, post("k", "")).await;
    assert_ran(&first, 1, true);
    let mut replays = Vec::new();
    for _ in 0..5 {
        replays.push(send(&service, post("k", "")).await);
    }
    assert_replays(&first, &replays[0]);
    assert_eq!(replays[0].text(), "one two \0\r\n three");
    assert_eq!(replays[0].header("x-run"), Some("1"));
    assert!(replays.iter().all(|replay| *replay == replays[0]));
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_replay_knows_its_length() {
    for body in [
        Script::data(["ab", "cd"]),
        Script::data(["ab", "cd"]).sized(4),
    ] {
        let (service, _) = handler(&layer(), move |_, _: Request<_>| {
            Response::new(body.clone())
        });
        read(service.clone().oneshot(post("k", "")).await.unwrap()).await;
        tokio::task::yield_now().await;
        let retry = service.clone().oneshot(post("k", "")).await.unwrap();
        assert_eq!(retry.body().size_hint().exact(), Some(4));
        assert_eq!(read(retry).await.text(), "abcd");
    }
}

fn trailers() -> HeaderMap {
    map(&[
        ("x-checksum", b"abc"),
        ("x-note", b"1"),
        ("x-note", b"\xff2"),
    ])
}

#[tokio::test]
async fn trailers_reach_the_first_caller_and_every_retry() {
    let with_data = || Script::new([Step::Data("body".into()), Step::Trailers(trailers())]);
    let alone = || Script::new([Step::Trailers(trailers())]);
    for body in [
        with_data(),
        with_data().sized(4),
        Script::new([
            Step::Waits,
            Step::Data("body".into()),
            Step::Waits,
            Step::Trailers(trailers()),
        ]),
        alone(),
        alone().sized(0),
    ] {
        let (service, runs) = handler(&layer(), move |_, _: Request<_>| {
            Response::new(body.clone())
        });
        for _ in 0..3 {
            let answer = service.clone().oneshot(post("k", "")).await.unwrap();
            // A server that knows a length sends no trailers.
            assert_eq!(answer.body().size_hint().exact(), None);
            assert!(!answer.body().is_end_stream());
            let answer = read(answer).await;
            assert_eq!(answer.trailers, Some(trailers()));
            tokio::task::yield_now().await;
        }
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test]
async fn trailers_behind_a_declared_length_reach_the_first_caller_and_every_retry() {
    // HTTP/2 sends both.
    let body = Script::new([Step::Data("body".into()), Step::Trailers(trailers())]);
    let answer = Response::builder().header("content-length", 4).body(body);
    let [first, retry] = both(&layer(), answer.unwrap()).await;
    assert_eq!(first.trailers, Some(trailers()));
    assert_eq!(retry.trailers, Some(trailers()));
}

#[tokio::test]
async fn an_absurd_number_of_fields_is_replayed_all_the_same() {
    for count in [1_000, 20_000, 30_000, 60_000] {
        let mut fields = HeaderMap::new();
        for number in 0..count {
            fields.append("x-line", HeaderValue::from(number));
        }
        let mut answer = Response::new(Script::data(["body"]).sized(4));
        *answer.headers_mut() = fields;
        let [first, retry] = both(&layer(), answer).await;
        let lines = |answer: &Answer| answer.headers.get_all("x-line").iter().count();
        assert_eq!((lines(&first), lines(&retry)), (count, count));
    }
}

#[tokio::test]
async fn on_the_wire_a_replay_has_one_length_and_a_date_of_its_own() {
    let layer = layer();
    let old = "Tue, 15 Nov 1994 08:12:31 GMT";
    let app = Router::new()
        .route(
            "/",
            on_post(async move || ([("date", old), ("age", "3")], "body")),
        )
        .layer(layer.clone());
    let server = Server::start(app).await;
    let request = "POST / HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let first = server.exchange(request).await.to_lowercase();
    assert!(first.contains(&format!("date: {}\r\n", old.to_lowercase())));
    assert!(first.contains("age: 3\r\n"), "{first}");
    assert!(!first.contains("idempotent-replayed"), "{first}");
    let retry = server.exchange(request).await.to_lowercase();
    assert!(retry.starts_with("http/1.1 200 ok\r\n"), "{retry}");
    assert!(retry.ends_with("\r\n\r\nbody"), "{retry}");
    for (name, lines) in [
        ("content-length: 4\r\n", 1),
        ("content-length:", 1),
        ("transfer-encoding:", 0),
        ("age:", 0),
        ("date:", 1),
        ("1994", 0),
        ("idempotent-replayed: true\r\n", 1),
    ] {
        assert_eq!(retry.matches(name).count(), lines, "{name} in {retry}");
    }
    layer.in_flight().idle().await;
}

#[tokio::test]
async fn the_outcome_of_a_streamed_answer_is_told_by_its_retry() {
    let (service, runs) = handler(&layer(), |_, _: Request<_>| {
        let steps = [Step::Data("a".into()), Step::Waits, Step::Data("b".into())];
        Response::new(Script::new(steps))
    });
    let first = send(&service, post("k", "")).await;
    let streaming = Outcome::Executed {
        attempt: 1,
        stored: None,
    };
    assert_eq!(first.outcome, Some(streaming));
    let retry = send(&service, post("k", "")).await;
    assert_replays(&first, &retry);
    assert_eq!(runs.get(), 1);
}

/// First over HTTP/3 (or from a handler that sets it), then a retry over HTTP/1.1: hyper
/// panics over the version of the replay.
#[tokio::test]
async fn an_answer_first_given_over_http_3_is_replayed_over_http_1() {
    let store = store();
    let layer = IdempotencyLayer::new(store, SharedByAllCallers);
    let (h3, _) = handler(&layer, |_, _: Request<_>| {
        let mut answer = Response::new(Full::<Bytes>::from("paid"));
        *answer.version_mut() = Version::HTTP_3;
        answer
    });
    let request = Request::post("/").header("idempotency-key", "k");
    let first = h3
        .oneshot(request.body(Full::<Bytes>::default()).unwrap())
        .await;
    assert_eq!(read(first.unwrap()).await.status, 200);
    let h1 = Router::new()
        .route("/", on_post(|| async { "paid" }))
        .route_layer(layer);
    let request = "POST / HTTP/1.1\r\nhost: t\r\nidempotency-key: k\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let replay = Server::start(h1).await.exchange(request).await;
    assert!(replay.contains("idempotent-replayed: true"), "{replay:?}");
}
