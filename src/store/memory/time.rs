use std::time::Duration;

use tokio::time::Instant;

/// A time of the store's own clock: nanoseconds since the store was made, half the size
/// of an `Instant` in every record. It saturates after 584 years, which is never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(u64);

impl Time {
    pub(super) const NEVER: Self = Self(u64::MAX);

    pub(super) fn since(start: Instant) -> Self {
        Self(nanos(start.elapsed()))
    }

    pub(super) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// What is left until `later`; nothing once it is past.
    pub(super) fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }

    pub(super) const fn to_bits(self) -> u64 {
        self.0
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
