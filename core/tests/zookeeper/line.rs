//! Who comes first, and who is woken.

use polylock::{Acquire, ErrorKind, Release, Target};

use super::{LONG, Servant, acquire, connect, contenders, contenders_at, name, until, url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_served_in_the_order_in_which_they_came() {
    const WAITERS: usize = 6;
    let (holder, name) = (connect(&url()), name());
    let lease = acquire(&holder, &name).await;
    let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..WAITERS {
        let (waits_for, order) = (name.clone(), order.clone());
        tokio::spawn(async move {
            let lease = acquire(&connect(&url()), &waits_for).await;
            order.send(number).unwrap();
            lease.release().await.unwrap();
        });
        until("it does not get in line", || contenders(&name).len() == number + 2).await;
    }
    drop(order);
    lease.release().await.unwrap();
    for number in 0..WAITERS {
        assert_eq!(served.recv().await, Some(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_are_handed_on_in_order() {
    const WAITERS: usize = 5;
    let (holders, name) = (connect(&url()), name());
    let permit = |name: &str| Target::permit(name, 2);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(holders.acquire(permit(&name), Acquire::ttl(LONG)).await.unwrap());
    }
    assert!(holders.try_acquire(permit(&name), Acquire::ttl(LONG)).await.unwrap().is_none());
    let (got, mut served) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..WAITERS {
        let (waits_for, got) = (name.clone(), got.clone());
        tokio::spawn(async move {
            let locks = connect(&url());
            let lease = locks.acquire(permit(&waits_for), Acquire::ttl(LONG).wait(LONG)).await.unwrap();
            got.send((number, lease)).unwrap();
            // Closing would release it.
            std::future::pending::<()>().await;
        });
        until("it does not get in line", || contenders(&name).len() == number + 3).await;
    }
    let began = std::time::Instant::now();
    for number in 0..WAITERS {
        assert!(served.try_recv().is_err(), "more permits than there are");
        // Now the older one, now the younger one.
        held.remove(number % 2).release().await.unwrap();
        let (next, lease) = served.recv().await.unwrap();
        assert_eq!(next, number);
        held.push(lease);
    }
    // Who is not woken looks after five seconds.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exclusion_holds_where_the_counter_of_sequential_nodes_is_at_its_end() {
    const WAITERS: usize = 6;
    let mut server = Servant::start("zookeeper_worn.py", &["worn"]);
    let (url, name) = (server.line(), "worn");
    let (inside, mut tokens) = (std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)), Vec::new());
    for _ in 0..3 {
        let holder = connect(&url);
        let lease = acquire(&holder, name).await;
        let waiting: Vec<_> = (0..WAITERS)
            .map(|_| {
                let (url, inside) = (url.clone(), std::sync::Arc::clone(&inside));
                tokio::spawn(async move {
                    let lease = acquire(&connect(&url), name).await;
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two holders");
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    let token = lease.fencing_token();
                    assert_eq!(lease.release().await.unwrap(), Release::Released);
                    token
                })
            })
            .collect();
        until("they do not get in line", || contenders_at(&url, name).len() == WAITERS + 1).await;
        let inspected = holder.inspect(name).await.unwrap().expect("it is held");
        assert_eq!(inspected.fencing_token, Some(lease.fencing_token()));
        assert_eq!(inspected.waiting, Some(u32::try_from(WAITERS).unwrap()));
        tokens.push(lease.fencing_token());
        lease.release().await.unwrap();
        let mut round = Vec::new();
        for waiter in waiting {
            round.push(waiter.await.unwrap());
        }
        round.sort_unstable();
        assert!(round[0] > tokens[tokens.len() - 1]);
        tokens.extend(round);
    }
    assert!(tokens.is_sorted());
    let error = connect(&url).try_acquire(Target::permit(name, 2), Acquire::ttl(LONG)).await;
    assert!(!matches!(error, Err(error) if error.kind() == ErrorKind::Conflict), "nobody is in line any more");
}
