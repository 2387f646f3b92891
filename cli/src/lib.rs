//! `polylock`, the command line, as a function: so that the packages of other languages bring it along.

// They panic when nobody reads any more: see `say` and `tell`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod bench;
mod doctor;
mod holders;
mod processes;
mod run;

use std::{ffi::OsString, fmt::Display, io::Write};

use clap::{CommandFactory, Parser, error::ErrorKind as Usage};
use polylock::{Error, ErrorKind, LockManager};

use self::arguments::{Arguments, Command};

/// The exit codes, as `sysexits.h` has them where it has them.
pub(crate) mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const INTERNAL: u8 = 70;
    /// The lease was lost: trying again may succeed.
    pub(crate) const LOST: u8 = 75;
    pub(crate) const NO_PERMISSION: u8 = 77;
    pub(crate) const CANNOT_EXECUTE: u8 = 126;
    pub(crate) const NOT_FOUND: u8 = 127;
}

/// Does what `arguments` say; the first is the name of the program. Returns the status to exit with.
///
/// This is the business of a whole process: it listens to signals, and `run` adopts orphans and waits for all children.
/// To be called once, on the main thread, with `SIGINT` as it was when the process started: a command that is running
/// ends with the thread that started it.
pub fn command_line(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments).and_then(with_url) {
        Ok(arguments) => arguments,
        Err(error) => {
            let text = error.render().to_string();
            // Where help and version go to standard output, errors do not.
            if !error.use_stderr() {
                say(text.trim_end());
                return 0;
            }
            tell(without_urls(text.trim_end()));
            return exit::USAGE;
        }
    };
    // One thread: a child's death signal comes when the thread that made it ends.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(format_args!("polylock: {error}"));
            return exit::INTERNAL;
        }
    };
    let code = runtime.block_on(dispatch(arguments));
    polylock::shutdown(std::time::Duration::from_secs(2));
    let _ = std::io::stdout().flush();
    code
}

/// An argument of all commands cannot be required by itself.
fn with_url(arguments: Arguments) -> Result<Arguments, clap::Error> {
    if arguments.url.is_empty() {
        let missing = "where are the locks? Give --url, or POLYLOCK_URL in the environment";
        return Err(Arguments::command().error(Usage::MissingRequiredArgument, missing));
    }
    Ok(arguments)
}

async fn dispatch(arguments: Arguments) -> u8 {
    let connected = connect(&arguments.url);
    let ended = match connected {
        Err(error) => Err(error),
        Ok(locks) => match arguments.command {
            Command::Run(run) => run::run(&locks, run).await,
            Command::Ls(ls) => holders::ls(&locks, &ls).await,
            Command::Show(show) => holders::show(&locks, &show).await,
            Command::Break(named) => holders::break_lock(&locks, &named).await,
            Command::Watch(watch) => holders::watch(&locks, &watch).await,
            Command::Doctor(doctor) => doctor::doctor(&locks, &arguments.url, &doctor).await,
            Command::Bench(bench) => bench::bench(&locks, &bench).await,
        },
    };
    ended.unwrap_or_else(|error| {
        tell(format_args!("polylock: {error}"));
        code_of(&error)
    })
}

/// A line on standard output. Nobody may read it any more: that is no error.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line on standard error. Nobody may read it any more, and what has to be done is done all the same: `eprintln` would panic.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What was given in a wrong place may be a URL, with a password.
fn without_urls(text: &str) -> String {
    let hidden = |line: &str| line.split_once("://").map(|(scheme, _)| format!("{scheme}://…"));
    text.lines().map(|line| hidden(line).unwrap_or_else(|| line.to_owned())).collect::<Vec<_>>().join("\n")
}

fn connect(urls: &[String]) -> polylock::Result<LockManager> {
    polylock::connect(urls).lazy()
}

fn code_of(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::Unsupported => exit::USAGE,
        ErrorKind::Auth => exit::NO_PERMISSION,
        ErrorKind::Lost => exit::LOST,
        ErrorKind::Timeout | ErrorKind::Conflict => 1,
        ErrorKind::Internal | ErrorKind::Forked | ErrorKind::InvalidHandle => exit::INTERNAL,
        _ => exit::UNAVAILABLE,
    }
}
