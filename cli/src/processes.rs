//! The command's processes: finding all of them, and ending them with this one.

use rustix::process::{Pid, Signal};
use tokio::process::Command;

/// Orphans among what the command starts become children of this process, so that it finds them.
pub(crate) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    {
        // Where it is not allowed, orphans are not found; the rest works.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
}

/// Has the kernel end the command when this process is killed.
pub(crate) fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        let parent = rustix::process::getpid();
        let prepare = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // It may have been killed before that.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
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
pub(crate) fn descendants() -> Vec<Pid> {
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

/// Sends a signal to all of them; says how many there are.
pub(crate) fn signal_descendants(signal: Signal) -> usize {
    let descendants = descendants();
    for id in &descendants {
        // It may have ended just now.
        let _ = rustix::process::kill_process(*id, signal);
    }
    descendants.len()
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
