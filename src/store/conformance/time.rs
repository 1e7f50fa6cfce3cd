//! Clauses 9 and 10: how long a record is kept, and by whose clock.

use super::check::{
    Answer, Check, KEPT, KEPT_LONGER, LONG, SHORT, fresh_record, request, retry_of, short_is_over,
};
use super::runs::Act;
use super::scene::State;
use super::sighting::{Left, Shape, timed};
use crate::store::{ClaimRequest, Claimed, Completion, Forgot, KeyStore, Ownership};

/// Clause 9: what retention counts from, and that what has expired is gone.
pub async fn clause_09_retention_ends<K: KeyStore>(store: &K) {
    let check = Check::new("clause 9", store);
    ended_runs_are_kept_from_their_end(&check).await;
    running_records_outlive_their_lease(&check).await;
    expired_is_absent(&check).await;
}

/// Not from the claim, whether the record would have lasted longer by it or not as long.
async fn ended_runs_are_kept_from_their_end<K: KeyStore>(check: &Check<'_, K>) {
    let ends = [Act::Complete, Act::Fail, Act::Seal];
    let ends = ends
        .into_iter()
        .flat_map(|end| [(end, LONG), (end, KEPT_LONGER)]);
    let scenes = check.scenes(ends.clone().map(|_| State::Running));
    for ((end, retention), scene) in ends.zip(scenes.await) {
        let record = fresh_record();
        let (acted, given) = timed(check.act(end, &scene.hold, &record, retention)).await;
        check.holds(format_args!("{end} by the owner must act"), acted);
        let seen = check.see(&scene.request).await;
        let what = format!("the retention left after {end}");
        check.leaves(what, (retention, given), seen.retention);
    }

    let sealed = check.lasting(State::Sealed).await;
    let id = &sealed.request.id;
    let (resolved, given) = timed(check.resolve(id, &sealed.record, KEPT_LONGER)).await;
    check.answers("`resolve` of a sealed key", resolved, true);
    let seen = check.see(&sealed.request).await;
    let what = "the retention left after `resolve`";
    check.leaves(what, (KEPT_LONGER, given), seen.retention);
}

async fn running_records_outlive_their_lease<K: KeyStore>(check: &Check<'_, K>) {
    // A lease and a retention that are claimed, and those of a renewal.
    let cases = [
        ((SHORT, KEPT), None),
        ((LONG, SHORT), None),
        ((LONG, SHORT), Some((LONG, SHORT))),
        ((LONG, SHORT), Some((LONG, KEPT))),
        ((SHORT, KEPT), Some((LONG, KEPT))),
        ((LONG, KEPT_LONGER), Some((LONG, SHORT))),
    ];
    let mut runs = Vec::new();
    for ((lease, retention), renewal) in cases {
        let claim = ClaimRequest {
            lease,
            retention,
            ..request()
        };
        let what = "a claim of a free key";
        let (hold, claimed) = timed(check.acquires(what, &claim, 1)).await;
        runs.push((claim, hold, claimed, renewal));
    }
    short_is_over().await;

    let mut lasting = Vec::new();
    for (claim, hold, claimed, renewal) in runs {
        let mut what = format!(
            "a claim with a lease of {:?} and a retention of {:?}",
            claim.lease, claim.retention
        );
        let mut lease = (claim.lease, claimed);
        let mut retention = (claim.lease + claim.retention, claimed);
        if let Some((by, kept)) = renewal {
            let (extended, given) = timed(check.extend(&hold, by, kept)).await;
            what = format!("{what}, extended by {by:?} and {kept:?},");
            check.answers(&what, extended, Ownership::Held);
            lease = (by, given);
            // A renewal never brings the end of the record nearer.
            if by + kept >= retention.0 {
                retention = (by + kept, given);
            }
        }
        lasting.push((claim, what, lease, retention));
    }
    short_is_over().await;

    for (claim, what, lease, retention) in lasting {
        let has_lapsed = lease.0 == SHORT;
        let shape = if has_lapsed {
            Shape::Lapsed(1)
        } else {
            Shape::Running(1)
        };
        let seen = check.shows(&what, &claim, shape).await;
        if !has_lapsed {
            let what = format!("the lease left after {what}");
            check.leaves(what, lease, seen.lease);
        }
        let what = format!("the retention left after {what}");
        check.leaves(what, retention, seen.retention);
    }
}

