//! The examples that want a PostgreSQL do on one what they say.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;

use tokio::process::Command;

async fn run(example: &str, url: &str) -> Output {
    let program = support::testbed::example(example);
    let output = Command::new(program).arg(url).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    output
}

#[tokio::test]
async fn a_handler_with_a_transaction_commits_rows_and_answer_together() {
    let server = support::postgres::shared().await;
    let url = support::postgres::url_of(&server.database().await);
    // Twice: what the first one leaves behind must not disturb the second.
    for _ in 0..2 {
        let output = run("postgres_transaction", &url).await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.matches("1 new rows").count(), 2, "{said}");
        assert_eq!(said.matches("0 new rows").count(), 2, "{said}");
    }
}

#[cfg(feature = "memory")]
#[tokio::test]
async fn the_payments_script_holds_over_postgres() {
    let server = support::postgres::shared().await;
    let url = support::postgres::url_of(&server.database().await);
    for _ in 0..2 {
        let output = run("payments", &url).await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("Nothing was charged twice."), "{said}");
    }
}
