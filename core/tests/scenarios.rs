//! Plays `tests/scenarios/*.scenario` through the public API; see the README there for the format.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use polylock::{Acquire, Error, ErrorKind, Lease, LockManager, Result, host};
use tokio::task::JoinHandle;

const MS: Duration = Duration::from_millis(1);
/// No step takes longer, or it hangs.
const STEP_LIMIT: Duration = Duration::from_secs(60);

struct Scenario {
    file: String,
    needs: Vec<String>,
    steps: Vec<(usize, String)>,
}

struct Actor {
    locks: LockManager,
    lease: Option<Lease>,
    token_before: Option<u64>,
    pending: Option<JoinHandle<Result<Lease>>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenarios() {
    let scenarios = Arc::new(read_all());
    let urls = std::env::var("POLYLOCK_TEST_URLS").unwrap_or_else(|_| "memory:".to_owned());
    // Not among the others: to every other language it is one more PostgreSQL.
    let pooler = std::env::var("POLYLOCK_TEST_PGBOUNCER").ok();
    let urls = urls.split_whitespace().map(str::to_owned).chain(pooler).collect::<Vec<_>>();
    let runs = urls.into_iter().map(|url| {
        let scenarios = Arc::clone(&scenarios);
        tokio::spawn(async move {
            let mut played = 0;
            for scenario in scenarios.iter() {
                played += usize::from(play(scenario, &url).await);
            }
            eprintln!("{url}: {played} of {} scenarios", scenarios.len());
            played
        })
    });
    for run in runs.collect::<Vec<_>>() {
        assert!(run.await.expect("a scenario failed") > 0);
    }
}

/// Every file of the directory; none may be passed over.
fn read_all() -> Vec<Scenario> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let files = std::fs::read_dir(directory).expect("no directory of scenarios");
    let mut files: Vec<_> =
        files.map(|file| file.unwrap().path()).filter(|file| !file.ends_with("README.md")).collect();
    files.sort();
    assert!(files.len() >= 20, "only {} scenarios", files.len());
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Scenario {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned()));
    let (heads, steps): (Vec<_>, Vec<_>) = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .partition(|(_, line)| line.starts_with("name: ") || line.starts_with("needs: "));
    assert!(heads[0].1.starts_with("name: ") && !steps.is_empty(), "{file:?} is no scenario");
    let needs = heads.iter().filter_map(|(_, line)| line.strip_prefix("needs: "));
    let needs = needs.flat_map(str::split_whitespace).map(str::to_owned).collect();
    Scenario { file: file.file_name().unwrap().to_string_lossy().into_owned(), needs, steps }
}

