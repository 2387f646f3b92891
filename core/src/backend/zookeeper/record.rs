//! What a contender's node says about its owner: for people and for inspection, nothing decides by it.
//!
//! Lines of a key and a value, so that `zkCli.sh get` shows them; keys that are not known are skipped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::wire::Stat;
use crate::{
    Mode, Resource,
    backend::{Claim, Holder},
};

/// Writes it for `claim`, which holds for `ttl` from now on.
pub(super) fn write(claim: &Claim, ttl: Duration, since: SystemTime) -> Vec<u8> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let mut text = format!(
        "owner {}\nmode {}\nttl_ms {}\nsince_ms {since}\nhost {host}\npid {}\n",
        claim.owner,
        claim.mode.name(),
        ttl.as_millis(),
        std::process::id()
    );
    if let Mode::Permit { of } = claim.mode {
        text.push_str(&format!("permits {of}\n"));
    }
    if let Some(label) = &claim.label {
        // The last one, as it may have lines of its own.
        text.push_str("label ");
        text.push_str(label);
    }
    text.into_bytes()
}

/// Reads it: the holder, and how many permits there are. `owner` is the one in the contender's name.
pub(super) fn read(resource: &Resource, data: &[u8], owner: &str, stat: &Stat) -> (Holder, Option<usize>) {
    let fencing_token = u64::try_from(stat.created_zxid).ok();
    let mut holder = Holder { fencing_token, ..Holder::new(resource.clone(), owner.to_owned()) };
    let mut permits = None;
    let text = String::from_utf8_lossy(data);
    let mut rest = &*text;
    while let Some((line, after)) = rest.split_once('\n').or_else(|| (!rest.is_empty()).then_some((rest, ""))) {
        if let Some(label) = rest.strip_prefix("label ") {
            holder.label = Some(label.to_owned());
            break;
        }
        rest = after;
        let Some((key, value)) = line.split_once(' ') else { continue };
        match key {
            "owner" => holder.owner = value.to_owned(),
            "mode" if value == "shared" => holder.mode = "shared",
            "mode" if value == "permit" => holder.mode = "permit",
            "ttl_ms" => {
                // The ensemble's clock and ours may differ; more than the ttl it cannot be.
                let written = u64::try_from(stat.modified_ms).ok().and_then(at);
                let gone =
                    written.and_then(|written| SystemTime::now().duration_since(written).ok()).unwrap_or_default();
                holder.expires_in = value.parse().ok().map(|ttl| Duration::from_millis(ttl).saturating_sub(gone));
            }
            "since_ms" => holder.since = value.parse().ok().and_then(at),
            "host" => holder.host = Some(value.to_owned()),
            "pid" => holder.pid = value.parse().ok(),
            "permits" => permits = value.parse().ok(),
            _ => {}
        }
    }
    (holder, permits)
}

/// That many milliseconds after 1970.
fn at(ms: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::OwnerToken;

    #[test]
    fn reads_what_it_wrote_and_what_it_did_not() {
        let claim = Claim {
            resources: [Resource::new("r").unwrap()].into(),
            mode: Mode::Permit { of: 3 },
            owner: OwnerToken::draw().unwrap(),
            ttl: Duration::from_secs(30),
            label: Some("two\nlines: pid 0".into()),
            turn: None,
            waits: false,
            thorough: false,
            gives_back: false,
            progress: Arc::default(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let stat = Stat { created_zxid: 7, modified_ms: i64::try_from(now).unwrap(), version: 0 };
        let written = write(&claim, claim.ttl, SystemTime::now());
        let (holder, permits) = read(claim.resource(), &written, "", &stat);
        assert_eq!((holder.mode, holder.fencing_token, permits), ("permit", Some(7), Some(3)));
        assert_eq!(holder.owner, claim.owner.as_str());
        assert_eq!((holder.pid, holder.label), (Some(std::process::id()), claim.label.as_deref().map(str::to_owned)));
        assert!(
            holder.expires_in.unwrap() > Duration::from_secs(20) && holder.host.is_some() && holder.since.is_some()
        );
        for foreign in [
            &b""[..],
            b"\xff\xfe",
            b"\n\n",
            b"label",
            b"pid x\nttl_ms 99999999999999999999999\nsince_ms 18446744073709551615",
        ] {
            let (holder, permits) = read(claim.resource(), foreign, "somebody", &stat);
            assert_eq!((holder.owner.as_str(), holder.pid, holder.expires_in), ("somebody", None, None));
            assert_eq!(permits, None);
        }
    }
}
