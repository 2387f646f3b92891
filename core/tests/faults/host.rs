//! A host's event loop that watches the connections' sockets itself: what ends, or stands still, while it does something else.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use polylock::{
    Lease, LockManager, Release, Result,
    host::{CompletionQueue, HostSocket, OperationId, Started},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::getpeername,
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use socket2::SockRef;

use super::{
    SLACK, eventually, fresh, long, manager, ms,
    proxy::{Fate, Gate, Proxy, is_acquire},
    server::Server,
    soon,
};

/// An event loop as Node's is, which turns when it is told to.
pub struct Host {
    pub queue: CompletionQueue<Result<Lease>>,
    sockets: Vec<HostSocket>,
}

impl Host {
    pub fn new() -> Self {
        Self::with(CompletionQueue::with_sockets().unwrap())
    }

    pub fn with(queue: CompletionQueue<Result<Lease>>) -> Self {
        Self { queue, sockets: Vec::new() }
    }

    /// Waits for up to `timeout` for something to happen; what has finished.
    pub fn turn_within(&mut self, timeout: Duration) -> Vec<(OperationId, Result<Lease>)> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut watched = vec![PollFd::new(&self.queue, PollFlags::IN)];
        watched.extend(self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
        poll(&mut watched, Some(&timeout)).unwrap();
        let mut readable =
            watched.iter().map(|watched| !watched.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let mut finished = if readable.next() == Some(true) { self.queue.turn() } else { Vec::new() };
        self.sockets.retain(|socket| {
            if readable.next() == Some(false) {
                return true;
            }
            let told = self.queue.turn_for(socket);
            let goes_on = told.is_some();
            finished.extend(told.unwrap_or_default());
            goes_on
        });
        self.sockets.extend(self.queue.new_sockets());
        finished
    }

    /// Whether it would sleep.
    fn is_idle(&self) -> bool {
        !is_ready(&self.queue, PollFlags::IN) && !self.sockets.iter().any(|socket| is_ready(socket, PollFlags::IN))
    }

    fn start(&self, locks: &LockManager, name: &str) -> OperationId {
        let (locks, name, driver) = (locks.clone(), name.to_owned(), self.queue.driver());
        match self.queue.start(Box::pin(async move { locks.acquire_by(&name, long(), &driver).await })) {
            Ok(Started::Pending(id)) => id,
            _ => panic!("it waits for nothing"),
        }
    }

    /// One after the other, from here.
    async fn acquire(&mut self, locks: &LockManager, word: &str) -> Lease {
        let id = self.start(locks, &fresh(word));
        self.outcome(id).await.unwrap()
    }

    /// Turns until it watches no socket any more.
    async fn until_no_socket(&mut self) {
        eventually(SLACK, "it is let go of", || {
            assert!(self.turn_within(ms(1)).is_empty());
            self.sockets.is_empty()
        })
        .await;
    }

    async fn outcome(&mut self, id: OperationId) -> Result<Lease> {
        let mut told = Vec::new();
        eventually(SLACK, "it is told", || {
            told.extend(self.turn_within(ms(1)));
            !told.is_empty()
        })
        .await;
        let (of, outcome) = told.pop().unwrap();
        assert_eq!((of, told.len()), (id, 0));
        outcome
    }
}

/// The host holds the socket of a connection that is closed; the server is told before the host turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_is_closed_though_the_host_stands_still() {
    let server = Server::start();
    let (locks, mut host) = (manager(&[server.url()]), Host::new());
    let lease = host.acquire(&locks, "r").await;
    assert_eq!(host.sockets.len(), 1);
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    locks.close().await;
    eventually(SLACK, "all are closed", || server.clients() == 0).await;
    // The host hears of it by the socket, and lets go.
    host.until_no_socket().await;
}

/// No answer comes in time while the host does not turn: what the server has not read is taken back by a reset, which
/// does not wait for the host, nor for the child of a fork.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_answered_is_reset_though_the_host_stands_still() {
    for queue in [CompletionQueue::new, CompletionQueue::with_sockets] {
        let server = Server::start();
        let proxy = Proxy::before(server.port).await;
        let (locks, mut host) = (manager(&[proxy.url()]), Host::with(queue().unwrap()));
        let lease = host.acquire(&locks, "first").await;
        let child = sockets_to(proxy.port);
        assert_eq!(child.len(), 1, "the host's alone");
        lease.release().await.unwrap();
        let gate = Gate::new();
        let held = Arc::clone(&gate);
        proxy.rule(move |request| if is_acquire(request) { Fate::Hold(Arc::clone(&held)) } else { Fate::Pass });
        let id = host.start(&locks, &fresh("r"));
        gate.arrived.notified().await;
        assert!(getpeername(&child[0]).is_ok());
        eventually(SLACK, "it is reset", || getpeername(&child[0]).is_err()).await;
        proxy.heal();
        gate.open();
        // It is asked for anew, by another connection.
        host.outcome(id).await.unwrap().release().await.unwrap();
        assert!(host.sockets.iter().all(|socket| getpeername(socket).is_ok()));
    }
}

