//! How often each thing happened.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tower_idempotency::store::Owner;

use super::super::history::{Answer, Call, Event};

/// How often each thing happened that a torture is to bring about.
///
/// # Panics
///
/// If one of them never did: a history in which nothing happens proves nothing.
pub fn counts(events: &[Event]) -> BTreeMap<&'static str, usize> {
    let mut counts: BTreeMap<_, _> = EXPECTED.iter().map(|&what| (what, 0)).collect();
    let mut runs = HashMap::new();
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| event.answered);
    for event in events {
        let run = runs.entry(event.key).or_insert(Run {
            attempts: 0,
            by: None,
            until: Duration::ZERO,
            is_over: true,
        });
        for what in run.follow(event).into_iter().flatten() {
            *counts.entry(what).or_default() += 1;
        }
    }
    for what in EXPECTED {
        assert_ne!(counts[what], 0, "{what}: it never happened, in {counts:#?}");
    }
    counts
}

const EXPECTED: [&str; 26] = [
    "claim: acquired, first attempt",
    "claim: acquired, first attempt of a later life",
    "claim: acquired after a failure",
    "claim: acquired by take-over",
    "claim: acquired again by its owner",
    "claim: in progress",
    "claim: completed",
    "claim: mismatch",
    "claim: abandoned",
    "extend: held",
    "extend: lost",
    "complete: stored",
    "complete: stored past the lease",
    "complete: stored already",
    "complete: restored",
    "complete: not the owner",
    "fail: held",
    "fail: sealed",
    "fail: lost",
    "release: held",
    "release: lost",
    "lookup: found",
    "lookup: absent",
    "forget: forgotten",
    "resolve: resolved",
    "given up without an answer",
];

/// What the answers so far tell of a key's last run.
struct Run {
    attempts: u64,
    by: Option<Owner>,
    until: Duration,
    is_over: bool,
}

impl Run {
    fn follow(&mut self, event: &Event) -> [Option<&'static str>; 2] {
        let is_own = self.by == event.by.map(|by| by.owner);
        let mut also = None;
        let what = match (&event.call, &event.answer) {
            (_, Answer::Never) => "given up without an answer",
            (_, Answer::Error(_)) => "an error",
            (&Call::Claim { lease, .. }, &Answer::Acquired { attempt }) => {
                let was_over = self.is_over;
                let is_later = self.attempts > 0;
                (self.by, self.until) = (event.by.map(|by| by.owner), event.asked + lease);
                (self.attempts, self.is_over) = (attempt, false);
                match attempt {
                    _ if is_own && !was_over => "claim: acquired again by its owner",
                    1 => {
                        also = is_later.then_some("claim: acquired, first attempt of a later life");
                        "claim: acquired, first attempt"
                    }
                    _ if was_over => "claim: acquired after a failure",
                    _ => "claim: acquired by take-over",
                }
            }
            (_, Answer::InProgress { .. }) => "claim: in progress",
            (_, Answer::Completed { .. }) => "claim: completed",
            (_, Answer::Mismatch) => "claim: mismatch",
            (_, Answer::Abandoned { .. }) => "claim: abandoned",
            (&Call::Extend { lease, .. }, Answer::Held) => {
                self.until = event.asked + lease;
                "extend: held"
            }
            (Call::Extend { .. }, _) => "extend: lost",
            (_, Answer::Stored) if is_own && self.is_over => "complete: stored already",
            (_, Answer::Stored) => {
                also = (event.asked > self.until).then_some("complete: stored past the lease");
                self.is_over = true;
                "complete: stored"
            }
            (_, Answer::Restored) => "complete: restored",
            (_, Answer::NotOwner) => "complete: not the owner",
            (&Call::Fail { seal, .. }, Answer::Held) => {
                self.is_over = true;
                also = seal.then_some("fail: sealed");
                "fail: held"
            }
            (Call::Fail { .. }, _) => "fail: lost",
            (Call::Release, Answer::Held) => {
                self.is_over = true;
                "release: held"
            }
            (Call::Release, _) => "release: lost",
            (_, Answer::Found(_)) => "lookup: found",
            (Call::Lookup, _) => "lookup: absent",
            (_, Answer::Forgotten) => "forget: forgotten",
            (_, Answer::Live) => "forget: live",
            (_, Answer::Resolved) => "resolve: resolved",
            (_, Answer::NotSealed) => "resolve: not sealed",
            _ => "forget: absent",
        };
        [Some(what), also]
    }
}
