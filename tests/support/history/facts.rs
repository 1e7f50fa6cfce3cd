//! What an event proves of its record, and for how long.

use std::collections::HashMap;
use std::time::Duration;

use tower_idempotency::store::{Fingerprint, Owner, Phase, Record, Snapshot, StoreErrorKind};

use super::{Answer, Call, Event};

impl Event {
    /// Whether the answer says that the call did what it asked for.
    pub(super) fn acted(&self) -> bool {
        matches!(
            self.answer,
            Answer::Acquired { .. }
                | Answer::Held
                | Answer::Stored
                | Answer::Restored
                | Answer::Forgotten
                | Answer::Resolved
        )
    }

    /// Whether it may have been applied, and may still be, at any time.
    pub(super) fn is_in_doubt(&self) -> bool {
        match self.answer {
            Answer::Never => true,
            Answer::Error(kind) => !matches!(
                kind,
                StoreErrorKind::NotApplied | StoreErrorKind::Full | StoreErrorKind::Quota
            ),
            _ => false,
        }
    }

    pub(super) fn may_have_acted(&self) -> bool {
        self.acted() || (self.is_in_doubt() && self.call != Call::Lookup)
    }

    /// The last moment at which it can have been applied.
    pub(super) fn applied_by(&self) -> Duration {
        if self.is_in_doubt() {
            Duration::MAX
        } else {
            self.answered
        }
    }

    /// Whether it was over, come what may, when the other one was sent.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.applied_by() < other.asked
    }

    pub(super) fn owner(&self) -> Option<Owner> {
        self.by.map(|by| by.owner)
    }

    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match &self.answer {
            Answer::Found(found) => Some(found.fingerprint),
            _ => self.by.map(|by| by.fingerprint),
        }
    }

    pub(super) fn is_claim(&self) -> bool {
        matches!(self.call, Call::Claim { .. })
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self.call, Call::Complete { .. })
    }

    pub(super) fn is_resolve(&self) -> bool {
        matches!(self.call, Call::Resolve { .. })
    }

    pub(super) fn is_seal(&self) -> bool {
        matches!(self.call, Call::Fail { seal: true, .. })
    }

    /// Whether the key is said to be sealed.
    pub(super) fn tells_of_seal(&self) -> bool {
        match &self.answer {
            Answer::Abandoned { .. } => true,
            Answer::Found(found) => found.phase == Phase::Sealed,
            _ => false,
        }
    }

    /// Whether the last run is said to have ended without an answer.
    pub(super) fn tells_of_end(&self) -> bool {
        let has_failed = |found: &Snapshot| found.phase == Phase::Failed;
        self.tells_of_seal() || matches!(&self.answer, Answer::Found(found) if has_failed(found))
    }

    /// Whether it is one of those that end a run.
    pub(super) fn ends_run(&self) -> bool {
        matches!(
            self.call,
            Call::Complete { .. } | Call::Fail { .. } | Call::Release
        )
    }

    /// The attempt that the store has told of.
    pub(super) fn attempt(&self) -> Option<u64> {
        match &self.answer {
            Answer::Acquired { attempt }
            | Answer::InProgress { attempt }
            | Answer::Completed { attempt, .. }
            | Answer::Abandoned { attempt } => Some(*attempt),
            Answer::Found(found) => Some(found.attempt),
            _ => None,
        }
    }

    /// The answer that the key is said to have.
    pub(super) fn replay(&self) -> Option<&Record> {
        match &self.answer {
            Answer::Completed { record, .. } => Some(record),
            Answer::Found(found) => match &found.phase {
                Phase::Completed(record) => Some(record),
                _ => None,
            },
            _ => None,
        }
    }

    /// The answer that the key is to have.
    pub(super) fn record(&self) -> Option<&Record> {
        match &self.call {
            Call::Complete { record, .. } | Call::Resolve { record, .. } => Some(record),
            _ => None,
        }
    }

    fn lease(&self) -> Option<Duration> {
        match self.call {
            Call::Claim { lease, .. } | Call::Extend { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// How long it makes the record last, from when it is applied.
    fn keeps(&self) -> Duration {
        match self.call {
            Call::Claim {
                lease, retention, ..
            }
            | Call::Extend { lease, retention } => lease.saturating_add(retention),
            Call::Complete { retention, .. }
            | Call::Fail { retention, .. }
            | Call::Resolve { retention, .. } => retention,
            Call::Release | Call::Forget | Call::Lookup => Duration::ZERO,
        }
    }
}

/// An event that changed the record, and what follows from it.
pub(super) struct Fact<'a> {
    pub(super) event: &'a Event,
    /// The record lives, if what is asked is answered before then.
    pub(super) alive_until: Duration,
    /// The same of the lease.
    pub(super) held_until: Duration,
    /// When the latest of its owner's claims that may explain it had been applied.
    pub(super) granted_by: Duration,
    /// Its answer was lost, and a replay has told of it.
    pub(super) is_learnt: bool,
}

/// All events of one key, in the order in which they were asked.
pub(super) struct KeyHistory<'a> {
    pub(super) events: &'a [Event],
    /// Those that may have changed the record.
    actors: Vec<&'a Event>,
    of_owner: HashMap<Owner, Vec<&'a Event>>,
}

impl<'a> KeyHistory<'a> {
    pub(super) fn new(events: &'a [Event]) -> Self {
        let actors: Vec<_> = events.iter().filter(|it| it.may_have_acted()).collect();
        let mut of_owner = HashMap::<_, Vec<_>>::new();
        for actor in &actors {
            if let Some(owner) = actor.owner() {
                of_owner.entry(owner).or_default().push(*actor);
            }
        }
        Self {
            events,
            actors,
            of_owner,
        }
    }

