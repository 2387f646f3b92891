//! The command's processes: starting it, finding all of them, burying them, and ending them with this one.

use std::{
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus},
    time::Duration,
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    process::{Pid, Signal, WaitOptions},
};
use tokio::{
    signal::unix::{Signal as Listener, SignalKind, signal},
    time::timeout,
};

const LOOKS_EVERY: Duration = Duration::from_millis(500);

/// The command, and the orphans that this process adopts.
pub(crate) struct Started {
    id: Pid,
    changes: Listener,
    status: Option<ExitStatus>,
}

impl Started {
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        adopt_orphans();
        hand_on_stdio();
        end_with_parent(&mut command);
        // Before the command can end. Whoever started this process may have it ignore these, and then there is no status.
        let changes = signal(SignalKind::child())?;
        let id = Pid::from_child(&command.spawn()?);
        Ok(Self { id, changes, status: None })
    }

    /// When the command has ended. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            self.bury()?;
            if let Some(status) = self.status {
                return Ok(status);
            }
            // Whoever started this process may have blocked the signal: then it is looked at now and then.
            let _ = timeout(LOOKS_EVERY, self.changes.recv()).await;
        }
    }

    /// Takes the status of all that have ended: orphans would stay zombies for as long as the command runs.
    fn bury(&mut self) -> io::Result<()> {
        while self.status.is_none() {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((id, status))) if id == self.id => self.status = Some(ExitStatus::from_raw(status.as_raw())),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends a signal to the command alone.
    pub(crate) fn signal(&self, signal: Signal) {
        // Once it is buried, the number may be another's.
        if self.status.is_none() {
            // It may have ended just now, or have become another user.
            let _ = rustix::process::kill_process(self.id, signal);
        }
    }

    /// Sends a signal to the command and to all that it started; says how many of them there are that take it.
    pub(crate) fn signal_all(&mut self, signal: Signal) -> io::Result<usize> {
        let living = self.living()?;
        Ok(living.into_iter().filter(|id| rustix::process::kill_process(*id, signal).is_ok()).count())
    }

    /// The command and what it started, as far as that lives.
    pub(crate) fn living(&mut self) -> io::Result<Vec<Pid>> {
        self.bury()?;
        let mut living = descendants();
        // Where there is no /proc, it is the one that is known.
        if self.status.is_none() && !living.contains(&self.id) {
            living.push(self.id);
        }
        Ok(living)
    }
}

/// Signals that this process was started to ignore, as `nohup` does: one bit each.
pub(crate) fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Orphans among what the command starts become children of this process, so that it finds them.
fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    {
        // Where it is not allowed, orphans are not found; the rest works.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
}

/// Node, if this is a part of it, has marked the standard descriptors to be closed in what it starts.
fn hand_on_stdio() {
    // One that is closed is closed for the command, too.
    let _ = fcntl_setfd(io::stdin(), FdFlags::empty());
    let _ = fcntl_setfd(io::stdout(), FdFlags::empty());
    let _ = fcntl_setfd(io::stderr(), FdFlags::empty());
}

/// Has the kernel end the command when this process is killed.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        let parent = rustix::process::getpid();
        let prepare = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // It may have been killed before that.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        };
        // SAFETY: between fork and exec it makes two system calls and allocates nothing.
        unsafe { command.pre_exec(prepare) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Whether a terminal's Ctrl-C goes to this process and to the command alike.
pub(crate) fn in_foreground() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// The living processes that this one started, and that those started.
fn descendants() -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let stat = id.and_then(|id| std::fs::read_to_string(format!("/proc/{id}/stat")).ok());
        if let (Some(id), Some((state, parent))) = (id, stat.as_deref().and_then(state_and_parent)) {
            parents.push((id, parent, state));
        }
    }
    let mut found = vec![rustix::process::getpid().as_raw_nonzero().get()];
    let mut looked_at = 0;
    while let Some(&parent) = found.get(looked_at) {
        looked_at += 1;
        found.extend(parents.iter().filter(|(_, of, _)| *of == parent).map(|(id, ..)| *id));
    }
    let alive = |id: &i32| parents.iter().any(|(other, _, state)| other == id && !matches!(state, 'Z' | 'X'));
    found.into_iter().skip(1).filter(alive).filter_map(Pid::from_raw).collect()
}

/// From `/proc/ID/stat`: `ID (name) state parent …`, where the name may hold anything.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_brackets() {
        assert_eq!(state_and_parent("7 (a) b) c) S 42 7 7 0"), Some(('S', 42)));
        assert_eq!(state_and_parent("7 (a"), None);
    }
}
