//! The closed set of errors, the same in every language.

use std::fmt;

/// What went wrong. Names and numbers are stable and the same in every language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum ErrorKind {
    /// The resource stayed in use for as long as the caller wanted to wait.
    Timeout = 1,
    /// The lease is not held any more: its deadline passed or the backend said that it is not ours.
    Lost = 2,
    /// The backend could not be reached, or not enough of its nodes answered.
    Unavailable = 3,
    /// An argument has no meaning; [`Error::argument`] names it.
    InvalidArgument = 4,
    /// The resource is in use as something else than this kind of lock.
    Conflict = 5,
    /// The backend cannot do this.
    Unsupported = 6,
    /// The server refused the user, the password or a permission.
    Auth = 7,
    /// The manager was closed.
    Closed = 8,
    /// The object belongs to the process that this one was forked from.
    Forked = 9,
    /// A handle that was freed, is of another kind, or was never given out (C).
    InvalidHandle = 10,
    /// A bug in polylock.
    Internal = 11,
}

impl ErrorKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::Timeout,
        Self::Lost,
        Self::Unavailable,
        Self::InvalidArgument,
        Self::Conflict,
        Self::Unsupported,
        Self::Auth,
        Self::Closed,
        Self::Forked,
        Self::InvalidHandle,
        Self::Internal,
    ];

    /// The stable number; 0 is kept for success.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The stable name, as in `Timeout`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "Timeout",
            Self::Lost => "Lost",
            Self::Unavailable => "Unavailable",
            Self::InvalidArgument => "InvalidArgument",
            Self::Conflict => "Conflict",
            Self::Unsupported => "Unsupported",
            Self::Auth => "Auth",
            Self::Closed => "Closed",
            Self::Forked => "Forked",
            Self::InvalidHandle => "InvalidHandle",
            Self::Internal => "Internal",
        }
    }
}

/// Result of a lock operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed: a kind to decide by and a sentence to read.
///
/// No password is ever part of it.
#[derive(Clone)]
pub struct Error(Box<Details>);

#[derive(Clone)]
struct Details {
    kind: ErrorKind,
    message: String,
    argument: Option<&'static str>,
    resource: Option<String>,
    causes: Vec<String>,
    trouble: Option<Trouble>,
}

/// How a server was out of reach, where that is known. For the drop-in for redis-py's lock, which has an error for each.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no way to it: the connection was refused, or its name is not known.
    NoConnection,
    /// It answered, by this error.
    Said {
        /// Its words.
        reply: String,
        /// It will be over by itself, or is to be asked elsewhere.
        passes: bool,
    },
}

impl Error {
    /// An error of `kind`; `message` is a sentence without the resource's name.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            argument: None,
            resource: None,
            causes: Vec::new(),
            trouble: None,
        }))
    }

    /// [`ErrorKind::InvalidArgument`] for `argument`; the message starts with its name.
    pub fn invalid(argument: &'static str, why: impl fmt::Display) -> Self {
        let mut error = Self::new(ErrorKind::InvalidArgument, format!("{argument} {why}"));
        error.0.argument = Some(argument);
        error
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the manager is closed")
    }

    pub(crate) fn forked() -> Self {
        Self::new(ErrorKind::Forked, "this object belongs to the parent process; make a new manager after fork")
    }

    /// Calls the argument `name` if it is `argument`: as the caller knows it.
    #[doc(hidden)]
    #[must_use]
    pub fn renamed(mut self, argument: &str, name: &'static str) -> Self {
        if self.0.argument == Some(argument) {
            self.0.argument = Some(name);
            self.0.message.replace_range(..argument.len(), name);
        }
        self
    }

    /// Says which resource the operation was about, unless that is known already.
    #[must_use]
    pub fn on(mut self, resource: &str) -> Self {
        self.0.resource.get_or_insert_with(|| resource.to_owned());
        self
    }

    /// Adds the failure of one node, or of the last try, as a cause.
    #[must_use]
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.0.causes.push(cause.to_string());
        self
    }

    /// Adds the causes of another failure; that failure itself if it has none.
    #[must_use]
    pub(crate) fn with_causes_of(mut self, other: &Self) -> Self {
        self.0.trouble.clone_from(&other.0.trouble);
        if other.0.causes.is_empty() {
            return self.caused_by(other);
        }
        self.0.causes.extend_from_slice(&other.0.causes);
        self
    }

    /// Says how the server was out of reach.
    #[must_use]
    pub(crate) fn in_trouble(mut self, trouble: Trouble) -> Self {
        self.0.trouble = Some(trouble);
        self
    }

    /// How the server was out of reach, if it was one and that is known.
    #[doc(hidden)]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.0.trouble.as_ref()
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The argument that was wrong, for [`ErrorKind::InvalidArgument`].
    pub fn argument(&self) -> Option<&str> {
        self.0.argument
    }

    /// The resource that the operation was about.
    pub fn resource(&self) -> Option<&str> {
        self.0.resource.as_deref()
    }

    /// What each node said, or what the last try failed with.
    pub fn causes(&self) -> &[String] {
        &self.0.causes
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Timeout | ErrorKind::Unavailable)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(resource) = &self.0.resource {
            write!(f, "{resource:?}: ")?;
        }
        f.write_str(&self.0.message)?;
        if !self.0.causes.is_empty() {
            write!(f, " ({})", self.0.causes.join("; "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind.name())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_dense() {
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.code() as usize, index + 1);
            assert_eq!(format!("{kind:?}"), kind.name());
        }
    }

    #[test]
    fn reads_as_a_sentence() {
        let error = Error::unavailable("no answer after 0.5 s").on("job:1").caused_by("127.0.0.1:1: refused");
        assert_eq!(error.to_string(), r#""job:1": no answer after 0.5 s (127.0.0.1:1: refused)"#);
        assert!(error.is_retryable());
        let invalid = Error::invalid("ttl", "must be positive");
        assert_eq!((invalid.argument(), invalid.to_string().as_str()), (Some("ttl"), "ttl must be positive"));
        let renamed = invalid.on("ttl").renamed("ttl", "time").renamed("wait", "patience");
        assert_eq!(
            (renamed.argument(), renamed.to_string().as_str()),
            (Some("time"), r#""ttl": time must be positive"#)
        );
    }
}
