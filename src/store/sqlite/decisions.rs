//! Whether a key is free is decided twice, by what was read and by the statement that
//! writes: here they are asked of the same rows.

#![allow(clippy::unwrap_used)]

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::SqliteStore;
use super::stored::{Found, Stored};
use crate::model::claim::{ClaimRequest, Lapse, Owner};
use crate::model::fingerprint::Fingerprint;
use crate::model::scope::{RecordId, ScopeId};

const AN_HOUR: i64 = 3_600_000;

async fn store() -> SqliteStore {
    let pool = SqlitePoolOptions::new().max_connections(1);
    let memory = SqliteConnectOptions::new().in_memory(true);
    let store = SqliteStore::new(pool.connect_with(memory).await.unwrap());
    store.migrate().await.unwrap();
    store
}

fn request() -> ClaimRequest {
    ClaimRequest::new(
        RecordId::from_bytes([1; 32]),
        ScopeId::from_bytes([2; 16]),
        Fingerprint::from_bytes([3; 32]),
        Owner::from_bytes([4; 16]),
    )
}

/// A row that differs from the request, or not, in each of what decides.
#[derive(Debug, Clone, Copy)]
struct Row {
    state: i64,
    seals: bool,
    is_own: bool,
    is_same: bool,
    has_lease: bool,
    has_expired: bool,
}

impl Row {
    fn all() -> impl Iterator<Item = Self> {
        (0..128).map(|bits| {
            let bit = |number: i64| bits >> number & 1 == 1;
            Self {
                state: bits & 3,
                seals: bit(2),
                is_own: bit(3),
                is_same: bit(4),
                has_lease: bit(5),
                has_expired: bit(6),
            }
        })
    }

    async fn put(self, store: &SqliteStore) {
        let time = |lives: bool| if lives { AN_HOUR } else { -AN_HOUR };
        let put = "INSERT OR REPLACE INTO idempotency_record
            SELECT ?1, ?2, ?3, 7, ?4, ?5, now + ?6, 0, now + ?7, now + ?7, iif(?4 = 1, x'00', NULL)
            FROM (SELECT unixepoch() * 1000 AS now)";
        sqlx::query(put)
            .bind(request().id.as_bytes().as_slice())
            .bind([if self.is_same { 3 } else { 9 }; 32].as_slice())
            .bind([if self.is_own { 4 } else { 9 }; 16].as_slice())
            .bind(self.state)
            .bind(self.seals)
            .bind(time(self.has_lease))
            .bind(time(!self.has_expired))
            .execute(&store.pool)
            .await
            .unwrap();
    }

    /// What the contract says, without a word of SQL.
    fn attempt(self) -> Option<i64> {
        match self.state {
            _ if self.has_expired => Some(1),
            _ if !self.is_same => None,
            0 if self.is_own => Some(7),
            0 if !self.has_lease && !self.seals => Some(8),
            2 => Some(8),
            _ => None,
        }
    }
}

async fn read(store: &SqliteStore) -> Stored {
    let row = sqlx::query(store.statements.read.clone())
        .bind(request().id.as_bytes().as_slice())
        // Another fingerprint, so that no answer has to be one.
        .bind([0; 32].as_slice())
        .fetch_one(&store.pool)
        .await;
    Stored::read(&row.unwrap()).unwrap()
}

#[tokio::test]
async fn a_key_is_free_by_what_was_read_exactly_when_it_is_for_the_statement() {
    let store = store().await;
    for row in Row::all() {
        row.put(&store).await;
        let found = read(&store).await.claimed(&request());
        let is_free = match found {
            // An error stands for a completed record, whose answer was not asked for.
            Ok(Found::Answer(_) | Found::AbandonedUnlessLocked { .. }) | Err(_) => false,
            Ok(Found::Free | Found::FreeUnlessLocked { .. }) => true,
        };
        assert_eq!(is_free, row.attempt().is_some(), "{row:?}");
        // A running record is never waited for.
        if row.state == 0 && is_free {
            assert!(
                matches!(found, Ok(Found::FreeUnlessLocked { attempt: 7 })),
                "{row:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_statement_takes_what_is_free_alone_and_counts_its_attempts() {
    let store = store().await;
    for row in Row::all() {
        row.put(&store).await;
        let request = request();
        let attempts: Vec<i64> = sqlx::query_scalar(store.statements.claim.clone())
            .bind(request.id.as_bytes().as_slice())
            .bind(request.fingerprint.as_bytes().as_slice())
            .bind(request.owner.as_bytes().as_slice())
            .bind(request.lapse == Lapse::Seal)
            .bind(30_000)
            .bind(60_000)
            .fetch_all(&store.pool)
            .await
            .unwrap();
        assert_eq!(attempts.first().copied(), row.attempt(), "{row:?}");
        let expected = match row.attempt() {
            Some(_) => (0, [4; 16].to_vec()),
            None => (row.state, [if row.is_own { 4 } else { 9 }; 16].to_vec()),
        };
        let kept: (i64, Vec<u8>) = sqlx::query_as("SELECT state, owner FROM idempotency_record")
            .fetch_one(&store.pool)
            .await
            .unwrap();
        assert_eq!(kept, expected, "{row:?}");
    }
}

/// Its own claim again, on a record that ends later than the claim would have it.
#[tokio::test]
async fn a_later_end_of_an_own_record_stands() {
    let store = store().await;
    for (is_own, is_kept) in [(true, true), (false, false)] {
        let row = Row {
            state: 0,
            seals: false,
            is_own,
            is_same: true,
            has_lease: false,
            has_expired: false,
        };
        row.put(&store).await;
        let mut request = request();
        request.retention = std::time::Duration::from_secs(1);
        crate::store::KeyStore::claim(&store, &request)
            .await
            .unwrap();
        let left = read(&store).await.left();
        assert_eq!(left > AN_HOUR / 2, is_kept, "{left}");
    }
}
