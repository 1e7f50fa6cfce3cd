//! Clause 14: what is said of a call that failed.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::check::{Check, KEPT, LONG, fresh_record, request};
use crate::store::{KeyStore, StoreError, StoreErrorKind};

/// When a call on an engine that cannot be reached must have been given up.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(10);

/// Clause 14: errors say what is known, and keep what the engine said.
///
/// The store is one whose engine cannot be reached: a port that nobody listens on, a
/// server that was stopped. Every method must fail within 10 s, as
/// [`NotApplied`](StoreErrorKind::NotApplied), [`Ambiguous`](StoreErrorKind::Ambiguous) or
/// [`Misconfigured`](StoreErrorKind::Misconfigured), with the engine's own error as its
/// [source](std::error::Error::source). Clients that wait longer by default, for a
/// connection of a pool say, have to be told.
pub async fn clause_14_errors_are_typed<K: KeyStore>(unreachable: &K) {
    let check = Check::new("clause 14", unreachable);
    let run = request();
    let (id, hold, record) = (run.id, run.hold(1), fresh_record());
    let store = unreachable;

    check.fails("claim", store.claim(&run)).await;
    check.fails("extend", store.extend(&hold, LONG, KEPT)).await;
    let complete = store.complete(&hold, &record, KEPT);
    check.fails("complete", complete).await;
    for seal in [false, true] {
        check.fails("fail", store.fail(&hold, seal, KEPT)).await;
    }
    check.fails("release", store.release(&hold)).await;
    check.fails("lookup", store.lookup(&id)).await;
    check.fails("forget", store.forget(&id)).await;
    let resolve = store.resolve(&id, &record, KEPT);
    check.fails("resolve", resolve).await;

    let purged = timeout(GIVES_UP_WITHIN, store.purge_expired(1)).await;
    // Where the engine expires records itself, a purge asks nobody and removes nothing.
    if !matches!(purged, Ok(Ok(0))) {
        check.has_failed("purge_expired", purged);
    }
}

impl<K: KeyStore> Check<'_, K> {
    async fn fails<T>(&self, method: &str, call: impl Future<Output = Result<T, StoreError>>) {
        let came = timeout(GIVES_UP_WITHIN, call).await;
        self.has_failed(method, came);
    }

    fn has_failed<T>(&self, method: &str, came: Result<Result<T, StoreError>, Elapsed>) {
        let error = match came {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => self.broken(format_args!(
                "`{method}` must fail where the engine cannot be reached, but answered"
            )),
            Err(_) => self.broken(format_args!(
                "`{method}` must fail where the engine cannot be reached, but had not after \
                 {GIVES_UP_WITHIN:?}"
            )),
        };
        let fits = matches!(
            error.kind(),
            StoreErrorKind::NotApplied | StoreErrorKind::Ambiguous | StoreErrorKind::Misconfigured
        );
        self.holds(
            format_args!(
                "`{method}` on an engine that cannot be reached must fail as NotApplied, \
                 Ambiguous or Misconfigured, but failed as {:?}",
                error.kind()
            ),
            fits,
        );
        self.holds(
            format_args!("`{method}` must keep the error of the engine as source(), but has none"),
            error.source().is_some(),
        );
    }
}
