//! What is locked: a name.

use std::{fmt, sync::Arc};

use crate::{Error, Result};

/// The name of a locked thing: UTF-8, 1 to 1,024 bytes, no NUL. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource(Arc<str>);

impl Resource {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Checks a name.
    ///
    /// # Errors
    /// `InvalidArgument` naming `resource` if it is empty, too long or contains NUL.
    pub fn new(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Err(Error::invalid("resource", "must not be empty"));
        }
        if name.len() > Self::MAX_LEN {
            let why = format!("must have at most {} bytes, not {}", Self::MAX_LEN, name.len());
            return Err(Error::invalid("resource", why));
        }
        if name.contains('\0') {
            return Err(Error::invalid("resource", "must not contain NUL"));
        }
        Ok(Self(name.into()))
    }

    /// Checks a name that comes as bytes.
    ///
    /// # Errors
    /// As [`Resource::new`], and if it is not UTF-8.
    pub fn from_bytes(name: &[u8]) -> Result<Self> {
        match std::str::from_utf8(name) {
            Ok(name) => Self::new(name),
            Err(_) => Err(Error::invalid("resource", "must be UTF-8")),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_is_a_name() {
        for name in ["a", "invoice:42", "ünïcode/…", &"x".repeat(1024)] {
            assert_eq!(Resource::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_what_is_not() {
        for name in ["", "a\0b", &"x".repeat(1025)] {
            assert_eq!(Resource::new(name).unwrap_err().argument(), Some("resource"));
        }
        assert_eq!(Resource::from_bytes(b"\xff").unwrap_err().to_string(), "resource must be UTF-8");
    }
}
