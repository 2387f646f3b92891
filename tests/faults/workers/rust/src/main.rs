//! Takes locks, holds them, writes under them and tells of all of it: `fault-worker URL STORE LOG SEED NAMES SECONDS`.
//!
//! The same program exists in each language; README.md of `tests/faults` says what it does and what the lines mean.

use std::{
    error::Error,
    fmt::Display,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use polylock::{Acquire, ErrorKind, Lease, LockManager, Seen, Target};
use rustix::time::{ClockId, clock_gettime};

type Outcome = Result<(), Box<dyn Error>>;

const PERMITS: u32 = 2;
/// More than there are.
const ANY: u32 = 1_000_000;
/// Of a lock that its ttl does not end while it is looked whether anything is left.
const LONG: Duration = Duration::from_secs(60);
/// How long a server may take for that.
const HASTY: Duration = Duration::from_millis(200);

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// One line an event, each written at once: a killed worker has told all that it knew.
struct Log(File);

impl Log {
    fn tell_at(&self, at: i64, event: &str, name: &str, attempt: u64, detail: impl Display) {
        let line = format!("{at} {event} {name} {attempt} {detail}\n");
        if let Err(error) = (&self.0).write_all(line.as_bytes()) {
            eprintln!("the log: {error}");
            std::process::exit(1);
        }
    }

    fn tell(&self, event: &str, name: &str, attempt: u64, detail: impl Display) {
        self.tell_at(now_ns(), event, name, attempt, detail);
    }
}

/// The guarded store, which refuses a token smaller than one that it has seen.
struct Store(BufReader<UnixStream>);

impl Store {
    fn write(&mut self, name: &str, token: u64) -> std::io::Result<String> {
        writeln!(self.0.get_mut(), "{name} {token}")?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

/// Asks every few milliseconds whether the lease is still held, until the time is over.
async fn hold(lease: &Lease, time: Duration, log: &Log, name: &str, attempt: u64) {
    let ends = std::time::Instant::now() + time;
    let mut held = true;
    while held && std::time::Instant::now() < ends {
        let before = now_ns();
        held = lease.is_held();
        if held {
            log.tell_at(before, "valid", name, attempt, "-");
        } else {
            log.tell("invalid", name, attempt, "-");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Worker {
    locks: LockManager,
    hasty: LockManager,
    log: Arc<Log>,
    store: Store,
    dice: fastrand::Rng,
    names: Vec<String>,
}

impl Worker {
    fn choose<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.dice.usize(..choices.len())].clone()
    }

    /// Breaks the lock of whoever has it.
    async fn take_away(&self, name: &str, attempt: u64) {
        let broken = async {
            let holder = self.locks.inspect(name).await?;
            let Some(token) = holder.and_then(|holder| holder.fencing_token) else { return Ok(()) };
            self.log.tell("breaks", name, attempt, token);
            if self.locks.break_lock(name, Seen::FencingToken(token)).await? {
                self.log.tell("broke", name, attempt, token);
            }
            Ok::<(), polylock::Error>(())
        };
        if broken.await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn once(&mut self, name: String, attempt: u64) -> Outcome {
        if let Some(name) = name.strip_prefix('!') {
            self.take_away(name, attempt).await;
            return Ok(());
        }
        let (is_broken, lapses) = (name.starts_with("own:"), name.starts_with("lapses:"));
        let lasts = match (is_broken, lapses) {
            (true, _) => 1000,
            (_, true) => 300,
            _ => self.dice.u64(300..1000),
        };
        let lasts = Duration::from_millis(lasts);
        let (locks, ttl) = if name.starts_with("long:") { (&self.hasty, LONG) } else { (&self.locks, lasts) };
        let locks = locks.clone();
        let wait = self.choose(&[0, 500, 2000]);
        let auto_extend = is_broken || !lapses && self.dice.f64() < 0.7;
        let options = Acquire::ttl(ttl).wait(Duration::from_millis(wait)).auto_extend(auto_extend);
        let log = Arc::clone(&self.log);
        log.tell("call", &name, attempt, wait);
        if !auto_extend {
            log.tell("lasts", &name, attempt, ttl.as_millis());
        }
        let (target, alone) = match name.split(':').next() {
            Some("permits") => (Target::permit(&name, PERMITS), false),
            Some("rw") if self.dice.f64() < 0.7 => (Target::shared(&name), false),
            _ => (Target::from(name.as_str()), true),
        };
        if !alone {
            log.tell("beside", &name, attempt, if name.starts_with("rw:") { ANY } else { PERMITS - 1 });
        }
        let lease = match locks.acquire(target, options).await {
            Ok(lease) => lease,
            Err(error) => {
                log.tell("failed", &name, attempt, error.kind().name());
                if error.kind() != ErrorKind::Timeout {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                return Ok(());
            }
        };
        let token = lease.fencing_token();
        log.tell("granted", &name, attempt, token);
        lease.on_lost({
            let (log, name) = (Arc::clone(&log), name.clone());
            move |reason| log.tell("lost", &name, attempt, reason.name())
        });
        if alone {
            log.tell("wrote", &name, attempt, self.store.write(&name, token)?);
        }
        let part = if is_broken || lapses { 1.6 } else { self.choose(&[0.0, 0.1, 0.3, 1.6]) };
        let time = lasts.mul_f64(part).max(Duration::from_millis(20));
        hold(&lease, time, &log, &name, attempt).await;
        if self.dice.f64() < 0.3 {
            log.tell("extend", &name, attempt, "-");
            if let Err(error) = lease.extend(None).await {
                log.tell("unextended", &name, attempt, error.kind().name());
            }
            hold(&lease, Duration::from_millis(20), &log, &name, attempt).await;
        }
        // Also if it was lost meanwhile: then the store is what stands between us and the next holder.
        if alone {
            log.tell("wrote", &name, attempt, self.store.write(&name, token)?);
        }
        log.tell("release", &name, attempt, "-");
        log.tell("released", &name, attempt, lease.release().await?.name());
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, store, log, seed, names, seconds] = &arguments[..] else {
        return Err("usage: fault-worker URL STORE LOG SEED NAMES SECONDS".into());
    };
    let log = Arc::new(Log(OpenOptions::new().append(true).create(true).open(log)?));
    let mut worker = Worker {
        locks: polylock::connect(url.as_str()).lazy()?,
        hasty: polylock::connect(url.as_str()).node_timeout(HASTY).lazy()?,
        log: Arc::clone(&log),
        store: Store(BufReader::new(UnixStream::connect(store)?)),
        dice: fastrand::Rng::with_seed(seed.parse()?),
        names: names.split(',').map(str::to_owned).collect(),
    };
    let ends = std::time::Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let mut attempt = 0;
    while std::time::Instant::now() < ends {
        attempt += 1;
        let name = worker.choose(&worker.names.clone());
        worker.once(name, attempt).await?;
    }
    let last = worker.names.last().cloned().unwrap_or_default();
    worker.once(last, attempt + 1).await?;
    log.tell("rest", "-", 0, "-");
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    worker.locks.close().await;
    worker.hasty.close().await;
    log.tell("end", "-", 0, "-");
    Ok(())
}
