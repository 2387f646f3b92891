//! `fair` across real processes: this program is run again for each of them, as `contend` below.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use polylock::{Acquire, LockManager};

/// What a process is told in this variable: the URLs, the name, the first of its contenders and how many it has.
const TASK: &str = "POLYLOCK_TEST_FAIR_TASK";

/// How often each of the contenders must have had it.
const ROUNDS: u64 = 30;

/// Contenders in each process: not evenly, since it is contenders that take turns and not processes.
const CONTENDERS: [usize; 4] = [1, 3, 5, 7];

/// What a busy machine may add to any wait that is measured.
const SLACK: Duration = Duration::from_secs(5);

/// Renewed for as long as its process lives.
fn options() -> Acquire {
    Acquire::ttl(Duration::from_secs(10))
}

fn connect(urls: &str) -> LockManager {
    polylock::connect(urls.split(',').map(str::to_owned).collect::<Vec<_>>()).lazy().expect("no manager")
}

/// Not a test, but what the processes of the tests do: says each grant on its standard output, until its standard input ends.
#[test]
fn contend() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [urls, name, first, count] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("not a task: {task}") };
    let (first, count): (usize, usize) = (first.parse().expect("a number"), count.parse().expect("a number"));
    let locks = connect(urls);
    let runtime = tokio::runtime::Runtime::new().expect("no runtime");
    for number in first..first + count {
        let (locks, name) = (locks.clone(), name.to_owned());
        runtime.spawn(async move {
            loop {
                let lease = locks.acquire(&name, options().fair(true)).await.expect("it must come round");
                // In one write, as others write as well; not by `print`, which tests capture.
                std::io::stdout().write_all(format!("\ngranted {number}\n").as_bytes()).expect("nobody listens");
                tokio::time::sleep(Duration::from_millis(2)).await;
                lease.release().await.expect("not forked");
            }
        });
    }
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::exit(0);
}

/// A process with contenders; killed when dropped.
struct Process(Child);

impl Process {
    fn start(urls: &str, name: &str, first: usize, count: usize, granted: mpsc::Sender<usize>) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("no program"))
            .args(["contend", "--exact", "--nocapture"])
            .env(TASK, format!("{urls} {name} {first} {count}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("not started");
        let lines = BufReader::new(child.stdout.take().expect("no output")).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(number) = line.strip_prefix("granted ") {
                    let _ = granted.send(number.parse().expect("a number"));
                }
            }
        });
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn everybody_gets_its_share(urls: &str, name: &str) {
    let (granted, grants) = mpsc::channel();
    let mut processes = Vec::new();
    let mut contenders = 0;
    for count in CONTENDERS {
        processes.push(Process::start(urls, name, contenders, count, granted.clone()));
        contenders += count;
    }
    let mut counts = BTreeMap::<usize, u64>::new();
    let mut counting = false;
    while !counting || counts.len() < contenders || counts.values().any(|count| *count < ROUNDS) {
        let number = grants.recv_timeout(Duration::from_secs(60)).expect("it is stuck");
        *counts.entry(number).or_default() += 1;
        // Counted from when all are there.
        if !counting && counts.len() == contenders {
            counts.clear();
            counting = true;
        }
    }
    drop(processes);
    let (least, most) = (counts.values().min().expect("none"), counts.values().max().expect("none"));
    eprintln!("{contenders} contenders: {least} to {most} grants");
    assert!(*most as f64 <= *least as f64 * 1.5, "{counts:?}");
}

/// One that is killed in line holds up the others no longer than until it is forgotten, and nothing is left of it.
async fn the_dead_are_passed_over(urls: &str, name: &str) {
    let locks = connect(urls);
    let waiting = async |count| {
        while locks.inspect(name).await.expect("no answer").and_then(|holder| holder.waiting) != Some(count) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let holder = locks.acquire(name, options()).await.expect("it is free");
    let (granted, grants) = mpsc::channel();
    let dead = Process::start(urls, name, 1, 1, granted.clone());
    waiting(1).await;
    let alive = Process::start(urls, name, 2, 1, granted);
    waiting(2).await;
    drop(dead);
    holder.release().await.expect("not forked");
    let released = Instant::now();
    assert_eq!(grants.recv_timeout(Duration::from_secs(60)), Ok(2));
    assert!(released.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", released.elapsed());
    drop(alive);
}

/// No key of the line is left, once nobody has asked for as long as anybody is remembered.
fn nothing_is_left(urls: &str, name: &str) {
    let began = Instant::now();
    for url in urls.split(',') {
        let client = redis::Client::open(url).expect("not a Redis URL");
        let mut connection = client.get_connection_with_timeout(SLACK).expect("no Redis");
        while !redis::cmd("KEYS")
            .arg(format!("polylock:queue*{name}*"))
            .query::<Vec<String>>(&mut connection)
            .expect("no keys")
            .is_empty()
        {
            assert!(began.elapsed() < Duration::from_secs(2) + SLACK, "something is left in line");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn servers(variable: &str) -> (String, String) {
    let urls = std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run this through tests/servers/with_servers.py, which starts real servers")
    });
    (urls, format!("fair:{}:{variable}", std::process::id()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_server() {
    let (urls, name) = servers("POLYLOCK_TEST_REDIS");
    the_dead_are_passed_over(&urls, &format!("{name}:dead")).await;
    everybody_gets_its_share(&urls, &name);
    nothing_is_left(&urls, &name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_five_servers() {
    let (urls, name) = servers("POLYLOCK_TEST_REDLOCK");
    the_dead_are_passed_over(&urls, &format!("{name}:dead")).await;
    everybody_gets_its_share(&urls, &name);
    nothing_is_left(&urls, &name);
}
