//! Which names are meant: a name with wildcards.

use crate::{Error, Resource, Result};

/// `*` stands for any text, `?` for any one character, and a backslash takes the next character as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Part>);

/// One part of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// This character.
    Is(char),
    /// Any one character.
    One,
    /// Any text.
    Any,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `InvalidArgument` naming `pattern` if it is empty, has a NUL, is over 2,048 bytes or ends in a lone backslash.
    pub(crate) fn parse(pattern: &str) -> Result<Self> {
        let invalid = |why| Err(Error::invalid("pattern", why));
        if pattern.is_empty() {
            return invalid("must not be empty; * is every name");
        }
        if pattern.len() > 2 * Resource::MAX_LEN || pattern.contains('\0') {
            return invalid("must have at most 2,048 bytes and no NUL");
        }
        let (mut parts, mut chars) = (Vec::new(), pattern.chars());
        while let Some(c) = chars.next() {
            let part = match c {
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => match chars.next() {
                    Some(c) => Part::Is(c),
                    None => return invalid("must not end in a backslash that takes nothing"),
                },
                c => Part::Is(c),
            };
            if !(part == Part::Any && parts.last() == Some(&Part::Any)) {
                parts.push(part);
            }
        }
        Ok(Self(parts))
    }

    /// This name alone.
    pub(crate) fn exactly(resource: &Resource) -> Self {
        Self(resource.as_str().chars().map(Part::Is).collect())
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The only name that matches, if there is but one.
    pub(crate) fn only(&self) -> Option<Resource> {
        let name = self.0.iter().map(|part| match part {
            Part::Is(c) => Some(*c),
            Part::One | Part::Any => None,
        });
        Resource::new(&name.collect::<Option<String>>()?).ok()
    }

    /// Whether `name` is meant.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let (parts, name) = (&self.0, name.chars().collect::<Vec<_>>());
        let (mut part, mut at) = (0, 0);
        // Where to go on if what follows the last * does not fit: that * takes one character more.
        let mut again = None;
        loop {
            let fits = match parts.get(part) {
                Some(Part::Any) => {
                    again = Some((part, at));
                    part += 1;
                    continue;
                }
                Some(Part::One) => at < name.len(),
                Some(Part::Is(c)) => name.get(at) == Some(c),
                None => at == name.len(),
            };
            match again {
                _ if fits && part == parts.len() => return true,
                _ if fits => (part, at) = (part + 1, at + 1),
                Some((any, from)) if from < name.len() => {
                    again = Some((any, from + 1));
                    (part, at) = (any + 1, from + 1);
                }
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_what_is_meant() {
        for (pattern, yes, no) in [
            ("*", &["a", "ü:1"][..], &[][..]),
            ("a", &["a"], &["", "b", "aa"]),
            ("invoice:*", &["invoice:", "invoice:42"], &["invoice", "xinvoice:1"]),
            ("*:?", &["a:ü", "a:b:c"], &["a:", "a:bc"]),
            ("*a*b*", &["ab", "xaxbx", "aab", "abab"], &["ba", "b"]),
            ("a\\*[b]", &["a*[b]"], &["a*b", "aab"]),
            ("**?", &["x"], &[""]),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            for name in yes {
                assert!(parsed.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!parsed.matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn many_wildcards_do_not_take_for_ever() {
        let pattern = Pattern::parse(&"*a".repeat(500)).unwrap();
        assert!(!pattern.matches(&format!("{}b", "a".repeat(1000))));
    }

    #[test]
    fn knows_a_plain_name() {
        let name = Resource::new("a*?\\b").unwrap();
        assert_eq!(Pattern::exactly(&name).only(), Some(name.clone()));
        assert!(Pattern::exactly(&name).matches(name.as_str()));
        assert_eq!(Pattern::parse("a\\*\\?\\\\b").unwrap().only(), Some(name));
        assert_eq!(Pattern::parse("a*").unwrap().only(), None);
    }

    #[test]
    fn refuses_what_is_none() {
        for bad in ["", "a\0", "a\\", &"x".repeat(2049)] {
            assert_eq!(Pattern::parse(bad).unwrap_err().argument(), Some("pattern"), "{bad:?}");
        }
    }
}
