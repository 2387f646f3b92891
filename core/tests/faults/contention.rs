//! Many who want one lock, while nodes come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use polylock::{Acquire, Instant, Lease, LockManager, Release};

use super::{
    SLACK, eventually, fresh,
    history::History,
    long, manager, ms,
    server::{Server, urls},
    soon, until_clean,
};

const TASKS: u64 = 16;

struct Field {
    servers: Arc<Vec<Server>>,
    managers: [LockManager; 2],
    name: String,
    history: History,
    counter: AtomicU64,
}

impl Field {
    fn new() -> Arc<Self> {
        let servers = Arc::new(Server::several(5));
        let managers = [manager(&urls(&servers)), manager(&urls(&servers))];
        Arc::new(Self {
            servers,
            managers,
            name: fresh("r"),
            history: History::default(),
            counter: AtomicU64::new(0),
        })
    }

    /// One read and write under the lock. Says whether the lease lasted, so that the write counts.
    async fn turn(&self, task: u64) -> bool {
        let locks = &self.managers[usize::from(task.is_multiple_of(2))];
        let options = Acquire::ttl(ms(2500)).wait(Duration::from_secs(60));
        let lease: Lease = locks.acquire(&self.name, options).await.expect("it must come round");
        let from = Instant::now();
        let value = self.counter.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3000))).await;
        let held = lease.is_held();
        if held {
            self.counter.store(value + 1, Ordering::Relaxed);
        }
        self.history.ends(&lease, from);
        if fastrand::u8(0..5) == 0 {
            drop(lease);
        } else {
            lease.release().await.expect("not forked");
        }
        held
    }

    /// All tasks take their turns; what they wrote must be there.
    async fn play(self: &Arc<Self>, turns: u64) {
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let field = Arc::clone(self);
                tokio::spawn(async move {
                    let mut counted = 0;
                    for _ in 0..turns {
                        counted += u64::from(field.turn(task).await);
                    }
                    counted
                })
            })
            .collect();
        let mut counted = 0;
        for task in tasks {
            counted += task.await.unwrap();
        }
        assert_eq!(self.counter.load(Ordering::Relaxed), counted, "an update was lost");
        assert_eq!(self.history.check() as u64, TASKS * turns);
        until_clean(&self.servers.iter().collect::<Vec<_>>(), &self.name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_gets_it() {
    let began = Instant::now();
    Field::new().play(12).await;
    eprintln!("{} hand-overs took {:?}", TASKS * 12, Instant::now().since(began));
}

/// `POLYLOCK_TEST_FAULT_TURNS` makes it longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_gets_it_while_nodes_are_stopped() {
    let turns = std::env::var("POLYLOCK_TEST_FAULT_TURNS").map_or(6, |turns| turns.parse().expect("a number"));
    let field = Field::new();
    let over = Arc::new(AtomicBool::new(false));
    let stops = tokio::spawn({
        let (servers, over) = (Arc::clone(&field.servers), Arc::clone(&over));
        async move {
            let mut stops = 0;
            while !over.load(Ordering::Relaxed) {
                let (one, two) = (fastrand::usize(0..5), fastrand::usize(0..5));
                servers[one].stop();
                servers[two].stop(); // perhaps the same one
                stops += 1;
                tokio::time::sleep(ms(fastrand::u64(10..200))).await;
                servers[one].resume();
                servers[two].resume();
                tokio::time::sleep(ms(fastrand::u64(0..30))).await;
            }
            stops
        }
    });
    let began = Instant::now();
    // The sweep at the end asks the servers: they must be awake by then.
    let played = tokio::spawn({
        let (field, over) = (Arc::clone(&field), Arc::clone(&over));
        async move {
            let result = tokio::spawn({
                let field = Arc::clone(&field);
                async move { field.play(turns).await }
            })
            .await;
            over.store(true, Ordering::Relaxed);
            result
        }
    });
    let played = played.await.unwrap();
    let stops = stops.await.unwrap();
    eprintln!("{} hand-overs with {stops} stops took {:?}", TASKS * turns, Instant::now().since(began));
    played.unwrap();
    assert!(stops > 0, "nothing was tried");
}

/// What a hand-over costs the servers depends on how many processes wait, of which each asks for its first waiter, and not on
/// how many waiters they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wait_and_few_ask() {
    const PROCESSES: usize = 10;
    const WAITERS: usize = 300;
    // On several servers those who clash step back and ask again.
    for (nodes, most) in [(1, 3 * PROCESSES), (5, 6 * PROCESSES)] {
        let servers = Server::several(nodes);
        let managers: [LockManager; PROCESSES] = std::array::from_fn(|_| manager(&urls(&servers)));
        let name = fresh("r");
        let holder = soon(&managers[0], &name).await;
        let waiters: Vec<_> = (0..WAITERS)
            .map(|number| {
                let (locks, name) = (managers[number % PROCESSES].clone(), name.clone());
                tokio::spawn(async move {
                    let lease = locks.acquire(&name, long()).await.expect("it must come round");
                    lease.release().await.expect("not forked");
                })
            })
            .collect();
        let waiting = || managers.iter().map(|locks| locks.waiting(&name).unwrap()).sum::<usize>();
        eventually(SLACK, "all wait", || waiting() == WAITERS).await;
        let before = servers[0].scripts();
        assert_eq!(holder.release().await.unwrap(), Release::Released);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        let each = (servers[0].scripts() - before) as f64 / WAITERS as f64;
        eprintln!(
            "{nodes} servers, {PROCESSES} managers with {WAITERS} waiters: {each:.1} scripts for each hand-over"
        );
        assert!(each < most as f64, "{nodes} servers: {each:.1} scripts for each hand-over");
    }
}
