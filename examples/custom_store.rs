//! A store of one's own, from scratch: proven clause by clause, then used by the layer.
//!
//! It keeps its records in a map behind a lock, so that nothing of an engine stands
//! between the contract and the code. A store on a server does the same in one statement
//! or one script for each method, by the server's clock; and it bounds what it holds, by
//! answering `StoreErrorKind::Full`, never by evicting a record that is still kept.
//!
//! `cargo run --example custom_store --features conformance`

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Fingerprint, Forgot, Hold, KeyStore, Lapse, Owner,
    Ownership, Phase, Record, RecordId, Snapshot, StoreError, conformance,
};
use tower_idempotency::{IdempotencyLayer, RequestBody, SharedByAllCallers, header};

static ORDERS: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Default)]
struct MapStore(Arc<Mutex<HashMap<RecordId, Entry>>>);

struct Entry {
    fingerprint: Fingerprint,
    owner: Owner,
    attempt: u64,
    state: State,
    /// From here on the record is as good as gone.
    end: Instant,
}

enum State {
    /// A run, or what is left of one whose lease has ended. What may happen then is kept
    /// with the claim: the one who took the risk decided it.
    Running {
        lease_end: Instant,
        lapse: Lapse,
    },
    Failed,
    Sealed,
    Completed(Record),
}

impl Entry {
    fn run(request: &ClaimRequest, attempt: u64, now: Instant) -> Self {
        let lease_end = now + request.lease;
        Self {
            fingerprint: request.fingerprint,
            owner: request.owner,
            attempt,
            state: State::Running {
                lease_end,
                lapse: request.lapse,
            },
            end: lease_end + request.retention,
        }
    }

    /// As which attempt a request may run, or what it is told instead.
    fn may_run(&self, request: &ClaimRequest, now: Instant) -> Result<u64, Claimed> {
        let attempt = self.attempt;
        // Before all else: the first payload may have been applied.
        if self.fingerprint != request.fingerprint {
            return Err(Claimed::Mismatch);
        }
        match &self.state {
            State::Completed(record) => {
                let record = record.clone();
                Err(Claimed::Completed { attempt, record })
            }
            // The same claim once more, because its answer was lost.
            State::Running { .. } if self.owner == request.owner => Ok(attempt),
            State::Running { lease_end, .. } if *lease_end > now => {
                let lease_left = *lease_end - now;
                Err(Claimed::InProgress {
                    attempt,
                    lease_left,
                })
            }
            State::Failed
            | State::Running {
                lapse: Lapse::TakeOver,
                ..
            } => Ok(attempt + 1),
            State::Sealed
            | State::Running {
                lapse: Lapse::Seal, ..
            } => Err(Claimed::Abandoned { attempt }),
        }
    }

    /// Owners are compared, never attempts: a hold may be that of a claim whose answer was
    /// lost. Nor does the lease count: its owner may act until somebody takes over.
    fn is_run_of(&self, hold: &Hold) -> bool {
        self.owner == hold.owner && matches!(self.state, State::Running { .. })
    }

    fn is_live(&self, now: Instant) -> bool {
        matches!(self.state, State::Running { lease_end, .. } if lease_end > now)
    }

    fn is_completed(&self) -> bool {
        matches!(self.state, State::Completed(_))
    }

    /// How far it has come. That a lease has ended is found here and written nowhere.
    fn phase(&self, now: Instant) -> Phase {
        match &self.state {
            State::Running {
                lease_end,
                lapse: Lapse::Seal,
            } if *lease_end <= now => Phase::Sealed,
            State::Running { lease_end, .. } => Phase::Running {
                lease_left: lease_end.saturating_duration_since(now),
            },
            State::Failed => Phase::Failed,
            State::Sealed => Phase::Sealed,
            State::Completed(record) => Phase::Completed(record.clone()),
        }
    }
}

