//! Killed at every point, in both modes, under both policies, over both stores.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::StatusCode;
#[cfg(feature = "postgres")]
use tower_idempotency::store::PostgresStore;
#[cfg(feature = "sqlite")]
use tower_idempotency::store::SqliteStore;

use super::child::HALVES;
use super::ledger::Ledger;
#[cfg(feature = "sqlite")]
use super::parent::Directory;
use super::parent::{Process, final_answer, send};
use super::{Mode, OnFailure, Point, Settings};

/// What the client is told in the end, by the second process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    /// That process has run the handler.
    Ran,
    /// The answer of the process that was killed.
    Replayed,
    /// The key is sealed: nobody knows.
    Unknown,
}

use OnFailure::{Refuse, RunAgain};
use Told::{Ran, Replayed, Unknown};

/// How often the effect happens, and what the client is told.
type Expected = (i64, Told);

/// With [`RunAgain`] first in transaction mode and then in plain mode, and with [`Refuse`] in
/// the same order.
#[rustfmt::skip]
const EXPECTED: [(Point, [Expected; 4]); 9] = [
    //                      run again                         refuse
    //                      transaction     plain             transaction     plain
    (Point::BeforeClaim,   [(1, Ran),      (1, Ran),         (1, Ran),      (1, Ran)]),
    (Point::ClaimSent,     [(1, Ran),      (1, Ran),         (0, Unknown),  (0, Unknown)]),
    (Point::Claimed,       [(1, Ran),      (1, Ran),         (0, Unknown),  (0, Unknown)]),
    (Point::EffectWritten, [(1, Ran),      (1, Ran),         (0, Unknown),  (0, Unknown)]),
    // A transaction is committed when the body of its answer is whole.
    (Point::InBody,        [(1, Ran),      (2, Ran),         (0, Unknown),  (1, Unknown)]),
    (Point::CommitSent,    [(1, Replayed), (2, Ran),         (1, Replayed), (1, Unknown)]),
    (Point::Committed,     [(1, Replayed), (2, Ran),         (1, Replayed), (1, Unknown)]),
    (Point::Recorded,      [(1, Replayed), (1, Replayed),    (1, Replayed), (1, Replayed)]),
    (Point::InAnswer,      [(1, Replayed), (1, Replayed),    (1, Replayed), (1, Replayed)]),
];

