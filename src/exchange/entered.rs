//! The end of a run whose handler put its answer on record itself.

use http::{Request, Response};

use super::capture::{self, AnswerBody};
use super::decide::{Conclusion, no_answer};
use super::lease::Lease;
use super::proof::{Entry, Proof};
use super::refuse;
use super::run::Ran;
use super::trace;
use crate::policy::rejection::{Rejection, RejectionKind};
use crate::policy::verdict::Verdict;
use crate::store::{KeyStore, Record};

/// What is to be done with the handler's answer; `Err` gives it back, where nothing is on
/// record and the ordinary rules apply.
pub(super) async fn conclude<K, R, E>(
    lease: &Lease<K>,
    entry: Entry,
    answered: Result<Response<R>, E>,
) -> Result<Ran<R, E>, Result<Response<R>, E>>
where
    K: KeyStore,
{
    let claimed_as = match entry {
        Entry::Begun => return unfinished(lease, answered),
        Entry::Committed => return Ok(stored(answered)),
        Entry::Written(status) | Entry::Sent(status) => status,
    };
    let proof = lease.prove(entry).await;
    // The handler does not know better than that something may have been committed.
    let is_sent = matches!(entry, Entry::Sent(_));
    let is_claim = matches!(&answered, Ok(answer) if answer.status() == claimed_as);
    match proof {
        Proof::Committed(record) => Ok(committed(answered, &record)),
        Proof::Unknown => {
            lease.prove_later();
            let answer = answered.map(|_| refused(lease, &Rejection::in_doubt()));
            let stored = false;
            Ok(Ran::Entered { answer, stored })
        }
        Proof::Lost if is_sent || is_claim => {
            let answer = answered.map(|_| refused(lease, &RejectionKind::InProgress.into()));
            let stored = false;
            Ok(Ran::Entered { answer, stored })
        }
        Proof::RolledBack if is_sent => Ok(Ran::Done {
            answer: answered.map(|_| refused(lease, &RejectionKind::StoreUnavailable.into())),
            settlement: Conclusion::Release,
        }),
        Proof::RolledBack if is_claim => Ok(not_committed(lease, answered)),
        Proof::RolledBack | Proof::Lost => Err(answered),
    }
}

/// What was written is gone: an answer that says otherwise, and not expressly that it is to be
/// recorded all the same, is that of a handler which forgot to finish.
fn unfinished<K, R, E>(
    lease: &Lease<K>,
    answered: Result<Response<R>, E>,
) -> Result<Ran<R, E>, Result<Response<R>, E>> {
    match &answered {
        Ok(answer) if is_success(answer) => Ok(not_committed(lease, answered)),
        _ => Err(answered),
    }
}

fn is_success<R>(answer: &Response<R>) -> bool {
    let is_good_news = answer.status().is_success() || answer.status().is_redirection();
    is_good_news && answer.extensions().get::<Verdict>().is_none()
}

fn not_committed<K, R, E>(lease: &Lease<K>, answered: Result<Response<R>, E>) -> Ran<R, E> {
    trace::not_committed(&lease.hold.id);
    Ran::Done {
        answer: answered.map(|_| refused(lease, &RejectionKind::TransactionFailed.into())),
        settlement: no_answer(lease.config.on_failure),
    }
}

fn stored<R, E>(answered: Result<Response<R>, E>) -> Ran<R, E> {
    Ran::Entered {
        answer: answered.map(|answer| answer.map(AnswerBody::Original)),
        stored: true,
    }
}

/// The handler's answer is the true one, unless it was given in ignorance of the commit.
fn committed<R, E>(answered: Result<Response<R>, E>, record: &Record) -> Ran<R, E> {
    match answered {
        Ok(answer) if answer.status() != record.status() => Ran::Entered {
            answer: Ok(capture::recorded(record)),
            stored: true,
        },
        answered => stored(answered),
    }
}

/// The handler has the request, so the refusal is told about an empty one.
fn refused<K, R>(lease: &Lease<K>, rejection: &Rejection) -> super::Answer<R> {
    let (request, ()) = Request::new(()).into_parts();
    refuse(&lease.config, rejection, &request)
}

/// Whether a panic leaves the run concluded, or not to be concluded: its answer is, or may
/// be, on record.
pub(super) async fn outlives_panic<K: KeyStore>(lease: &Lease<K>) -> bool {
    let Some(entry) = lease.progress.entry() else {
        return false;
    };
    match entry {
        Entry::Begun => return false,
        Entry::Committed => return true,
        Entry::Written(_) | Entry::Sent(_) => {}
    }
    match Box::pin(lease.prove(entry)).await {
        Proof::Committed(_) => true,
        Proof::Unknown => {
            lease.prove_later();
            true
        }
        Proof::RolledBack | Proof::Lost => false,
    }
}
