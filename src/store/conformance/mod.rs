//! The contract of a [`KeyStore`] as a test suite, for those who write one.
//!
//! There is one function per numbered clause of the [contract](KeyStore#the-contract).
//! [`all`] runs those that need no more than a working store:
//!
//! ```
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # use tower_idempotency::store::MemoryStore as MyStore;
//! use tower_idempotency::store::conformance;
//!
//! // In a test, under `#[tokio::test]`:
//! conformance::all(&MyStore::new()).await;
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```
//!
//! A store on a server has more to prove: give clauses [1](clause_01_claim_is_atomic) and
//! [10](clause_10_one_clock_compares) two handles, as two nodes have them, and clause
//! [14](clause_14_errors_are_typed) one whose server cannot be reached.
//!
//! A broken clause panics, with a message like this:
//!
//! ```text
//! clause 3: a claim of another request by another owner over a failed record must answer
//! Mismatch, but answered Acquired(2)
//! ```
//!
//! # What it asks of a test
//!
//! Ids, scopes and owners are drawn anew for each record, so that a store may be shared,
//! may be in use and need not be empty; a few hundred small records stay behind for up to
//! an hour. In real time the suite takes about ten seconds, since leases have to end. A
//! store in memory that reads tokio's clock can be tested under the [paused
//! clock](https://docs.rs/tokio/1/tokio/time/fn.pause.html), where it takes none. Leases
//! and retentions of 50 ms are taken for over after 250 ms, so an engine that keeps time in
//! whole seconds does not pass. Nothing depends on the speed of the machine.
//!
//! # What it does not check
//!
//! - That what was acknowledged outlives a crash or a fail-over of the engine.
//! - That the clock is the engine's, unless clause 10 is given nodes whose clocks differ.
//! - That no two calls can ever slip past each other: the races are tried, not proven.
//! - How many records a purge truly removes, since an expired one cannot be seen; and that
//!   a record has expired at the very moment of its end.
//! - That a call which was given up does not linger on the server.
//! - What a full store, a quota or an unreadable record is answered.

mod check;
mod claims;
mod completion;
mod drops;
mod faults;
mod race;
mod records;
mod runs;
mod scene;
mod sighting;
mod time;
mod upkeep;

pub use self::claims::{
    clause_01_claim_is_atomic, clause_02_free_to_claim, clause_03_another_request_is_a_mismatch,
    clause_04_attempts_are_counted, clause_05_sealed_keys_stay_sealed,
};
pub use self::completion::clause_07_completing_is_idempotent;
pub use self::drops::clause_11_dropped_calls_leave_no_half;
pub use self::faults::clause_14_errors_are_typed;
pub use self::records::clause_08_records_do_not_change;
pub use self::runs::{clause_06_only_the_owner_acts, clause_12_fail_and_release};
pub use self::time::{clause_09_retention_ends, clause_10_one_clock_compares};
pub use self::upkeep::{changed_wakes_waiters, clause_13_purge_forget_and_resolve};

use super::KeyStore;

/// Clauses 1 to 13 and the wait for a change, one after the other, on a store that works.
///
/// # Panics
///
/// When a clause is broken. The message begins with its number.
pub async fn all<K: KeyStore>(store: &K) {
    clause_01_claim_is_atomic(store, store).await;
    clause_02_free_to_claim(store).await;
    clause_03_another_request_is_a_mismatch(store).await;
    clause_04_attempts_are_counted(store).await;
    clause_05_sealed_keys_stay_sealed(store).await;
    clause_06_only_the_owner_acts(store).await;
    clause_07_completing_is_idempotent(store).await;
    clause_08_records_do_not_change(store).await;
    clause_09_retention_ends(store).await;
    clause_10_one_clock_compares(store, store).await;
    clause_11_dropped_calls_leave_no_half(store).await;
    clause_12_fail_and_release(store).await;
    clause_13_purge_forget_and_resolve(store).await;
    changed_wakes_waiters(store).await;
}
