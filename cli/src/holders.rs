//! Who holds what: `ls`, `show`, `break` and `watch`.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use polylock::{Error, ErrorKind, Holder, LockManager, Result, Seen};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    arguments::{Break, Ls, Show, Watch},
    say, tell,
};

pub(crate) async fn ls(locks: &LockManager, ls: &Ls) -> Result<u8> {
    let holders = locks.list(&ls.pattern, ls.limit).await?;
    if ls.json {
        print_lines(holders.iter().map(as_json))?;
    } else {
        print_lines(table(&holders))?;
    }
    if holders.len() == ls.limit {
        tell("polylock: there may be more; see --limit");
    }
    Ok(0)
}

pub(crate) async fn show(locks: &LockManager, show: &Show) -> Result<u8> {
    // All its holders where the backend can tell, else one of them.
    let holders = if locks.capabilities().listing {
        locks.list(&literal(&show.lock), 100_000).await?
    } else {
        locks.inspect(&show.lock).await?.into_iter().collect()
    };
    if show.json {
        print_lines(holders.iter().map(as_json))?;
    } else if holders.is_empty() {
        print_lines([format!("{}: free", printable(&show.lock))])?;
    } else {
        print_lines(holders.iter().map(described))?;
    }
    Ok(u8::from(holders.is_empty()))
}

pub(crate) async fn break_lock(locks: &LockManager, named: &Break) -> Result<u8> {
    let seen = match (named.token, &named.owner) {
        (Some(token), _) => Seen::FencingToken(token),
        (None, Some(owner)) => Seen::Owner(owner.clone()),
        (None, None) => return Err(Error::invalid("token", "or owner must be given")),
    };
    if locks.break_lock(&named.lock, seen).await? {
        say(format_args!("{}: broken", printable(&named.lock)));
        return Ok(0);
    }
    tell(format_args!("polylock: {:?} is not held by that one (any more); nothing was done", named.lock));
    Ok(1)
}

pub(crate) async fn watch(locks: &LockManager, watch: &Watch) -> Result<u8> {
    let terminal = std::io::stdout().is_terminal();
    let mut ticks = interval(watch.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0;
    while watch.count.is_none_or(|count| round < count) {
        ticks.tick().await;
        let (head, mut lines) = match locks.list(&watch.pattern, watch.limit).await {
            Ok(holders) => (format!("{} held", holders.len()), table(&holders)),
            // It was there before, and may be again: that is when somebody watches.
            Err(error) if round > 0 && error.kind() == ErrorKind::Unavailable => {
                ("out of reach".to_owned(), vec![format!("polylock: {error}")])
            }
            Err(error) => return Err(error),
        };
        if terminal {
            // To the top, and nothing of the last round below.
            lines.insert(0, format!("\x1b[H\x1b[2J{head}   {}", watch.pattern));
        } else if round > 0 {
            lines.insert(0, String::new());
        }
        if !print_lines(lines)? {
            break;
        }
        round += 1;
    }
    Ok(0)
}

/// Whoever reads may have gone: then there is nobody to tell. Says whether there is.
///
/// # Errors
/// `Internal` if it cannot be written for another reason, as to a disk that is full.
fn print_lines(lines: impl IntoIterator<Item = String>) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match lines.into_iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::new(ErrorKind::Internal, format!("standard output: {error}"))),
    }
}

/// The pattern that is this name alone.
fn literal(name: &str) -> String {
    name.chars().fold(String::new(), |mut pattern, c| {
        if matches!(c, '*' | '?' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
        pattern
    })
}

fn table(holders: &[Holder]) -> Vec<String> {
    let head = ["LOCK", "MODE", "TOKEN", "LEFT", "HELD FOR", "WAITING", "HOLDER"].map(str::to_owned);
    let rows: Vec<[String; 7]> = [head].into_iter().chain(holders.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

fn row(holder: &Holder) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        printable(holder.resource.as_str()),
        holder.mode.to_owned(),
        or_dash(holder.fencing_token.map(|token| token.to_string())),
        or_dash(holder.expires_in.map(in_words)),
        or_dash(held_for(holder).map(in_words)),
        or_dash(holder.waiting.map(|waiting| waiting.to_string())),
        who(holder),
    ]
}

fn who(holder: &Holder) -> String {
    let place = match (holder.host.as_deref().map(printable), holder.pid) {
        (Some(host), Some(pid)) => Some(format!("{host}:{pid}")),
        (Some(host), None) => Some(host),
        (None, Some(pid)) => Some(format!("pid {pid}")),
        (None, None) => None,
    };
    let parts: Vec<String> = [holder.label.as_deref().map(printable), place].into_iter().flatten().collect();
    if parts.is_empty() { printable(&holder.owner) } else { parts.join(" @ ") }
}

/// On one line, and nothing that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn described(holder: &Holder) -> String {
    let [lock, mode, token, left, held_for, waiting, who] = row(holder);
    format!(
        "{lock}\n  mode           {mode}\n  holder         {who}\n  owner          {}\n  fencing token  {token}\n  \
         held for       {held_for}\n  expires in     {left}\n  waiting        {waiting}",
        printable(&holder.owner)
    )
}

fn held_for(holder: &Holder) -> Option<Duration> {
    SystemTime::now().duration_since(holder.since?).ok()
}

fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..60.0 => format!("{seconds:.1}s"),
        ..3600.0 => format!("{:.0}m{:02.0}s", (seconds / 60.0).floor(), (seconds % 60.0).floor()),
        _ => format!("{:.0}h{:02.0}m", (seconds / 3600.0).floor(), (seconds % 3600.0 / 60.0).floor()),
    }
}

fn as_json(holder: &Holder) -> String {
    json!({
        "resource": holder.resource.as_str(),
        "mode": holder.mode,
        "owner": holder.owner,
        "fencing_token": holder.fencing_token,
        "expires_in": holder.expires_in.map(|left| left.as_secs_f64()),
        "since": holder.since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64()),
        "host": holder.host,
        "pid": holder.pid,
        "label": holder.label,
        "waiting": holder.waiting,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_pattern() {
        assert_eq!(literal(r"a*b?c\d"), r"a\*b\?c\\d");
    }

    #[test]
    fn shows_times() {
        for (seconds, words) in [(0.04, "0.0s"), (59.9, "59.9s"), (61.0, "1m01s"), (7262.0, "2h01m")] {
            assert_eq!(in_words(Duration::from_secs_f64(seconds)), words);
        }
    }
}
