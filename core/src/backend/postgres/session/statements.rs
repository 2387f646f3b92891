//! The statements of session mode.

use tokio_postgres::types::Type;

use crate::backend::postgres::{
    config::{Config, Keys},
    connection::Statement,
};

const TEXT: Type = Type::TEXT;
const INT4: Type = Type::INT4;
const INT8: Type = Type::INT8;
const BOOL: Type = Type::BOOL;

pub(super) struct Statements {
    pub(super) acquire: Statement,
    pub(super) acquire_all: Statement,
    pub(super) raise_tokens: Statement,
    pub(super) share: Statement,
    pub(super) permit: Statement,
    pub(super) extend: Statement,
    pub(super) release: Statement,
    pub(super) release_all: Statement,
    pub(super) inspect: Statement,
    pub(super) list: Statement,
    pub(super) break_lock: Statement,
    pub(super) make_table: String,
}

impl Statements {
    pub(super) fn new(config: &Config) -> Self {
        let statement = |index, text: &str, types: &[Type]| Statement {
            index,
            text: with_ids(text, config.keys).replace("polylock_session", &config.table),
            types: types.to_vec(),
        };
        let (texts, ids) = (Type::TEXT_ARRAY, Type::INT8_ARRAY);
        let acquire = |key: Type, id: Type| [key, TEXT, id, TEXT, INT4, TEXT, BOOL, INT8];
        let share = [&acquire(TEXT, INT8)[..], &[TEXT, BOOL]].concat();
        let keyed = [texts.clone(), ids.clone(), ids.clone(), ids.clone(), TEXT];
        let permit = [ids.clone(), TEXT, BOOL, TEXT, INT8, TEXT, INT4, TEXT, INT8];
        Self {
            acquire: statement(0, include_str!("../sql/session/acquire.sql"), &acquire(TEXT, INT8)),
            release: statement(1, include_str!("../sql/session/release.sql"), &[TEXT, INT8]),
            inspect: statement(2, include_str!("../sql/session/holders.sql"), &[TEXT, INT8, INT4]),
            list: statement(9, include_str!("../sql/session/list.sql"), &[TEXT, INT4, INT8]),
            break_lock: statement(
                10,
                include_str!("../sql/session/break.sql"),
                &[TEXT, TEXT, INT8, INT4, INT8, TEXT],
            ),
            extend: statement(3, include_str!("../sql/session/extend.sql"), &[texts.clone(), TEXT, INT8]),
            acquire_all: statement(4, include_str!("../sql/session/acquire_all.sql"), &acquire(texts.clone(), ids)),
            raise_tokens: statement(5, include_str!("../sql/session/raise_tokens.sql"), &[texts, TEXT, INT8]),
            share: statement(6, include_str!("../sql/session/share.sql"), &share),
            permit: statement(7, include_str!("../sql/session/permit.sql"), &permit),
            release_all: statement(8, include_str!("../sql/session/release_all.sql"), &keyed),
            make_table: include_str!("../sql/session/table.sql").replace("polylock_session", &config.table),
        }
    }
}

/// `advisory(X)` stands for the arguments that name the lock with the id X: one number, or its two halves.
pub(super) fn with_ids(text: &str, keys: Keys) -> String {
    let mut parts = text.split("advisory(");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // As in pg_advisory_lock(advisory(X)): pg_..._advisory_ has no parenthesis after it.
        let (id, rest) = split_at_end(part);
        if keys == Keys::Pair {
            whole.push_str(&format!("({id} >> 32)::integer, ({id} << 32 >> 32)::integer"));
        } else {
            whole.push_str(id);
        }
        whole.push_str(rest);
    }
    whole
}

/// The text before the parenthesis that ends it, and after that.
fn split_at_end(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' if depth == 0 => return (&text[..at], &text[at + 1..]),
            b')' => depth -= 1,
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_named_by_a_number_or_by_its_halves() {
        let text = "SELECT pg_try_advisory_lock(advisory(($3::bigint[])[1])), f(advisory($2))";
        assert_eq!(with_ids(text, Keys::Name), "SELECT pg_try_advisory_lock(($3::bigint[])[1]), f($2)");
        assert_eq!(
            with_ids(text, Keys::Pair),
            "SELECT pg_try_advisory_lock((($3::bigint[])[1] >> 32)::integer, \
             (($3::bigint[])[1] << 32 >> 32)::integer), f(($2 >> 32)::integer, ($2 << 32 >> 32)::integer)"
        );
    }
}
