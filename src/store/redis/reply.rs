//! What the scripts reply.

use redis::Value;

use crate::model::claim::Ownership;
use crate::model::error::{StoreError, StoreErrorKind};

/// What a script gave.
pub(super) struct Reply(Value);

impl Reply {
    /// -1 is every script's word for a record that is none.
    pub(super) fn new(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Int(-1) => Err(StoreErrorKind::Corrupt.into()),
            value => Ok(Self(value)),
        }
    }

    pub(super) fn is_nil(&self) -> bool {
        self.0 == Value::Nil
    }

    pub(super) fn int(&self) -> Result<i64, StoreError> {
        match self.0 {
            Value::Int(int) => Ok(int),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn ownership(&self) -> Result<Ownership, StoreError> {
        match self.int()? {
            0 => Ok(Ownership::Lost),
            1 => Ok(Ownership::Held),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn parts(self) -> Result<Parts, StoreError> {
        match self.0 {
            Value::Array(values) => Ok(Parts(values.into_iter())),
            _ => Err(unexpected()),
        }
    }
}

/// What a script gave, part by part.
pub(super) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(super) fn int(&mut self) -> Result<i64, StoreError> {
        match self.0.next() {
            Some(Value::Int(int)) => Ok(int),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn count(&mut self) -> Result<u64, StoreError> {
        self.int()?.try_into().map_err(|_| unexpected())
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }
}

/// The server said something that no script of ours says: whatever it was, it may have
/// been applied.
pub(super) fn unexpected() -> StoreError {
    StoreError::new(
        StoreErrorKind::Ambiguous,
        "the server gave a reply that is none of this store's scripts",
    )
}