async fn expired_is_absent<K: KeyStore>(check: &Check<'_, K>) {
    let sealed = check.lasting(State::Sealed).await;
    let id = &sealed.request.id;
    let resolved = check.resolve(id, &fresh_record(), SHORT).await;
    check.answers("`resolve` of a sealed key", resolved, true);

    let lost = request();
    let restored = check.complete(&lost.hold(2), &fresh_record(), SHORT).await;
    let what = "`complete` of a record that was never there";
    check.answers(what, restored, Completion::Restored);

    // Claims first, on records that nothing else has looked at.
    let states = State::ALL.into_iter().cycle().take(2 * State::ALL.len());
    let mut scenes = check.expired_scenes(states).await;
    for scene in scenes.split_off(State::ALL.len()) {
        let what = format!("a claim after the end of {}", scene.state);
        let retry = retry_of(&scene.request);
        check.acquires(&what, &retry, 1).await;
        check.shows(what, &retry, Shape::Running(1)).await;
    }

    let mut ended = vec![
        ("a record that was resolved".to_owned(), sealed.request),
        ("a record that was restored".to_owned(), lost),
    ];
    for scene in scenes {
        ended.push((scene.state.to_string(), scene.request));
    }
    for (what, request) in ended {
        let what = format!("the end of {what}");
        check.shows(&what, &request, Shape::Absent).await;
        for act in [Act::Extend, Act::Fail, Act::Seal, Act::Release] {
            let who = format!("the owner after {what}");
            let hold = request.hold(2);
            check.is_refused(act, &who, &hold, &request).await;
        }
        let forgot = check.forget(&request.id).await;
        check.answers(format!("`forget` after {what}"), forgot, Forgot::Absent);
        let resolved = check.resolve(&request.id, &fresh_record(), KEPT).await;
        check.answers(format!("`resolve` after {what}"), resolved, false);
        check.shows(&what, &request, Shape::Absent).await;

        let retry = retry_of(&request);
        check
            .acquires(format!("a claim after {what}"), &retry, 1)
            .await;
        check.shows("a claim", &retry, Shape::Running(1)).await;
    }
}

/// Clause 10: one clock compares, and it is the store's.
///
/// `a` and `b` are two handles of one storage: two pools, or two nodes. A store that asks
/// the clock of its caller is found out where the two are nodes whose clocks differ.
pub async fn clause_10_one_clock_compares<K: KeyStore>(a: &K, b: &K) {
    for (here, there) in [(a, b), (b, a)] {
        let here = Check::new("clause 10", here);
        let there = Check::new("clause 10", there);
        durations_are_seen_alike(&here, &there).await;
        ends_are_seen_alike(&here, &there).await;
    }
}

async fn durations_are_seen_alike<K: KeyStore>(here: &Check<'_, K>, there: &Check<'_, K>) {
    let run = request();
    let claimed = here.acquires("a claim of a free key", &run, 1);
    let (hold, given) = timed(claimed).await;
    let what = "a claim through another handle";
    let seen = there.shows(what, &run, Shape::Running(1)).await;
    let what = "the lease left of a run, through another handle,";
    there.leaves(what, (LONG, given), seen.lease);
    let what = "the retention left of a run, through another handle,";
    there.leaves(what, (LONG + KEPT, given), seen.retention);

    let retry = retry_of(&run);
    let (came, at) = timed(there.claim(&retry)).await;
    let Claimed::InProgress { lease_left, .. } = came else {
        there.broken(format_args!(
            "a claim through another handle over a run whose lease lasts must be in progress, \
             but answered {came:?}"
        ));
    };
    let what = "the lease left that a claim through another handle answers";
    let left = Left {
        left: lease_left,
        at,
    };
    there.leaves(what, (LONG, given), left);

    let record = fresh_record();
    let (completed, given) = timed(there.complete(&hold, &record, KEPT)).await;
    let what = "`complete` by the owner, through another handle";
    there.answers(what, completed, Completion::Stored);
    let seen = here.see(&run).await;
    let what = "the retention left of a record, through another handle,";
    here.leaves(what, (KEPT, given), seen.retention);
}

async fn ends_are_seen_alike<K: KeyStore>(here: &Check<'_, K>, there: &Check<'_, K>) {
    let run = ClaimRequest {
        lease: SHORT,
        ..request()
    };
    let hold = here.acquires("a claim of a free key", &run, 1).await;
    short_is_over().await;
    let successor = retry_of(&run);
    let what = "a take-over through another handle";
    let next = there.acquires(what, &successor, 2).await;
    let late = here.complete(&hold, &fresh_record(), KEPT).await;
    let what = "`complete` by an owner that was taken over through another handle";
    here.answers(what, late, Completion::NotOwner);

    let completed = there.complete(&next, &fresh_record(), SHORT).await;
    there.answers("`complete` by the owner", completed, Completion::Stored);
    short_is_over().await;
    let what = "the end of a retention that was given through another handle";
    here.shows(what, &run, Shape::Absent).await;
    here.claims(what, &retry_of(&run), Answer::Acquired(1))
        .await;
}
