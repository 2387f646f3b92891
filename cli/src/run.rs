//! Running a command under a lock.
//!
//! # What can happen
//!
//! * *A signal while it waits*: the place in line is given up, nothing is left, and it ends as the signal says.
//! * *A signal while the command runs*: it is passed on, and the command decides. A terminal sends Ctrl-C to both
//!   already: then it is not sent a second time.
//! * *The lease is lost*: the command and all that it started get SIGTERM, and SIGKILL after a while. (What it started is
//!   found although its parents are gone: orphans become children of this process.)
//! * *This process is killed*: the lease expires by its ttl, and the command gets SIGTERM from the kernel (Linux).
//! * *The command ends*: the lock is released. What it left running in the background is not waited for.

use std::{
    future::Future,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
    time::Duration,
};

use polylock::{Acquire, Error, ErrorKind, Lease, LockManager, LossReason, Release, Result, Target};
use rustix::process::Signal;
use tokio::{
    signal::unix::{Signal as Listener, SignalKind, signal},
    time::{Instant, sleep},
};

use crate::{
    arguments::Run,
    exit,
    processes::{self, Started},
    tell,
};

/// What is passed on.
const PASSED_ON: [Signal; 6] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

fn internal(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}

pub(crate) async fn run(locks: &LockManager, run: Run) -> Result<u8> {
    // Before anything can be acquired: from here on no signal ends this process by itself.
    let mut signals = Signals::listen().map_err(internal)?;
    if !locks.capabilities().across_processes {
        tell(format_args!(
            "polylock: these locks are this process's alone and keep nobody out; file:///directory is for one host"
        ));
    }
    let acquiring = locks.acquire(target(&run), options(&run));
    if run.verbose {
        tell(format_args!("polylock: waiting for {:?}", run.lock));
    }
    let acquired = tokio::select! {
        acquired = acquiring => acquired,
        signal = signals.next() => return Ok(ended_by(signal)),
    };
    let lease = match acquired {
        Ok(lease) => lease,
        Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Conflict) => {
            if run.verbose || error.kind() == ErrorKind::Conflict {
                tell(format_args!("polylock: {error}"));
            }
            return Ok(run.conflict_exit_code);
        }
        Err(error) => return Err(error),
    };
    if run.verbose {
        tell(format_args!("polylock: acquired {:?}, fencing token {}", run.lock, lease.fencing_token()));
    }
    let mut child = match start(&run, &lease) {
        Ok(child) => child,
        Err(error) => {
            tell(format_args!("polylock: {}: {error}", run.command[0].display()));
            release(&run, &lease).await;
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(if missing { exit::NOT_FOUND } else { exit::CANNOT_EXECUTE });
        }
    };
    let ended = loop {
        tokio::select! {
            // First what has ended: then there is nothing to stop or to signal any more.
            biased;
            status = child.ended() => break Ended::Itself(status.map_err(internal)?),
            Some(reason) = lease.lost() => break Ended::Lost(reason),
            signal = signals.next() => pass_on(&child, signal),
        }
    };
    match ended {
        Ended::Itself(status) => Ok(finish(&run, &lease, status).await),
        Ended::Lost(reason) => {
            let stopped = stop(&mut child, run.kill_after).await;
            // Only now, as whoever reads this may be slow.
            tell(format_args!("polylock: {:?}: {}; the command was stopped", run.lock, why(reason)));
            stopped.map(|()| exit::LOST).map_err(internal)
        }
    }
}

enum Ended {
    Itself(ExitStatus),
    Lost(LossReason),
}

fn why(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Taken => "the lock was taken from us",
        LossReason::MaxHold => "it was held for as long as --max-hold allows",
        LossReason::Expired => "the lease expired before it could be renewed",
    }
}

fn target(run: &Run) -> Target {
    match run.permits {
        Some(of) => Target::permit(&run.lock, of),
        None if run.shared => Target::shared(&run.lock),
        None => run.lock.as_str().into(),
    }
}

