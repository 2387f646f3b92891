//! Many at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{Store, cancel, long, ms, soon};

/// A counter that loses updates unless somebody takes care.
#[derive(Default)]
struct Fragile {
    value: AtomicU64,
    last_token: AtomicU64,
}

impl Fragile {
    fn read(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    fn write(&self, value: u64, token: u64) {
        assert!(self.last_token.swap(token, Ordering::Relaxed) < token, "tokens must grow");
        self.value.store(value, Ordering::Relaxed);
    }
}

pub async fn loses_no_update(store: Store) {
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 50;
    let (managers, name) = ([store.manager(), store.manager()], store.name("r"));
    let counter = Arc::new(Fragile::default());
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locks, name) = (managers[usize::from(task % 2 == 0)].clone(), name.clone());
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let lease = locks.acquire(&name, long()).await.unwrap();
                    let value = counter.read();
                    tokio::task::yield_now().await;
                    counter.write(value + 1, lease.fencing_token());
                    if round % 5 == 0 {
                        drop(lease);
                    } else {
                        lease.release().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(counter.read(), TASKS * ROUNDS);
}

pub async fn works_without_a_runtime(store: Store) {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 20;
    let (locks, name) = (store.manager(), store.name("r"));
    let counter = Arc::new(Fragile::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (locks, name, counter) = (locks.clone(), name.clone(), Arc::clone(&counter));
            std::thread::spawn(move || {
                for _ in 0..ROUNDS {
                    polylock::blocking::wait(|driver| {
                        let (locks, name, counter) = (&locks, &name, &counter);
                        async move {
                            let lease = locks.acquire_by(name, long(), &driver).await.unwrap();
                            let value = counter.read();
                            std::thread::yield_now();
                            counter.write(value + 1, lease.fencing_token());
                            lease.release_by(&driver).await.unwrap();
                        }
                    });
                }
            })
        })
        .collect();
    // Threads of their own: this one runs a runtime.
    tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| thread.join().unwrap())).await.unwrap();
    assert_eq!(counter.read(), THREADS * ROUNDS);
}

pub async fn leaves_nothing_behind(store: Store) {
    let (one, two) = (store.manager(), store.manager());
    let name = store.name("r");
    let lease = soon(&one, &name).await;
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { soon(&two, &name).await }
    });
    super::until_waiting(&two, &name, 1).await;
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    let error = two.acquire(&name, long().wait(ms(20))).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    lease.release().await.unwrap();
    drop(waiter.await.unwrap());
    for polls in 0..5 {
        cancel::cut_short(polls, one.acquire(&store.name("cancelled"), long())).await;
    }
    let _forgotten = soon(&two, &store.name("closed")).await;
    one.close().await;
    two.close().await;
    assert_eq!(store.leftovers(), Vec::<String>::new());
    let three = store.manager();
    for word in ["r", "cancelled", "closed"] {
        assert_eq!(three.inspect(&store.name(word)).await.unwrap(), None);
    }
}
