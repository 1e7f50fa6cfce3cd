//! The rules, and the search for what breaks them.
//!
//! Calls that overlap may have been applied in either order, so nothing is held against
//! them unless both orders are impossible. What a call whose answer is unknown may have
//! done, at any time after it was sent, is held against nobody. So each violation is one,
//! whatever the store did in between.

use std::collections::BTreeMap;

use tower_idempotency::store::Lapse;

use super::facts::{Fact, KeyHistory, same};
use super::{Answer, Call, Event, show};

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A claim was granted within another owner's hold: from the answer to its claim until
    /// the lease is over, counted from before the claim, or the renewal, was sent.
    TwoRuns,
    /// Two owners were granted the same attempt within one life of the record.
    SharedAttempt,
    /// An attempt went back within one life of the record, or was counted up for no reason.
    Attempt,
    /// A completed key was granted again, or did not give its answer.
    NotReplayed,
    /// Two owners' completions were acknowledged within one life of the record.
    SecondCompletion,
    /// An answer is none that an owner recorded, or not the first that it did.
    OtherBytes,
    /// A call was acknowledged to an owner that had lost the key, or ended its run.
    StaleOwner,
    /// Another request was not told from the one on record, or the same one was not known.
    Fingerprint,
    /// A sealed key was granted.
    Unsealed,
    /// A record was gone before its retention ended.
    Vanished,
    /// A run was forgotten, resolved, or said to be over within its lease.
    LiveRun,
    /// What nothing stood against was refused.
    Refused,
}

/// A rule, and the calls that cannot all have been answered as they were.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    pub rule: Rule,
    pub events: Vec<Event>,
}

/// Every violation of every key.
pub fn violations(events: &[Event]) -> Vec<Violation> {
    let keys = by_key(events);
    keys.iter().flat_map(|events| of_key(events)).collect()
}

/// Proves a history.
///
/// # Panics
///
/// If a rule is broken, with the shortest stretch of a key's history that shows it.
pub fn check(events: &[Event]) {
    let keys = by_key(events);
    let found: Vec<_> = keys
        .iter()
        .flat_map(|key| of_key(key).into_iter().map(move |it| (key.as_slice(), it)))
        .collect();
    if !found.is_empty() {
        panic!("{}", show::report(&found));
    }
}

fn by_key(events: &[Event]) -> Vec<Vec<Event>> {
    let mut keys = BTreeMap::<_, Vec<_>>::new();
    for event in events {
        keys.entry(event.key).or_default().push(event.clone());
    }
    let mut keys: Vec<_> = keys.into_values().collect();
    for events in &mut keys {
        events.sort_by_key(|event| event.asked);
    }
    keys
}

fn of_key(events: &[Event]) -> Vec<Violation> {
    let key = KeyHistory::new(events);
    let learnt = key.learnt();
    let facts = key.facts(&learnt);
    let mut found = Vec::new();
    let mut find = |rule: Option<Rule>, events: &[&Event]| {
        found.extend(rule.map(|rule| Violation {
            rule,
            events: events.iter().map(|&event| event.clone()).collect(),
        }));
    };
    for (at, first) in facts.iter().enumerate() {
        for then in &facts[at + 1..] {
            let rule = forbids(&key, first, then).filter(|_| {
                first.event.is_before(then.event) || forbids(&key, then, first).is_some()
            });
            find(rule, &[first.event, then.event]);
        }
    }
    for event in events {
        find(unexplained(&key, &facts, event), &[event]);
        if event.acted() || event.is_in_doubt() {
            continue;
        }
        for fact in facts.iter().take_while(|it| it.event.asked < event.asked) {
            if fact.event.is_before(event) {
                find(contradicts(&key, fact, event), &[fact.event, event]);
            }
        }
    }
    found
}

