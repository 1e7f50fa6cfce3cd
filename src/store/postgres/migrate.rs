//! The table, its versions, and how they come to be.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Row, raw_sql};

use super::PostgresStore;
use super::fault::store_error;
use super::statement::Place;
use super::transaction::begin;
use crate::model::error::{StoreError, StoreErrorKind};

/// The layout that this version of the crate works with.
pub(super) const LAYOUT: u32 = 1;

/// Whoever migrates holds this lock meanwhile; it spells `idempote`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(x'6964656d706f7465'::bigint)";

/// What is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A table of that name which is not known to be one of this crate.
    Foreign,
    Layout(u32),
}

impl PostgresStore {
    pub(super) async fn create(&self) -> Result<(), StoreError> {
        let place = &self.shape.place;
        // Under a stricter level it might look at what there was before it had the lock.
        let read_committed = "BEGIN ISOLATION LEVEL READ COMMITTED";
        let mut transaction = begin(&self.pool, read_committed).await?;
        run(&mut transaction, LOCK).await.map_err(store_error)?;
        let found = find(&mut transaction, place).await.map_err(store_error)?;
        let refusal = match found {
            Found::Layout(LAYOUT) => return Ok(()),
            Found::Nothing => {
                let schema = place.schema_sql();
                run(&mut transaction, &schema).await.map_err(store_error)?;
                return transaction.commit().await.map_err(store_error);
            }
            Found::Foreign => "there is a table of that name which was not made by this crate",
            Found::Layout(_) => "the table was made by another version of this crate",
        };
        Err(StoreError::new(StoreErrorKind::Misconfigured, refusal))
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// What the comment on the table says of it.
pub(super) async fn find(connection: &mut PgConnection, place: &Place) -> Result<Found, Error> {
    let query = format!(
        "SELECT c.oid, obj_description(c.oid, 'pg_class') AS comment \
         FROM pg_class c WHERE c.oid = to_regclass('{}')",
        place.qualified()
    );
    let rows = raw_sql(AssertSqlSafe(query)).fetch_all(connection).await?;
    let Some(row) = rows.first() else {
        return Ok(Found::Nothing);
    };
    let comment: Option<String> = row.try_get("comment")?;
    let layout = comment.as_deref().and_then(layout);
    Ok(layout.map_or(Found::Foreign, Found::Layout))
}

fn layout(comment: &str) -> Option<u32> {
    comment.strip_prefix("tower-idempotency ")?.parse().ok()
}