fn options(run: &Run) -> Acquire {
    let mut options = Acquire::ttl(run.ttl).fair(run.fair);
    options = match run.wait {
        Some(wait) => options.wait(wait),
        None if run.no_wait => options.no_wait(),
        None => options,
    };
    if let Some(max_hold) = run.max_hold {
        // No renewal begins after this; what is left of the ttl then runs out.
        options = options.max_hold(max_hold);
    }
    match &run.label {
        Some(label) => options.label(label),
        None => options.label(&shortened(&run.command[0].to_string_lossy())),
    }
}

/// As much as a label takes.
fn shortened(text: &str) -> String {
    let mut label = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if label.len() + c.len_utf8() > 256 {
            break;
        }
        label.push(c);
    }
    label
}

fn start(run: &Run, lease: &Lease) -> std::io::Result<Started> {
    let mut command = Command::new(&run.command[0]);
    command
        .args(&run.command[1..])
        .env("POLYLOCK_LOCK", &run.lock)
        .env("POLYLOCK_FENCING_TOKEN", lease.fencing_token().to_string());
    Started::start(command)
}

/// The command has ended by itself.
async fn finish(run: &Run, lease: &Lease, status: ExitStatus) -> u8 {
    let lost = lease.loss().is_some();
    let held = release(run, lease).await;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let code = code.unwrap_or_else(|| status.signal().map_or(exit::INTERNAL, |signal| 128 + signal as u8));
    if held && !lost {
        return code;
    }
    tell(format_args!("polylock: {:?}: the lease was lost before the command ended", run.lock));
    // A failure of the command's own says more.
    if code == 0 { exit::LOST } else { code }
}

/// Whether it was held until now. A failure is said and changes nothing: the lease then expires by its ttl.
async fn release(run: &Run, lease: &Lease) -> bool {
    let lock = &run.lock;
    match lease.release().await {
        Ok(Release::NotHeld) => return false,
        Ok(Release::Unknown) => {
            tell(format_args!("polylock: {lock:?}: not released for certain; it expires by its ttl"))
        }
        Err(error) => tell(format_args!("polylock: {lock:?}: not released, it expires by its ttl: {error}")),
        Ok(_) if run.verbose => tell(format_args!("polylock: released {lock:?}")),
        Ok(_) => {}
    }
    true
}

/// Stops the command and all that it started.
async fn stop(child: &mut Started, kill_after: Duration) -> std::io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    /// Dying takes long for one that is in the middle of a write to a disk.
    const DYING: Duration = Duration::from_secs(10);
    let began = Instant::now();
    let mut left = child.signal_all(Signal::TERM)?;
    while left > 0 && began.elapsed() < kill_after {
        sleep(PAUSE).await;
        left = child.living()?.len();
    }
    // Again and again: what is killed may have been about to start another one.
    let began = Instant::now();
    while left > 0 && began.elapsed() < DYING {
        left = child.signal_all(Signal::KILL)?;
        sleep(PAUSE).await;
    }
    let living = child.living()?.len();
    if living > 0 {
        tell(format_args!("polylock: {living} process(es) of the command cannot be stopped"));
    }
    Ok(())
}

fn pass_on(child: &Started, signal: Signal) {
    if !matches!(signal, Signal::INT | Signal::QUIT) || !processes::in_foreground() {
        child.signal(signal);
    }
}

fn ended_by(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(exit::INTERNAL)
}

/// The signals that this process gets. What it was started to ignore, it and the command go on ignoring.
struct Signals(Vec<(Signal, Listener)>);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let listen = |number: Signal| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        let ignored = processes::ignored();
        let heard = PASSED_ON.into_iter().filter(|signal| ignored >> (signal.as_raw() - 1) & 1 == 0);
        Ok(Self(heard.map(listen).collect::<std::io::Result<_>>()?))
    }

    async fn next(&mut self) -> Signal {
        let each = self.0.iter_mut().map(|(number, listener)| {
            let number = *number;
            Box::pin(async move {
                if listener.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                number
            })
        });
        first(each).await
    }
}

async fn first<F: Future + Unpin>(futures: impl Iterator<Item = F>) -> F::Output {
    futures_util::future::select_all(futures).await.0
}
