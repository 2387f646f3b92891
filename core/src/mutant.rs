//! Mistakes that other lock libraries make, to be made by this one: `make mutants` shows that the tests find each.
//!
//! They are in the tests' build alone; the environment names the one that is made, `POLYLOCK_MUTANT=D5`. The names are those of
//! `tests/mutants.py`, which says what each is.

/// Whether the mistake of this name is to be made; never outside of the tests.
macro_rules! mutant {
    ($name:literal) => {{
        #[cfg(test)]
        let made = $crate::mutant::is_made($name);
        #[cfg(not(test))]
        let made = false;
        made
    }};
}

pub(crate) use mutant;

#[cfg(test)]
pub(crate) fn is_made(name: &str) -> bool {
    static MADE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| std::env::var("POLYLOCK_MUTANT").ok()).as_deref() == Some(name)
}
