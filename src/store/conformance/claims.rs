//! Clauses 1 to 5: what a claim is answered.

use std::collections::HashMap;

use super::check::{
    Answer, Check, KEPT, LONG, SHORT, fresh_record, misuse_of, request, retry_of, short_is_over,
};
use super::race::{Call, Start, race};
use super::scene::State;
use super::sighting::{Shape, timed};
use crate::store::{ClaimRequest, Claimed, Completion, KeyStore, Lapse, Ownership};

/// How many claims run against each other.
const RACERS: usize = 8;
/// How often they do, for each state that the key may be in.
const ROUNDS: usize = 8;

/// Clause 1: a claim is one atomic step.
///
/// `a` and `b` are two handles of one storage: two pools, or two nodes. Where a store has
/// one handle only, it is given twice.
pub async fn clause_01_claim_is_atomic<K: KeyStore>(a: &K, b: &K) {
    let nodes = [Check::new("clause 1", a), Check::new("clause 1", b)];
    let [check, _] = &nodes;

    // Whether two claims meet is a matter of luck. The plain case is the one that happens
    // most, so it is tried most.
    for _ in 0..4 * ROUNDS {
        let first = request();
        let claims = (0..RACERS).map(|_| retry_of(&first)).collect();
        one_wins(&nodes, "a free key", claims, 1).await;
    }
    for _ in 0..ROUNDS {
        let sent_twice = |claim: ClaimRequest| [claim.clone(), claim];
        let first = request();
        let claims = (0..RACERS / 2).flat_map(|_| sent_twice(retry_of(&first)));
        one_wins(&nodes, "a free key, each sent twice", claims.collect(), 1).await;

        let first = request();
        let requests = (0..RACERS / 2).map(|_| misuse_of(&first));
        let claims = requests.flat_map(|request| [retry_of(&request), request]);
        let what = "a free key for different requests";
        one_wins(&nodes, what, claims.collect(), 1).await;
    }

    let states = [State::Failed, State::Lapsed].map(|state| [state; ROUNDS]);
    for scene in check.scenes(states.into_iter().flatten()).await {
        let claims = (0..RACERS).map(|_| retry_of(&scene.request)).collect();
        one_wins(&nodes, &scene.state.to_string(), claims, 2).await;
    }
    for scene in check.expired_scenes([State::Completed; ROUNDS]).await {
        let claims = (0..RACERS).map(|_| retry_of(&scene.request)).collect();
        one_wins(&nodes, "a completed record that has expired", claims, 1).await;
    }
}

