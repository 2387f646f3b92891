//! Who holds, as the statements of both modes answer it.

use std::time::{Duration, UNIX_EPOCH};

use tokio_postgres::Row;

use crate::{
    Resource,
    backend::Holder,
    pattern::{Part, Pattern},
};

/// The pattern as LIKE takes it, of keys with `prefix`.
pub(super) fn like(prefix: &str, pattern: &Pattern) -> String {
    let mut like = String::new();
    for part in prefix.chars().map(Part::Is).chain(pattern.parts().iter().copied()) {
        match part {
            Part::Any => like.push('%'),
            Part::One => like.push('_'),
            Part::Is(c) => {
                if matches!(c, '%' | '_' | '\\') {
                    like.push('\\');
                }
                like.push(c);
            }
        }
    }
    like
}

pub(super) fn read_holders(rows: &[Row], prefix: &str) -> Vec<Holder> {
    rows.iter().filter_map(|row| read_holder(row, prefix)).collect()
}

/// `None` for a row that is not of our making.
pub(super) fn read_holder(row: &Row, prefix: &str) -> Option<Holder> {
    let resource = Resource::new(row.try_get::<_, &str>("key").ok()?.strip_prefix(prefix)?).ok()?;
    let mode = match row.try_get("kind").ok()? {
        "exclusive" => "exclusive",
        "shared" => "shared",
        "permit" => "permit",
        _ => return None,
    };
    let number = |name| row.try_get::<_, Option<i64>>(name).ok().flatten();
    let micros = |us: i64| Duration::from_micros(us.max(0).unsigned_abs());
    let text = |name| row.try_get::<_, Option<String>>(name).ok().flatten();
    Some(Holder {
        mode,
        fencing_token: number("token").and_then(|token| u64::try_from(token).ok()),
        expires_in: number("us_left").map(micros),
        since: number("since").map(|us| UNIX_EPOCH + micros(us)),
        host: text("host"),
        pid: row.try_get::<_, Option<i32>>("pid").ok().flatten().and_then(|pid| u32::try_from(pid).ok()),
        label: text("label"),
        ..Holder::new(resource, text("owner")?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_like_and_the_rest_is_taken_as_it_is() {
        for (pattern, expected) in [("a*?", "p\\_a%_"), ("50%_\\*", "p\\_50\\%\\_*"), ("\\\\", "p\\_\\\\")] {
            assert_eq!(like("p_", &Pattern::parse(pattern).unwrap()), expected, "{pattern}");
        }
    }
}
