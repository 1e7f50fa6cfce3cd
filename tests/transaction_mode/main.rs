//! The handler's rows and its recorded answer commit together, or neither does, over every
//! store that has transactions.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(unreachable_pub, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod clients;
mod engine;
mod forgotten;
mod full_disk;
mod misuse;
mod over_postgres;
mod over_sqlite;
mod own_transaction;
mod ownership;
mod scene;
mod sessions;

/// Each of the functions as a test, over PostgreSQL and over SQLite.
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<crate::over_postgres::Postgres>().await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name::<crate::over_sqlite::Sqlite>().await;
            })+
        }
    };
}
pub(crate) use over_both;