    /// What may have acted after one event, and before another was answered.
    pub(super) fn between<'b>(
        &'b self,
        first: &'b Event,
        last: &'b Event,
    ) -> impl Iterator<Item = &'a Event> {
        let others = self.actors.iter().copied();
        others
            .take_while(|it| it.asked <= last.answered)
            .filter(move |it| !same(it, first) && !same(it, last) && !it.is_before(first))
    }

    /// What may have given the key that answer.
    pub(super) fn with_record<'b>(
        &'b self,
        record: Option<&'b Record>,
    ) -> impl Iterator<Item = &'a Event> {
        let others = self.actors.iter().copied();
        others.filter(move |it| it.record() == record)
    }

    /// What an owner asked for and may have got.
    pub(super) fn of(&self, owner: Option<Owner>) -> &[&'a Event] {
        let calls = owner.and_then(|owner| self.of_owner.get(&owner));
        calls.map_or(&[], Vec::as_slice)
    }

    pub(super) fn facts(&self, learnt: &'a [Event]) -> Vec<Fact<'a>> {
        let acted = self.actors.iter().copied().filter(|it| it.acted());
        let acted = acted.map(|event| (event, false));
        let learnt = learnt.iter().map(|event| (event, true));
        let facts = acted.chain(learnt).map(|(event, is_learnt)| Fact {
            event,
            alive_until: self.alive_until(event),
            held_until: self.held_until(event),
            granted_by: self.granted_by(event),
            is_learnt,
        });
        let mut facts: Vec<_> = facts.collect();
        facts.sort_by_key(|fact| fact.event.asked);
        facts
    }

    /// Completions whose answer was lost, with the answer that a replay of them gave.
    pub(super) fn learnt(&self) -> Vec<Event> {
        let doubtful = self.actors.iter().filter(|it| it.is_in_doubt());
        let seen = doubtful.filter_map(|doubtful| {
            let record = doubtful.record()?;
            let with_it = self.with_record(Some(record));
            let mut replays = self.events.iter().filter(|it| it.replay() == Some(record));
            let replay = replays.next()?;
            (doubtful.is_complete() && with_it.count() == 1).then(|| Event {
                answered: replay.answered,
                answer: Answer::Stored,
                ..Event::clone(doubtful)
            })
        });
        seen.collect()
    }

    /// Whether the run that an owner's call belongs to may have that attempt.
    pub(super) fn may_have_attempt(&self, call: &Event, attempt: Option<u64>) -> bool {
        call.by.map(|by| by.attempt) == attempt
            || self
                .of(call.owner())
                .iter()
                .any(|it| it.is_claim() && (it.is_in_doubt() || it.attempt() == attempt))
    }

    fn alive_until(&self, fact: &Event) -> Duration {
        let mut until = match fact.call {
            Call::Release | Call::Forget | Call::Lookup => return Duration::ZERO,
            // Of several the first one stands, whichever it was.
            Call::Complete { .. } if fact.answer == Answer::Stored => self
                .actors
                .iter()
                .filter(|it| it.is_resolve() || it.is_complete() && it.owner() == fact.owner())
                .filter(|it| it.asked <= fact.answered)
                .map(|it| it.asked.saturating_add(it.keeps()))
                .min()
                .unwrap_or_default(),
            _ => fact.asked.saturating_add(fact.keeps()),
        };
        for other in &self.actors {
            if other.asked >= until {
                break;
            }
            if self.may_shorten(other, fact) {
                let from = other.asked.max(fact.asked);
                until = until.min(from.saturating_add(other.keeps()));
            }
        }
        until
    }

    /// Whether a call may act on the record that another one left, and end it earlier.
    fn may_shorten(&self, other: &Event, fact: &Event) -> bool {
        if same(other, fact) || other.is_before(fact) {
            return false;
        }
        let Some((by, of)) = other.by.zip(fact.by) else {
            return true;
        };
        match other.call {
            Call::Claim { .. } => by.fingerprint == of.fingerprint,
            Call::Extend { .. } => false,
            // At a later attempt it fails, and the record ends when it would have.
            Call::Release if by.attempt > 1 => false,
            _ => by.owner == of.owner || self.may_be_granted(other, fact),
        }
    }

    /// Whether the owner of a call may have been granted the key after something had
    /// happened.
    fn may_be_granted(&self, call: &Event, after: &Event) -> bool {
        let claims = self.of(call.owner()).iter().filter(|it| it.is_claim());
        let mut claims = claims.filter(|it| call.is_in_doubt() || it.asked <= call.answered);
        claims.any(|claim| !claim.is_before(after))
    }

    fn held_until(&self, fact: &Event) -> Duration {
        let Some(lease) = fact.lease().filter(|_| fact.acted()) else {
            return Duration::ZERO;
        };
        let own = self.of(fact.owner()).iter().copied();
        own.filter(|it| !same(it, fact) && !it.is_before(fact))
            .map(|it| {
                let from = it.asked.max(fact.asked);
                from.saturating_add(it.lease().unwrap_or_default())
            })
            .fold(fact.asked.saturating_add(lease), Duration::min)
    }

    fn granted_by(&self, fact: &Event) -> Duration {
        let own = self.of(fact.owner()).iter().copied();
        let grants = own.filter(|it| {
            let restores = it.answer == Answer::Restored || it.is_in_doubt();
            it.is_claim() || fact.is_complete() && it.is_complete() && restores
        });
        grants
            .filter(|it| !same(it, fact) && it.asked <= fact.answered)
            .map(Event::applied_by)
            .max()
            .unwrap_or_default()
    }
}

/// Whether they are one event, and not two that are equal.
pub(super) fn same(one: &Event, other: &Event) -> bool {
    std::ptr::eq(one, other)
}