impl MapStore {
    /// One step on the record of an id. What holds for every method is here: the lock
    /// makes the step atomic; nothing in it waits, so a call that is dropped has happened
    /// or has not; one clock is read, once; and a record that has expired is not there,
    /// purged or not.
    fn step<T>(&self, id: &RecordId, step: impl FnOnce(&mut Option<Entry>, Instant) -> T) -> T {
        let mut records = self.lock();
        let now = Instant::now();
        let mut entry = records.remove(id).filter(|entry| now < entry.end);
        let answer = step(&mut entry, now);
        if let Some(entry) = entry {
            records.insert(*id, entry);
        }
        answer
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RecordId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyStore for MapStore {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        Ok(self.step(&request.id, |found, now| {
            let may_run = match found {
                Some(entry) => entry.may_run(request, now),
                None => Ok(1),
            };
            match may_run {
                Ok(attempt) => {
                    *found = Some(Entry::run(request, attempt, now));
                    Claimed::Acquired(request.hold(attempt))
                }
                Err(refusal) => refusal,
            }
        }))
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        Ok(self.step(&hold.id, |found, now| match found {
            Some(entry) if entry.is_run_of(hold) => {
                if let State::Running { lease_end, .. } = &mut entry.state {
                    *lease_end = now + lease;
                }
                entry.end = entry.end.max(now + lease + retention);
                Ownership::Held
            }
            _ => Ownership::Lost,
        }))
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        Ok(self.step(&hold.id, |found, now| match found {
            Some(entry) if entry.is_run_of(hold) => {
                entry.state = State::Completed(record.clone());
                entry.end = now + retention;
                Completion::Stored
            }
            // Its answer was lost. What is on record stands, whatever is sent again.
            Some(entry) if entry.owner == hold.owner && entry.is_completed() => Completion::Stored,
            Some(_) => Completion::NotOwner,
            // The claim was lost, but the answer is known and nobody else holds the key.
            None => {
                *found = Some(Entry {
                    fingerprint: hold.fingerprint,
                    owner: hold.owner,
                    attempt: hold.attempt,
                    state: State::Completed(record.clone()),
                    end: now + retention,
                });
                Completion::Restored
            }
        }))
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        Ok(self.step(&hold.id, |found, now| match found {
            Some(entry) if entry.is_run_of(hold) => {
                entry.state = if seal { State::Sealed } else { State::Failed };
                entry.end = now + retention;
                Ownership::Held
            }
            _ => Ownership::Lost,
        }))
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        Ok(self.step(&hold.id, |found, _| match found {
            Some(entry) if entry.is_run_of(hold) => {
                if entry.attempt == 1 {
                    *found = None;
                } else {
                    // This run did nothing, but one before it may have.
                    entry.state = State::Failed;
                }
                Ownership::Held
            }
            _ => Ownership::Lost,
        }))
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        Ok(self.step(id, |found, now| {
            found.as_ref().map(|entry| {
                let left = entry.end - now;
                Snapshot::new(entry.fingerprint, entry.attempt, entry.phase(now), left)
            })
        }))
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        Ok(self.step(id, |found, now| match found {
            None => Forgot::Absent,
            Some(entry) if entry.is_live(now) => Forgot::Live,
            Some(_) => {
                *found = None;
                Forgot::Forgotten
            }
        }))
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        Ok(self.step(id, |found, now| match found {
            Some(entry) if entry.phase(now) == Phase::Sealed => {
                entry.state = State::Completed(record.clone());
                entry.end = now + retention;
                true
            }
            _ => false,
        }))
    }

    /// Nothing hangs on it but memory: call it from time to time.
    async fn purge_expired(&self, at_most: usize) -> Result<usize, StoreError> {
        let now = Instant::now();
        let mut records = self.lock();
        let before = records.len();
        let mut left = at_most;
        records.retain(|_, entry| {
            let is_kept = now < entry.end || left == 0;
            left -= usize::from(!is_kept);
            is_kept
        });
        Ok(before - records.len())
    }
}

/// Runs clauses of the suite. One that is broken panics, and says how.
macro_rules! passes {
    ($($clause:ident($($handle:expr),+);)+) => {$(
        conformance::$clause($($handle),+).await;
        println!("passed {}", stringify!($clause));
    )+};
}

async fn prove(store: &MapStore) {
    // This store reads tokio's clock: while it is paused, nobody waits for leases to end.
    tokio::time::pause();
    passes! {
        // Two handles of one storage: two nodes, if it were on a server.
        clause_01_claim_is_atomic(store, &store.clone());
        clause_02_free_to_claim(store);
        clause_03_another_request_is_a_mismatch(store);
        clause_04_attempts_are_counted(store);
        clause_05_sealed_keys_stay_sealed(store);
        clause_06_only_the_owner_acts(store);
        clause_07_completing_is_idempotent(store);
        clause_08_records_do_not_change(store);
        clause_09_retention_ends(store);
        clause_10_one_clock_compares(store, &store.clone());
        clause_11_dropped_calls_leave_no_half(store);
        clause_12_fail_and_release(store);
        clause_13_purge_forget_and_resolve(store);
        // Clause 14 is for engines that can be out of reach.
        changed_wakes_waiters(store);
    }
    tokio::time::resume();
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let store = MapStore::default();
    // In a test this is one line: `conformance::all(&store).await`.
    prove(&store).await;

    // The layer takes it like any other.
    let shop = service_fn(async |order: Request<RequestBody<String>>| {
        let order = order.into_body().collect().await?.to_bytes();
        let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = format!("order {number}: {}", String::from_utf8_lossy(&order));
        Ok::<_, BoxError>(Response::new(answer))
    });
    let shop = IdempotencyLayer::new(store, SharedByAllCallers).layer(shop);
    for _ in 0..2 {
        let order = Request::post("/orders")
            .header(header::IDEMPOTENCY_KEY, "order-7")
            .body("one coffee".to_owned())?;
        let answer = shop.clone().oneshot(order).await?;
        let is_replay = answer.headers().contains_key(header::IDEMPOTENT_REPLAYED);
        let body = answer.into_body().collect().await?.to_bytes();
        println!("{body:?}, replayed: {is_replay}");
    }
    Ok(())
}
