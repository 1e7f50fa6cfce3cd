//! Work beside the request, in the span of the request, and what it has to say. Without
//! the feature `tracing`, just the work.

use std::future::Future;

use tokio::runtime::Handle;

use crate::store::{RecordId, StoreError};

/// The span that a request arrived in.
#[derive(Clone, Debug)]
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

impl Span {
    pub(crate) fn current() -> Self {
        Self(
            #[cfg(feature = "tracing")]
            tracing::Span::current(),
        )
    }

    /// Spawns a task inside the span. Outside of a runtime the future is dropped.
    pub(crate) fn spawn(self, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "tracing")]
        let future = tracing::Instrument::instrument(future, self.0);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(future);
        }
    }
}

pub(super) fn store_failed(id: &RecordId, call: &'static str, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        record = %id,
        call,
        kind = ?error.kind(),
        error = error as &(dyn std::error::Error + 'static),
        "the store failed"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = (id, call, error);
}

pub(super) fn lost(id: &RecordId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(record = %id, "the lease was lost: another run may have taken over");
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

pub(super) fn gave_up(id: &RecordId) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        record = %id,
        "the run could not be concluded within max_hold: its lease ends and the failure policy decides"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

pub(super) fn sealed(id: &RecordId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        record = %id,
        "the run failed and its key is sealed, until it is resolved or forgotten"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

pub(super) fn not_committed(id: &RecordId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        record = %id,
        "the handler answered that all is well, and did not commit its transaction"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

pub(super) fn abandoned(id: &RecordId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        record = %id,
        "a retry was refused: an earlier run ended without a known outcome, and its key waits to be resolved or forgotten"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}
