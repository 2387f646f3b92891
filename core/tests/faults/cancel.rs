//! Attempts dropped at every step, on each driver, while answers are late: nothing is left of them.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use polylock::{
    Lease, Release, Result, blocking,
    host::{CompletionQueue, Started},
};

use super::{
    fresh,
    host::Host,
    long, manager, ms,
    proxy::{Fate, Proxy},
    server::Server,
    soon, until_clean,
};

/// Servers whose every answer is late by a few ms, and a manager that goes through the proxies.
struct Slow {
    servers: Vec<Server>,
    proxies: Vec<Proxy>,
}

impl Slow {
    async fn start(nodes: u16) -> Self {
        let servers = Server::several(nodes.into());
        let mut proxies = Vec::new();
        for (server, node) in servers.iter().zip(1..) {
            let proxy = Proxy::before(server.port).await;
            proxy.rule(move |_| Fate::Delay(ms(2 * node)));
            proxies.push(proxy);
        }
        Self { servers, proxies }
    }

    fn manager(&self) -> polylock::LockManager {
        manager(&self.proxies.iter().map(Proxy::url).collect::<Vec<_>>())
    }

    /// What was dropped is free for the next at once, and leaves nothing.
    async fn check(&self, name: &str, won: Option<Result<Lease>>) -> bool {
        let servers: Vec<&Server> = self.servers.iter().collect();
        let direct = manager(&self.servers.iter().map(Server::url).collect::<Vec<_>>());
        let done = won.is_some();
        if let Some(lease) = won {
            assert!(direct.try_acquire(name, long()).await.unwrap().is_none());
            assert_eq!(lease.unwrap().release().await.unwrap(), Release::Released);
        }
        let next = soon(&direct, name).await;
        assert_eq!(next.release().await.unwrap(), Release::Released);
        until_clean(&servers, name).await;
        done
    }
}

/// Polls `future` at most `polls` times, as its wakers ask for it, and drops it.
pub async fn cut_short<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    if polls == 0 {
        return None;
    }
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn on_tokio(nodes: u16) {
    let slow = Slow::start(nodes).await;
    for connected in [false, true] {
        for polls in 0.. {
            assert!(polls < 100, "it is never ready");
            let (locks, name) = (slow.manager(), fresh("r"));
            if connected {
                soon(&locks, &fresh("first")).await.release().await.unwrap();
            }
            let won = cut_short(polls, locks.acquire(&name, long())).await;
            if slow.check(&name, won).await {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_tokio_task() {
    on_tokio(1).await;
    on_tokio(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_blocked_thread() {
    for nodes in [1, 3] {
        let slow = Slow::start(nodes).await;
        let locks = slow.manager();
        for ticks in 0.. {
            assert!(ticks < 1000, "it is never ready");
            let (locks, name) = (locks.clone(), fresh("r"));
            let resource = name.clone();
            let won = tokio::task::spawn_blocking(move || {
                let mut left = ticks;
                blocking::wait_unless(
                    |driver| async move { locks.acquire_by(&resource, long(), &driver).await },
                    ms(1),
                    || {
                        left -= 1;
                        left > 0
                    },
                )
            });
            if slow.check(&name, won.await.unwrap()).await && ticks > 2 {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_an_event_loop() {
    let kinds = [CompletionQueue::new, CompletionQueue::with_sockets];
    for (nodes, queue) in [1, 3].into_iter().flat_map(|nodes| kinds.map(|queue| (nodes, queue))) {
        let slow = Slow::start(nodes).await;
        let locks = slow.manager();
        let mut host = Host::with(queue().unwrap());
        for turns in 0.. {
            assert!(turns < 1000, "it is never ready");
            let name = fresh("r");
            let operation = {
                let (locks, name, driver) = (locks.clone(), name.clone(), host.queue.driver());
                async move { locks.acquire_by(&name, long(), &driver).await }
            };
            let started = host.queue.start(Box::pin(operation)).unwrap();
            let turned = tokio::task::spawn_blocking(move || {
                let id = match started {
                    Started::Done(won) => return (host, Some(won)),
                    Started::Pending(id) => id,
                };
                for _ in 0..turns {
                    if let Some((_, won)) = host.turn_within(ms(1)).pop() {
                        return (host, Some(won));
                    }
                }
                assert!(host.queue.cancel(id));
                (host, None)
            });
            let won;
            (host, won) = turned.await.unwrap();
            if slow.check(&name, won).await {
                break;
            }
        }
    }
}