/// Runs claims of one key against each other, on both nodes in turn. One owner must win.
async fn one_wins<K: KeyStore>(
    nodes: &[Check<'_, K>; 2],
    what: &str,
    claims: Vec<ClaimRequest>,
    attempt: u64,
) {
    let [check, _] = nodes;
    let calls = claims.iter().zip(nodes.iter().cycle());
    let calls = calls.map(|(claim, node)| Box::pin(node.claim(claim)) as Call<'_, _>);
    let answers = race(Start::AtOnce, calls).await;

    let acquired = claims.iter().zip(&answers).filter_map(|(claim, answer)| {
        let won = matches!(answer, Claimed::Acquired(_));
        won.then_some((claim.owner, claim))
    });
    let winners: HashMap<_, _> = acquired.collect();
    let [winner] = winners.values().collect::<Vec<_>>()[..] else {
        check.broken(format_args!(
            "of {} claims at once of {what} those of one owner must be acquired, but the answers \
             were {:?}",
            claims.len(),
            answers.iter().map(Answer::from).collect::<Vec<_>>(),
        ));
    };

    for (claim, came) in claims.iter().zip(&answers) {
        let expected = if claim.owner == winner.owner {
            Answer::Acquired(attempt)
        } else if claim.fingerprint == winner.fingerprint {
            Answer::InProgress(attempt)
        } else {
            Answer::Mismatch
        };
        let what = format!("each of the claims at once of {what}");
        check.is_answered(what, claim, came, expected);
    }
    for node in nodes {
        let shape = Shape::Running(attempt);
        node.shows("a race of claims", winner, shape).await;
    }
    // What was acquired is what is stored; and the record does not stay behind for long.
    let hold = winner.hold(attempt);
    let completed = check.complete(&hold, &fresh_record(), SHORT).await;
    let what = format!("`complete` by the winner of a race for {what}");
    check.answers(what, completed, Completion::Stored);
}

/// Clause 2: when a key is free to claim, and when it is not.
pub async fn clause_02_free_to_claim<K: KeyStore>(store: &K) {
    let check = Check::new("clause 2", store);

    let first = request();
    let hold = check.acquires("a claim without a record", &first, 1).await;
    let released = check.release(&hold).await;
    check.answers("`release` by the owner", released, Ownership::Held);
    let what = "a claim of another request after `release`";
    check.acquires(what, &misuse_of(&first), 1).await;

    for scene in check.scenes(State::ALL).await {
        let expected = match scene.state {
            State::Running => Answer::InProgress(1),
            State::Lapsed | State::Failed => Answer::Acquired(2),
            State::LapsedSeal | State::Sealed => Answer::Abandoned(1),
            State::Completed => Answer::Completed(1, &scene.record),
        };
        let what = format!("a claim by another owner over {}", scene.state);
        let retry = retry_of(&scene.request);
        check.claims(what, &retry, expected).await;
    }

    for scene in check.scenes(State::ALL).await {
        let expected = match scene.state {
            State::Running | State::Lapsed | State::LapsedSeal => Answer::Acquired(1),
            State::Failed => Answer::Acquired(2),
            State::Sealed => Answer::Abandoned(1),
            State::Completed => Answer::Completed(1, &scene.record),
        };
        let what = format!("a claim by the same owner over {}", scene.state);
        check.claims(what, &scene.request, expected).await;
    }

    for scene in check.expired_scenes(State::ALL).await {
        let what = format!("a claim after the end of {}", scene.state);
        let retry = retry_of(&scene.request);
        check.claims(what, &retry, Answer::Acquired(1)).await;
    }
}

/// Clause 3: another request under a key is a mismatch until retention ends.
pub async fn clause_03_another_request_is_a_mismatch<K: KeyStore>(store: &K) {
    let check = Check::new("clause 3", store);
    for scene in check.scenes(State::ALL).await {
        let before = check.see(&scene.request).await;
        let by_another = misuse_of(&scene.request);
        let by_the_same = ClaimRequest {
            owner: scene.request.owner,
            ..by_another.clone()
        };
        let who = [
            (&by_another, "another owner"),
            (&by_the_same, "the same owner"),
        ];
        for (claim, who) in who {
            let what = format!("a claim of another request by {who} over {}", scene.state);
            check.claims(what.clone(), claim, Answer::Mismatch).await;
            check.unchanged(what, &scene.request, &before).await;
        }
    }

    for scene in check.expired_scenes(State::ALL).await {
        let state = scene.state;
        let what = format!("a claim of another request after the end of {state}");
        check.acquires(what, &misuse_of(&scene.request), 1).await;
    }
}

/// Clause 4: how attempts are counted, and that a claim sent again is the same claim.
pub async fn clause_04_attempts_are_counted<K: KeyStore>(store: &K) {
    let check = Check::new("clause 4", store);
    claims_sent_again(&check).await;

    // A run that failed counts, also for a next run of the same owner.
    let first = check.failed().await;
    let what = "a claim by the owner of a failed run";
    check.acquires(what, &first, 2).await;

    // A run that was taken over counts, and so does every later one.
    let mut retry = ClaimRequest {
        lease: SHORT,
        ..request()
    };
    check.acquires("a claim of a free key", &retry, 1).await;
    for attempt in [2, 4] {
        short_is_over().await;
        retry = retry_of(&retry);
        let what = format!("the take-over of attempt {}", attempt - 1);
        let hold = check.acquires(what.clone(), &retry, attempt).await;
        check.shows(what, &retry, Shape::Running(attempt)).await;
        let failed = check.fail(&hold, false, KEPT).await;
        check.answers("`fail` by the owner", failed, Ownership::Held);

        retry = ClaimRequest {
            lease: SHORT,
            ..retry_of(&retry)
        };
        let what = format!("a claim after attempt {attempt} failed");
        check.acquires(what, &retry, attempt + 1).await;
    }
    let record = fresh_record();
    let completed = check.complete(&retry.hold(5), &record, KEPT).await;
    check.answers("`complete` at attempt 5", completed, Completion::Stored);
    let what = "a claim over a record completed at attempt 5";
    let expected = Answer::Completed(5, &record);
    check.claims(what, &retry_of(&retry), expected).await;
}

async fn claims_sent_again<K: KeyStore>(check: &Check<'_, K>) {
    let failed = check.failed().await;
    for (claim, attempt) in [(request(), 1), (retry_of(&failed), 2)] {
        let soon_over = ClaimRequest {
            lease: SHORT,
            ..claim.clone()
        };
        check.acquires("a first claim", &soon_over, attempt).await;
        let what = "a claim that is sent again with a longer lease";
        let (_, renewed) = timed(check.acquires(what, &claim, attempt)).await;
        short_is_over().await;
        let seen = check.shows(what, &claim, Shape::Running(attempt)).await;
        check.leaves("the lease after it", (LONG, renewed), seen.lease);
        let retention = (LONG + KEPT, renewed);
        check.leaves("the retention after it", retention, seen.retention);
    }

    // Nobody has taken over: it is the same claim also once its lease has ended.
    for scene in check.scenes([State::Lapsed, State::LapsedSeal]).await {
        let claim = ClaimRequest {
            lease: LONG,
            ..scene.request
        };
        let what = format!("a claim that is sent again over {}", scene.state);
        check.acquires(what.clone(), &claim, 1).await;
        check.shows(what, &claim, Shape::Running(1)).await;
    }
}

/// Clause 5: a sealed key is nobody's. One that was sealed by the end of a lease may still
/// get the answer of its run.
pub async fn clause_05_sealed_keys_stay_sealed<K: KeyStore>(store: &K) {
    let check = Check::new("clause 5", store);

    for scene in check.scenes([State::Sealed, State::LapsedSeal]).await {
        let state = scene.state.to_string();
        let before = check.shows(&state, &scene.request, Shape::Sealed(1)).await;
        for lapse in [Lapse::TakeOver, Lapse::Seal] {
            let retry = ClaimRequest {
                lapse,
                ..retry_of(&scene.request)
            };
            let what = format!("a claim with `Lapse::{lapse:?}` over {state}");
            let expected = Answer::Abandoned(1);
            check.claims(what.clone(), &retry, expected).await;
            check.unchanged(what, &scene.request, &before).await;
        }

        let own = check.complete(&scene.hold, &scene.record, KEPT).await;
        let what = format!("`complete` by the owner of {state}");
        let (completion, expected) = match scene.state {
            State::Sealed => (Completion::NotOwner, Answer::Abandoned(1)),
            _ => (Completion::Stored, Answer::Completed(1, &scene.record)),
        };
        check.answers(what.clone(), own, completion);
        let what = format!("a claim after {what}");
        check
            .claims(what, &retry_of(&scene.request), expected)
            .await;
    }

    let (second, hold) = check.second_attempt().await;
    let failed = check.fail(&hold, true, KEPT).await;
    check.answers("`fail` by the owner", failed, Ownership::Held);
    let what = "a claim over a key that was sealed at attempt 2";
    let expected = Answer::Abandoned(2);
    check.claims(what, &retry_of(&second), expected).await;

    // A lease under `Lapse::Seal` seals nothing before it has ended.
    let live = ClaimRequest {
        lapse: Lapse::Seal,
        ..request()
    };
    let what = "a claim of a free key with `Lapse::Seal`";
    check.acquires(what, &live, 1).await;
    check.shows(what, &live, Shape::Running(1)).await;
    let what = "a claim over a running record under `Lapse::Seal`";
    let expected = Answer::InProgress(1);
    check.claims(what, &retry_of(&live), expected).await;

    the_stored_lapse_decides(&check).await;
}

/// What may happen once a lease has ended was stored with its claim, and a renewal does
/// not change it. What a challenger asks for is for its own lease.
async fn the_stored_lapse_decides<K: KeyStore>(check: &Check<'_, K>) {
    let renewed = ClaimRequest {
        lease: SHORT,
        lapse: Lapse::Seal,
        ..request()
    };
    let what = "a claim of a free key with `Lapse::Seal`";
    let hold = check.acquires(what, &renewed, 1).await;
    let extended = check.extend(&hold, SHORT, KEPT).await;
    check.answers("`extend` by the owner", extended, Ownership::Held);

    for scene in check.scenes([State::Lapsed]).await {
        let challenger = ClaimRequest {
            lease: SHORT,
            lapse: Lapse::Seal,
            ..retry_of(&scene.request)
        };
        let what = "a claim with `Lapse::Seal` over a lease that ended under `Lapse::TakeOver`";
        check.acquires(what, &challenger, 2).await;
        short_is_over().await;
        let what = "a claim over a take-over whose lease ended under `Lapse::Seal`";
        let expected = Answer::Abandoned(2);
        check.claims(what, &retry_of(&challenger), expected).await;
    }

    let what = "a claim over a lease that was renewed and ended under `Lapse::Seal`";
    let expected = Answer::Abandoned(1);
    check.claims(what, &retry_of(&renewed), expected).await;
}
