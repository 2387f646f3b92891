//! polylock and rslock on one Redis, side by side: `polylock-bench URL`. Prints a line of JSON per comparison.

mod floor;

use std::{
    error::Error,
    time::{Duration, Instant},
};

use floor::Floor;
use polylock::{Acquire, LockManager};
use rslock::LockManager as Rslock;

const ROUNDS: usize = 60;
const PAIRS: usize = 25;
const WARM_UP: usize = 5;
const IN_FLIGHT: usize = 64;
const TTL: Duration = Duration::from_secs(30);

fn row(what: &str, unit: &str, ours: f64, peer: f64, name: &str) {
    let row = serde_json::json!({
        "language": "rust", "what": what, "unit": unit, "ours": ours, "peer": peer, "peer_name": name
    });
    println!("{row}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn ours(locks: &LockManager, name: &str) -> Result<(), Box<dyn Error>> {
    locks.acquire(name, Acquire::ttl(TTL)).await?.release().await?;
    Ok(())
}

async fn theirs(locks: &Rslock, name: &str) -> Result<(), Box<dyn Error>> {
    let lock = locks.lock(name, TTL).await?;
    locks.unlock(&lock).await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: polylock-bench URL")?;
    let locks = polylock::connect(url.as_str()).await?;
    let peer = Rslock::new(vec![url.as_str()]);
    let mut floor = Floor::open(url.trim_start_matches("redis://"), "bench:floor")?;

    // They take turns, so that all see the same machine.
    let mut samples: [Vec<f64>; 3] = Default::default();
    for round in 0..WARM_UP + ROUNDS {
        for (contender, samples) in samples.iter_mut().enumerate() {
            for _ in 0..PAIRS {
                let began = Instant::now();
                match contender {
                    0 => ours(&locks, "bench:ours").await?,
                    1 => theirs(&peer, "bench:peer").await?,
                    _ => floor.pair()?,
                }
                if round >= WARM_UP {
                    samples.push(began.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
    }
    let [of_us, of_peer, of_floor] = samples.map(median);
    row("acquire + release", "us", of_us, of_peer, "rslock");
    row("acquire + release", "us", of_us, of_floor, "raw socket");

    blocking(&url, floor)?;

    let (mut our_rates, mut peer_rates) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        our_rates.push(many(|name| ours(&locks, name)).await?);
        peer_rates.push(many(|name| theirs(&peer, name)).await?);
    }
    row(&format!("{IN_FLIGHT} in flight"), "pairs/s", median(our_rates), median(peer_rates), "rslock");

    // What counting costs: more rounds, as the difference is small.
    let quiet = polylock::connect(url.as_str()).metrics(false).await?;
    let (mut counting, mut not) = (Vec::new(), Vec::new());
    for _ in 0..41 {
        counting.push(many(|name| ours(&locks, name)).await?);
        not.push(many(|name| ours(&quiet, name)).await?);
    }
    row(&format!("{IN_FLIGHT} in flight, metrics on"), "pairs/s", median(counting), median(not), "metrics off");
    quiet.close().await;
    locks.close().await;
    Ok(())
}

/// The same on a thread that blocks.
fn blocking(url: &str, mut floor: Floor) -> Result<(), Box<dyn Error>> {
    let url = url.to_owned();
    let (of_us, of_floor) = std::thread::spawn(move || {
        let locks = polylock::connect(url).lazy().map_err(|error| error.to_string())?;
        let mut samples: [Vec<f64>; 2] = Default::default();
        for round in 0..WARM_UP + ROUNDS {
            for (contender, samples) in samples.iter_mut().enumerate() {
                for _ in 0..PAIRS {
                    let began = Instant::now();
                    if contender == 0 {
                        let pair = |driver| {
                            let locks = locks.clone();
                            async move {
                                let lease = locks.acquire_by("bench:ours", Acquire::ttl(TTL), &driver).await?;
                                lease.release_by(&driver).await
                            }
                        };
                        polylock::blocking::wait(pair).map_err(|error: polylock::Error| error.to_string())?;
                    } else {
                        floor.pair().map_err(|error| error.to_string())?;
                    }
                    if round >= WARM_UP {
                        samples.push(began.elapsed().as_secs_f64() * 1e6);
                    }
                }
            }
        }
        let [of_us, of_floor] = samples.map(median);
        Ok::<_, String>((of_us, of_floor))
    })
    .join()
    .map_err(|_| "the thread panicked")??;
    row("acquire + release, blocking", "us", of_us, of_floor, "raw socket");
    Ok(())
}

/// Pairs per second with 64 in flight.
async fn many<F>(pair: impl Fn(&'static str) -> F) -> Result<f64, Box<dyn Error>>
where
    F: Future<Output = Result<(), Box<dyn Error>>>,
{
    let began = Instant::now();
    let workers = (0..IN_FLIGHT).map(|number| {
        let name: &'static str = Box::leak(format!("bench:{number}").into_boxed_str());
        let pair = &pair;
        async move {
            for _ in 0..PAIRS {
                pair(name).await?;
            }
            Ok::<_, Box<dyn Error>>(())
        }
    });
    futures_util::future::try_join_all(workers).await?;
    Ok((IN_FLIGHT * PAIRS) as f64 / began.elapsed().as_secs_f64())
}
