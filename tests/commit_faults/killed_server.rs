use std::time::Duration;

use tower_idempotency::TransactionError;

use crate::scene::{COMMIT, Scene, assert_unavailable};
use crate::support::gates::until;
use crate::support::proxy::Strike;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_between_effect_and_commit_leaves_neither() {
    let scene = Scene::new(|run| async move {
        let transaction = run.begin().await?;
        if run.number == 1 {
            run.server.kill();
        }
        run.finish(transaction).await
    })
    .await;
    assert_unavailable(&scene.send("k").await);
    scene.server.restart().await;
    assert!(scene.ledger().await.is_empty());
    assert_eq!(scene.send_until_final("k").await.text(), "transferred");
    assert_eq!(scene.ledger().await, ["k"]);
    assert!(scene.send("k").await.is_replay());
    assert_eq!(scene.runs.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_after_the_commit_and_before_its_reply_keeps_both() {
    for restarts_in_time in [true, false] {
        let scene = Scene::new(move |run| async move {
            let transaction = run.begin().await?;
            run.proxy.strike_only(COMMIT, Strike::DropReplySilently);
            let (proxy, server) = (run.proxy.clone(), run.server.clone());
            let killed = tokio::spawn(async move {
                until("the reply is lost", || proxy.dropped_replies() == 1).await;
                server.kill();
                if restarts_in_time {
                    server.restart().await;
                }
            });
            let finished = run.finish(transaction).await;
            killed.await.unwrap();
            if !restarts_in_time {
                assert!(
                    matches!(finished, Err(TransactionError::InDoubt(_))),
                    "{finished:?}"
                );
            }
            finished
        })
        .await;
        let first = scene.send("k").await;
        if restarts_in_time {
            // Recovery may outlast the time there is to find out.
            assert!(matches!(first.status.as_u16(), 201 | 503), "{first:?}");
        } else {
            assert_unavailable(&first);
            tokio::time::sleep(Duration::from_millis(100)).await;
            scene.server.restart().await;
        }
        assert_eq!(scene.send_until_final("k").await.text(), "transferred");
        assert!(scene.send("k").await.is_replay());
        assert_eq!(scene.ledger().await, ["k"]);
        assert_eq!(scene.runs.get(), 1);
    }
}
