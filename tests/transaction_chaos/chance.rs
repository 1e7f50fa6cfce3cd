//! What is drawn at random.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SEED: &str = "TRANSACTION_CHAOS_SEED";

#[derive(Clone)]
pub struct Chance(Arc<AtomicU64>);

/// Kept by the test itself, where it fails in the end.
pub struct TellsSeed(u64);

impl Drop for TellsSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to draw the same again: {SEED}={}", self.0);
        }
    }
}

impl Chance {
    pub fn new() -> (Self, TellsSeed) {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().expect("the seed is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        (Self(Arc::new(AtomicU64::new(seed))), TellsSeed(seed))
    }

    /// `SplitMix64`: Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
    fn draw(&self) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut drawn = self.0.fetch_add(step, Ordering::Relaxed);
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        drawn ^ (drawn >> 31)
    }

    pub fn one_in(&self, cases: u64) -> bool {
        self.draw().is_multiple_of(cases)
    }

    pub fn below(&self, end: usize) -> usize {
        usize::try_from(self.draw() % end as u64).unwrap()
    }

    pub fn of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn up_to(&self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.draw() % milliseconds)
    }
}
