//! What the scripts reply.

use redis::Value;

use crate::model::claim::Ownership;
use crate::model::error::{StoreError, StoreErrorKind};

/// What a script gave.
pub(super) struct Reply(pub(super) Value);

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

    /// No script that writes replies with less than 1, or with what is in its way.
    pub(super) fn wrote_nothing(&self) -> bool {
        !matches!(self.0, Value::Int(1..))
    }

    pub(super) fn ownership(&self) -> Result<Ownership, StoreError> {
        match self.int()? {
            0 => Ok(Ownership::Lost),
            1 => Ok(Ownership::Held),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn bytes(self) -> Result<Vec<u8>, StoreError> {
        match self.0 {
            Value::BulkString(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn pair(self) -> Result<(Self, Self), StoreError> {
        match self.0 {
            Value::Array(values) => {
                let [first, second] = values.try_into().map_err(|_| unexpected())?;
                Ok((Self(first), Self(second)))
            }
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