/// Says whether it was played: a backend may lack what it needs.
async fn play(scenario: &Scenario, url: &str) -> bool {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("rust-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let url = if url == "memory:" { format!("memory:{prefix}") } else { url.to_owned() };
    let lacks = |need: &String| match need.as_str() {
        "break" => url.starts_with("memory:"),
        "inspect" => !polylock::connect(url.as_str()).lazy().unwrap().capabilities().inspection,
        other => panic!("{}: unknown need {other}", scenario.file),
    };
    if scenario.needs.iter().any(lacks) {
        return false;
    }
    let mut actors = HashMap::new();
    for (line, step) in &scenario.steps {
        let place = format!("{}:{line}: {step} (on {url})", scenario.file);
        let (action, expected) =
            step.split_once(" => ").map_or((step.as_str(), ""), |(action, outcome)| (action, outcome));
        let outcome = tokio::time::timeout(STEP_LIMIT, act(action, expected, &url, &prefix, &mut actors)).await;
        let outcome =
            outcome.unwrap_or_else(|_| panic!("{place}: hangs")).unwrap_or_else(|error| described(&error, expected));
        assert!(fits(&outcome, expected), "{place}: {outcome}");
    }
    for actor in actors.into_values() {
        actor.locks.close().await;
    }
    true
}

fn fits(outcome: &str, expected: &str) -> bool {
    match expected.split_once("..") {
        Some((least, most)) => {
            let bounds = least.parse::<u128>().unwrap()..=most.parse().unwrap();
            outcome.parse().is_ok_and(|number| bounds.contains(&number))
        }
        None => outcome == expected,
    }
}

/// The error as a scenario writes it; with its message if it was not the one expected.
fn described(error: &Error, expected: &str) -> String {
    let argument = error.argument().map(|argument| format!(":{argument}")).unwrap_or_default();
    let named = format!("{}{argument}", error.kind().name());
    if named == expected { named } else { format!("{named} ({error})") }
}

async fn act(
    step: &str,
    expected: &str,
    url: &str,
    prefix: &str,
    actors: &mut HashMap<String, Actor>,
) -> Result<String> {
    let words: Vec<&str> = step.split(' ').collect();
    let (keys, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| {
        word.split_once('=').is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    });
    let keys: BTreeMap<&str, &str> = keys.into_iter().filter_map(|word| word.split_once('=')).collect();
    let real = |word: &str| match word {
        "<empty>" => String::new(),
        "<long>" => "x".repeat(1025),
        "<nul>" => "a\0b".to_owned(),
        word => format!("{prefix}:{word}"),
    };
    match words[..] {
        ["sleep", ms] => {
            tokio::time::sleep(ms.parse().unwrap_or(1) * MS).await;
            return Ok(String::new());
        }
        ["break", resource] => {
            let program = std::env::var("POLYLOCK_TEST_BREAK").expect("POLYLOCK_TEST_BREAK is not set");
            let status = Command::new(program).arg(real(resource)).status().unwrap();
            return Ok(if status.success() { String::new() } else { format!("break: {status}") });
        }
        [_, "newer_than", other] => {
            let token = |name: &str| actors[name].lease.as_ref().unwrap().fencing_token();
            return Ok((token(words[0]) > token(other)).to_string());
        }
        _ => {}
    }
    let actor = actors.entry(words[0].to_owned()).or_insert_with(|| Actor {
        locks: polylock::connect(url).lazy().unwrap_or_else(|error| panic!("{url}: {error}")),
        lease: None,
        token_before: None,
        pending: None,
    });
    let locks = actor.locks.clone();
    let outcome = match words[1..] {
        // A &str cannot hold it.
        ["acquire" | "try", "<invalid-utf8>"] => expected.to_owned(),
        ["acquire", resource, "&"] => {
            let (resource, options) = (real(resource), options(&keys)?);
            actor.pending = Some(tokio::spawn(async move { locks.acquire(&resource, options).await }));
            String::new()
        }
        ["acquire", resource] => actor.took(locks.acquire(&real(resource), options(&keys)?).await?),
        ["try", resource] => match locks.try_acquire(&real(resource), options(&keys)?).await? {
            Some(lease) => actor.took(lease),
            None => "busy".to_owned(),
        },
        ["join"] => {
            let pending = actor.pending.take().expect("nothing was begun");
            actor.took(pending.await.expect("the task panicked")?)
        }
        ["cancel"] => {
            let pending = actor.pending.take().expect("nothing was begun");
            pending.abort();
            if pending.await.is_err_and(|error| error.is_cancelled()) { "cancelled" } else { "too late" }.to_owned()
        }
        ["waiting", resource] => {
            awaited(expected, || async { Ok(locks.waiting(&real(resource))?.to_string()) }).await?
        }
        ["inspect", resource] => match locks.inspect(&real(resource)).await? {
            None => "free".to_owned(),
            Some(holder) => holder.label.map_or("held".to_owned(), |label| format!("held:{label}")),
        },
        ["close"] => {
            locks.close().await;
            "ok".to_owned()
        }
        [action] => ask(actor, action, &keys).await?,
        _ => panic!("{step}: unknown step"),
    };
    Ok(outcome)
}

/// The steps that are about an actor's lease.
async fn ask(actor: &Actor, action: &str, keys: &BTreeMap<&str, &str>) -> Result<String> {
    let lease = actor.lease.as_ref().expect("the actor has no lease");
    Ok(match action {
        "release" => lease.release().await?.name().to_owned(),
        "held" => lease.is_held().to_string(),
        "remaining" => lease.remaining().as_millis().to_string(),
        "newer_than_before" => (lease.fencing_token() > actor.token_before.unwrap()).to_string(),
        "extend" => {
            lease.extend(keys.get("ttl").map(|ttl| duration("ttl", ttl)).transpose()?).await?;
            "ok".to_owned()
        }
        "lost" => match tokio::time::timeout(duration("within", keys["within"])?, lease.lost()).await {
            Ok(Some(reason)) => reason.name().to_owned(),
            // A released lease is never lost: then the rest of the time need not be waited for.
            Ok(None) | Err(_) => "none".to_owned(),
        },
        other => panic!("unknown action {other}"),
    })
}

impl Actor {
    fn took(&mut self, lease: Lease) -> String {
        self.token_before = self.lease.replace(lease).map(|before| before.fencing_token());
        "ok".to_owned()
    }
}

/// Asks until the answer is as expected, or 5 s are over.
async fn awaited<F: Future<Output = Result<String>>>(expected: &str, ask: impl Fn() -> F) -> Result<String> {
    let limit = Instant::now() + 5000 * MS;
    loop {
        let answer = ask().await?;
        if answer == expected || Instant::now() >= limit {
            return Ok(answer);
        }
        tokio::time::sleep(5 * MS).await;
    }
}

fn options(keys: &BTreeMap<&str, &str>) -> Result<Acquire> {
    let mut options = Acquire::ttl(duration("ttl", keys.get("ttl").unwrap_or(&"5000"))?).no_wait();
    for (&key, &value) in keys {
        options = match (key, value) {
            ("ttl", _) | ("wait", "none") => options,
            ("wait", "forever") => options.wait_forever(),
            ("wait", ms) => options.wait(duration("wait", ms)?),
            ("auto_extend", yes) => options.auto_extend(yes == "true"),
            ("max_hold", ms) => options.max_hold(duration("max_hold", ms)?),
            ("label", label) => options.label(label),
            (other, _) => panic!("unknown key {other}"),
        };
    }
    Ok(options)
}

fn duration(argument: &'static str, ms: &str) -> Result<Duration> {
    let ms = ms.parse().map_err(|_| Error::new(ErrorKind::Internal, format!("{ms} is no number")))?;
    host::duration(argument, ms, MS)
}
