//! Log-ins and TLS.

use polylock::{Acquire, ErrorKind, Release};

use super::{Servant, acquire, connect, name, url};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_and_verified() {
    let mut servant = Servant::start("zookeeper_tls.py", &[]);
    let ready = servant.line();
    let [_, port, files] = ready.split(' ').collect::<Vec<_>>()[..] else { panic!("{ready}") };
    let client = format!("cert={files}/client.pem&key={files}/client.key");
    let good = connect(&format!("zookeeper+tls://localhost:{port}?ca={files}/ca.pem&{client}"));
    let lease = acquire(&good, "r").await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    for (wrong, says) in [
        (format!("zookeeper+tls://localhost:{port}?ca={files}/other.pem&{client}"), "certificate"),
        (format!("zookeeper+tls://127.0.0.1:{port}?ca={files}/ca.pem&{client}"), "certificate"),
        (format!("zookeeper+tls://localhost:{port}?ca={files}/ca.pem"), ""),
        (format!("zookeeper://localhost:{port}"), ""),
    ] {
        let error = connect(&wrong).try_acquire("r", Acquire::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{wrong}: {error}");
        assert!(error.to_string().contains(says), "{wrong}: {error}");
    }
}
