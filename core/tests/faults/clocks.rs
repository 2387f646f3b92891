//! Servers whose wall clock is set while they run.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use polylock::{Acquire, LossReason, Release, Target};

use super::{FOREIGN, SLACK, fresh, long, manager, ms, server::Server, soon};

fn compile(shim: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock_shim.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(shim).arg(source).status();
    assert!(compiled.expect("no C compiler").success());
}

/// What tells the shim how far off the clock is.
fn step_file(path: &Path) -> File {
    let step = File::create_new(path).expect("no file");
    step.set_len(4096).expect("no file");
    step
}

/// A server with a clock of its own.
struct Bent {
    server: Server,
    step: File,
}

impl Bent {
    /// The first in a directory compiles the shim there.
    fn start(directory: &Path, name: &str) -> Self {
        let shim = directory.join("clock_shim.so");
        if !shim.exists() {
            compile(&shim);
        }
        let path = directory.join(name);
        let step = step_file(&path);
        let environment = [("LD_PRELOAD", &*shim.to_string_lossy()), ("CLOCK_SHIM", &*path.to_string_lossy())];
        Self { server: Server::with(&[], &environment), step }
    }

    /// Sets the clock to be so far off.
    fn set(&self, seconds: i64) {
        self.step.write_all_at(&(seconds * 1000).to_ne_bytes(), 0).expect("not written");
        let time: (i64, i64) = self.server.ask(&["TIME"]);
        let real = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let off = time.0 - i64::try_from(real).unwrap();
        assert!((off - seconds).abs() < 30, "the shim does not work: off by {off} s");
    }
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!(
            "polylock-{}-{}",
            std::process::id(),
            fresh("clock").replace(':', "-")
        ));
        std::fs::create_dir_all(&path).expect("no directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_a_server_is_set() {
    let directory = Directory::new();
    let bent = Bent::start(&directory.0, "one");
    let (locks, name) = (manager(&[bent.server.url()]), fresh("r"));
    let mut last = 0;
    // Forward, back, far back, and from one extreme to the other, on connections that learnt the clock before.
    for seconds in [0, 100, 0, -100, 7200, -7200, 0, 86_400, 0] {
        bent.set(seconds);
        let lease = locks.try_acquire(&name, long()).await.expect("out of reach").expect("not free");
        assert!(lease.fencing_token() > last, "at {seconds}: {} after {last}", lease.fencing_token());
        last = lease.fencing_token();
        lease.extend(None).await.expect("not extended");
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }

    // A step forward frees a lock too early: the holder is told at its next renewal, and the next one's token is greater.
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(3))).await.unwrap();
    bent.set(60);
    let reason = tokio::time::timeout(SLACK, lease.lost()).await.expect("never told");
    assert_eq!(reason, Some(LossReason::Taken));
    let next = soon(&locks, &name).await;
    assert!(next.fencing_token() > lease.fencing_token());
    next.release().await.unwrap();

    // A step back makes a lock last longer on the server: the holder goes by its own clock.
    let lease = locks.acquire(&name, Acquire::ttl(ms(600)).auto_extend(false)).await.unwrap();
    bent.set(-60);
    let reason = tokio::time::timeout(SLACK, lease.lost()).await.expect("never told");
    assert_eq!(reason, Some(LossReason::Expired));
    // And what is left of it is freed all the same.
    soon(&locks, &name).await.release().await.unwrap();
}

