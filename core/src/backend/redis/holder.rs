//! Who holds a lock: what a holder leaves beside it, and what inspection reads.

use std::time::{Duration, UNIX_EPOCH};

use once_cell::race::OnceBox;
use redis::Value;

use crate::{Holder, Resource, clock};

/// What this process leaves: milliseconds since 1970, process id, host and label, a line each.
pub(super) fn record(label: Option<&str>) -> String {
    static HOST: OnceBox<String> = OnceBox::new();
    let host = HOST.get_or_init(|| Box::new(rustix::system::uname().nodename().to_string_lossy().into_owned()));
    let (mut since, mut pid) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (since, pid) = (since.format(clock::unix_micros() / 1000), pid.format(std::process::id()));
    [since, "\n", pid, "\n", host, "\n", label.unwrap_or("")].concat()
}

/// The holders in the answer of `inspect.lua`; none if the lock is free.
pub(super) fn read(answer: &Value, resource: &Resource) -> Option<Vec<Holder>> {
    let Value::Array(parts) = answer else { return None };
    let [Value::Int(waiting), token, fence_owner, record, holders @ ..] = &parts[..] else { return None };
    let read = |parts: &[Value]| {
        let [kind, owner, Value::Int(left)] = parts else { return None };
        let mut holder = Holder {
            mode: match text(kind)?.as_str() {
                "shared" => "shared",
                "permit" => "permit",
                _ => "exclusive",
            },
            expires_in: u64::try_from(*left).ok().map(Duration::from_millis),
            waiting: u32::try_from(*waiting).ok(),
            ..Holder::new(resource.clone(), text(owner)?)
        };
        // The fence tells of its last owner, which another library's lock is not.
        if text(fence_owner).as_deref() == Some(&holder.owner) {
            holder.fencing_token = text(token).and_then(|token| token.parse().ok());
            read_record(&text(record).unwrap_or_default(), &mut holder);
        }
        Some(holder)
    };
    holders.chunks(3).map(read).collect()
}

fn read_record(record: &str, holder: &mut Holder) {
    let mut lines = record.splitn(4, '\n');
    let since = lines.next().and_then(|since| since.parse().ok());
    holder.since = since.and_then(|since| UNIX_EPOCH.checked_add(Duration::from_millis(since)));
    holder.pid = lines.next().and_then(|pid| pid.parse().ok());
    holder.host = lines.next().map(str::to_owned);
    holder.label = lines.next().filter(|label| !label.is_empty()).map(str::to_owned);
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}
