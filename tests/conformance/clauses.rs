//! Every clause passes stores that keep it, and rejects each that breaks it in one place.

use crate::faults::Fault;
use crate::judge::{conforms, judge, rejects};
use crate::wrong_store::Faulty;

#[tokio::test(start_paused = true)]
async fn clause_01() {
    judge(
        1,
        &[Fault::ClaimReadsThenAwaits, Fault::ClaimReadsThenWrites],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn clause_02() {
    let faults = [
        Fault::LiveRunIsTakenOver,
        Fault::LapsedRunIsNotFree,
        Fault::FailedRunIsNotFree,
        Fault::CompletedRunsAgain,
    ];
    judge(2, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_03() {
    let faults = [
        Fault::FailedIsFreeForAnother,
        Fault::LapsedIsFreeForAnother,
        Fault::OwnerMayChangeRequest,
    ];
    judge(3, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_04() {
    let faults = [
        Fault::TakeOverIsNotCounted,
        Fault::FailureIsNotCounted,
        Fault::SameClaimIsCounted,
        Fault::SameClaimIsNotRenewed,
    ];
    judge(4, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_05() {
    let faults = [
        Fault::SealedIsTakenOver,
        Fault::ChallengersLapseDecides,
        Fault::LapsedSealMayNotComplete,
        Fault::SealBeforeTheEnd,
        Fault::ExtendForgetsLapse,
    ];
    judge(5, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_06() {
    let faults = [
        Fault::AnybodyCompletes,
        Fault::AnybodyReleases,
        Fault::AnybodyExtends,
        Fault::AnybodyIsToldHeld,
        Fault::LateOwnerIsRefused,
        Fault::AttemptsAreCompared,
        Fault::FailedRunMayComplete,
        Fault::CompleteReadsThenAwaits,
    ];
    judge(6, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_07() {
    let faults = [
        Fault::RepeatReplaces,
        Fault::RepeatProlongs,
        Fault::RepeatComparesBytes,
        Fault::LostIsNotRestored,
        Fault::RestoredAsFirstAttempt,
    ];
    judge(7, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_08() {
    let faults = [
        Fault::FieldsAreSorted,
        Fault::FieldsAreText,
        Fault::RecordIsCut,
        Fault::TooLargeLosesTheRun,
        Fault::CompletedMayBeReleased,
        Fault::ResolveReplaces,
    ];
    judge(8, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_09() {
    let faults = [
        Fault::RetentionCountsFromClaim,
        Fault::RunEndsBeforeItsLease,
        Fault::ExtendShortens,
        Fault::ExpiredIsInProgress,
        Fault::ExpiredIsShown,
        Fault::ExpiredIsExtended,
        Fault::AttemptsGoOn,
    ];
    judge(9, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_10() {
    judge(10, &[Fault::NodeIsAhead, Fault::NodeIsBehind]).await;
}

#[tokio::test(start_paused = true)]
async fn clause_11() {
    let faults = [
        Fault::ClaimInTwoSteps,
        Fault::CompleteInTwoSteps,
        Fault::FailInTwoSteps,
    ];
    judge(11, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_12() {
    let faults = [
        Fault::FailIgnoresSeal,
        Fault::FailForgetsRequest,
        Fault::FailKeepsLease,
        Fault::ReleaseAlwaysFrees,
        Fault::ReleaseTrustsHold,
    ];
    judge(12, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_13() {
    let faults = [
        Fault::ExpiredWaitsForPurge,
        Fault::PurgeTakesLapsed,
        Fault::PurgeTakesAll,
        Fault::PurgeTakesRevived,
        Fault::ForgetTakesLive,
        Fault::ResolveTakesRunning,
        Fault::ResolveSparesLapsed,
    ];
    judge(13, &faults).await;
}

#[tokio::test(start_paused = true)]
async fn clause_14() {
    conforms(14, Faulty::new(Some(Fault::Unreachable))).await;
    let faults = [
        Fault::UnreachableWithoutSource,
        Fault::UnreachableIsFull,
        Fault::UnreachableHangs,
        Fault::UnreachableIsAbsent,
    ];
    rejects(14, &faults).await;
}

/// Not a clause: the wait for a change.
#[tokio::test(start_paused = true)]
async fn changed() {
    judge(0, &[Fault::ChangeIsMissed, Fault::WaitHasNoEnd]).await;
}
