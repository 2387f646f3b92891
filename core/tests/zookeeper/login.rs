//! Log-ins and TLS.

use polylock::{Acquire, ErrorKind, Release};

use super::{acquire, connect, name, url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_keeps_others_out() {
    let (_, rest) = url().split_once("://").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("no URL");
    let server = rest.split('/').next().expect("no host");
    let root = name();
    let (mine, name) = (connect(&format!("zookeeper://me:my%20secret@{server}/{root}")), "r");
    let lease = acquire(&mine, name).await;
    for login in ["", "me:wrong@"] {
        let locks = connect(&format!("zookeeper://{login}{server}/{root}"));
        let error = locks.try_acquire(name, Acquire::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
        assert!(!error.to_string().contains("wrong"));
    }
    assert_eq!(lease.release().await.unwrap(), Release::Released);
}
