//! Clause 13: what operators and purges may remove; and the wait for a change.

use std::future::poll_fn;
use std::iter;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::check::{Answer, Check, KEPT, LONG, SHORT, fresh_record, misuse_of, request, retry_of};
use super::race::{Call, Start, race};
use super::runs::Act;
use super::scene::State;
use super::sighting::{Shape, timed};
use crate::store::{Completion, Forgot, KeyStore};

/// How many records a purge is told to remove at most.
const BATCH: usize = 2;
/// A waiter that is not woken within this was forgotten. The provided body of `changed`
/// looks again after 250 ms at most.
const WAKES_WITHIN: Duration = Duration::from_secs(10);

/// Clause 13: an expired record is gone without a purge, and a purge takes expired ones
/// alone; what `forget` and `resolve` act on.
pub async fn clause_13_purge_forget_and_resolve<K: KeyStore>(store: &K) {
    let check = Check::new("clause 13", store);
    purges_take_the_dead(&check).await;
    purges_spare_the_revived(&check).await;
    forget_refuses_a_live_run(&check).await;
    resolve_acts_on_sealed_keys(&check).await;
}

async fn purges_take_the_dead<K: KeyStore>(check: &Check<'_, K>) {
    let lasting = check.scenes(State::ALL).await;
    let dead = check.expired_scenes(State::ALL).await;
    // Half of them are claimed with no purge before it, and half of them are left to it.
    for scene in dead.iter().step_by(2) {
        let what = format!("a claim after the end of {}", scene.state);
        let other = misuse_of(&scene.request);
        check.acquires(what, &other, 1).await;
    }

    let mut before = Vec::new();
    for scene in &lasting {
        before.push(check.see(&scene.request).await);
    }
    let purged = check.purge_expired(0).await;
    check.answers("`purge_expired(0)`", purged, 0);
    // Others may fill a shared store with dead records meanwhile: it need not end.
    for _ in 0..64 {
        let purges = (0..4).map(|_| Box::pin(check.purge_expired(BATCH)) as Call<'_, usize>);
        let purged = race(Start::AtOnce, purges).await;
        for &purged in &purged {
            check.holds(
                format_args!("`purge_expired({BATCH})` must not remove more, but says {purged}"),
                purged <= BATCH,
            );
        }
        if purged.iter().all(|&purged| purged == 0) {
            break;
        }
    }
    for (scene, before) in lasting.iter().zip(&before) {
        let what = format!("`purge_expired` over {}", scene.state);
        check.unchanged(what, &scene.request, before).await;
    }
}

/// A record that is claimed between a purge's look and its removal is alive again.
async fn purges_spare_the_revived<K: KeyStore>(check: &Check<'_, K>) {
    for start in Start::ALL {
        let dead = check.expired_scenes([State::Completed; 8]).await;
        let claims: Vec<_> = dead.iter().map(|scene| retry_of(&scene.request)).collect();
        let purge: Call<'_, _> = Box::pin(async {
            check.purge_expired(1024).await;
            None
        });
        let calls = claims.iter().map(|claim| {
            Box::pin(async move { Some((claim, check.claim(claim).await)) }) as Call<'_, _>
        });
        let answers = race(start, iter::once(purge).chain(calls)).await;
        for (claim, came) in answers.into_iter().flatten() {
            let what = "a claim of an expired record at the moment of `purge_expired`";
            check.is_answered(what, claim, &came, Answer::Acquired(1));
            check.shows(what, claim, Shape::Running(1)).await;
            let completed = check.complete(&claim.hold(1), &fresh_record(), SHORT).await;
            check.answers("`complete` after it", completed, Completion::Stored);
        }
    }
}

async fn forget_refuses_a_live_run<K: KeyStore>(check: &Check<'_, K>) {
    for scene in check.scenes(State::ALL).await {
        let (id, state) = (&scene.request.id, scene.state);
        let before = check.see(&scene.request).await;
        let forgot = check.forget(id).await;
        let what = format!("`forget` of {state}");
        if state == State::Running {
            check.answers(&what, forgot, Forgot::Live);
            check.unchanged(what, &scene.request, &before).await;
            continue;
        }
        check.answers(&what, forgot, Forgot::Forgotten);
        check.shows(&what, &scene.request, Shape::Absent).await;
        let forgot = check.forget(id).await;
        check.answers(format!("a second {what}"), forgot, Forgot::Absent);
        let what = format!("a claim of another request after {what}");
        let other = misuse_of(&scene.request);
        check.acquires(what, &other, 1).await;
    }

    let nothing = request();
    let forgot = check.forget(&nothing.id).await;
    check.answers("`forget` without a record", forgot, Forgot::Absent);
}

async fn resolve_acts_on_sealed_keys<K: KeyStore>(check: &Check<'_, K>) {
    for scene in check.scenes(State::ALL).await {
        let (id, state) = (&scene.request.id, scene.state);
        let before = check.see(&scene.request).await;
        let record = fresh_record();
        let (resolved, given) = timed(check.resolve(id, &record, KEPT)).await;
        let what = format!("`resolve` of {state}");
        if !matches!(state, State::Sealed | State::LapsedSeal) {
            check.answers(&what, resolved, false);
            check.unchanged(what, &scene.request, &before).await;
            continue;
        }
        check.answers(&what, resolved, true);
        let shape = Shape::Completed(1, record.clone());
        let seen = check.shows(&what, &scene.request, shape).await;
        let retention = format!("the retention left after {what}");
        check.leaves(retention, (KEPT, given), seen.retention);
        let retry = retry_of(&scene.request);
        let claim = format!("a claim after {what}");
        let expected = Answer::Completed(1, &record);
        check.claims(claim, &retry, expected).await;
    }

    let nothing = request();
    let resolved = check.resolve(&nothing.id, &fresh_record(), KEPT).await;
    check.answers("`resolve` without a record", resolved, false);
    let what = "`resolve` without a record";
    check.shows(what, &nothing, Shape::Absent).await;
}

/// The wait for a change, which is no numbered clause: `changed` returns once the record
/// has changed after it was first polled, and after its time in any case.
pub async fn changed_wakes_waiters<K: KeyStore>(store: &K) {
    let check = Check::new("changed", store);
    let untouched = check.lasting(State::Running).await;
    let waiting = store.changed(&untouched.request.id, SHORT);
    let woke = timeout(WAKES_WITHIN, waiting).await.is_ok();
    let what = "`changed` must return after its time, also where nothing changes";
    check.holds(what, woke);

    for act in [Act::Complete, Act::Fail, Act::Seal, Act::Release] {
        let run = check.lasting(State::Running).await;
        let mut waiting = pin!(store.changed(&run.request.id, LONG));
        let early = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_ready()));
        if early.await {
            continue;
        }
        check
            .acts(act, "the owner", &run.hold, &run.request, 1)
            .await;
        let woke = timeout(WAKES_WITHIN, waiting).await.is_ok();
        check.holds(
            format_args!("`changed` must return within {WAKES_WITHIN:?} after {act}"),
            woke,
        );
    }
}