/// Such a client does not move the counter, and yet its tokens grow over the loss of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_far_ahead_of_a_server_that_forgets() {
    let directory = Directory::new();
    let bent = Bent::start(&directory.0, "one");
    bent.set(-7200);
    let locks = manager(&[bent.server.url()]);
    for target in [Target::from("alone"), Target::shared("shared"), Target::from(["one", "two"])] {
        let mut last = 0;
        for round in 0..3 {
            let lease = locks.try_acquire(target.clone(), long()).await.expect("out of reach").expect("not free");
            assert!(lease.fencing_token() > last, "{target:?}, {round}: {} after {last}", lease.fencing_token());
            last = lease.fencing_token();
            let (seconds, _): (u64, u64) = bent.server.ask(&["TIME"]);
            assert!(last < (seconds + 60) * 1_000_000, "the counter has moved to {last} at {seconds} s");
            assert_eq!(lease.release().await.unwrap(), Release::Released);
            let _: () = bent.server.ask(&["FLUSHALL"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clocks_of_a_quorum_disagree() {
    let directory = Directory::new();
    let bent: Vec<Bent> = ["a", "b", "c"].map(|name| Bent::start(&directory.0, name)).into();
    for (node, seconds) in bent.iter().zip([-7200, 0, 86_400]) {
        node.set(seconds);
    }
    let servers: Vec<String> = bent.iter().map(|node| node.server.url()).collect();
    let (locks, name) = (manager(&servers), fresh("r"));
    let mut last = 0;
    for round in 0..5 {
        let lease = locks.try_acquire(&name, long()).await.expect("out of reach").expect("not free");
        assert!(lease.fencing_token() > last, "round {round}");
        last = lease.fencing_token();
        lease.extend(None).await.expect("not extended");
        assert_eq!(lease.release().await.unwrap(), Release::Released);
        bent[round % 3].set(100 * i64::try_from(round).unwrap());
    }
    // One node's step frees its key alone: the lease stays, and nobody else gets in.
    let lease = locks.acquire(&name, Acquire::ttl(Duration::from_secs(4))).await.unwrap();
    let deadline = lease.deadline();
    bent[1].set(3600);
    assert!(manager(&servers).try_acquire(&name, long()).await.unwrap().is_none());
    super::eventually(SLACK, "it is renewed", || lease.deadline() > deadline).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

/// It has ended the lock, which one other server has yet: with the third it would be a majority for somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_was_set_forward_does_not_vote() {
    let directory = Directory::new();
    let (bent, others) = (Bent::start(&directory.0, "bent"), Server::several(2));
    let urls = [bent.server.url(), others[0].url(), others[1].url()];
    let (one, two, name) = (manager(&urls), manager(&urls), fresh("r"));
    // It has asked that server: without it there would have been no majority.
    others[0].stop();
    soon(&two, &fresh("warm")).await.release().await.unwrap();
    others[0].resume();
    let _: () = others[1].ask(&["SET", &name, FOREIGN]);
    let held = one.acquire(&name, long().auto_extend(false)).await.unwrap();
    bent.set(3600);
    assert_eq!((bent.server.get(&name), others[1].ask::<i64>(&["DEL", &name])), (None, 1));
    let tried = two.try_acquire(&name, long()).await;
    assert!(!matches!(tried, Ok(Some(_))) && held.is_held(), "two hold");
    // The others are a majority.
    soon(&two, &fresh("next")).await.release().await.unwrap();
}

/// A server tells by its wall clock how long it has been up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_does_not_end_the_sitting_out() {
    let directory = Directory::new();
    let servers: Vec<Bent> = ["a", "b", "c"].map(|name| Bent::start(&directory.0, name)).into();
    let urls: Vec<_> = servers.iter().map(|bent| bent.server.url() + "?longest_ttl=3600").collect();
    let locks = manager(&urls);
    // All are new, and vote. It has met each of them when none of the others would do.
    for bent in &servers {
        bent.server.stop();
        soon(&locks, &fresh("r")).await.release().await.unwrap();
        bent.server.resume();
    }
    let [forgot, gone, _] = &servers[..] else { panic!("not three") };
    forgot.server.kill();
    forgot.server.restart();
    gone.server.kill();
    for seconds in [0, 7200, -7200, 0] {
        forgot.set(seconds);
        forgot.server.cut_clients(); // so that it is asked again
        for _ in 0..2 {
            let error = locks.try_acquire(fresh("r"), long()).await.expect_err("who has forgotten votes");
            let says = format!("127.0.0.1:{}: restarted lately, and does not vote for ", forgot.server.port);
            assert!(error.causes().iter().any(|cause| cause.starts_with(&says)), "at {seconds}: {error:?}");
        }
    }
}

/// The wall clock of the holder's own machine. The shim is for a whole process, so it is another one that holds.
#[test]
fn the_clock_of_a_holder_is_set() {
    let directory = Directory::new();
    let (shim, path) = (directory.0.join("clock_shim.so"), directory.0.join("holder"));
    compile(&shim);
    drop(step_file(&path));
    let held = Command::new(std::env::current_exe().expect("no program"))
        .args(["faults::clocks::holds_by_a_clock_that_is_set", "--exact", "--nocapture"])
        .env("LD_PRELOAD", &shim)
        .env("CLOCK_SHIM", &path)
        .output()
        .expect("not started");
    let said = String::from_utf8_lossy(&held.stdout);
    assert!(held.status.success() && said.contains("held all the while"), "{held:?}");
}

/// Not a test by itself, but what the process of the one above does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_by_a_clock_that_is_set() {
    let Ok(path) = std::env::var("CLOCK_SHIM") else { return };
    let step = File::options().write(true).open(path).expect("no file");
    let locks = polylock::connect("memory:").lazy().expect("no manager");
    let ttl = Duration::from_secs(60);
    let (began, real) = (polylock::Instant::now(), std::time::SystemTime::now());
    let lease = locks.acquire("r", Acquire::ttl(ttl).auto_extend(false)).await.unwrap();
    let deadline = lease.deadline();
    for hours in [1_i64, -2, 48, 0] {
        step.write_all_at(&(hours * 3_600_000).to_ne_bytes(), 0).expect("not written");
        let off = std::time::SystemTime::now()
            .duration_since(real)
            .map_or_else(|before| -before.duration().as_secs_f64(), |after| after.as_secs_f64());
        assert!((off / 3600.0 - hours as f64).abs() < 0.5, "the shim does not work: off by {off} s");
        let gone = polylock::Instant::now().since(began);
        assert!(lease.is_held() && lease.deadline() == deadline, "{hours} h, {gone:?} later");
        assert!(lease.remaining() <= ttl && lease.remaining() + gone >= ttl.mul_f64(0.98), "{:?}", lease.remaining());
        // Those that are taken by the clock as it is now end when they should.
        let short = locks.acquire("short", Acquire::ttl(ms(50)).auto_extend(false)).await.unwrap();
        assert_eq!(tokio::time::timeout(SLACK, short.lost()).await.expect("never told"), Some(LossReason::Expired));
    }
    println!("held all the while");
}
