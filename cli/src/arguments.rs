//! What can be said on the command line.

use std::{ffi::OsString, time::Duration};

use clap::{Args, Parser, Subcommand};

/// Distributed locks on servers that you already run, or on files: run a command under a lock, see who holds what,
/// check a deployment.
#[derive(Debug, Parser)]
#[command(name = "polylock", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Where locks are kept: redis://host, several of them for Redlock (or separated by commas), postgres://…,
    /// zookeeper://…, file:///directory
    #[arg(long, short, env = "POLYLOCK_URL", hide_env_values = true, global = true)]
    pub(crate) url: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a command while a lock is held, and ends with its status.
    Run(Run),
    /// Lists who holds which locks.
    Ls(Ls),
    /// Shows who holds one lock; ends with 1 if nobody does.
    Show(Show),
    /// Takes a lock away from the holder that was seen; ends with 1 if that one does not hold it any more.
    Break(Break),
    /// Lists who holds which locks, again and again.
    Watch(Watch),
    /// Checks a deployment and says what to change; ends with 1 if something is wrong.
    Doctor(Doctor),
    /// Measures how fast locks are here.
    Bench(Bench),
}

/// Runs COMMAND while the lock is held.
///
/// Its environment has POLYLOCK_LOCK (the name) and POLYLOCK_FENCING_TOKEN. Signals are passed on to it. When the lease
/// is lost, it and all that it started are stopped.
///
/// Ends with COMMAND's own status (128 and the number of the signal that ended it), or with: 1 the lock is taken
/// (--conflict-exit-code), 64 wrong arguments, 69 the backend is out of reach, 75 the lease was lost, 77 no permission, 126
/// COMMAND cannot be executed, 127 it is not there.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The name of the lock
    #[arg(long, short)]
    pub(crate) lock: String,
    /// How long the lease lasts without renewal, and so when a dead machine frees it: 500ms, 30s, 5m
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// How long to wait for another holder; for ever by default
    #[arg(long, short, value_parser = duration, conflicts_with = "no_wait")]
    pub(crate) wait: Option<Duration>,
    /// Does not wait for another holder
    #[arg(long, short)]
    pub(crate) no_wait: bool,
    /// Holds it together with others that hold it shared
    #[arg(long, short, conflicts_with = "permits")]
    pub(crate) shared: bool,
    /// Takes one of this many permits
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub(crate) permits: Option<u32>,
    /// Comes after those who asked before with this option, and before those who ask later
    #[arg(long, conflicts_with_all = ["permits", "shared"])]
    pub(crate) fair: bool,
    /// What others see of the holder; the command by default
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Does not renew when it was held for this long: the rest of the ttl later a command that hangs is stopped
    #[arg(long, value_parser = duration)]
    pub(crate) max_hold: Option<Duration>,
    /// The status where the lock is taken
    #[arg(long, short = 'E', default_value_t = 1)]
    pub(crate) conflict_exit_code: u8,
    /// How long after SIGTERM what does not stop is killed, when the lease is lost
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) kill_after: Duration,
    /// Says when it waits, acquires and releases
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Which: * stands for any text, ? for any one character
    #[arg(default_value = "*")]
    pub(crate) pattern: String,
    /// How many holders at most
    #[arg(long, default_value_t = 1000)]
    pub(crate) limit: usize,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The name of the lock
    pub(crate) lock: String,
    /// One JSON object for each holder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Break {
    /// The name of the lock
    pub(crate) lock: String,
    /// The holder's fencing token, as `show` tells it
    #[arg(long, short, required_unless_present = "owner", conflicts_with = "owner")]
    pub(crate) token: Option<u64>,
    /// The holder's owner token, as `show` tells it
    #[arg(long, short)]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Which: * stands for any text, ? for any one character
    #[arg(default_value = "*")]
    pub(crate) pattern: String,
    /// How many holders at most
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
    /// How often
    #[arg(long, short, default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,
    /// How many times; until it is interrupted by default
    #[arg(long, short)]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The ttl that will be used, to compare with
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// How long each measurement takes
    #[arg(long, default_value = "3s", value_parser = duration)]
    pub(crate) time: Duration,
    /// Pairs of acquire and release in flight at one time, on locks of their own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) in_flight: u16,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `500ms`, `30s`, `5m`, `1h`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit {other:?}; known are ms, s, m, h")),
    };
    let number: f64 = digits.parse().map_err(|_| "must be a number with a unit, as in 30s".to_owned())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| "must be a time from 0 on".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn reads_times() {
        for (text, ms) in [("30s", 30_000), ("1.5", 1_500), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "-1s", "1d", "nan", "inf", "1e300s", "1 s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
