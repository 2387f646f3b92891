//! How a request to one server can end.

use redis::Value;

use crate::{Error, ErrorKind, clock::Instant, error::Trouble};

/// The answer to one request.
pub(super) type Reply = Result<Value, CallError>;

/// Why there is no useful answer.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    /// It never left: nothing was done.
    NotSent(Error),
    /// It may have been done, or may yet be.
    Unanswered(Error),
    /// The server refused it: nothing was done.
    Refused(Error),
    /// A script failed in the middle: a part of it was done. Asking again would end the same way.
    BrokenOff(Error),
    /// The server does not know the script.
    NoScript,
    /// It was refused together with others: nothing was done, and alone it may be.
    NotTogether,
    /// Another server is to be asked, or this one again later: nothing was done.
    Elsewhere(Elsewhere, Error),
}

/// Where else, or when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// The slot is another server's now.
    Moved { slot: u16, to: String },
    /// For this request alone.
    Ask { to: String },
    /// This one is not the primary any more.
    Primary,
    /// The cluster is being rearranged.
    Later,
}

impl Elsewhere {
    fn read(code: &str, detail: &str) -> Option<Self> {
        let mut words = detail.split(' ');
        match code {
            "MOVED" => Some(Self::Moved { slot: words.next()?.parse().ok()?, to: words.next()?.to_owned() }),
            "ASK" => Some(Self::Ask { to: words.nth(1)?.to_owned() }),
            "READONLY" | "MASTERDOWN" => Some(Self::Primary),
            "TRYAGAIN" | "CLUSTERDOWN" => Some(Self::Later),
            _ => None,
        }
    }
}

impl CallError {
    pub(super) fn not_sent(peer: &str, why: impl std::fmt::Display) -> Self {
        Self::NotSent(Error::unavailable(format!("{peer}: {why}")))
    }

    pub(super) fn unanswered(peer: &str, why: impl std::fmt::Display) -> Self {
        Self::Unanswered(Error::unavailable(format!("{peer}: {why}")))
    }

    /// What the server said, in the terms of this library. One place for every error reply:
    ///
    /// | reply | taken as |
    /// |---|---|
    /// | `NOSCRIPT` | ask again with the script's text |
    /// | `NOAUTH` `WRONGPASS` `NOPERM`, and `ERR` about a password or about what a user may do | `Auth`: not tried again |
    /// | `ERR unknown command`, also of a script, and a server that is no part of a cluster | `Unsupported`: not tried again |
    /// | `WRONGTYPE` (a fence is something else) | `Conflict`: not tried again |
    /// | any error that a script of ours met on its way (another kind of key, a command that the user may not run) | as below and above, but a part may have been done |
    /// | `MOVED` `ASK` `TRYAGAIN` `CLUSTERDOWN` | in a cluster: ask there, or again |
    /// | `READONLY` `MASTERDOWN` | behind sentinels: ask them who the primary is |
    /// | `LOADING` `BUSY` `OOM`, too many clients, the rest, and the above where no other server is known | the server is out of reach for now |
    pub(super) fn from_server(peer: &str, code: &str, detail: &str) -> Self {
        // What a script meets is in different words from version to version, and in some no code stands before them.
        let says = |words: &str| detail.contains(words);
        let kind = match code {
            "NOSCRIPT" => return Self::NoScript,
            "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::Auth,
            "WRONGTYPE" => ErrorKind::Conflict,
            "ERR" if detail.starts_with("unknown command") || says("cluster support disabled") => {
                ErrorKind::Unsupported
            }
            _ if says("command called from") => ErrorKind::Unsupported,
            _ if says("user executing the script can't") || says("ACL failure") => ErrorKind::Auth,
            "ERR" if detail.to_ascii_lowercase().contains("password") => ErrorKind::Auth,
            _ => ErrorKind::Unavailable,
        };
        let elsewhere = Elsewhere::read(code, detail);
        let passes = elsewhere.is_some() || code == "LOADING" || says("max number of clients");
        let reply = format!("{code} {detail}");
        let error = Error::new(kind, format!("{peer}: {reply}")).in_trouble(Trouble::Said { reply, passes });
        // A script that may not write has written nothing.
        if let Some(elsewhere) = elsewhere {
            return Self::Elsewhere(elsewhere, error);
        }
        // Every server names the line that failed, after this word.
        if detail.contains("@user_script") { Self::BrokenOff(error) } else { Self::Refused(error) }
    }

    /// The reply, or the error that it is.
    pub(super) fn check(peer: &str, value: Value) -> Reply {
        match value {
            Value::ServerError(error) => Err(Self::from_server(peer, error.code(), error.details().unwrap_or(""))),
            value => Ok(value),
        }
    }

    /// Whether the request may have been, or may yet be, carried out.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::BrokenOff(_))
    }

    /// Why a request came to nothing that was tried until `expires`: a try that was cut short tells less than the one before.
    pub(super) fn or_before(self, earlier: Option<Self>, expires: Instant) -> Self {
        let cut_short = matches!(&self, Self::NotSent(error) if error.is_retryable()) && Instant::now() >= expires;
        earlier.filter(|_| cut_short).unwrap_or(self)
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Unanswered(error) | Self::Refused(error) | Self::BrokenOff(error) => error,
            Self::Elsewhere(_, error) => error,
            Self::NoScript => Error::unavailable("the server forgot a script twice in a row"),
            Self::NotTogether => Error::unavailable("there was no time left to ask again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Redis 6, 7.0 and 8.2 and Valkey 8 say it.
    #[test]
    fn a_command_that_a_script_may_not_run_in_the_words_of_all_versions() {
        let kind = |code, detail| CallError::from_server("peer", code, detail).into_error().kind();
        for (code, detail, expected) in [
            ("@user_script:", "23: Unknown Redis command called from Lua script", ErrorKind::Unsupported),
            (
                "ERR",
                "Unknown Redis command called from script script: 0080, on @user_script:23.",
                ErrorKind::Unsupported,
            ),
            ("ERR", "Unknown command called from script script: 78bd, on @user_script:23.", ErrorKind::Unsupported),
            ("ERR", "unknown command 'EVALSHA', with args beginning with: 'password' ", ErrorKind::Unsupported),
            ("@user_script:", "23: The user executing the script can't run this command", ErrorKind::Auth),
            ("ERR", "The user executing the script can't run this command or subcommand script: 0", ErrorKind::Auth),
            ("ERR", "ACL failure in script: User clerk has no permissions to run the 'set' command", ErrorKind::Auth),
            ("NOPERM", "ACL failure in script: User clerk has no permissions to run the 'set'", ErrorKind::Auth),
            ("ERR", "Client sent AUTH, but no password is set", ErrorKind::Auth),
            ("WRONGTYPE", "Operation against a key holding the wrong kind of value", ErrorKind::Conflict),
            ("OOM", "command not allowed when used memory > 'maxmemory'.", ErrorKind::Unavailable),
        ] {
            assert_eq!(kind(code, detail), expected, "{code} {detail}");
        }
    }
}
