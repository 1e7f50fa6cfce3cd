//! Clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::cluster_async::ClusterConnection;

use super::support::gates::until;
use super::support::redis::{RedisCluster, shared_cluster, unique_prefix};
use super::{increment, read};

#[tokio::test]
async fn each_of_three_masters_serves_a_third_of_the_slots() {
    let cluster = shared_cluster().await;
    let edges = [0, 5_460, 5_461, 10_921, 10_922, 16_383];
    let mut owners = Vec::new();
    for slot in edges {
        owners.push(cluster.owner_of(slot).await);
    }
    assert_eq!(owners, [0, 0, 1, 1, 2, 2]);
    let mut connection = cluster.connect().await;
    for number in 0..20 {
        let key = format!("{}{number}", unique_prefix());
        assert_eq!(increment(&mut connection, &key).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn clients_meet_ask_in_the_middle_of_a_move_and_moved_after_it() {
    let cluster = RedisCluster::start().await;
    let (old, new) = ("{tag}old", "{tag}new");
    let slot = cluster.slot_of("tag").await;
    let from = cluster.owner_of(slot).await;
    let to = (from + 1) % 3;
    let mut connection = cluster.connect().await;
    increment(&mut connection, old).await.unwrap();
    cluster.reset_stats().await;

    cluster.begin_move(from, to, slot).await;
    assert_eq!(increment(&mut connection, old).await.unwrap(), 2);
    assert_eq!(increment(&mut connection, new).await.unwrap(), 1);
    assert_eq!(cluster.error_stats().await, [("ASK".to_owned(), 1)].into());
    cluster.move_keys(from, to, slot).await;
    assert_eq!(increment(&mut connection, old).await.unwrap(), 3);
    assert_eq!(cluster.error_stats().await, [("ASK".to_owned(), 2)].into());
    assert_eq!(cluster.owner_of(slot).await, from);

    cluster.end_move(from, to, slot).await;
    assert_eq!(cluster.owner_of(slot).await, to);
    cluster.reset_stats().await;
    assert_eq!(increment(&mut connection, old).await.unwrap(), 4);
    let errors = cluster.error_stats().await;
    assert_eq!(errors, [("MOVED".to_owned(), 1)].into());
    assert_eq!(cluster.command_stats().await["incr"], 1);
}

#[tokio::test]
async fn every_counter_survives_while_its_slot_moves() {
    let cluster = shared_cluster().await;
    let connection = cluster.connect().await;
    let first = cluster.slot_of("0").await;
    let writers: Vec<_> = (0..4)
        .map(|number| Writer::start(connection.clone(), format!("{{0}}{number}")))
        .collect();
    let mut from = cluster.owner_of(first).await;
    for _ in 0..6 {
        let before: Vec<_> = writers.iter().map(Writer::count).collect();
        let to = (from + 1) % 3;
        cluster.move_slots(from, to, first..=first).await;
        until("all writers go on", || {
            let mut pairs = writers.iter().zip(&before);
            pairs.all(|(writer, before)| writer.count() > *before)
        })
        .await;
        assert_eq!(cluster.owner_of(first).await, to);
        from = to;
    }
    let mut connection = cluster.connect().await;
    for writer in writers {
        let key = writer.key.clone();
        let count = writer.finish().await;
        assert_eq!(read(&mut connection, &key).await, Some(count));
    }
    assert!(cluster.error_stats().await["MOVED"] >= 1);
}

#[tokio::test]
async fn many_slots_move_with_their_keys() {
    let cluster = shared_cluster().await;
    let mut connection = cluster.connect().await;
    let keys: Vec<_> = (0..200).map(|number| format!("key {number}")).collect();
    for key in &keys {
        increment(&mut connection, key).await.unwrap();
    }
    cluster.move_slots(0, 2, 1..=999).await;
    for (slot, owner) in [(0, 0), (1, 2), (999, 2), (1_000, 0)] {
        assert_eq!(cluster.owner_of(slot).await, owner, "slot {slot}");
    }
    cluster.until_ready().await;
    for key in &keys {
        assert_eq!(read(&mut connection, key).await, Some(1), "{key}");
    }
}

/// Increments one counter as often as it can, and insists on the next number each time.
struct Writer {
    key: String,
    count: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(mut connection: ClusterConnection, key: String) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (key, count, stopped) = (key.clone(), count.clone(), stopped.clone());
            async move {
                while !stopped.load(Ordering::SeqCst) {
                    let number = increment(&mut connection, &key).await.unwrap();
                    assert_eq!(count.fetch_add(1, Ordering::SeqCst) + 1, number, "{key}");
                }
            }
        });
        Self {
            key,
            count,
            stopped,
            task,
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    async fn finish(self) -> u64 {
        self.stopped.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        self.count.load(Ordering::SeqCst)
    }
}
