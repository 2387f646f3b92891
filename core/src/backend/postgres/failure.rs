//! How a statement can end without a useful answer.

use tokio_postgres::error::{DbError, SqlState};

use crate::{Error, ErrorKind, backend::Claim};

const LACKS: &str = "has characters that the database's encoding lacks";

/// Why there is no useful answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It never left: nothing was done.
    NotSent(Error),
    /// The connection broke: it may have been done, or may yet be.
    Broken(Error),
    /// No answer in time: it may have been done, or may yet be.
    TimedOut(Error),
    /// The server refused it: nothing was done.
    Refused { code: SqlState, error: Error },
}

impl Failure {
    pub(super) fn not_sent(peer: &str, why: impl std::fmt::Display) -> Self {
        Self::NotSent(Error::unavailable(format!("{peer}: {why}")))
    }

    /// What `error`, of a statement or of the log-in, means.
    pub(super) fn of(peer: &str, error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::from_server(peer, refusal),
            None => Self::Broken(Error::unavailable(format!("{peer}: {}", chain(error)))),
        }
    }

    /// What the server said, in the terms of this library. One place for every SQLSTATE:
    ///
    /// | SQLSTATE | taken as |
    /// |---|---|
    /// | class 08, 57P, 58, XX: the session or the server ends | it may have been done |
    /// | class 28 | `Auth`, without the server's words: they name the user |
    /// | 42501 insufficient privilege | `Auth` |
    /// | 3D000 no such database | `InvalidArgument`: `url` |
    /// | 22021, 22P05: a name that the database's encoding lacks | `InvalidArgument`: `resource`, or `label` |
    /// | 42703, 42804, 42P10: a column or a key that the table lacks | `InvalidArgument`: `url` |
    /// | 0A000 not supported, 42883 no such function | `Unsupported` |
    /// | the rest: too many clients, lock time-out, read-only, cancelled … | out of reach for now |
    fn from_server(peer: &str, refusal: &DbError) -> Self {
        let code = refusal.code().clone();
        let said = format!("{peer}: {} ({})", refusal.message(), code.code());
        let class = |prefix: &[&str]| prefix.iter().any(|prefix| code.code().starts_with(prefix));
        if class(&["08", "57P", "58", "XX"]) {
            return Self::Broken(Error::unavailable(said));
        }
        let error = match code.code() {
            "42501" => Error::new(ErrorKind::Auth, said),
            "3D000" => Error::invalid("url", format!("names a database that {peer} does not have")),
            "22021" | "22P05" => Error::invalid("resource", LACKS),
            "42703" | "42804" | "42P10" => {
                Error::invalid("url", format!("names a table that is not as table.sql makes it: {said}"))
            }
            "0A000" | "42883" => Error::new(ErrorKind::Unsupported, said),
            _ if class(&["28"]) => {
                Error::new(ErrorKind::Auth, format!("{peer}: the user or the password was refused ({})", code.code()))
            }
            _ => Error::unavailable(said),
        };
        Self::Refused { code, error }
    }

    /// Whether the statement may have been, or may yet be, carried out.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::TimedOut(_))
    }

    /// Whether the server said that it has no such table or schema.
    pub(super) fn is_undefined_table(&self) -> bool {
        matches!(self, Self::Refused { code, .. }
            if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME)
    }

    /// Whether several transactions stood in each other's way.
    pub(super) fn is_clash(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            // Our own, of acquire_all.sql.
            || *code == SqlState::INVALID_TEXT_REPRESENTATION)
    }

    /// The same of an attempt, which may have been refused for its label.
    pub(super) fn of_attempt(self, claim: &Claim) -> Error {
        let of_label = claim.resources.iter().all(|resource| resource.as_str().is_ascii())
            && claim.label.as_ref().is_some_and(|label| !label.is_ascii());
        match self {
            Self::Refused { code, .. } if of_label && matches!(code.code(), "22021" | "22P05") => {
                Error::invalid("label", LACKS)
            }
            failure => failure.into_error(),
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Broken(error) | Self::TimedOut(error) | Self::Refused { error, .. } => error,
        }
    }
}

/// An error and what caused it, as one text.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