/// Why the second call cannot have done what it did after the first had.
fn forbids(key: &KeyHistory<'_>, first: &Fact<'_>, then: &Fact<'_>) -> Option<Rule> {
    if then.is_learnt {
        return None;
    }
    let (one, other) = (first.event, then.event);
    let is_foreign = one.owner() != other.owner();
    if other.answered < first.held_until {
        match other.call {
            Call::Claim { .. } if is_foreign => return Some(Rule::TwoRuns),
            Call::Forget | Call::Resolve { .. } => return Some(Rule::LiveRun),
            _ => {}
        }
    }
    // A record that is not there may be restored by anybody.
    let needs_grant = other.answer == Answer::Held || other.answer == Answer::Stored;
    if needs_grant && then.granted_by < one.asked && displaces(key, one, other) {
        return Some(Rule::StaleOwner);
    }
    if other.answered >= first.alive_until {
        return None;
    }
    if differ(one.fingerprint(), other.fingerprint()) {
        return Some(Rule::Fingerprint);
    }
    let completes = one.is_complete() || one.is_resolve();
    match other.call {
        Call::Claim { .. } if completes => Some(Rule::NotReplayed),
        Call::Claim { .. } if seals(key, one, other) => Some(Rule::Unsealed),
        Call::Claim { .. } if one.is_claim() => {
            let (before, after) = (one.attempt(), other.attempt());
            if is_foreign && before == after {
                return Some(Rule::SharedAttempt);
            }
            (after < before).then_some(Rule::Attempt)
        }
        Call::Complete { .. } if one.is_complete() && is_foreign => Some(Rule::SecondCompletion),
        Call::Complete { .. } if other.answer == Answer::Restored => Some(Rule::Vanished),
        Call::Resolve { .. } if completes => Some(Rule::SecondCompletion),
        Call::Extend { .. } | Call::Fail { .. } | Call::Release if completes => {
            Some(Rule::StaleOwner)
        }
        _ => None,
    }
}

/// Whether the owner of the second call has no run any more once the first has acted.
fn displaces(key: &KeyHistory<'_>, first: &Event, then: &Event) -> bool {
    match first.call {
        Call::Forget => true,
        // Whose key was resolved is told that it has its answer.
        Call::Resolve { .. } => !then.is_complete(),
        _ if first.owner() != then.owner() => true,
        Call::Complete { .. } => !then.is_complete(),
        Call::Fail { .. } => !then.is_complete() || !may_be_resolved(key, first, then),
        Call::Release => true,
        Call::Claim { .. } | Call::Extend { .. } | Call::Lookup => false,
    }
}

/// Whether nobody else may have the key after the first call, as long as its record lives.
fn seals(key: &KeyHistory<'_>, first: &Event, then: &Event) -> bool {
    if first.is_seal() {
        return true;
    }
    let Call::Claim { lapse, .. } = first.call else {
        return false;
    };
    let opens = |event: &Event| {
        let opens = match event.call {
            Call::Claim { lapse, .. } => lapse == Lapse::TakeOver,
            Call::Fail { seal, .. } => !seal,
            Call::Release => true,
            _ => false,
        };
        opens && event.owner() == first.owner()
    };
    lapse == Lapse::Seal && first.owner() != then.owner() && !key.between(first, then).any(opens)
}

fn may_be_resolved(key: &KeyHistory<'_>, first: &Event, last: &Event) -> bool {
    key.between(first, last).any(Event::is_resolve)
}

/// Why something cannot have been answered once a call had acted.
fn contradicts(key: &KeyHistory<'_>, fact: &Fact<'_>, event: &Event) -> Option<Rule> {
    if event.answered < fact.held_until && event.tells_of_end() {
        return Some(Rule::LiveRun);
    }
    if event.answered >= fact.alive_until {
        return None;
    }
    let known = fact.event;
    let completes = known.is_complete() || known.is_resolve();
    let may_be_resolved = || may_be_resolved(key, known, event);
    let broken = match &event.answer {
        Answer::Absent => (true, Rule::Vanished),
        Answer::Mismatch => {
            let is_same = known.by.is_some() && known.fingerprint() == event.fingerprint();
            (is_same, Rule::Fingerprint)
        }
        Answer::Live => (completes || known.is_seal(), Rule::Refused),
        Answer::NotSealed => (known.is_seal() && !may_be_resolved(), Rule::Refused),
        Answer::InProgress { .. }
        | Answer::Completed { .. }
        | Answer::Abandoned { .. }
        | Answer::Found(_) => {
            let is_replay = event.replay().is_some();
            let is_known = event.tells_of_seal() || is_replay && may_be_resolved();
            let is_claim = known.is_claim();
            let is_own = known.owner() == event.owner() && known.attempt() == event.attempt();
            if differ(known.fingerprint(), event.fingerprint()) {
                (true, Rule::Fingerprint)
            } else if completes {
                (!is_replay, Rule::NotReplayed)
            } else if known.is_seal() {
                (!is_known, Rule::Unsealed)
            } else if is_claim && event.attempt() < known.attempt() {
                (true, Rule::Attempt)
            } else if is_claim && is_replay && event.attempt() == known.attempt() {
                let mut with_it = key.with_record(event.replay());
                let may_be_own = |it: &Event| it.is_resolve() || it.owner() == known.owner();
                (!with_it.any(may_be_own), Rule::SharedAttempt)
            } else {
                let is_elsewhere = matches!(event.answer, Answer::InProgress { .. });
                (is_claim && is_own && is_elsewhere, Rule::Refused)
            }
        }
        _ => return None,
    };
    let (is_broken, rule) = broken;
    is_broken.then_some(rule)
}

