//! Servers of a quorum that are restarted without their memory, and lists that name one twice.

use polylock::{Acquire, ErrorKind, LockManager, Release, Target};

use super::{
    NODE_TIMEOUT, eventually, fresh, long, ms,
    proxy::{Door, Proxy},
    server::{Server, urls},
    soon,
};

/// What these servers are told to be the longest ttl.
const LONGEST_TTL: u64 = 4;

fn manager(urls: impl IntoIterator<Item = String>) -> LockManager {
    let urls: Vec<String> = urls.into_iter().map(|url| format!("{url}?longest_ttl={LONGEST_TTL}")).collect();
    polylock::connect(urls).node_timeout(NODE_TIMEOUT).lazy().expect("no manager")
}

/// Waits until the server has been up for longer than it would sit out.
async fn until_old(server: &Server) {
    let old = || {
        let info: String = server.ask(&["INFO", "server"]);
        let up = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:")).expect("no uptime");
        up.trim().parse::<u64>().expect("no number") > LONGEST_TTL
    };
    eventually(ms(1000 * LONGEST_TTL) * 10, "it has been up for long", old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_gives_nothing_away() {
    one_forgets(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_gives_no_permit_away() {
    one_forgets(2).await;
}

/// So many may hold, and do. Each has two of three; one of these forgets them, and the third never knew.
async fn one_forgets(of: usize) {
    let servers = Server::several(3);
    for server in &servers {
        until_old(server).await;
    }
    let third = Proxy::before(servers[2].port).await;
    third.door(Door::Slam);
    let name = fresh("r");
    let target = || if of == 1 { Target::from(&*name) } else { Target::permit(&name, of as u32) };
    let holder = manager([servers[0].url(), servers[1].url(), third.url()]);
    let ttl = ms(1000 * LONGEST_TTL);
    let mut leases = Vec::new();
    for _ in 0..of {
        leases.push(holder.acquire(target(), Acquire::ttl(ttl).auto_extend(false)).await.unwrap());
    }
    let all_held = || leases.iter().all(|lease| lease.is_held());

    // Who comes later and has never met it before, and who has.
    let (stranger, witness) = (manager(urls(&servers)), manager(urls(&servers)));
    assert!(witness.try_acquire(target(), Acquire::ttl(ttl)).await.unwrap().is_none());
    servers[1].kill();
    servers[1].restart();
    for other in [&stranger, &witness] {
        while all_held() {
            match other.try_acquire(target(), Acquire::ttl(ttl)).await {
                Ok(None) => {}
                Ok(Some(_)) => assert!(!all_held(), "one too many holds it"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
            if std::ptr::eq(other, &stranger) {
                break;
            }
            tokio::time::sleep(ms(20)).await;
        }
    }
    // Afterwards it votes again: without the first there is no majority but with it.
    servers[0].kill();
    let lease = stranger.acquire(target(), Acquire::ttl(ttl).wait(ms(20_000))).await.expect("it never votes again");
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}

/// It is said of a server that sits out, not only that there was no majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_sits_out_is_named() {
    let servers = Server::several(3);
    let locks = manager(urls(&servers));
    // All are new: they vote at once.
    let options = || Acquire::ttl(ms(1000)).wait(ms(20_000));
    locks.acquire(&fresh("r"), options()).await.unwrap().release().await.unwrap();
    servers[2].kill();
    locks.acquire(&fresh("r"), options()).await.unwrap().release().await.unwrap();
    servers[1].kill();
    servers[1].restart();
    let error = locks.try_acquire(fresh("r"), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let says = format!("127.0.0.1:{}: restarted lately, and does not vote for ", servers[1].port);
    assert!(error.causes().iter().any(|cause| cause.starts_with(&says)), "{error:?}");
    locks.acquire(&fresh("r"), options()).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_keep_their_memory_need_not_sit_out() {
    let servers = Server::several(3);
    let urls: Vec<String> = urls(&servers).into_iter().map(|url| url + "?longest_ttl=0").collect();
    let locks = polylock::connect(urls).node_timeout(NODE_TIMEOUT).lazy().unwrap();
    soon(&locks, &fresh("r")).await.release().await.unwrap();
    for server in &servers[1..] {
        server.kill();
    }
    servers[1].restart();
    soon(&locks, &fresh("r")).await.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_under_two_names_is_refused() {
    let one = Server::start();
    // Both of its names are needed for a majority.
    let twice = [one.url(), format!("redis://localhost:{}", one.port), "redis://127.0.0.1:1".to_owned()];
    let error = polylock::connect(twice.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some("url")), "{error:?}");
    assert!(format!("{error}").contains(&format!("127.0.0.1:{0} is localhost:{0}", one.port)), "{error}");
    // Whoever does not look before learns it at the first use.
    let name = fresh("r");
    let lazy = polylock::connect(twice.clone()).lazy().unwrap();
    for _ in 0..2 {
        let error = lazy.acquire(&name, long()).await.unwrap_err();
        assert_eq!(error.argument(), Some("url"), "{error:?}");
    }
    eventually(ms(5000), "nothing is left", || one.keys().is_empty()).await;
    // Where there is a majority without it, it is found out as soon as both have answered.
    let two = Server::start();
    let locks = polylock::connect([twice[0].clone(), twice[1].clone(), two.url()]).lazy().unwrap();
    while let Ok(lease) = locks.try_acquire(&name, long()).await {
        lease.expect("nobody has it").release().await.unwrap();
    }
    assert_eq!(locks.try_acquire(&name, long()).await.unwrap_err().argument(), Some("url"));
}
