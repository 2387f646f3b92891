//! The statements of lease mode, and what their rows say.
//!
//! There are three kinds of a claim: alone on one name (which most are), alone on several, and one of those that share a
//! name. Each has its own statements of the same meaning.

use std::time::Duration;

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    Mode,
    backend::{Claim, postgres::connection::Statement},
};

const TEXT: Type = Type::TEXT;
const INT8: Type = Type::INT8;

pub(super) struct Statements {
    alone: Kind,
    several: Kind,
    sharing: Kind,
    pub(super) inspect: Statement,
    pub(super) list: Statement,
    pub(super) break_lock: Statement,
    /// The same, and nobody is told.
    pub(super) break_quietly: Statement,
    pub(super) make_table: String,
}

struct Kind {
    acquire: Statement,
    extend: Statement,
    release: Statement,
    /// The same, and nobody is told.
    release_quietly: Statement,
}

impl Statements {
    pub(super) fn new(table: &str) -> Self {
        let with_table = |text: &str| text.replace("polylock_lease", table);
        let statement =
            |index, text: &str, types: &[Type]| Statement { index, text: with_table(text), types: types.to_vec() };
        let quietly = |index, text: &str, types: &[Type]| {
            statement(index, &text.replace("pg_notify('polylock', key)", "NULL"), types)
        };
        let acquire = |keys: Type| vec![keys, TEXT, INT8, INT8, TEXT, Type::INT4, TEXT, Type::BOOL];
        let several = Type::TEXT_ARRAY;
        Self {
            alone: Kind {
                acquire: statement(0, include_str!("../sql/lease/acquire.sql"), &acquire(TEXT)),
                extend: statement(1, include_str!("../sql/lease/extend.sql"), &[TEXT, TEXT, INT8]),
                release: statement(2, include_str!("../sql/lease/release.sql"), &[TEXT, TEXT]),
                release_quietly: quietly(12, include_str!("../sql/lease/release.sql"), &[TEXT, TEXT]),
            },
            several: Kind {
                acquire: statement(3, include_str!("../sql/lease/acquire_all.sql"), &acquire(several.clone())),
                extend: statement(4, include_str!("../sql/lease/extend_all.sql"), &[several.clone(), TEXT, INT8]),
                release: statement(5, include_str!("../sql/lease/release_all.sql"), &[several.clone(), TEXT]),
                release_quietly: quietly(13, include_str!("../sql/lease/release_all.sql"), &[several, TEXT]),
            },
            sharing: Kind {
                acquire: statement(
                    6,
                    include_str!("../sql/lease/share.sql"),
                    &[acquire(TEXT), vec![TEXT, INT8]].concat(),
                ),
                extend: statement(7, include_str!("../sql/lease/extend_share.sql"), &[TEXT, TEXT, INT8]),
                release: statement(8, include_str!("../sql/lease/release_share.sql"), &[TEXT, TEXT]),
                release_quietly: quietly(14, include_str!("../sql/lease/release_share.sql"), &[TEXT, TEXT]),
            },
            inspect: statement(9, include_str!("../sql/lease/holders.sql"), &[TEXT, INT8]),
            list: statement(
                10,
                &include_str!("../sql/lease/holders.sql").replace("key = $1", "key LIKE $1"),
                &[TEXT, INT8],
            ),
            break_lock: statement(11, include_str!("../sql/lease/break.sql"), &[TEXT, TEXT]),
            break_quietly: quietly(15, include_str!("../sql/lease/break.sql"), &[TEXT, TEXT]),
            make_table: with_table(include_str!("../sql/lease/table.sql")),
        }
    }
}

/// A claim as its statements take it.
pub(super) struct Asked<'a> {
    kind: &'a Kind,
    pub(super) keys: Vec<String>,
    owner: &'a str,
    /// As what it is shared, and how many may.
    sharing: Option<(&'static str, i64)>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(statements: &'a Statements, claim: &'a Claim, prefix: &str) -> Self {
        let name = claim.mode.name();
        let (kind, sharing) = match claim.mode {
            Mode::Exclusive if claim.resources.len() == 1 => (&statements.alone, None),
            Mode::Exclusive => (&statements.several, None),
            Mode::Shared => (&statements.sharing, Some((name, i64::MAX))),
            Mode::Permit { of } => (&statements.sharing, Some((name, of.into()))),
        };
        let keys = claim.resources.iter().map(|resource| format!("{prefix}{resource}")).collect();
        Self { kind, keys, owner: claim.owner.as_str(), sharing }
    }

    fn params<'b>(&'b self, rest: &[&'b (dyn ToSql + Sync)]) -> Vec<&'b (dyn ToSql + Sync)> {
        let keys: &(dyn ToSql + Sync) = if self.keys.len() == 1 { &self.keys[0] } else { &self.keys };
        [&[keys, &self.owner], rest].concat()
    }

    /// Takes $3 to $8.
    pub(super) fn acquire<'b>(
        &'b self,
        rest: [&'b (dyn ToSql + Sync); 6],
    ) -> (&'b Statement, Vec<&'b (dyn ToSql + Sync)>) {
        let mut params = self.params(&rest);
        if let Some((name, most)) = &self.sharing {
            params.extend([name as &(dyn ToSql + Sync), most]);
        }
        (&self.kind.acquire, params)
    }

    pub(super) fn extend<'b>(&'b self, ttl: &'b i64) -> (&'b Statement, Vec<&'b (dyn ToSql + Sync)>) {
        (&self.kind.extend, self.params(&[ttl]))
    }

    /// With NOTIFY, and without.
    pub(super) fn release(&self) -> ([&Statement; 2], Vec<&(dyn ToSql + Sync)>) {
        ([&self.kind.release, &self.kind.release_quietly], self.params(&[]))
    }
}

/// What one attempt's row says.
pub(super) struct Seen {
    pub(super) token: Option<i64>,
    pub(super) held: bool,
    /// Held as a semaphore.
    pub(super) by_permits: bool,
    pub(super) us_left: Option<i64>,
    pub(super) asked: bool,
    pub(super) now: i64,
}

impl Seen {
    pub(super) fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            token: row.try_get("token")?,
            held: row.try_get("held")?,
            by_permits: row.try_get::<_, &str>("kind")? == "permit",
            us_left: row.try_get("us_left")?,
            asked: row.try_get("asked")?,
            now: row.try_get("now")?,
        })
    }
}

pub(super) fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}
