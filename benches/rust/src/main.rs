//! polylock beside rslock, a raw socket and redis-benchmark: `polylock-bench URL URL,URL,…`, one Redis and those of a
//! Redlock. Prints a line of JSON per comparison.

mod floor;

use std::{
    error::Error,
    process::Command,
    time::{Duration, Instant},
};

use floor::{Floor, Scripts};
use polylock::{Acquire, LockManager};
use rslock::LockManager as Rslock;
use tokio::runtime::Builder;

const ROUNDS: usize = 60;
const PAIRS: usize = 25;
const WARM_UP: usize = 5;
const IN_FLIGHT: usize = 64;
const TTL: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

fn row(what: &str, unit: &str, ours: f64, peer: f64, name: &str) {
    let row = serde_json::json!({
        "language": "rust", "what": what, "unit": unit, "ours": ours, "peer": peer, "peer_name": name
    });
    println!("{row}");
}

fn row_of_five(what: &str, ours: f64, peer: f64, name: &str) {
    let row = serde_json::json!({
        "language": "rust", "backend": "redlock", "what": what, "unit": "us", "ours": ours, "peer": peer,
        "peer_name": name
    });
    println!("{row}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn ours(locks: LockManager, name: &str) -> Result<(), Failure> {
    locks.acquire(name, Acquire::ttl(TTL)).await?.release().await?;
    Ok(())
}

async fn theirs(locks: Rslock, name: &str) -> Result<(), Failure> {
    let lock = locks.lock(name, TTL).await?;
    locks.unlock(&lock).await;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(nodes)) = (args.next(), args.next()) else {
        return Err("usage: polylock-bench URL URLS".into());
    };
    Builder::new_current_thread().enable_all().build()?.block_on(one_thread(&url, &nodes))?;
    Builder::new_multi_thread().enable_all().build()?.block_on(threads(&url))
}

async fn one_thread(url: &str, nodes: &str) -> Result<(), Failure> {
    let locks = polylock::connect(url).await?;
    let peer = Rslock::new(vec![url]);
    let address = url.trim_start_matches("redis://");
    let mut floor = Floor::open(address, "bench:floor")?;
    let scripts = floor.scripts();

    let [of_us, of_peer, of_floor] = turns(&locks, &peer, || floor.pair()).await?;
    row("acquire + release", "us", of_us, of_peer, "rslock");
    row("acquire + release", "us", of_us, of_floor, "raw socket");

    five(nodes.split(',').collect()).await?;
    blocking(url, floor)?;

    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..7 {
        rates[0].push(many(|name| ours(locks.clone(), name)).await?);
        rates[1].push(many(|name| theirs(peer.clone(), name)).await?);
        rates[2].push(redis_benchmark(address, &scripts, ["-c", "64", "-P", "1"])?);
        rates[3].push(redis_benchmark(address, &scripts, ["-c", "1", "-P", "64"])?);
    }
    let [of_us, of_peer, apart, pipelined] = rates.map(median);
    let what = format!("{IN_FLIGHT} in flight");
    row(&what, "pairs/s", of_us, of_peer, "rslock");
    row(&what, "pairs/s", of_us, apart, "redis-benchmark, 64 connections");
    row(&what, "pairs/s", of_us, pipelined, "redis-benchmark, one connection");

    // What counting costs: more rounds, as the difference is small.
    let quiet = polylock::connect(url).metrics(false).await?;
    let (mut counting, mut not) = (Vec::new(), Vec::new());
    for round in 0..82 {
        // Each is the first as often as the other.
        if (round + 1) / 2 % 2 == 0 {
            counting.push(many(|name| ours(locks.clone(), name)).await?);
        } else {
            not.push(many(|name| ours(quiet.clone(), name)).await?);
        }
    }
    row(&format!("{IN_FLIGHT} in flight, metrics on"), "pairs/s", median(counting), median(not), "metrics off");
    quiet.close().await;
    locks.close().await;
    Ok(())
}

/// On a runtime with a thread for each core, a task for each of those in flight.
async fn threads(url: &str) -> Result<(), Failure> {
    let locks = polylock::connect(url).await?;
    let peer = Rslock::new(vec![url]);
    let (mut of_us, mut of_peer) = (Vec::new(), Vec::new());
    for _ in 0..21 {
        let locks = locks.clone();
        of_us.push(tasks(move |name| ours(locks.clone(), name)).await?);
        let peer = peer.clone();
        of_peer.push(tasks(move |name| theirs(peer.clone(), name)).await?);
    }
    row(&format!("{IN_FLIGHT} tasks, several threads"), "pairs/s", median(of_us), median(of_peer), "rslock");
    locks.close().await;
    Ok(())
}

