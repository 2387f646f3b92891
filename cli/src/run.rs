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
    process::{ExitStatus, Stdio},
    time::Duration,
};

use polylock::{Acquire, Error, ErrorKind, Lease, LockManager, LossReason, Release, Result, Target};
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Listener, SignalKind, signal},
};

use crate::{arguments::Run, exit, processes};

/// What is passed on.
const PASSED_ON: [Signal; 6] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

pub(crate) async fn run(locks: &LockManager, run: Run) -> Result<u8> {
    let internal = |error: std::io::Error| Error::new(ErrorKind::Internal, error.to_string());
    // Before anything can be acquired: from here on no signal ends this process by itself.
    let mut signals = Signals::listen().map_err(internal)?;
    let acquiring = locks.acquire(target(&run), options(&run));
    if run.verbose {
        eprintln!("polylock: waiting for {:?}", run.lock);
    }
    let acquired = tokio::select! {
        acquired = acquiring => acquired,
        signal = signals.next() => return Ok(ended_by(signal)),
    };
    let lease = match acquired {
        Ok(lease) => lease,
        Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Conflict) => {
            if run.verbose || error.kind() == ErrorKind::Conflict {
                eprintln!("polylock: {error}");
            }
            return Ok(run.conflict_exit_code);
        }
        Err(error) => return Err(error),
    };
    if run.verbose {
        eprintln!("polylock: acquired {:?}, fencing token {}", run.lock, lease.fencing_token());
    }
    let mut child = match start(&run, &lease) {
        Ok(child) => child,
        Err(error) => {
            eprintln!("polylock: {}: {error}", run.command[0].display());
            lease.release().await?;
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(if missing { exit::NOT_FOUND } else { exit::CANNOT_EXECUTE });
        }
    };
    let ended = loop {
        tokio::select! {
            // First what has ended: then there is nothing to stop or to signal any more.
            biased;
            status = child.wait() => break Ended::Itself(status.map_err(internal)?),
            Some(reason) = lease.lost() => break Ended::Lost(reason),
            signal = signals.next() => pass_on(&child, signal),
        }
    };
    match ended {
        Ended::Itself(status) => finish(&run, &lease, status).await,
        Ended::Lost(reason) => {
            eprintln!("polylock: {:?}: {}; stopping the command", run.lock, why(reason));
            stop(&mut child, run.kill_after).await;
            Ok(exit::LOST)
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
    let mut options = Acquire::ttl(run.ttl);
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

fn start(run: &Run, lease: &Lease) -> std::io::Result<Child> {
    processes::adopt_orphans();
    let mut command = Command::new(&run.command[0]);
    command
        .args(&run.command[1..])
        .env("POLYLOCK_LOCK", &run.lock)
        .env("POLYLOCK_FENCING_TOKEN", lease.fencing_token().to_string())
        .stdin(Stdio::inherit());
    processes::end_with_parent(&mut command);
    command.spawn()
}

/// The command has ended by itself.
async fn finish(run: &Run, lease: &Lease, status: ExitStatus) -> Result<u8> {
    let lost = lease.loss();
    let released = lease.release().await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let code = code.unwrap_or_else(|| status.signal().map_or(exit::INTERNAL, |signal| 128 + signal as u8));
    if lost.is_some() || released == Release::NotHeld {
        eprintln!("polylock: {:?}: the lease was lost before the command ended", run.lock);
        // A failure of the command's own says more.
        return Ok(if code == 0 { exit::LOST } else { code });
    }
    if released == Release::Unknown {
        eprintln!("polylock: {:?}: not released for certain; it expires by its ttl", run.lock);
    } else if run.verbose {
        eprintln!("polylock: released {:?}", run.lock);
    }
    Ok(code)
}

/// Stops the command and all that it started.
async fn stop(child: &mut Child, kill_after: Duration) {
    const PAUSE: Duration = Duration::from_millis(20);
    let signal_all = |signal| processes::signal_descendants(signal);
    let mut left = signal_all(Signal::TERM);
    let patience = tokio::time::sleep(kill_after);
    tokio::pin!(patience);
    while left > 0 {
        tokio::select! {
            () = &mut patience => break,
            () = tokio::time::sleep(PAUSE) => left = processes::descendants().len(),
        }
    }
    // Again and again: what is killed may have been about to start another one.
    while left > 0 {
        left = signal_all(Signal::KILL);
        tokio::time::sleep(PAUSE).await;
    }
    let _ = child.wait().await;
}

fn pass_on(child: &Child, signal: Signal) {
    let from_terminal = matches!(signal, Signal::INT | Signal::QUIT) && processes::in_foreground();
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id.filter(|_| !from_terminal) {
        // It may have ended just now.
        let _ = rustix::process::kill_process(id, signal);
    }
}

fn ended_by(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(exit::INTERNAL)
}

/// The signals that this process gets.
struct Signals(Vec<(Signal, Listener)>);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let listen = |number: Signal| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        Ok(Self(PASSED_ON.into_iter().map(listen).collect::<std::io::Result<_>>()?))
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
