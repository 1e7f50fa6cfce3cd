//! SHA-256 over parts that cannot run into each other.

use sha2::{Digest, Sha256};

/// Every part goes in behind its length, so that no two different lists of parts
/// give the same bytes: `("ab", "c")` and `("a", "bc")` stay apart.
#[derive(Clone)]
pub(crate) struct Framed(Sha256);

impl Framed {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    pub(crate) fn finish_short(self) -> [u8; 16] {
        let [short, _] = halves(self.finish());
        short
    }
}

fn halves(bytes: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    for (half, chunk) in halves.iter_mut().zip(bytes.chunks_exact(16)) {
        half.copy_from_slice(chunk);
    }
    halves
}