/// Why an answer stands for itself alone, and cannot.
fn unexplained(key: &KeyHistory<'_>, facts: &[Fact<'_>], event: &Event) -> Option<Rule> {
    if event.replay().is_some() && !is_recorded(key, facts, event) {
        return Some(Rule::OtherBytes);
    }
    match event.answer {
        Answer::Acquired { attempt } if attempt != 1 => {
            (!has_predecessor(key, event, attempt)).then_some(Rule::Attempt)
        }
        Answer::Lost | Answer::NotOwner => is_current(key, facts, event).then_some(Rule::Refused),
        _ => None,
    }
}

/// Whether somebody recorded what is given as the answer, and nothing before it.
fn is_recorded(key: &KeyHistory<'_>, facts: &[Fact<'_>], event: &Event) -> bool {
    let with_it = key.with_record(event.replay());
    let mut asked = with_it.filter(|it| it.asked <= event.answered);
    asked.any(|it| {
        if it.is_resolve() {
            return true;
        }
        let by = it.applied_by().min(event.answered);
        let comes_second = facts.iter().any(|first| {
            let is_own = first.event.is_complete() && first.event.owner() == it.owner();
            is_own && first.event.is_before(it) && by < first.alive_until
        });
        it.fingerprint() == event.fingerprint()
            && !comes_second
            && key.may_have_attempt(it, event.attempt())
    })
}

/// Whether something accounts for a later attempt: the run before it, which somebody else
/// had or its owner gave up; the same run; or a claim of which nothing is known.
fn has_predecessor(key: &KeyHistory<'_>, event: &Event, attempt: u64) -> bool {
    let asked = key.events.iter().filter(|it| it.asked <= event.answered);
    let claims = asked.filter(|it| it.is_claim() && !same(it, event));
    let mut alike = claims.filter(|it| it.fingerprint() == event.fingerprint());
    alike.any(|claim| {
        let is_own = claim.owner() == event.owner();
        let gives_up = |it: &Event| it.owner() == event.owner() && it.ends_run();
        match claim.answer {
            Answer::Acquired { attempt: before } if before == attempt => is_own,
            Answer::Acquired { attempt: before } if before + 1 == attempt => {
                !is_own || key.between(claim, event).any(gives_up)
            }
            Answer::Error(_) | Answer::Never => true,
            _ => false,
        }
    })
}

/// Whether the caller's run, or its completion, is what is on record beyond doubt.
fn is_current(key: &KeyHistory<'_>, facts: &[Fact<'_>], event: &Event) -> bool {
    let is_displaced = |claim: &Event| {
        key.between(claim, event).any(|it| {
            if it.owner() == event.owner() {
                it.ends_run() && !(it.is_complete() && event.is_complete())
            } else {
                it.is_claim() || it.owner().is_none()
            }
        })
    };
    facts.iter().any(|fact| {
        let claim = fact.event;
        claim.is_claim()
            && claim.owner() == event.owner()
            && claim.is_before(event)
            && event.answered < fact.alive_until
            && !is_displaced(claim)
    })
}

fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
}
