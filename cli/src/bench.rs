//! How fast locks are here: for a look at a deployment, not for comparing libraries.

use std::time::{Duration, Instant};

use polylock::{Acquire, LockManager, Result};
use serde_json::json;

use crate::{arguments::Bench, say};

pub(crate) async fn bench(locks: &LockManager, bench: &Bench) -> Result<u8> {
    let unique = format!("polylock-bench-{}", std::process::id());
    let alone = pairs(locks, &unique, 1, bench.time).await?;
    let many = pairs(locks, &unique, bench.in_flight, bench.time).await?;
    let (p50, p99) = (percentile(&alone.took, 0.5), percentile(&alone.took, 0.99));
    let hand_over = hand_overs(locks, &unique, bench.time).await?;
    let hand_over_p50 = percentile(&hand_over, 0.5);
    if bench.json {
        let report = json!({
            "pair_p50_ms": millis(p50),
            "pair_p99_ms": millis(p99),
            "in_flight": bench.in_flight,
            "pairs_per_second": many.per_second,
            "hand_over_p50_ms": millis(hand_over_p50),
        });
        say(report);
    } else {
        say(format_args!("one acquire and release         p50 {:.3} ms, p99 {:.3} ms", millis(p50), millis(p99)));
        say(format_args!("{:<4} at a time                  {:.0} pairs/s", bench.in_flight, many.per_second));
        say(format_args!("hand-over to a waiter           p50 {:.3} ms", millis(hand_over_p50)));
    }
    Ok(0)
}

struct Pairs {
    /// How long each pair took, sorted.
    took: Vec<Duration>,
    per_second: f64,
}

async fn pairs(locks: &LockManager, unique: &str, in_flight: u16, time: Duration) -> Result<Pairs> {
    // What comes once, connecting and the like, before it is measured.
    locks.acquire(unique, Acquire::default()).await?.release().await?;
    let began = Instant::now();
    let workers = (0..in_flight).map(|worker| async move {
        let (name, mut took) = (format!("{unique}-{worker}"), Vec::new());
        while began.elapsed() < time {
            let start = Instant::now();
            locks.acquire(&name, Acquire::default()).await?.release().await?;
            took.push(start.elapsed());
        }
        Ok(took)
    });
    let mut took = futures_util::future::try_join_all(workers).await?.concat();
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    Ok(Pairs { took, per_second })
}

/// From the beginning of a release to the moment at which whoever waits has the lock.
async fn hand_overs(locks: &LockManager, unique: &str, time: Duration) -> Result<Vec<Duration>> {
    let began = Instant::now();
    let mut took = Vec::new();
    while took.is_empty() || began.elapsed() < time {
        let held = locks.acquire(unique, Acquire::default()).await?;
        let waiting = async {
            let lease = locks.acquire(unique, Acquire::default()).await?;
            let at = Instant::now();
            lease.release().await.map(|_| at)
        };
        let releasing = async {
            while locks.waiting(unique)? == 0 {
                tokio::task::yield_now().await;
            }
            // Until it has been refused, and sleeps.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let at = Instant::now();
            held.release().await.map(|_| at)
        };
        let (acquired, released) = futures_util::future::try_join(waiting, releasing).await?;
        took.push(acquired.saturating_duration_since(released));
    }
    took.sort_unstable();
    Ok(took)
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
