//! Clause 8: how an answer comes out of the store.

use std::fmt::Display;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::response::Builder;
use http::{Response, Version};

use super::check::{Answer, Check, KEPT, KEPT_LONGER, fresh_record, misuse_of, request, retry_of};
use super::runs::Act;
use super::scene::State;
use super::sighting::Shape;
use crate::model::record::Source;
use crate::store::{Claimed, Completion, Forgot, KeyStore, Record, StoreErrorKind};

/// A larger record may be more than an engine takes.
const MUST_FIT: usize = 64 * 1024;

/// Clause 8: a record comes back byte for byte, and nothing but `forget` changes it.
pub async fn clause_08_records_do_not_change<K: KeyStore>(store: &K) {
    let check = Check::new("clause 8", store);
    for (what, record) in records() {
        comes_back(&check, what, &record).await;
    }
    nothing_changes_it(&check).await;
}

/// Answers that are hard on an encoding.
fn records() -> Vec<(&'static str, Record)> {
    let repeated = [
        ("link", &b"</b>; rel=\"next\""[..]),
        ("x-between", b"1"),
        ("link", b"</a>, </c>"),
        ("warning", b""),
        ("link", b"</b>; rel=\"next\""),
    ];
    let not_utf8 = [
        ("x-bytes", &b"\xff\xfe\x80 \xc3\x28"[..]),
        ("x-latin-1", b"caf\xe9, \"\\\t;'--"),
    ];
    let mut sensitive = HeaderValue::from_static("secret");
    sensitive.set_sensitive(true);
    let mut with_sensitive = response(200, "");
    with_sensitive.headers_mut().insert("x-token", sensitive);

    let fields = (0_u16..300).map(|n| (HeaderName::from_static("x-n"), HeaderValue::from(n)));
    let fields: HeaderMap = fields.collect();
    let mut with_many = response(206, "part");
    *with_many.version_mut() = Version::HTTP_2;
    with_many.headers_mut().clone_from(&fields);

    let (head, _) = response(200, "").into_parts();
    let head = || Source::of(&head, false);
    let trailers = head().with_body([&b"body"[..]].into_iter(), Some(&fields));

    let every_byte: Vec<u8> = (0..=255).collect();
    let large = every_byte.repeat((1 << 20) / 256);
    vec![
        ("repeated header fields", with_fields(&repeated)),
        ("header values that are not UTF-8", with_fields(&not_utf8)),
        ("a sensitive header field", Record::new(&with_sensitive)),
        ("300 header fields", Record::new(&with_many)),
        ("status 204 and no body", Record::new(&response(204, ""))),
        ("status 500", Record::new(&response(500, "broken"))),
        ("status 599", Record::new(&response(599, "\0"))),
        ("every byte", Record::new(&response(200, every_byte))),
        ("trailers", trailers),
        ("an omitted body", head().omitted(None)),
        ("an extension of a later version", with_extension()),
        ("a body of 1 MiB", Record::new(&response(200, large))),
    ]
}

fn response(status: u16, body: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    built(Response::builder().status(status), body.into())
}

fn with_fields(fields: &[(&str, &[u8])]) -> Record {
    let head = fields
        .iter()
        .fold(Response::builder(), |head, &(name, value)| {
            head.header(name, value)
        });
    Record::new(&built(head, b"ok".to_vec()))
}

fn built(head: Builder, body: Vec<u8>) -> Response<Vec<u8>> {
    head.body(body)
        .unwrap_or_else(|error| panic!("the suite builds an answer that is none: {error}"))
}

/// What a later version of the crate may write, and an older node reads and keeps. A
/// store that decodes a record and encodes it again would lose it.
fn with_extension() -> Record {
    let plain = Record::new(&response(200, ""));
    // Without a body a record ends in the number of its extensions, which is 0 here.
    let mut bytes = plain.as_bytes().to_vec();
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(&1_u16.to_be_bytes());
    bytes.extend_from_slice(&0x0042_u16.to_be_bytes());
    bytes.extend_from_slice(&5_u32.to_be_bytes());
    bytes.extend_from_slice(b"later");
    Record::from_bytes(bytes.into())
        .unwrap_or_else(|error| panic!("the suite builds a record that is none: {error}"))
}

