//! What was asked of a store and what it answered, and the proof that it was right.
//!
//! A [`History`] wraps stores and writes down their calls, whoever makes them: a test, or
//! the layer. [`check`] then looks at all of them, key by key. Events are plain data, so
//! they may as well be put together by hand, or from what several processes have written
//! down, as long as one clock tells the times.

mod check;
mod facts;
mod show;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse, Owner,
    Ownership, Record, RecordId, Snapshot, StoreError, StoreErrorKind,
};

#[allow(unused_imports)]
pub use check::{Rule, Violation, check, violations};

/// One call of a store and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub key: RecordId,
    /// Whose call it is; nobody's if it is a look-up or an operator's.
    pub by: Option<Caller>,
    pub call: Call,
    /// Just before it was sent.
    pub asked: Duration,
    /// Just after its answer came; [`Duration::MAX`] if none did.
    pub answered: Duration,
    pub answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Caller {
    pub owner: Owner,
    pub fingerprint: Fingerprint,
    /// What it takes for its attempt; 0 in a claim, which is to be told.
    pub attempt: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Claim {
        lease: Duration,
        retention: Duration,
        lapse: Lapse,
    },
    Extend {
        lease: Duration,
        retention: Duration,
    },
    Complete {
        record: Record,
        retention: Duration,
    },
    Fail {
        seal: bool,
        retention: Duration,
    },
    Release,
    Lookup,
    Forget,
    Resolve {
        record: Record,
        retention: Duration,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Acquired {
        attempt: u64,
    },
    InProgress {
        attempt: u64,
    },
    Completed {
        attempt: u64,
        record: Record,
    },
    Mismatch,
    Abandoned {
        attempt: u64,
    },
    Held,
    Lost,
    Stored,
    Restored,
    NotOwner,
    Found(Snapshot),
    Forgotten,
    Live,
    Resolved,
    NotSealed,
    /// To a look-up or to `forget`: there is no record.
    Absent,
    Error(StoreErrorKind),
    /// The caller gave up, or was killed, before an answer came.
    Never,
}

/// Writes down calls. Clones write into the same history.
#[derive(Clone)]
pub struct History(Arc<Written>);

struct Written {
    start: Instant,
    events: Mutex<Vec<Event>>,
}

impl History {
    pub fn new() -> Self {
        Self(Arc::new(Written {
            start: Instant::now(),
            events: Mutex::default(),
        }))
    }

    /// The store, with every call written down.
    pub fn of<K: KeyStore>(&self, store: K) -> Recorded<K> {
        let history = self.clone();
        Recorded { store, history }
    }

    /// What was asked so far. A call under way is there, without an answer.
    pub fn events(&self) -> Vec<Event> {
        self.0.events.lock().unwrap().clone()
    }

    async fn write<T>(
        &self,
        mut event: Event,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError>
    where
        Answer: for<'b> From<&'b T>,
    {
        let at = {
            let mut events = self.0.events.lock().unwrap();
            event.asked = self.0.start.elapsed();
            events.push(event);
            events.len() - 1
        };
        let answer = call.await;
        let answered = self.0.start.elapsed();
        let event = &mut self.0.events.lock().unwrap()[at];
        event.answered = answered;
        event.answer = match &answer {
            Ok(answer) => answer.into(),
            Err(error) => Answer::Error(error.kind()),
        };
        answer
    }
}

impl Event {
    fn new(key: &RecordId, by: Option<Caller>, call: Call) -> Self {
        Self {
            key: *key,
            by,
            call,
            asked: Duration::ZERO,
            answered: Duration::MAX,
            answer: Answer::Never,
        }
    }

    fn by(hold: &Hold, call: Call) -> Self {
        let by = Caller {
            owner: hold.owner,
            fingerprint: hold.fingerprint,
            attempt: hold.attempt,
        };
        Self::new(&hold.id, Some(by), call)
    }
}

/// A store whose calls are written down.
#[derive(Clone)]
pub struct Recorded<K> {
    store: K,
    history: History,
}

impl<K: KeyStore> KeyStore for Recorded<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let call = Call::Claim {
            lease: request.lease,
            retention: request.retention,
            lapse: request.lapse,
        };
        let event = Event::by(&request.hold(0), call);
        self.history.write(event, self.store.claim(request)).await
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let event = Event::by(hold, Call::Extend { lease, retention });
        let call = self.store.extend(hold, lease, retention);
        self.history.write(event, call).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let kept = record.clone();
        let call = Call::Complete {
            record: kept,
            retention,
        };
        let event = Event::by(hold, call);
        let call = self.store.complete(hold, record, retention);
        self.history.write(event, call).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let event = Event::by(hold, Call::Fail { seal, retention });
        let call = self.store.fail(hold, seal, retention);
        self.history.write(event, call).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let event = Event::by(hold, Call::Release);
        self.history.write(event, self.store.release(hold)).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let event = Event::new(id, None, Call::Lookup);
        self.history.write(event, self.store.lookup(id)).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let event = Event::new(id, None, Call::Forget);
        self.history.write(event, self.store.forget(id)).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let kept = record.clone();
        let call = Call::Resolve {
            record: kept,
            retention,
        };
        let event = Event::new(id, None, call);
        let call = self.store.resolve(id, record, retention);
        self.history.write(event, call).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.store.purge_expired(at_most).await
    }

    async fn changed(&self, id: &RecordId, at_most: Duration) {
        self.store.changed(id, at_most).await;
    }
}

impl From<&Claimed> for Answer {
    fn from(claimed: &Claimed) -> Self {
        match claimed {
            Claimed::Acquired(hold) => Self::Acquired {
                attempt: hold.attempt,
            },
            &Claimed::InProgress { attempt, .. } => Self::InProgress { attempt },
            Claimed::Completed { attempt, record } => Self::Completed {
                attempt: *attempt,
                record: record.clone(),
            },
            Claimed::Mismatch => Self::Mismatch,
            &Claimed::Abandoned { attempt } => Self::Abandoned { attempt },
        }
    }
}

impl From<&Ownership> for Answer {
    fn from(ownership: &Ownership) -> Self {
        match ownership {
            Ownership::Held => Self::Held,
            Ownership::Lost => Self::Lost,
        }
    }
}

impl From<&Completion> for Answer {
    fn from(completion: &Completion) -> Self {
        match completion {
            Completion::Stored => Self::Stored,
            Completion::Restored => Self::Restored,
            Completion::NotOwner => Self::NotOwner,
        }
    }
}

impl From<&Forgot> for Answer {
    fn from(forgot: &Forgot) -> Self {
        match forgot {
            Forgot::Forgotten => Self::Forgotten,
            Forgot::Live => Self::Live,
            Forgot::Absent => Self::Absent,
        }
    }
}

impl From<&Option<Snapshot>> for Answer {
    fn from(found: &Option<Snapshot>) -> Self {
        found.clone().map_or(Self::Absent, Self::Found)
    }
}

impl From<&bool> for Answer {
    fn from(resolved: &bool) -> Self {
        if *resolved {
            Self::Resolved
        } else {
            Self::NotSealed
        }
    }
}
