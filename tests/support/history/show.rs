//! A violation for people to read.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};
use std::time::Duration;

use tower_idempotency::store::{Phase, Record};

use super::check::{Rule, Violation};
use super::{Answer, Call, Caller, Event};

/// How many violations are looked at for the shortest one.
const LOOKED_AT: usize = 500;

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoRuns => "two owners held the key at once",
            Self::SharedAttempt => "two owners were given one attempt",
            Self::Attempt => "an attempt does not follow from those before it",
            Self::NotReplayed => "a completed key did not give its answer",
            Self::SecondCompletion => "a completed key was completed once more",
            Self::OtherBytes => "an answer is not what its owner recorded",
            Self::StaleOwner => "an owner that had lost the key acted on it",
            Self::Fingerprint => "two requests were not told apart, or one was not known again",
            Self::Unsealed => "a sealed key was not told to be one",
            Self::Vanished => "a record was gone before its retention had ended",
            Self::LiveRun => "a run was done away with within its lease",
            Self::Refused => "somebody was refused without a reason",
        })
    }
}

/// What is wrong, how often, and the shortest stretch of a history that shows it.
pub(super) fn report(found: &[(&[Event], Violation)]) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for (_, violation) in found {
        *counts.entry(violation.rule).or_default() += 1;
    }
    let mut report = "the store broke its contract:\n".to_owned();
    for (rule, count) in counts {
        let of_rule = found.iter().filter(|(_, it)| it.rule == rule);
        let first = of_rule.filter_map(|(_, it)| it.events.iter().map(Event::end).max());
        let first = millis(first.min().unwrap_or_default());
        let _ = writeln!(
            report,
            "  {count:>6} × {rule} ({rule:?}), first at {first} ms"
        );
    }
    let stretches = found.iter().take(LOOKED_AT);
    let shortest = stretches
        .map(|(key, violation)| (stretch(key, violation), violation))
        .min_by_key(|(stretch, _)| stretch.len());
    if let Some((stretch, violation)) = shortest {
        let _ = writeln!(
            report,
            "the shortest: {}; key {}, times in ms, the calls at fault marked:",
            violation.rule, violation.events[0].key
        );
        for event in stretch {
            let mark = if violation.events.contains(event) {
                '▶'
            } else {
                ' '
            };
            let _ = writeln!(report, "{mark} {event}");
        }
    }
    report
}

/// The calls at fault, all others of their owners or with the answer in question, and
/// whatever else may have changed the record meanwhile, or just before a single one.
fn stretch<'a>(key: &'a [Event], violation: &Violation) -> Vec<&'a Event> {
    let at_fault = &violation.events;
    let owners: HashSet<_> = at_fault.iter().filter_map(Event::owner).collect();
    let mut begin = at_fault.iter().map(|event| event.asked).min();
    if let [single] = at_fault.as_slice() {
        let before = key
            .iter()
            .filter(|it| it.may_have_acted() && it.asked < single.asked);
        begin = before.rev().map(|it| it.asked).nth(2).or(begin);
    }
    let end = at_fault.iter().map(Event::end).max();
    let is_shown = |event: &&Event| {
        let is_meanwhile = Some(event.asked) <= end && Some(event.end()) >= begin;
        let is_theirs = event.owner().is_some_and(|owner| owners.contains(&owner));
        let concerns = event.may_have_acted() && (is_meanwhile || is_theirs);
        let has_it = event.record().is_some_and(|record| {
            let mut replays = at_fault.iter().filter_map(Event::replay);
            replays.any(|replay| replay == record)
        });
        (concerns || has_it) && Some(event.asked) <= end || at_fault.contains(event)
    };
    key.iter().filter(is_shown).collect()
}

impl Event {
    /// When it was over, or when it was asked where no answer came.
    fn end(&self) -> Duration {
        if self.answered == Duration::MAX {
            self.asked
        } else {
            self.answered
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = match self.answered {
            Duration::MAX => "…".to_owned(),
            answered => millis(answered),
        };
        write!(f, "{:>10} – {answered:>10}  ", millis(self.asked))?;
        match self.by {
            Some(by) => write!(f, "{}  {}", by.name(), self.call)?,
            None => write!(f, "operator  {}", self.call)?,
        }
        if let (Call::Claim { .. }, Some(by)) = (&self.call, self.by) {
            write!(f, ", request {}", hex(by.fingerprint.as_bytes(), 2))?;
        }
        write!(f, ": {}", self.answer)
    }
}

impl Caller {
    /// Who it is, in the width of `operator`.
    fn name(&self) -> String {
        hex(self.owner.as_bytes(), 4)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim {
                lease,
                retention,
                lapse,
            } => write!(f, "claim for {lease:?} + {retention:?}, then {lapse:?}"),
            Self::Extend { lease, retention } => write!(f, "extend for {lease:?} + {retention:?}"),
            Self::Complete { record, retention } => {
                write!(f, "complete with {} for {retention:?}", text(record))
            }
            Self::Fail { seal, retention } => write!(f, "fail (seal: {seal}) for {retention:?}"),
            Self::Release => f.write_str("release"),
            Self::Lookup => f.write_str("lookup"),
            Self::Forget => f.write_str("forget"),
            Self::Resolve { record, retention } => {
                write!(f, "resolve with {} for {retention:?}", text(record))
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquired { attempt } => write!(f, "Acquired, attempt {attempt}"),
            Self::InProgress { attempt } => write!(f, "InProgress, attempt {attempt}"),
            Self::Completed { attempt, record } => {
                write!(f, "Completed by attempt {attempt} with {}", text(record))
            }
            Self::Abandoned { attempt } => write!(f, "Abandoned, attempt {attempt}"),
            Self::Found(found) => {
                let request = hex(found.fingerprint.as_bytes(), 2);
                write!(f, "request {request}, attempt {}, ", found.attempt)?;
                match &found.phase {
                    Phase::Completed(record) => write!(f, "completed with {}", text(record)),
                    phase => write!(f, "{phase:?}"),
                }
            }
            Self::Error(kind) => write!(f, "error {kind:?}"),
            answer => write!(f, "{answer:?}"),
        }
    }
}

/// The beginning of a body, which tells records apart.
fn text(record: &Record) -> String {
    let body = record.body();
    let text = String::from_utf8_lossy(&body[..body.len().min(20)]).into_owned();
    format!("{text:?}")
}

fn millis(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

fn hex(bytes: &[u8], shown: usize) -> String {
    let mut hex = String::new();
    for byte in &bytes[..shown] {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
