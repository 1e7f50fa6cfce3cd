//! Clause 7: how an answer gets into the store.

use super::check::{
    Answer, Check, KEPT, KEPT_LONGER, LONG, fresh_record, misuse_of, request, retry_of,
};
use super::race::{Call, Start, race, race_two};
use super::scene::State;
use super::sighting::{Shape, timed};
use crate::store::{ClaimRequest, Claimed, Completion, Forgot, Hold, KeyStore, Ownership, Record};

/// Clause 7: `complete` may be repeated, and puts a lost record back.
pub async fn clause_07_completing_is_idempotent<K: KeyStore>(store: &K) {
    let check = Check::new("clause 7", store);
    the_first_record_stands(&check).await;
    lost_records_are_restored(&check).await;
    completions_race(&check).await;
}

async fn the_first_record_stands<K: KeyStore>(check: &Check<'_, K>) {
    let (second, hold) = check.second_attempt().await;
    let record = fresh_record();
    let completed = check.complete(&hold, &record, KEPT).await;
    check.answers("`complete` by the owner", completed, Completion::Stored);
    let shape = Shape::Completed(2, record.clone());
    let before = check.shows("`complete`", &second, shape).await;

    let other = fresh_record();
    let repeats = [
        ("its record", &record, KEPT, 2),
        ("its record for longer", &record, KEPT_LONGER, 2),
        ("another record for longer", &other, KEPT_LONGER, 2),
        ("another record for shorter", &other, LONG, 2),
        ("another record and a hold of attempt 1", &other, KEPT, 1),
    ];
    for (with, record, retention, attempt) in repeats {
        let hold = second.hold(attempt);
        let repeated = check.complete(&hold, record, retention).await;
        let what = format!("`complete` repeated by its owner with {with}");
        check.answers(&what, repeated, Completion::Stored);
        check.unchanged(&what, &second, &before).await;
    }
}

/// The store may have lost the record to a fail-over or to an operator: the answer is
/// known, and nobody else holds the key.
async fn lost_records_are_restored<K: KeyStore>(check: &Check<'_, K>) {
    let never_there = request();
    check
        .is_restored("a record that was never there", &never_there.hold(3))
        .await;

    let released = request();
    let hold = check.acquires("a claim of a free key", &released, 1).await;
    let release = check.release(&hold).await;
    check.answers("`release` by the owner", release, Ownership::Held);
    check.is_restored("a record that was released", &hold).await;

    let forgotten = [State::Lapsed, State::LapsedSeal, State::Completed];
    for scene in check.scenes(forgotten).await {
        let forgot = check.forget(&scene.request.id).await;
        let what = format!("`forget` of {}", scene.state);
        check.answers(what, forgot, Forgot::Forgotten);
        let what = format!("{} that was forgotten", scene.state);
        check.is_restored(&what, &scene.hold).await;
    }
    for scene in check.expired_scenes(State::ALL).await {
        let what = format!("{} that has expired", scene.state);
        check.is_restored(&what, &scene.hold).await;
    }
}

impl<K: KeyStore> Check<'_, K> {
    /// Of the lost record nothing is left but the hold.
    async fn is_restored(&self, what: &str, hold: &Hold) {
        let request = ClaimRequest {
            id: hold.id,
            fingerprint: hold.fingerprint,
            owner: hold.owner,
            ..request()
        };
        let record = fresh_record();
        let (restored, at) = timed(self.complete(hold, &record, KEPT)).await;
        let what = format!("`complete` of {what}");
        self.answers(&what, restored, Completion::Restored);
        let shape = Shape::Completed(hold.attempt, record.clone());
        let seen = self.shows(&what, &request, shape).await;
        let retention = format!("the retention left after {what}");
        self.leaves(retention, (KEPT, at), seen.retention);

        let repeated = self.complete(hold, &fresh_record(), KEPT_LONGER).await;
        let again = format!("a repeated {what}");
        self.answers(&again, repeated, Completion::Stored);
        let retry = retry_of(&request);
        let refused = self.complete(&retry.hold(1), &fresh_record(), KEPT).await;
        let other = format!("`complete` by another owner after {what}");
        self.answers(&other, refused, Completion::NotOwner);
        self.unchanged(other, &request, &seen).await;

        let expected = Answer::Completed(hold.attempt, &record);
        let claim = format!("a claim after {what}");
        self.claims(claim, &retry, expected).await;
        let claim = format!("a claim of another request after {what}");
        let misuse = misuse_of(&request);
        self.claims(claim, &misuse, Answer::Mismatch).await;
    }
}

/// One completion is the first, and a lost record goes to its owner or to a new claim.
async fn completions_race<K: KeyStore>(check: &Check<'_, K>) {
    for start in Start::ALL.into_iter().cycle().take(9) {
        let first = request();
        let hold = check.acquires("a claim of a free key", &first, 1).await;
        let records: Vec<_> = (0..4).map(|_| fresh_record()).collect();
        let calls = records
            .iter()
            .map(|record| Box::pin(check.complete(&hold, record, KEPT)) as Call<'_, _>);
        for completed in race(start, calls).await {
            let what = "`complete` by the owner, several at once,";
            check.answers(what, completed, Completion::Stored);
        }
        let seen = check.see(&first).await;
        let is_one = |record: &Record| seen.shape == Shape::Completed(1, record.clone());
        check.holds(
            format_args!("several `complete` at once must leave one of them, but left {seen}"),
            records.iter().any(is_one),
        );
    }

    for start in Start::ALL.into_iter().cycle().take(9) {
        let lost = request();
        let hold = lost.hold(2);
        let record = fresh_record();
        let retry = retry_of(&lost);
        let (completed, came) = race_two(
            start,
            Box::pin(check.complete(&hold, &record, KEPT)),
            Box::pin(check.claim(&retry)),
        )
        .await;
        let (completion, expected) = match came {
            Claimed::Acquired(_) => (Completion::NotOwner, Answer::Acquired(1)),
            _ => (Completion::Restored, Answer::Completed(2, &record)),
        };
        let what = "a claim at the moment of `complete` of a lost record";
        check.is_answered(what, &retry, &came, expected);
        let what = "`complete` of a lost record at the moment of a claim";
        check.answers(what, completed, completion);
        let shape = match completion {
            Completion::NotOwner => Shape::Running(1),
            _ => Shape::Completed(2, record),
        };
        check.shows(what, &lost, shape).await;
    }
}
