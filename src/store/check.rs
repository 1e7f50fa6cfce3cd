use std::error::Error;
use std::fmt;

use super::StoreError;

/// What a store's `check` ends with where the store is not fit, or could not be asked. `F` is
/// what that store finds.
#[non_exhaustive]
pub enum CheckError<F> {
    /// What was found, of which at least one is unfit: it breaks a promise of the layer sooner
    /// or later in ordinary operation.
    Unfit(Vec<F>),
    /// It did not answer as it should.
    Store(StoreError),
}

/// In sentences too, with the cause: this is what a `main` that returns it prints.
impl<F: fmt::Display> fmt::Debug for CheckError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(_) => write!(f, "{self}"),
            Self::Store(error) => write!(f, "{self}: {error:?}"),
        }
    }
}

impl<F: fmt::Display> fmt::Display for CheckError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(findings) => {
                f.write_str("the store cannot keep records safely")?;
                findings
                    .iter()
                    .try_for_each(|finding| write!(f, "; {finding}"))
            }
            Self::Store(_) => f.write_str("the store could not be checked"),
        }
    }
}

impl<F: fmt::Display> Error for CheckError<F> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unfit(_) => None,
            Self::Store(error) => Some(error),
        }
    }
}

impl<F> From<StoreError> for CheckError<F> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
