//! A holder whose packets vanish, in a network namespace of its own.

use std::time::Duration;

use polylock::LockManager;

use super::{
    SLACK, long, manager,
    namespace::{Holder, Lost, Namespace, hold, place, since_boot},
    server::Server,
};

const TTL: Duration = Duration::from_secs(2);

/// The process in the namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_in_a_namespace() {
    if let Some(urls) = place() {
        let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
        hold(manager(&urls), TTL).await;
    }
}

/// Each server at an address of its own, and who holds there; `None` where there is no namespace to be had.
struct Place {
    namespace: Namespace,
    holder: Holder,
    others: LockManager,
    _servers: Vec<Server>,
}

impl Place {
    fn of(servers: usize) -> Option<Self> {
        let namespace = Namespace::new(servers)?;
        let at = |address: &String| Server::with(&["--bind", "127.0.0.1", address, "--protected-mode", "no"], &[]);
        let servers: Vec<Server> = namespace.ours.iter().map(at).collect();
        let theirs = servers.iter().zip(&namespace.ours).map(|(server, at)| format!("redis://{at}:{}", server.port));
        let urls = theirs.collect::<Vec<_>>().join(",");
        let holder = Holder::start(&namespace, "faults::cut_off::holder_in_a_namespace", &urls);
        let others = manager(&servers.iter().map(Server::url).collect::<Vec<_>>());
        Some(Self { namespace, holder, others, _servers: servers })
    }

    /// Cut off, the holder loses the lease in time, and somebody else holds only after that.
    async fn cut_off(self, lost: Lost) {
        assert!(self.others.try_acquire("r", long()).await.unwrap().is_none());
        self.namespace.cut(lost);
        let cut = since_boot();
        let next = self.others.acquire("r", long().wait(TTL + SLACK)).await.unwrap();
        let now = since_boot();
        assert!(next.is_held());
        let until = self.holder.held_until();
        assert!(until < now, "it was held until {until:?}, by the next one at {now:?}");
        assert!(until < cut + TTL, "cut off at {cut:?} it was held until {until:?}");
    }
}

/// At one time, as they only wait.
async fn cut_off_in_each_way(servers: usize) {
    let ways = [Lost::All, Lost::Requests, Lost::Replies].map(|lost| {
        tokio::spawn(async move {
            if let Some(place) = Place::of(servers) {
                place.cut_off(lost).await;
            }
        })
    });
    for way in ways {
        way.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_cut_off_from_a_server_knows_before_the_next_one_holds() {
    cut_off_in_each_way(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_cut_off_from_all_of_a_redlock_knows_before_the_next_one_holds() {
    cut_off_in_each_way(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_from_a_minority_holds_on() {
    let Some(mut place) = Place::of(5) else { return };
    for address in &place.namespace.ours[..2] {
        place.namespace.cut_from(address);
    }
    place.holder.renews_after(since_boot() + TTL);
    assert!(place.others.try_acquire("r", long()).await.unwrap().is_none());
    place.cut_off(Lost::All).await;
}