/// The table says what is promised: a wrong entry in it is found here.
#[test]
fn the_table_promises_what_it_has_to() {
    for (at, point) in Point::ALL.iter().enumerate() {
        assert_eq!(
            EXPECTED.iter().filter(|(it, _)| it == point).count(),
            1,
            "{at}"
        );
    }
    for (point, [transaction, plain, refuse, plain_refuse]) in EXPECTED {
        assert_eq!(transaction.0, 1, "{point:?}");
        assert!((1..=2).contains(&plain.0), "{point:?}");
        assert!(refuse.0 <= 1 && plain_refuse.0 <= 1, "{point:?}");
        // An answer that is told belongs to an effect that has happened.
        for (effects, told) in [transaction, plain, refuse, plain_refuse] {
            assert!(effects > 0 || told == Unknown, "{point:?}");
        }
        // In transaction mode a sealed key means that nothing has happened.
        assert!(refuse.1 != Unknown || refuse.0 == 0, "{point:?}");
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    point: Point,
    mode: Mode,
    on_failure: OnFailure,
    expected: Expected,
}

impl Case {
    fn key(self) -> String {
        format!("{:?}-{:?}-{:?}", self.point, self.mode, self.on_failure)
    }

    async fn start(self, url: &str, stop: Option<Point>) -> Process {
        let settings = Settings {
            mode: self.mode,
            on_failure: self.on_failure,
            lease: Duration::from_secs(1),
            stop,
        };
        Process::start(url, settings).await
    }
}

fn cases(on_failure: OnFailure) -> Vec<Case> {
    let modes = [Mode::Transaction, Mode::Plain];
    let case = |point, mode, expected: &[Expected; 4]| Case {
        point,
        mode,
        on_failure,
        expected: expected
            [2 * usize::from(on_failure == Refuse) + usize::from(mode == Mode::Plain)],
    };
    EXPECTED
        .iter()
        .flat_map(|(point, expected)| modes.map(|mode| case(*point, mode, expected)))
        .collect()
}

/// A few at a time: most of a case is waiting.
async fn all<F: Future<Output = ()>>(on_failure: OnFailure, check: impl Fn(Case) -> F) {
    let checks = stream::iter(cases(on_failure)).map(check);
    checks.buffer_unordered(4).collect::<()>().await;
}

/// What became of a key whose process was killed.
async fn conclude<L: Ledger>(case: Case, url: &str, store: &L) {
    let key = case.key();
    let successor = case.start(url, None).await;
    let answer = final_answer(successor.addr, &key).await;
    let told = match answer.code().as_deref() {
        Some("outcome-unknown") => Unknown,
        _ => {
            assert_eq!(answer.status, StatusCode::CREATED, "{case:?}: {answer:?}");
            assert_eq!(answer.text(), HALVES.concat(), "{case:?}");
            match answer.is_replay() {
                true => Replayed,
                false => Ran,
            }
        }
    };
    let found = (store.effects(&key).await, told);
    assert_eq!(found, case.expected, "{case:?}");
    // That was final indeed.
    let again = final_answer(successor.addr, &key).await;
    assert_eq!((again.status, &again.body), (answer.status, &answer.body));
    assert_eq!(store.effects(&key).await, case.expected.0, "{case:?}");
}

/// Kills the process where it stops by itself.
async fn kill_where_it_stops(case: Case, url: &str) {
    let mut process = case.start(url, Some(case.point)).await;
    let mut connection = send(process.addr, &case.key()).await;
    if case.point == Point::InAnswer {
        let head = connection.head().await;
        assert_eq!(head.status, StatusCode::CREATED);
        assert_eq!(connection.chunk().await, HALVES[0]);
    }
    process.reaches(case.point).await;
    process.kill().await;
}

#[cfg(feature = "sqlite")]
async fn over_sqlite(case: Case) {
    let directory = Directory::new();
    let store = SqliteStore::open(&directory.url()).await;
    store.create().await;
    kill_where_it_stops(case, &directory.url()).await;
    conclude(case, &directory.url(), &store).await;
}

/// The proxy keeps back the answer to the claim and to the commit, and the server has done
/// what it was asked to.
#[cfg(feature = "postgres")]
async fn over_postgres(case: Case, server: std::net::SocketAddr, url: &str, store: &PostgresStore) {
    use super::parent::until;
    use super::support::proxy::{Proxy, Strike};
    use tower_idempotency::store::RecordId;
    use tower_idempotency::{IdempotencyKey, Scope, SharedByAllCallers};

    let bytes = match case.point {
        Point::ClaimSent => {
            let key = IdempotencyKey::new(&case.key()).unwrap();
            let scope = Scope::from(SharedByAllCallers);
            RecordId::new("", &scope, &key).as_bytes().to_vec()
        }
        Point::CommitSent => b"COMMIT".to_vec(),
        _ => {
            kill_where_it_stops(case, url).await;
            return conclude(case, url, store).await;
        }
    };
    let proxy = Proxy::start(server).await;
    let through_proxy = url.replace(&server.to_string(), &proxy.addr().to_string());
    assert_ne!(through_proxy, url);
    let process = case.start(&through_proxy, None).await;
    proxy.strike_only(bytes, Strike::DropReplySilently);
    let _connection = send(process.addr, &case.key()).await;
    until("the answer is kept back", || proxy.dropped_replies() == 1).await;
    process.kill().await;
    conclude(case, url, store).await;
}

#[cfg(feature = "postgres")]
async fn all_over_postgres(on_failure: OnFailure) {
    use super::support::postgres::{shared, url_of};

    let server = shared().await;
    let url = url_of(&server.database().await);
    let store = PostgresStore::open(&url).await;
    store.create().await;
    all(on_failure, |case| {
        over_postgres(case, server.addr(), &url, &store)
    })
    .await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn over_postgres_a_killed_process_has_the_effects_that_its_mode_promises() {
    all_over_postgres(RunAgain).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn over_postgres_no_effect_happens_twice_where_failed_runs_are_refused() {
    all_over_postgres(Refuse).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn over_sqlite_a_killed_process_has_the_effects_that_its_mode_promises() {
    all(RunAgain, over_sqlite).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn over_sqlite_no_effect_happens_twice_where_failed_runs_are_refused() {
    all(Refuse, over_sqlite).await;
}
