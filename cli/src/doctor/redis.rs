//! What can be wrong with a Redis or Valkey.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use polylock::{LockManager, Result};

use super::Findings;

/// Clocks that are further apart than this are not kept by anything.
const CLOCK: Duration = Duration::from_secs(1);

pub(super) async fn check(locks: &LockManager, findings: &mut Findings) -> Result<()> {
    let began = Instant::now();
    let asked_at = SystemTime::now();
    let times = locks.ask_each(&["TIME"]).await?;
    let round_trip = began.elapsed();
    let nodes = times.len();
    for (node, answer) in &times {
        match answer {
            Ok(time) => clock(node, time, asked_at, round_trip, findings),
            Err(error) => findings.wrong(format!("{node} does not answer: {error}"), "start it, or correct the URL"),
        }
    }
    for (node, answer) in locks.ask_each(&["INFO"]).await? {
        if let Ok(texts) = answer {
            server(&node, nodes, &fields(&texts.concat()), findings);
        }
    }
    for (node, answer) in locks.ask_each(&["CONFIG", "GET", "maxmemory*"]).await? {
        match answer {
            Ok(texts) => eviction(&node, &pairs(&texts), findings),
            Err(_) => findings.warn(
                format!("{node}: this user may not read the configuration"),
                "check maxmemory-policy and persistence by hand, or allow CONFIG GET for the doctor",
            ),
        }
    }
    for (node, answer) in locks.ask_each(&["CONFIG", "GET", "append*"]).await? {
        if let Ok(texts) = answer {
            persistence(&node, nodes, &pairs(&texts), findings);
        }
    }
    quorum(&times.into_iter().map(|(node, _)| node).collect::<Vec<_>>(), findings);
    Ok(())
}

fn clock(node: &str, time: &[String], asked_at: SystemTime, round_trip: Duration, findings: &mut Findings) {
    let number = |index: usize| time.get(index).and_then(|text| text.parse::<u64>().ok());
    let (Some(seconds), Some(micros)) = (number(0), number(1)) else { return };
    let theirs = Duration::from_secs(seconds) + Duration::from_micros(micros);
    let ours = asked_at.duration_since(UNIX_EPOCH).unwrap_or_default() + round_trip / 2;
    let apart = theirs.abs_diff(ours);
    let what = format!(
        "{node} answers within {:.1} ms; its clock and ours are {:.0} ms apart",
        round_trip.as_secs_f64() * 1e3,
        apart.as_secs_f64() * 1e3
    );
    if apart > CLOCK + round_trip {
        findings.warn(what, "keep the clocks by NTP: fencing tokens are seeded with the time");
    } else {
        findings.good(what);
    }
}

fn server(node: &str, nodes: usize, info: &HashMap<&str, &str>, findings: &mut Findings) {
    let get = |name| info.get(name).copied().unwrap_or_default();
    let (kind, version) = match info.get("valkey_version") {
        Some(version) => ("Valkey", *version),
        None => ("Redis", get("redis_version")),
    };
    findings.good(format!("{node} is {kind} {version}, up for {} s", get("uptime_in_seconds")));
    if get("role") == "slave" {
        findings
            .wrong(format!("{node} is a replica, and refuses writes"), "give the URL of the primary, or of Sentinel");
    }
    let replicas: u32 = get("connected_slaves").parse().unwrap_or(0);
    if replicas > 0 {
        let change = if nodes == 1 {
            "replicas=1 in the URL makes it rare; check the fencing token in what the locks protect, or use Redlock over \
             independent servers"
        } else {
            "in Redlock the servers should be independent and without replicas: let a failed one come back with its data"
        };
        findings.warn(
            format!("{node} has {replicas} replica(s): a fail-over may forget a lock that it has not replicated yet"),
            change,
        );
    }
    let evicted: u64 = get("evicted_keys").parse().unwrap_or(0);
    if evicted > 0 {
        findings.warn(
            format!("{node} has evicted {evicted} keys: locks may have been among them"),
            "see maxmemory-policy",
        );
    }
}

fn eviction(node: &str, config: &HashMap<&str, &str>, findings: &mut Findings) {
    let policy = config.get("maxmemory-policy").copied().unwrap_or_default();
    let limited = config.get("maxmemory").is_some_and(|limit| *limit != "0");
    match (policy, limited) {
        ("noeviction" | "", _) => findings.good(format!("{node} evicts nothing")),
        (policy, true) => findings.wrong(
            format!("{node} may evict locks when its memory is full (maxmemory-policy {policy})"),
            "CONFIG SET maxmemory-policy noeviction, or a server of its own for locks",
        ),
        (policy, false) => findings.warn(
            format!("{node} would evict locks if maxmemory were set (maxmemory-policy {policy})"),
            "CONFIG SET maxmemory-policy noeviction",
        ),
    }
}

fn persistence(node: &str, nodes: usize, config: &HashMap<&str, &str>, findings: &mut Findings) {
    let get = |name| config.get(name).copied().unwrap_or_default();
    match (get("appendonly"), get("appendfsync")) {
        ("yes", "always") => findings.good(format!("{node} keeps every lock over a crash (appendfsync always)")),
        ("yes", fsync) => findings.warn(
            format!("{node} may forget the last second's locks in a crash of the machine (appendfsync {fsync})"),
            "appendfsync always, or no restart before the longest ttl is over",
        ),
        (_, _) => findings.warn(
            format!("{node} forgets its locks when it restarts (appendonly no)"),
            if nodes == 1 {
                "appendonly yes, or no restart before the longest ttl is over"
            } else {
                "appendonly yes, or no restart of a majority within the longest ttl"
            },
        ),
    }
}

fn quorum(nodes: &[String], findings: &mut Findings) {
    if nodes.len() == 1 {
        return;
    }
    if nodes.len().is_multiple_of(2) {
        findings.warn(
            format!("{} servers stand no more failures than {}", nodes.len(), nodes.len() - 1),
            "use an odd number of servers",
        );
    }
    let hosts: std::collections::HashSet<_> =
        nodes.iter().map(|node| node.rsplit_once(':').map_or("", |n| n.0)).collect();
    if hosts.len() < nodes.len() {
        findings.warn(
            format!("{} servers are on {} host(s): they fail together", nodes.len(), hosts.len()),
            "put each server on a host of its own",
        );
    }
}

/// The lines of INFO.
fn fields(info: &str) -> HashMap<&str, &str> {
    info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim_end())).collect()
}

/// The answer of CONFIG GET.
fn pairs(texts: &[String]) -> HashMap<&str, &str> {
    texts.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect()
}
