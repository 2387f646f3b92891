//! What is asked for: which resources, and how.

use std::{fmt, sync::Arc};

use crate::{Error, Resource, Result};

/// How a lease holds its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// Together with others that hold it shared.
    Shared,
    /// As one of at most so many at a time. All users of a semaphore must name the same number.
    Permit {
        /// How many there are: 1 to 65,535.
        of: u32,
    },
}

impl Mode {
    /// The stable name: `exclusive`, `shared` or `permit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Permit { .. } => "permit",
        }
    }
}

/// What to acquire: a name is that resource exclusively, a list of names all of them or none.
///
/// ```
/// use polylock::Target;
/// let one: Target = "invoice:42".into();
/// let both: Target = ["account:1", "account:2"].into();
/// let readers = Target::shared("catalogue");
/// let one_of_five = Target::permit("mail-gateway", 5);
/// # let _ = (one, both, readers, one_of_five);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    names: Vec<String>,
    /// They were given as a list, which may be one of one.
    is_list: bool,
    mode: Mode,
}

impl Target {
    /// `name` together with others that hold it shared.
    pub fn shared(name: &str) -> Self {
        Self::one(name, Mode::Shared)
    }

    /// One of `of` permits of the semaphore `name`.
    pub fn permit(name: &str, of: u32) -> Self {
        Self::one(name, Mode::Permit { of })
    }

    /// All of `names` exclusively, or none.
    pub fn all(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), is_list: true, mode: Mode::Exclusive }
    }

    fn one(name: impl Into<String>, mode: Mode) -> Self {
        Self { names: vec![name.into()], is_list: false, mode }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// `error`, which names the argument that was given: `resources` where that was a list.
    pub(crate) fn blamed(&self, error: Error) -> Error {
        if self.is_list { error.renamed("resource", "resources") } else { error }
    }

    /// The names, checked, in one order for everybody: whoever takes several takes them in this one.
    pub(crate) fn resources(&self) -> Result<Arc<[Resource]>> {
        self.checked().map_err(|error| self.blamed(error))
    }

    fn checked(&self) -> Result<Arc<[Resource]>> {
        const MOST: usize = 64;
        if self.names.is_empty() || self.names.len() > MOST {
            return Err(Error::invalid("resource", format!("must be 1 to {MOST} names, not {}", self.names.len())));
        }
        if let Mode::Permit { of } = self.mode
            && !(1..=65_535).contains(&of)
        {
            return Err(Error::invalid("of", format!("must be 1 to 65,535 permits, not {of}")));
        }
        let mut resources = self.names.iter().map(|name| Resource::new(name)).collect::<Result<Vec<_>>>()?;
        resources.sort();
        if let Some(twice) = resources.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid("resource", format!("names {:?} twice", twice[0].as_str())));
        }
        Ok(resources.into())
    }
}

impl From<&str> for Target {
    fn from(name: &str) -> Self {
        Self::one(name, Mode::Exclusive)
    }
}

impl From<&String> for Target {
    fn from(name: &String) -> Self {
        Self::one(name, Mode::Exclusive)
    }
}

impl From<String> for Target {
    fn from(name: String) -> Self {
        Self::one(name, Mode::Exclusive)
    }
}

impl<S: Into<String>> From<Vec<S>> for Target {
    fn from(names: Vec<S>) -> Self {
        Self::all(names)
    }
}

impl<S: AsRef<str>> From<&[S]> for Target {
    fn from(names: &[S]) -> Self {
        Self::all(names.iter().map(AsRef::as_ref))
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Target {
    fn from(names: [S; N]) -> Self {
        Self::all(names)
    }
}

/// Several resources, as errors and logs name them.
pub(crate) struct Names<'a>(pub(crate) &'a [Resource]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, resource) in self.0.iter().enumerate() {
            write!(f, "{}{resource}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_taken_in_one_order() {
        let resources = Target::from(["b", "a", "c"]).resources().unwrap();
        assert_eq!(Names(&resources).to_string(), "a, b, c");
    }

    #[test]
    fn refuses_nothing_and_the_same_twice() {
        for target in [Target::all(Vec::<String>::new()), ["a", "a"].into(), vec!["x"; 65].into(), [""].into()] {
            let error = target.resources().unwrap_err();
            assert_eq!(error.argument(), Some("resources"));
            assert!(error.to_string().starts_with("resources "), "{error}");
        }
        assert_eq!(Target::from("").resources().unwrap_err().argument(), Some("resource"));
        for of in [0, 65_536] {
            assert_eq!(Target::permit("s", of).resources().unwrap_err().argument(), Some("of"));
        }
    }
}