/// By a lookup and by claims; completed by its run, or by an operator.
async fn comes_back<K: KeyStore>(check: &Check<'_, K>, what: &str, record: &Record) {
    let first = request();
    let hold = check.acquires("a claim of a free key", &first, 1).await;
    let completed = check.store().complete(&hold, record, KEPT).await;
    let size = record.as_bytes().len();
    match completed {
        Ok(completed) => {
            let what = format!("`complete` with {what}");
            check.answers(what, completed, Completion::Stored);
        }
        // Some engines have a largest size. The run must not be lost by it, since it is
        // completed without the body then.
        Err(error) if error.kind() == StoreErrorKind::Full && size > MUST_FIT => {
            let what = format!("a record of {size} bytes was refused");
            check.shows(what, &first, Shape::Running(1)).await;
            return;
        }
        Err(error) => check.broken(format_args!(
            "`complete` with {what} ({size} bytes) must fresh_record, but failed: {error:?}"
        )),
    }
    let seen = check.see(&first).await;
    let at = format!("lookup of {what}");
    check.is_kept(at, seen.shape.record(), record);
    for (claim, who) in [(&retry_of(&first), "another"), (&first, "the same")] {
        let came = check.claim(claim).await;
        let at = format!("a claim by {who} owner over {what}");
        if let Claimed::Completed { record: kept, .. } = &came {
            check.is_kept(&at, Some(kept), record);
        }
        check.is_answered(at, claim, &came, Answer::Completed(1, record));
    }

    let sealed = check.lasting(State::Sealed).await;
    let resolved = check.resolve(&sealed.request.id, record, KEPT).await;
    check.answers("`resolve` of a sealed key", resolved, true);
    let seen = check.see(&sealed.request).await;
    let at = format!("lookup of {what} given by `resolve`");
    check.is_kept(at, seen.shape.record(), record);

    // Large ones are no small thing to leave behind.
    check.forget(&first.id).await;
    check.forget(&sealed.request.id).await;
}

impl<K: KeyStore> Check<'_, K> {
    /// `at` must show the record to the byte.
    fn is_kept(&self, at: impl Display, kept: Option<&Record>, expected: &Record) {
        let kept: &[u8] = kept.map_or(&[], |kept| kept.as_bytes());
        let expected = expected.as_bytes();
        let both = kept.iter().zip(expected);
        let alike = both.take_while(|(a, b)| a == b).count();
        self.holds(
            format_args!(
                "{at} must show it byte for byte, but of {} bytes {} came back, and they differ \
                 from byte {alike} on",
                expected.len(),
                kept.len(),
            ),
            kept == expected,
        );
    }
}

async fn nothing_changes_it<K: KeyStore>(check: &Check<'_, K>) {
    for scene in check.scenes([State::Completed, State::Sealed]).await {
        let (request, record) = (&scene.request, &scene.record);
        let how = if scene.state == State::Sealed {
            let resolved = check.resolve(&request.id, record, KEPT).await;
            check.answers("`resolve` of a sealed key", resolved, true);
            "given by `resolve`"
        } else {
            "kept by `complete`"
        };
        let shape = Shape::Completed(1, record.clone());
        let before = check
            .shows(format!("a record was {how}"), request, shape)
            .await;

        let stranger = retry_of(request).hold(1);
        for act in Act::ALL {
            let who = format!("another owner over a record {how}");
            check.is_refused(act, &who, &stranger, request).await;
            if act != Act::Complete {
                let who = format!("the owner over a record {how}");
                check.is_refused(act, &who, &scene.hold, request).await;
            }
        }

        // What the owner is told depends on whose record it is. The record stands.
        check
            .complete(&scene.hold, &fresh_record(), KEPT_LONGER)
            .await;
        let what = format!("`complete` by the owner over a record {how}");
        check.unchanged(what, request, &before).await;

        let resolved = check
            .resolve(&request.id, &fresh_record(), KEPT_LONGER)
            .await;
        let what = format!("`resolve` of a record {how}");
        check.answers(&what, resolved, false);
        check.unchanged(what, request, &before).await;

        for (claim, expected) in [
            (request.clone(), Answer::Completed(1, record)),
            (retry_of(request), Answer::Completed(1, record)),
            (misuse_of(request), Answer::Mismatch),
        ] {
            let what = format!("a claim over a record {how}");
            check.claims(&what, &claim, expected).await;
            check.unchanged(what, request, &before).await;
        }

        check.purge_expired(16).await;
        check.unchanged("`purge_expired`", request, &before).await;

        let forgot = check.forget(&request.id).await;
        check.answers("`forget` of a completed record", forgot, Forgot::Forgotten);
        check.shows("`forget`", request, Shape::Absent).await;
    }
}
