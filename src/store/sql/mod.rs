//! What the stores on a SQL database have in common.

mod fault;
mod name;
mod purge;

pub(super) use self::fault::{doubtful, millis, store_error};
pub use self::name::InvalidName;
pub(super) use self::name::Name;
pub use self::purge::PurgeTask;
