//! What can be wrong with a PostgreSQL.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use polylock::{ErrorKind, Result};

use super::Findings;

/// One row: what is looked at, in this order.
const QUESTION: &str = "SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp()), \
     pg_is_in_recovery(), current_setting('fsync'), current_setting('synchronous_commit'), \
     current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication), \
     current_setting('max_connections'), (SELECT count(*) FROM pg_stat_activity)";

pub(super) async fn check(urls: &[String], findings: &mut Findings) -> Result<()> {
    // In lease mode, which any server and pooler answers.
    let session = urls[0].contains("mode=session");
    let plain = urls[0].replace("?mode=session&", "?").replace("?mode=session", "").replace("&mode=session", "");
    let locks = polylock::connect(plain.as_str()).lazy()?;
    let (began, asked_at) = (Instant::now(), SystemTime::now());
    let answers = locks.ask_each(&[QUESTION]).await?;
    let round_trip = began.elapsed();
    for (_, answer) in answers {
        let values = match answer {
            Ok(values) => values,
            Err(error) => {
                findings.wrong(format!("the server does not answer: {error}"), "start it, or correct the URL");
                continue;
            }
        };
        let get = |index: usize| values.get(index).map_or("", String::as_str);
        findings.good(format!("PostgreSQL {} answers within {:.1} ms", get(0), round_trip.as_secs_f64() * 1e3));
        let ours = asked_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let apart = (get(1).parse::<f64>().unwrap_or(ours) - ours).abs();
        if apart > 1.0 + round_trip.as_secs_f64() {
            findings.warn(format!("its clock and ours are {apart:.1} s apart"), "keep the clocks by NTP");
        }
        if get(2) == "t" {
            findings.wrong("it is a standby, and refuses writes", "give the URL of the primary");
        }
        if get(3) == "off" {
            findings.wrong("fsync is off: a crash may forget locks and fencing tokens", "fsync = on");
        }
        if get(4) == "off" {
            findings.warn("synchronous_commit is off: a crash may forget the last locks", "synchronous_commit = on");
        }
        if get(6) != "0" && get(5).is_empty() {
            findings.warn(
                format!("{} standby(s) replicate asynchronously: a fail-over may forget the last locks", get(6)),
                "synchronous_standby_names, or check the fencing token in what the locks protect",
            );
        }
        let (most, used): (u64, u64) = (get(7).parse().unwrap_or(u64::MAX), get(8).parse().unwrap_or(0));
        if most / 10 * 8 < used {
            findings.warn(
                format!("{used} of {most} connections are in use"),
                "raise max_connections, or put a pooler in between",
            );
        }
    }
    if pooled(&plain).await {
        if session {
            findings.wrong(
                "a pooler is in between that gives each transaction another session: session locks do not work through it",
                "leave out ?mode=session: leases in a table work through every pooler",
            );
        } else {
            findings.good("a pooler is in between; leases in a table work through it");
        }
    }
    locks.close().await;
    Ok(())
}

/// Whether a pooler is in between: the engine finds out when it is to keep locks in a session.
async fn pooled(plain: &str) -> bool {
    let mode = if plain.contains('?') { "&mode=session" } else { "?mode=session" };
    match polylock::connect(format!("{plain}{mode}")).await {
        Ok(locks) => {
            locks.close().await;
            false
        }
        Err(error) => error.kind() == ErrorKind::Unsupported,
    }
}
