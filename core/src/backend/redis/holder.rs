//! Who holds a lock: what a holder leaves beside it, and what inspection reads.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::Value;

use crate::Holder;

/// What this process leaves: milliseconds since 1970, process id, host and label, a line each.
pub(super) fn record(label: Option<&str>) -> String {
    static HOST: LazyLock<String> =
        LazyLock::new(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{since}\n{}\n{}\n{}", std::process::id(), *HOST, label.unwrap_or(""))
}

/// The holder in the answer of `inspect.lua`; `None` if the lock is free.
pub(super) fn read(answer: &Value) -> Option<Holder> {
    let Value::Array(parts) = answer else { return None };
    let [owner, Value::Int(left), token, fence_owner, record] = &parts[..] else { return None };
    let mut holder = Holder {
        owner: text(owner)?,
        fencing_token: None,
        expires_in: u64::try_from(*left).ok().map(Duration::from_millis),
        since: None,
        host: None,
        pid: None,
        label: None,
    };
    // The fence tells of its last owner, which another library's lock is not.
    if text(fence_owner).as_deref() == Some(&holder.owner) {
        holder.fencing_token = text(token).and_then(|token| token.parse().ok());
        let record = text(record).unwrap_or_default();
        let mut lines = record.splitn(4, '\n');
        let since = lines.next().and_then(|since| since.parse().ok());
        holder.since = since.and_then(|since| UNIX_EPOCH.checked_add(Duration::from_millis(since)));
        holder.pid = lines.next().and_then(|pid| pid.parse().ok());
        holder.host = lines.next().map(str::to_owned);
        holder.label = lines.next().filter(|label| !label.is_empty()).map(str::to_owned);
    }
    Some(holder)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}