/// The child of a fork has the connections' descriptors, too, and does not know of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_child_has_as_well_is_ended_nevertheless() {
    for queue in [CompletionQueue::new, CompletionQueue::with_sockets] {
        let server = Server::start();
        let (locks, mut host) = (manager(&[server.url()]), Host::with(queue().unwrap()));
        host.acquire(&locks, "cut").await.release().await.unwrap();
        let child = inherited(&server).await;
        server.cut_clients();
        let is_cut = |socket: &&OwnedFd| is_ready(socket, PollFlags::RDHUP);
        eventually(SLACK, "all are cut off", || child.iter().filter(is_cut).count() == child.len() - 1).await;
        // The host turns for that once or twice, and not for ever.
        eventually(SLACK, "nothing is readable", || {
            assert!(host.turn_within(ms(0)).is_empty());
            host.is_idle()
        })
        .await;
        drop(child);

        host.acquire(&locks, "closed").await.release().await.unwrap();
        let child = inherited(&server).await;
        locks.close().await;
        eventually(SLACK, "all are closed", || server.clients() == 0).await;
        drop(child);
    }
}

/// What a child that is forked now would have of the connections to `server`; one is the test's own.
async fn inherited(server: &Server) -> Vec<OwnedFd> {
    let mut sockets = Vec::new();
    eventually(SLACK, "it has taken all connections", || {
        let clients = server.clients();
        sockets.clear(); // closed first, as they would be counted
        sockets.extend(sockets_to(server.port));
        clients > 0 && sockets.len() == clients + 1
    })
    .await;
    sockets
}

/// Each connection of this process to a port of the loopback, by a descriptor as the child of a fork has it.
fn sockets_to(port: u16) -> Vec<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    // Open to the end, lest its number become one of the copies'.
    let mut entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds: Vec<_> =
        entries.by_ref().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect();
    let same = fds.into_iter().filter_map(|fd| pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()).ok());
    let peer = |socket: &OwnedFd| SockRef::from(socket).peer_addr().ok()?.as_socket();
    same.filter(|socket| peer(socket).is_some_and(|peer| peer.port() == port)).collect()
}

fn is_ready(fd: impl AsFd, what: PollFlags) -> bool {
    poll(&mut [PollFd::new(&fd, what)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

/// The server cuts connections off: the host watches none that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_ends_is_let_go_of() {
    let server = Server::start();
    let (locks, mut host) = (manager(&[server.url()]), Host::new());
    for _ in 0..10 {
        host.acquire(&locks, "r").await.release().await.unwrap();
        assert_eq!(host.sockets.len(), 1);
        server.cut_clients();
        host.until_no_socket().await;
    }
}

/// The server reads nothing for a while, until the socket takes no more; the rest is written when it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_socket_does_not_take_is_written_later() {
    const MANY: usize = 400;
    let server = Server::start();
    let locks = polylock::connect(server.url()).node_timeout(Duration::from_secs(60)).lazy().unwrap();
    let mut host = Host::new();
    host.acquire(&locks, "first").await.release().await.unwrap();
    SockRef::from(&host.sockets[0]).set_send_buffer_size(4096).unwrap();
    server.stop();
    let mut names: HashMap<_, _> = (0..MANY)
        .map(|_| {
            let name = fresh(&"long".repeat(200));
            (host.start(&locks, &name), name)
        })
        .collect();
    assert!(host.turn_within(ms(0)).is_empty());
    assert!(!is_ready(&host.sockets[0], PollFlags::OUT), "the socket takes more");
    server.resume();
    eventually(SLACK, "all are granted", || {
        for (id, lease) in host.turn_within(ms(1)) {
            assert_eq!(lease.unwrap().resource().as_str(), names.remove(&id).unwrap());
        }
        names.is_empty()
    })
    .await;
    // The leases are given back in the background; what comes after them is as fast as ever.
    soon(&locks, &fresh("last")).await.release().await.unwrap();
    locks.close().await;
}
