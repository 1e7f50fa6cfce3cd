//! The statements, with the names of table and schema put in, and how one is sent.

use std::fmt::Write;
use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Error, query, raw_sql};

/// Where the table is. Both are checked names, which may be key words all the same.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) schema: Option<String>,
    pub(super) table: String,
}

impl Place {
    pub(super) fn qualified(&self) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{}\"", self.table),
            None => format!("\"{}\"", self.table),
        }
    }

    pub(super) fn schema_sql(&self) -> String {
        self.fill(include_str!("schema.sql"))
    }

    fn statement(&self, template: &str) -> Statement {
        Statement(self.code(template).into())
    }

    fn code(&self, template: &str) -> String {
        let is_code = |line: &&str| !line.trim_start().starts_with("--");
        let code: Vec<_> = template.lines().filter(is_code).collect();
        self.fill(&code.join("\n"))
    }

    /// Whatever stands in braces is a name, or a phrase that several statements share.
    fn fill(&self, template: &str) -> String {
        let mut filled = String::with_capacity(2 * template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (phrase, after) = after.split_once('}').unwrap_or((after, ""));
            filled.push_str(before);
            filled.push_str(&self.phrase(phrase));
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    fn phrase(&self, phrase: &str) -> String {
        let (phrase, value) = phrase.split_once(':').unwrap_or((phrase, ""));
        match phrase {
            "table" => self.qualified(),
            "name" => self.table.clone(),
            "read" => self.code(include_str!("read.sql")),
            "until" => format!("(clock.now + {value}::bigint * interval '1 millisecond')"),
            "micros" => format!("(extract(epoch FROM {value}) * 1000000)::bigint"),
            // Not changed for less than an hour: the column is indexed, and an update that
            // leaves it alone touches no index.
            "coarse" => {
                let until = self.phrase(&format!("until:{value}"));
                format!(
                    "CASE WHEN abs(extract(epoch FROM {until} - t.purge_after)) > 3600 \
                     THEN {until} ELSE t.purge_after END"
                )
            }
            "free" => "(t.expires_at <= clock.now OR (t.fingerprint = $2 AND (t.state = 2 \
                       OR (t.state = 0 AND (t.owner = $3 \
                       OR (NOT t.seals AND t.lease_until <= clock.now))))))"
                .to_owned(),
            "mine" => {
                "t.id = $1 AND t.owner = $2 AND t.state = 0 AND t.expires_at > clock.now".to_owned()
            }
            "live" => "(t.state = 0 AND t.lease_until > clock.now AND t.expires_at > clock.now)"
                .to_owned(),
            other => format!("{{{other}}}"),
        }
    }
}

macro_rules! statements {
    ($($name:ident = $file:literal;)*) => {
        /// One for each file.
        pub(super) struct Statements {
            $(pub(super) $name: Statement,)*
        }

        impl Statements {
            pub(super) fn new(place: &Place) -> Self {
                Self {
                    $($name: place.statement(include_str!($file)),)*
                }
            }
        }
    };
}

statements! {
    read = "read.sql";
    claim = "claim.sql";
    take = "take.sql";
    extend = "extend.sql";
    complete = "complete.sql";
    complete_in = "complete_in.sql";
    restore = "restore.sql";
    fail = "fail.sql";
    free = "free.sql";
    give_up = "give_up.sql";
    lookup = "lookup.sql";
    forget = "forget.sql";
    resolve = "resolve.sql";
    purge = "purge.sql";
    fence = "fence.sql";
}

/// What stands for `$1`, `$2` and so on.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Bytes(&'a [u8]),
    Number(i64),
    Flag(bool),
}

/// Gives at most one row.
pub(super) struct Statement(Arc<str>);

impl Statement {
    /// Prepared once for each connection, in one round trip from then on.
    pub(super) async fn prepared(
        &self,
        values: &[Value<'_>],
        connection: &mut PgConnection,
    ) -> Result<Option<PgRow>, Error> {
        let mut query = query(AssertSqlSafe(Arc::clone(&self.0)));
        for &value in values {
            query = match value {
                Value::Bytes(bytes) => query.bind(bytes),
                Value::Number(number) => query.bind(number),
                Value::Flag(flag) => query.bind(flag),
            };
        }
        query.fetch_optional(connection).await
    }

    /// As text, with its values in it: one message and one round trip, of which nothing stays
    /// behind on the connection of the server.
    pub(super) async fn plain(
        &self,
        values: &[Value<'_>],
        connection: &mut PgConnection,
    ) -> Result<Option<PgRow>, Error> {
        let mut rows = raw_sql(AssertSqlSafe(self.with(values)))
            .fetch_all(connection)
            .await?;
        Ok(rows.pop())
    }

    fn with(&self, values: &[Value<'_>]) -> String {
        let mut parts = self.0.split('$');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (digit, rest) = part.split_at(part.len().min(1));
            let value = digit.parse().ok().and_then(|nth: usize| {
                let nth = nth.checked_sub(1)?;
                values.get(nth)
            });
            match value {
                Some(value) => value.write(&mut text),
                None => text.push('$'),
            }
            text.push_str(if value.is_some() { rest } else { part });
        }
        text
    }
}

impl Value<'_> {
    /// Digits alone stand between the quotes: nothing in a value is ever read as SQL.
    fn write(&self, to: &mut String) {
        match self {
            Self::Bytes(bytes) => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                to.reserve(2 * bytes.len() + 16);
                to.push_str("decode('");
                for byte in *bytes {
                    to.push(DIGITS[usize::from(byte >> 4)].into());
                    to.push(DIGITS[usize::from(byte & 15)].into());
                }
                to.push_str("','hex')");
            }
            Self::Number(number) => {
                let _ = write!(to, "{number}::bigint");
            }
            Self::Flag(flag) => to.push_str(if *flag { "true" } else { "false" }),
        }
    }
}
