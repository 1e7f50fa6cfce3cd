//! A store whose calls are written into a file before they are sent and when they are
//! answered: so a process that is killed has told what it may have done.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record, RecordId,
    Snapshot, StoreError,
};

use crate::support::history::{Answer, Call, Caller};
use crate::written;

/// Clones write into the same file.
#[derive(Clone)]
pub(crate) struct Log(Arc<(Mutex<File>, AtomicU64)>);

impl Log {
    pub(crate) fn new(path: &Path) -> Self {
        let file = Mutex::new(File::create(path).unwrap());
        Self(Arc::new((file, AtomicU64::new(0))))
    }

    fn write(&self, line: &Value) {
        let mut line = line.to_string();
        line.push('\n');
        // One write for each: it is there when the process is killed after it.
        self.0.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// The clock that all processes have in common.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[derive(Clone)]
pub(crate) struct Logged<K> {
    store: K,
    log: Log,
}

/// The same key for all processes: what differs in its id is the run that drew it.
fn common(id: &RecordId) -> RecordId {
    let mut bytes = *id.as_bytes();
    bytes[16..].fill(0);
    RecordId::from_bytes(bytes)
}

fn common_hold(hold: &Hold) -> Hold {
    let mut hold = hold.clone();
    hold.id = common(&hold.id);
    hold
}

impl<K> Logged<K> {
    pub(crate) fn new(store: K, log: &Log) -> Self {
        let log = log.clone();
        Self { store, log }
    }

    async fn told<T>(
        &self,
        id: &RecordId,
        by: Option<&Hold>,
        call: Call,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError>
    where
        Answer: for<'a> From<&'a T>,
    {
        let number = self.log.0.1.fetch_add(1, Ordering::Relaxed);
        let by = by.map(|hold| Caller {
            owner: hold.owner,
            fingerprint: hold.fingerprint,
            attempt: hold.attempt,
        });
        let call = written::call(id, by.as_ref(), &call);
        self.log.write(&json!({
            "number": number, "asked": written::nanos(now()), "call": call,
        }));
        let answer = answer.await;
        let at = written::nanos(now());
        let told = match &answer {
            Ok(answer) => answer.into(),
            Err(error) => Answer::Error(error.kind()),
        };
        self.log.write(&json!({
            "number": number, "answered": at, "answer": written::answer(&told),
        }));
        answer
    }
}

impl<K: KeyStore> KeyStore for Logged<K> {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let mut request = request.clone();
        let own = request.id;
        request.id = common(&own);
        let call = Call::Claim {
            lease: request.lease,
            retention: request.retention,
            lapse: request.lapse,
        };
        let claim = self.store.claim(&request);
        let by = request.hold(0);
        let mut claimed = self.told(&request.id, Some(&by), call, claim).await?;
        if let Claimed::Acquired(hold) = &mut claimed {
            hold.id = own;
        }
        Ok(claimed)
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = common_hold(hold);
        let call = Call::Extend { lease, retention };
        let extend = self.store.extend(&hold, lease, retention);
        self.told(&hold.id, Some(&hold), call, extend).await
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let hold = common_hold(hold);
        let call = Call::Complete {
            record: record.clone(),
            retention,
        };
        let complete = self.store.complete(&hold, record, retention);
        self.told(&hold.id, Some(&hold), call, complete).await
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let hold = common_hold(hold);
        let call = Call::Fail { seal, retention };
        let fail = self.store.fail(&hold, seal, retention);
        self.told(&hold.id, Some(&hold), call, fail).await
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let hold = common_hold(hold);
        let release = self.store.release(&hold);
        self.told(&hold.id, Some(&hold), Call::Release, release)
            .await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        let id = common(id);
        let lookup = self.store.lookup(&id);
        self.told(&id, None, Call::Lookup, lookup).await
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let id = common(id);
        let forget = self.store.forget(&id);
        self.told(&id, None, Call::Forget, forget).await
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let id = common(id);
        let call = Call::Resolve {
            record: record.clone(),
            retention,
        };
        let resolve = self.store.resolve(&id, record, retention);
        self.told(&id, None, call, resolve).await
    }

    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        self.store.purge_expired(at_most).await
    }
}
