//! An answer on its way into a record, and back.

use std::pin::Pin;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Response, response};

use super::collect::Collected;
use super::stream::Recorder;
use crate::model::error::BoxError;
use crate::model::record::Source;
use crate::policy::behaviour::Outcome;
use crate::policy::config::Config;
use crate::policy::verdict::Retention;
use crate::store::Record;

pub(crate) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
pub(crate) const IDEMPOTENCY_STORED: HeaderName = HeaderName::from_static("idempotency-stored");
pub(crate) const IDEMPOTENCY_BODY: HeaderName = HeaderName::from_static("idempotency-body");

/// What an exchange answers with; the edge makes one body type of it.
pub(crate) type Answer<R> = Response<AnswerBody<R>>;

pub(crate) enum AnswerBody<R> {
    /// The handler's own, untouched.
    Original(R),
    /// The same, after its beginning was read: what belongs on record is.
    Pending {
        begun: Collected,
        body: Pin<Box<R>>,
    },
    Whole(Collected),
    /// As far as it came, and what it owes to the length that it promised.
    Broken {
        body: Collected,
        missing: Option<u64>,
        error: Option<BoxError>,
    },
    /// The handler's own, copied on its way; the beginning was read already.
    Recording {
        begun: Collected,
        body: Pin<Box<R>>,
        recorder: Recorder,
    },
}

/// The recorded answer, for a retry.
pub(super) fn replay<R>(record: &Record) -> Answer<R> {
    let mut answer = recorded(record);
    set_mark(&mut answer, IDEMPOTENT_REPLAYED, "true");
    answer.extensions_mut().insert(Outcome::Replayed);
    answer
}

/// The recorded answer, for the caller whose run gave it.
pub(super) fn recorded<R>(record: &Record) -> Answer<R> {
    let recorded = record.decode();
    let body = Collected::new(recorded.body, recorded.trailers);
    let mut answer = Response::new(AnswerBody::Whole(body));
    *answer.status_mut() = recorded.status;
    *answer.headers_mut() = recorded.headers;
    if recorded.omitted {
        set_mark(&mut answer, IDEMPOTENCY_BODY, "omitted");
    }
    answer
}

pub(super) fn whole(
    parts: &response::Parts,
    body: &Collected,
    config: &Config,
) -> (Record, Duration) {
    let source = Source::of(parts, config.replay_cookies);
    (
        source.with_body(body.frames(), body.trailers()),
        retention(parts, config),
    )
}

pub(super) fn omitted(
    parts: &response::Parts,
    body_len: Option<u64>,
    config: &Config,
) -> (Record, Duration) {
    let source = Source::of(parts, config.replay_cookies);
    (source.omitted(body_len), retention(parts, config))
}

pub(super) fn retention(parts: &response::Parts, config: &Config) -> Duration {
    let chosen: Option<&Retention> = parts.extensions.get();
    chosen.map_or(config.retention, |chosen| chosen.clamped())
}

/// A handler may have filled the map to its end: its answer is not lost for a mark.
pub(super) fn set_mark<R>(answer: &mut Answer<R>, name: HeaderName, value: &'static str) {
    let value = HeaderValue::from_static(value);
    let _ = answer.headers_mut().try_insert(name, value);
}

/// Tells layers outside, and the client where its answer should be on record and is not.
pub(super) fn mark<R>(answer: &mut Answer<R>, attempt: u64, recorded: bool, acknowledged: bool) {
    if !acknowledged {
        set_mark(answer, IDEMPOTENCY_STORED, "false");
    }
    let stored = Some(recorded && acknowledged);
    answer
        .extensions_mut()
        .insert(Outcome::Executed { attempt, stored });
}
