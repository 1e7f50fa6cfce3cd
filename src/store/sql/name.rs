use std::error::Error;
use std::fmt;

/// PostgreSQL cuts off what is longer than 63 bytes, and the name of an index is that of
/// its table with an ending.
const LONGEST: usize = 48;

/// The name of a table or schema: what needs no escaping, so that it can stand in a
/// statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: &str) -> Result<Self, InvalidName> {
        let is_valid = name.len() <= LONGEST
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        match is_valid {
            true => Ok(Self(name.to_owned())),
            false => Err(InvalidName(name.to_owned())),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A table or schema cannot be called like that: a name is 1 to 48 lower-case ASCII letters,
/// digits and underscores, and does not begin with a digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName(String);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no name for a table or schema: 1 to {LONGEST} of a-z, 0-9 and `_`, and no \
             digit first",
            self.0.escape_debug()
        )
    }
}

impl Error for InvalidName {}