/// Medians of ours, of rslock's and of the floor's. They take turns, so that all see the same machine.
async fn turns(
    locks: &LockManager,
    peer: &Rslock,
    mut floor: impl FnMut() -> std::io::Result<()>,
) -> Result<[f64; 3], Failure> {
    let mut samples: [Vec<f64>; 3] = Default::default();
    for round in 0..WARM_UP + ROUNDS {
        for (contender, samples) in samples.iter_mut().enumerate() {
            for _ in 0..PAIRS {
                let began = Instant::now();
                match contender {
                    0 => ours(locks.clone(), "bench:ours").await?,
                    1 => theirs(peer.clone(), "bench:peer").await?,
                    _ => floor()?,
                }
                if round >= WARM_UP {
                    samples.push(began.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
    }
    Ok(samples.map(median))
}

/// On several servers. Their floor writes to all and reads from all, in order.
async fn five(urls: Vec<&str>) -> Result<(), Failure> {
    let locks = polylock::connect(urls.as_slice()).await?;
    let peer = Rslock::new(urls.clone());
    let mut floors = Vec::new();
    for url in &urls {
        floors.push(Floor::open(url.trim_start_matches("redis://"), "bench:floor")?);
    }
    let floor = || {
        floors.iter_mut().try_for_each(Floor::ask_to_acquire)?;
        floors.iter_mut().try_for_each(|floor| floor.answer().map(drop))?;
        floors.iter_mut().try_for_each(Floor::ask_to_release)?;
        floors.iter_mut().try_for_each(|floor| floor.answer().map(drop))
    };
    let [of_us, of_peer, of_floor] = turns(&locks, &peer, floor).await?;
    let what = format!("acquire + release, {} nodes", urls.len());
    row_of_five(&what, of_us, of_peer, "rslock");
    row_of_five(&what, of_us, of_floor, "raw sockets");
    locks.close().await;
    Ok(())
}

/// Pairs per second of our scripts by redis-benchmark, which runs one command at a time: so many acquisitions, each of a
/// fresh name, and then so many releases. (Of names that are not held, mostly, which costs the server less.)
fn redis_benchmark(address: &str, scripts: &Scripts, how: [&str; 4]) -> Result<f64, Failure> {
    let (host, port) = address.rsplit_once(':').ok_or("no port")?;
    let mut seconds_a_pair = 0.0;
    for words in [scripts.acquire("bench:__rand_int__"), scripts.release("bench:__rand_int__")] {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", host, "-p", port, "--csv", "-n", "30000", "-r", "1000000000"]).args(how).args(words);
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        // Each line ends with the rate, and six figures on latency.
        let rate = text.trim_end().rsplit("\",\"").nth(6).and_then(|rate| rate.parse::<f64>().ok());
        seconds_a_pair += 1.0 / rate.filter(|rate| *rate > 0.0).ok_or("redis-benchmark said nothing")?;
    }
    Ok(1.0 / seconds_a_pair)
}

/// The same on a thread that blocks.
fn blocking(url: &str, mut floor: Floor) -> Result<(), Failure> {
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

/// Pairs per second with 64 in flight, in one task.
async fn many<F>(pair: impl Fn(&'static str) -> F) -> Result<f64, Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let began = Instant::now();
    futures_util::future::try_join_all((0..IN_FLIGHT).map(|number| pairs(&pair, number))).await?;
    Ok((IN_FLIGHT * PAIRS) as f64 / began.elapsed().as_secs_f64())
}

/// Pairs per second of 64 tasks.
async fn tasks<P, F>(pair: P) -> Result<f64, Failure>
where
    P: Fn(&'static str) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Failure>> + Send,
{
    let began = Instant::now();
    let task = |number| {
        let pair = pair.clone();
        tokio::spawn(async move { pairs(&pair, number).await })
    };
    let tasks: Vec<_> = (0..IN_FLIGHT).map(task).collect();
    for task in tasks {
        task.await??;
    }
    Ok((IN_FLIGHT * PAIRS) as f64 / began.elapsed().as_secs_f64())
}

/// What one of those in flight does.
async fn pairs<F>(pair: &impl Fn(&'static str) -> F, number: usize) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let name: &'static str = Box::leak(format!("bench:{number}").into_boxed_str());
    for _ in 0..PAIRS {
        pair(name).await?;
    }
    Ok(())
}
