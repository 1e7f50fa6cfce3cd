//! What happens to a record between the script that tells of it and the read of its answer.

use redis::Value;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Forgot, KeyStore, Ownership, Phase, Record, RedisStore, StoreErrorKind,
};

use super::assert_is;
use crate::tap::Tap;
use crate::{
    Place, RETENTION, acquire, complete, fresh_record, misuse_of, request, retry_of, sealing,
};

/// Every answer takes a read of its own, and comes in between.
struct Scene {
    place: Place<Tap>,
    tap: Tap,
    request: ClaimRequest,
    record: Record,
}

impl Scene {
    async fn new() -> Self {
        let (place, tap) = Place::tapped().await;
        let place = place.with(|store| store.inline_limit(0));
        let record = fresh_record();
        let request = place.completed(&record).await;
        Self {
            place,
            tap,
            request,
            record,
        }
    }

    /// Another handle of the store, for what happens in between.
    fn another(&self) -> RedisStore<redis::aio::MultiplexedConnection> {
        RedisStore::new(self.place.connection.clone()).key_prefix(&self.place.prefix)
    }

    /// Forgets the record before the next read, and then lets that happen.
    fn replace_by<F>(&self, act: impl FnOnce(RedisStore<redis::aio::MultiplexedConnection>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (forgetful, id) = (self.another(), self.request.id);
        let act = act(self.another());
        self.tap.before_next_get(async move {
            let forgot = forgetful.forget(&id).await;
            assert_eq!(forgot.unwrap(), Forgot::Forgotten);
            act.await;
        });
    }

    async fn claim(&self) -> Claimed {
        let claimed = self.place.store.claim(&retry_of(&self.request)).await;
        assert_eq!(self.tap.gets(), 1);
        claimed.unwrap()
    }

    async fn lookup(&self) -> Option<(u64, Phase)> {
        let seen = self.place.store.lookup(&self.request.id).await.unwrap();
        self.tap.gets();
        seen.map(|seen| (seen.attempt, seen.phase))
    }
}

#[tokio::test]
async fn a_record_that_was_forgotten_in_between_leaves_its_key_free() {
    let scene = Scene::new().await;
    scene.replace_by(|_| async {});
    assert_eq!(scene.lookup().await, None);

    let scene = Scene::new().await;
    scene.replace_by(|_| async {});
    let claimed = scene.claim().await;
    assert!(matches!(claimed, Claimed::Acquired(hold) if hold.attempt == 1));
}

#[tokio::test]
async fn a_record_whose_key_another_run_has_by_then_is_in_progress() {
    let scenes = [Scene::new().await, Scene::new().await];
    for scene in &scenes {
        let next = retry_of(&scene.request);
        scene.replace_by(|store| async move {
            acquire(&store, &next).await;
        });
    }
    let [one, other] = scenes;
    let claimed = one.claim().await;
    assert!(
        matches!(claimed, Claimed::InProgress { attempt: 1, .. }),
        "{claimed:?}"
    );
    let seen = other.lookup().await;
    assert!(matches!(seen, Some((1, Phase::Running { .. }))), "{seen:?}");
}

#[tokio::test]
async fn a_record_whose_key_another_request_has_by_then_is_a_mismatch() {
    for is_completed in [false, true] {
        let scene = Scene::new().await;
        let other = misuse_of(&scene.request);
        scene.replace_by(|store| async move {
            if is_completed {
                complete(&store, &other, &fresh_record()).await;
            } else {
                acquire(&store, &other).await;
            }
        });
        assert_eq!(scene.claim().await, Claimed::Mismatch);
    }
}

/// A lookup names no request: it shows what is there, and never a part of each.
#[tokio::test]
async fn a_lookup_shows_the_fingerprint_and_the_answer_of_one_and_the_same_request() {
    let scene = Scene::new().await;
    let (other, theirs) = (misuse_of(&scene.request), fresh_record());
    let (by, answer) = (other.clone(), theirs.clone());
    scene.replace_by(|store| async move {
        complete(&store, &by, &answer).await;
    });
    let seen = scene.place.store.lookup(&other.id).await.unwrap().unwrap();
    assert_eq!(seen.fingerprint, other.fingerprint);
    assert_eq!(seen.phase, Phase::Completed(theirs));
    assert_eq!(scene.tap.gets(), 1);
}

#[tokio::test]
async fn a_record_that_was_replaced_by_a_later_run_of_the_request_is_the_later_one() {
    for failed_before in [false, true] {
        let scene = Scene::new().await;
        let (next, later) = (retry_of(&scene.request), fresh_record());
        let answer = later.clone();
        scene.replace_by(|store| async move {
            if failed_before {
                let hold = acquire(&store, &retry_of(&next)).await;
                let failed = store.fail(&hold, false, RETENTION).await;
                assert_eq!(failed.unwrap(), Ownership::Held);
            }
            complete(&store, &next, &answer).await;
        });
        let attempt = if failed_before { 2 } else { 1 };
        assert_is(&scene.claim().await, attempt, &later);
    }
}

#[tokio::test]
async fn a_record_whose_key_has_failed_or_is_sealed_by_then_is_answered_so() {
    for seal in [false, true] {
        let scene = Scene::new().await;
        let next = retry_of(&scene.request);
        scene.replace_by(|store| async move {
            let hold = acquire(&store, &next).await;
            let failed = store.fail(&hold, seal, RETENTION).await;
            assert_eq!(failed.unwrap(), Ownership::Held);
        });
        match scene.claim().await {
            Claimed::Acquired(hold) if !seal => assert_eq!(hold.attempt, 2),
            Claimed::Abandoned { attempt: 1 } if seal => {}
            other => panic!("sealed: {seal}, answered {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_sealed_key_that_was_resolved_in_between_has_its_answer() {
    let scene = Scene::new().await;
    let (next, given) = (sealing(retry_of(&scene.request)), fresh_record());
    let answer = given.clone();
    scene.replace_by(|store| async move {
        let hold = acquire(&store, &next).await;
        store.fail(&hold, true, RETENTION).await.unwrap();
        assert!(store.resolve(&next.id, &answer, RETENTION).await.unwrap());
    });
    assert_is(&scene.claim().await, 1, &given);
}

#[tokio::test]
async fn what_is_no_record_by_then_is_corrupt() {
    for (command, value) in [("SET", "foreign"), ("RPUSH", "list")] {
        let scene = Scene::new().await;
        let key = scene.place.key(&scene.request.id);
        let mut connection = scene.place.connection.clone();
        scene.replace_by(|_| async move {
            let mut command = redis::cmd(command);
            command.arg(key).arg(value);
            command.query_async::<()>(&mut connection).await.unwrap();
        });
        let claimed = scene.place.store.claim(&retry_of(&scene.request)).await;
        assert_eq!(scene.tap.gets(), 1);
        let kind = claimed.unwrap_err().kind();
        assert_eq!(kind, StoreErrorKind::Corrupt, "{command} {value:?}");
    }
}

/// Where the driver reads from replicas, one may lag behind.
#[tokio::test]
async fn an_answer_that_a_replica_does_not_have_is_given_by_the_primary() {
    let scene = Scene::new().await;
    let as_it_ran = {
        let (other, _) = Place::tapped().await;
        other.acquire(&scene.request).await;
        other.raw(&scene.request.id).await.unwrap()
    };
    let of_another_request = {
        let other = scene.place.completed(&fresh_record()).await;
        scene.place.raw(&other.id).await.unwrap()
    };
    let of_an_earlier_run = {
        let (other, _) = Place::tapped().await;
        complete(&other.store, &retry_of(&scene.request), &fresh_record()).await;
        other.raw(&scene.request.id).await.unwrap()
    };
    let lagging = [
        Value::Nil,
        Value::BulkString(as_it_ran),
        Value::BulkString(of_another_request),
        Value::BulkString(of_an_earlier_run),
        Value::BulkString(b"no record".to_vec()),
        Value::BulkString(Vec::new()),
    ];
    scene.tap.gets();
    for value in lagging {
        scene.tap.answer_next_get(value.clone());
        assert_is(&scene.claim().await, 1, &scene.record);
        scene.tap.answer_next_get(value);
        let expected = Phase::Completed(scene.record.clone());
        assert_eq!(scene.lookup().await, Some((1, expected)));
    }
    // A replica that has it is as good as the primary.
    assert_is(&scene.claim().await, 1, &scene.record);
    let nothing = request();
    assert_eq!(scene.place.store.lookup(&nothing.id).await.unwrap(), None);
}
