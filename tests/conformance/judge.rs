//! What it means that a clause passes a store or rejects it: for its own reason, by name.

use tower_idempotency::store::{KeyStore, MemoryStore, conformance};

use crate::faults::Fault;
use crate::wrong_store::Faulty;

/// Stores that keep the contract pass the clause, and each of these does not.
pub(crate) async fn judge(clause: u8, faults: &[Fault]) {
    conforms(clause, MemoryStore::new()).await;
    conforms(clause, Faulty::new(None)).await;
    rejects(clause, faults).await;
}

pub(crate) async fn conforms<K: KeyStore + Clone>(clause: u8, store: K) {
    run(clause, &store, &store.clone()).await;
}

pub(crate) async fn rejects(clause: u8, faults: &[Fault]) {
    for &fault in faults {
        let store = Faulty::new(Some(fault));
        let node = store.another_node();
        let judged = tokio::spawn(async move { run(clause, &store, &node).await }).await;
        let Err(rejected) = judged else {
            panic!("clause {clause} passes a store of which is true: {fault:?}");
        };
        let panic = rejected.into_panic();
        let message = panic.downcast_ref::<String>().unwrap();
        let begins = match clause {
            0 => "changed: ".to_owned(),
            clause => format!("clause {clause}: "),
        };
        assert!(message.starts_with(&begins), "{fault:?}: {message}");
    }
}

pub(crate) async fn run<K: KeyStore>(clause: u8, a: &K, b: &K) {
    match clause {
        0 => conformance::changed_wakes_waiters(a).await,
        1 => conformance::clause_01_claim_is_atomic(a, b).await,
        2 => conformance::clause_02_free_to_claim(a).await,
        3 => conformance::clause_03_another_request_is_a_mismatch(a).await,
        4 => conformance::clause_04_attempts_are_counted(a).await,
        5 => conformance::clause_05_sealed_keys_stay_sealed(a).await,
        6 => conformance::clause_06_only_the_owner_acts(a).await,
        7 => conformance::clause_07_completing_is_idempotent(a).await,
        8 => conformance::clause_08_records_do_not_change(a).await,
        9 => conformance::clause_09_retention_ends(a).await,
        10 => conformance::clause_10_one_clock_compares(a, b).await,
        11 => conformance::clause_11_dropped_calls_leave_no_half(a).await,
        12 => conformance::clause_12_fail_and_release(a).await,
        13 => conformance::clause_13_purge_forget_and_resolve(a).await,
        14 => conformance::clause_14_errors_are_typed(a).await,
        other => panic!("there is no clause {other}"),
    }
}
