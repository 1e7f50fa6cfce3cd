//! The audit finds each thing that puts a promise at risk, for itself, and nothing where there
//! is nothing.

use sqlx::postgres::PgConnectOptions;
use tower_idempotency::store::PostgresStore;
use tower_idempotency::store::postgres::{CheckError, Finding};

use crate::Place;
use crate::support::postgres::{PostgresServer, execute, pool_at, shared};

async fn risks(store: &PostgresStore) -> (bool, Vec<Finding>) {
    let (is_unfit, findings) = match store.check().await {
        Ok(findings) => (false, findings),
        Err(CheckError::Unfit(findings)) => (true, findings),
        Err(error) => panic!("{error:?}"),
    };
    for finding in &findings {
        let text = finding.to_string();
        assert!(text.len() > 40 && !text.contains("  "), "{text}");
    }
    (is_unfit, findings)
}

/// What a sound one is connected with.
fn sound(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("statement_timeout", "1500")])
}

async fn place(server: &PostgresServer) -> Place {
    Place::at(sound(server.database().await)).await
}

async fn with(place: &Place, name: &str, value: &str) -> (bool, Vec<Finding>) {
    let options = place.options.clone().options([(name, value)]);
    risks(&PostgresStore::new(pool_at(options).await)).await
}

#[tokio::test]
async fn a_sound_server_is_no_risk_and_each_setting_of_a_connection_is_one() {
    let server = PostgresServer::start().await;
    let place = place(&server).await;
    assert_eq!(risks(&place.store).await, (false, vec![]));
    let plain = place.store.clone().persistent_statements(false);
    assert_eq!(risks(&plain).await, (false, vec![]));

    let late = (false, vec![Finding::LateCommit]);
    assert_eq!(with(&place, "synchronous_commit", "off").await, late);
    for fine in ["local", "remote_write", "on"] {
        assert_eq!(
            with(&place, "synchronous_commit", fine).await,
            (false, vec![])
        );
    }
    let read_only = (true, vec![Finding::ReadOnly]);
    assert_eq!(
        with(&place, "default_transaction_read_only", "on").await,
        read_only
    );
    for (value, timeout) in [("0", 0), ("2001", 2001), ("1min", 60_000)] {
        let long = (false, vec![Finding::LongStatements { timeout }]);
        assert_eq!(with(&place, "statement_timeout", value).await, long);
    }
    assert_eq!(
        with(&place, "statement_timeout", "2s").await,
        (false, vec![])
    );
}

#[tokio::test]
async fn what_the_table_lacks_is_found() {
    let server = PostgresServer::start().await;
    let empty = pool_at(sound(server.database().await)).await;
    let store = PostgresStore::new(empty.clone());
    assert_eq!(risks(&store).await, (true, vec![Finding::NoTable]));
    let elsewhere = store.clone().schema("nowhere").unwrap();
    assert_eq!(risks(&elsewhere).await, (true, vec![Finding::NoTable]));
    execute(&empty, "CREATE TABLE idempotency_record (name text)").await;
    assert_eq!(risks(&store).await, (true, vec![Finding::ForeignTable]));

    let place = place(&server).await;
    for found in [0, 2] {
        let comment = format!("COMMENT ON TABLE idempotency_record IS 'tower-idempotency {found}'");
        execute(&place.pool, &comment).await;
        let other = (true, vec![Finding::OtherLayout { found }]);
        assert_eq!(risks(&place.store).await, other);
    }
    execute(
        &place.pool,
        "COMMENT ON TABLE idempotency_record IS 'tower-idempotency 1'",
    )
    .await;
    execute(&place.pool, "ALTER TABLE idempotency_record SET UNLOGGED").await;
    assert_eq!(risks(&place.store).await, (true, vec![Finding::Unlogged]));
    execute(&place.pool, "ALTER TABLE idempotency_record SET LOGGED").await;
    assert_eq!(risks(&place.store).await, (false, vec![]));
}

#[tokio::test]
async fn each_right_that_is_missing_is_found() {
    let server = PostgresServer::start().await;
    let place = place(&server).await;
    execute(&place.pool, "CREATE ROLE clerk LOGIN").await;
    let clerk = PostgresStore::new(pool_at(place.options.clone().username("clerk")).await);
    let all = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    execute(&place.pool, "GRANT ALL ON idempotency_record TO clerk").await;
    assert_eq!(risks(&clerk).await, (false, vec![]));
    for privilege in all {
        execute(
            &place.pool,
            &format!("REVOKE {privilege} ON idempotency_record FROM clerk"),
        )
        .await;
        let forbidden = (true, vec![Finding::Forbidden { privilege }]);
        assert_eq!(risks(&clerk).await, forbidden);
        execute(
            &place.pool,
            &format!("GRANT {privilege} ON idempotency_record TO clerk"),
        )
        .await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_write_safely_is_found() {
    let found = async |name: &str| {
        let server = PostgresServer::start_with(&[(name, "off")]).await;
        risks(&place(&server).await.store).await
    };
    assert_eq!(found("fsync").await, (false, vec![Finding::NoSync]));
    assert_eq!(
        found("full_page_writes").await,
        (false, vec![Finding::NoFullPages])
    );
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_an_error() {
    let place = Place::at(shared().await.database().await).await;
    place.pool.close().await;
    let error = place.store.check().await.unwrap_err();
    assert!(matches!(error, CheckError::Store(_)), "{error}");
}
