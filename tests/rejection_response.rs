//! A refusal looks the way its user chose, and says the same in every form.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use http::Response;
use serde_json::Value;
use support::pieces::{REFUSALS, assert_refused, panic_of};
use support::stores::store;
use support::{counting, post, send};
use tower_idempotency::{
    IdempotencyLayer, Outcome, ProblemJson, RejectionKind, SharedByAllCallers, rejection_fn,
};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(store(), SharedByAllCallers)
}

#[test]
fn the_kinds_say_what_the_table_says() {
    for (kind, code, status, retryable, new_key_safe, _) in REFUSALS {
        assert_eq!(kind.code(), code);
        assert_eq!(kind.status().as_u16(), status);
        assert_eq!(kind.retryable(), retryable, "{code}");
        assert_eq!(kind.new_key_safe(), new_key_safe, "{code}");
    }
}

#[tokio::test]
async fn a_documentation_uri_gives_every_code_its_place() {
    let documented = ProblemJson::documentation("https://api.example/docs/idempotency?v=1");
    let (service, runs) = counting(&layer().rejection_response(documented));
    send(&service, post("k", "charge 5")).await;
    for (request, kind) in [
        (post("k", "charge 6"), RejectionKind::KeyReused),
        (post("a b", "charge 6"), RejectionKind::InvalidKey),
    ] {
        let answer = send(&service, request).await;
        assert_refused(&answer, kind);
        let place = format!("https://api.example/docs/idempotency?v=1#{}", kind.code());
        let problem: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["type"], place);
        let link = format!("<{place}>; rel=\"describedby\"");
        assert_eq!(answer.header("link"), Some(&link[..]));
    }
    assert_eq!(runs.get(), 1);
}

#[test]
fn a_documentation_uri_that_is_none_panics_where_it_is_configured() {
    for uri in [
        "",
        "https://api.example/#codes",
        "https://api.example/ docs",
        "\"",
        "<x>",
    ] {
        let (message, place) = panic_of(|| drop(ProblemJson::documentation(uri)));
        assert!(message.contains("must be a URI"), "{message}");
        assert!(place.ends_with("tests/rejection_response.rs"), "{place}");
    }
}

#[tokio::test]
async fn a_response_of_your_own_takes_the_place_of_the_problem() {
    let plain = rejection_fn(|rejection, request| {
        let text = format!("{} {}", request.method, rejection.kind().code());
        Response::builder()
            .status(418)
            .header("x-detail", rejection.detail())
            .header(
                "x-after",
                rejection.retry_after().unwrap_or_default().as_secs(),
            )
            .body(Bytes::from(text))
            .unwrap()
    });
    let (service, runs) = counting(&layer().rejection_response(plain));
    send(&service, post("k", "charge 5")).await;
    let answer = send(&service, post("k", "charge 6")).await;
    assert_eq!(answer.status.as_u16(), 418);
    assert_eq!(answer.text(), "POST key-reused");
    assert!(
        answer
            .header("x-detail")
            .unwrap()
            .contains("another request")
    );
    assert_eq!(answer.header("x-after"), Some("0"));
    assert_eq!(answer.header("content-type"), None);
    let rejected = Outcome::Rejected(RejectionKind::KeyReused);
    assert_eq!(answer.outcome, Some(rejected));
    let answer = send(&service, post("", "charge 6")).await;
    assert_eq!(answer.text(), "POST invalid-key");
    let rejected = Outcome::Rejected(RejectionKind::InvalidKey);
    assert_eq!(answer.outcome, Some(rejected));
    assert_eq!(runs.get(), 1);
}
