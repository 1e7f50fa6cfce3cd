//! How far each key has come, for whoever finds out that it comes no further.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
pub struct Trail(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl Trail {
    pub fn add(&self, key: &str, step: impl Into<String>) {
        let mut steps = self.0.lock().unwrap();
        steps.entry(key.to_owned()).or_default().push(step.into());
    }

    /// The latest steps under this key.
    pub fn of(&self, key: &str) -> String {
        let steps = self.0.lock().unwrap();
        let steps = steps.get(key).map(Vec::as_slice).unwrap_or_default();
        steps[steps.len().saturating_sub(40)..].join(", ")
    }
}
