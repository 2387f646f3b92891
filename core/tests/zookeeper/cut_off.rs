//! A holder whose packets vanish, in a network namespace of its own.

use super::{
    LONG, acquire, connect, name,
    namespace::{Holder, Lost, Namespace, hold, place, since_boot},
    proxy::proxy_at,
    url,
};

/// The process in the namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_in_a_namespace() {
    if let Some(url) = place() {
        hold(connect(&url), LONG).await;
    }
}

/// The holder knows that it is cut off before its session expires and the next one holds. The server is at an address
/// of its own by way of a relay, to which it still seems to be connected.
async fn cut_off(lost: Lost) {
    let Some(namespace) = Namespace::new(1) else { return };
    let (here, root) = (url(), name());
    let (here, _) = here.rsplit_once('/').expect("no path");
    let (there, _) = proxy_at(&namespace.ours[0]);
    let (there, _) = there.rsplit_once('/').expect("no path");
    let holder =
        Holder::start(&namespace, "cut_off::holder_in_a_namespace", &format!("{there}/{root}?session_timeout=2"));
    let others = connect(&format!("{here}/{root}"));
    assert!(others.try_acquire("r", polylock::Acquire::ttl(LONG)).await.unwrap().is_none());
    namespace.cut(lost);
    let next = acquire(&others, "r").await;
    let now = since_boot();
    assert!(next.is_held());
    let until = holder.held_until();
    assert!(until < now, "it was held until {until:?}, by the next one at {now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_is_cut_off_in_one_way_or_both_knows_before_the_next_one_holds() {
    // At one time, as they only wait.
    let ways = [Lost::All, Lost::Requests, Lost::Replies].map(|lost| tokio::spawn(cut_off(lost)));
    for way in ways {
        way.await.unwrap();
    }
}
