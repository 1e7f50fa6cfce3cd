//! Every way in which a store here is wrong, by the clause that must find it.

/// What a store may get wrong. Each is one place in [`Faulty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ClaimReadsThenAwaits,
    ClaimReadsThenWrites,

    LiveRunIsTakenOver,
    LapsedRunIsNotFree,
    FailedRunIsNotFree,
    CompletedRunsAgain,

    FailedIsFreeForAnother,
    LapsedIsFreeForAnother,
    OwnerMayChangeRequest,

    TakeOverIsNotCounted,
    FailureIsNotCounted,
    SameClaimIsCounted,
    SameClaimIsNotRenewed,

    SealedIsTakenOver,
    ChallengersLapseDecides,
    LapsedSealMayNotComplete,
    SealBeforeTheEnd,
    ExtendForgetsLapse,

    AnybodyCompletes,
    AnybodyReleases,
    AnybodyExtends,
    AnybodyIsToldHeld,
    LateOwnerIsRefused,
    AttemptsAreCompared,
    FailedRunMayComplete,
    CompleteReadsThenAwaits,

    RepeatReplaces,
    RepeatProlongs,
    RepeatComparesBytes,
    LostIsNotRestored,
    RestoredAsFirstAttempt,

    FieldsAreSorted,
    FieldsAreText,
    RecordIsCut,
    TooLargeLosesTheRun,
    CompletedMayBeReleased,
    ResolveReplaces,

    RetentionCountsFromClaim,
    RunEndsBeforeItsLease,
    ExtendShortens,
    ExpiredIsInProgress,
    ExpiredIsShown,
    ExpiredIsExtended,
    AttemptsGoOn,

    NodeIsAhead,
    NodeIsBehind,

    ClaimInTwoSteps,
    CompleteInTwoSteps,
    FailInTwoSteps,

    FailIgnoresSeal,
    FailForgetsRequest,
    FailKeepsLease,
    ReleaseAlwaysFrees,
    ReleaseTrustsHold,

    ExpiredWaitsForPurge,
    PurgeTakesLapsed,
    PurgeTakesAll,
    PurgeTakesRevived,
    ForgetTakesLive,
    ResolveTakesRunning,
    ResolveSparesLapsed,

    Unreachable,
    UnreachableWithoutSource,
    UnreachableIsFull,
    UnreachableHangs,
    UnreachableIsAbsent,

    ChangeIsMissed,
    WaitHasNoEnd,
}
