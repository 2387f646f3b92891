//! How a server is reached: TLS, sockets, the newer protocol, users and databases.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use polylock::{Acquire, ErrorKind, LockManager, Release, Target};
use tokio::io::AsyncWriteExt as _;

use super::{
    SLACK, eventually, fresh, long, managed, ms,
    server::{FREE_PORT, Server, free_port},
    soon,
};

/// A manager that has time for TLS, on a busy machine, too.
fn connect(url: &str) -> LockManager {
    polylock::connect(url).node_timeout(SLACK).lazy().expect("no manager")
}

/// Everything that is asked of a server, once.
async fn all_works(url: &str) {
    let (one, two) = (connect(url), connect(url));
    let name = fresh("r");
    let lease = soon(&one, &name).await;
    assert!(two.try_acquire(&name, long()).await.unwrap().is_none());
    lease.extend(None).await.unwrap();
    let holder = one.inspect(&name).await.unwrap().expect("it is held");
    assert_eq!(holder.owner, lease.owner_token().as_str());
    assert_eq!(holder.fencing_token, Some(lease.fencing_token()));
    assert!(one.list("fault:*", 100).await.unwrap().iter().any(|holder| holder.resource.as_str() == name));
    // Longer than anybody sleeps without being woken, so that somebody who is not takes two sleeps.
    let waiter = tokio::spawn({
        let (two, name) = (two.clone(), name.clone());
        async move { two.acquire(&name, long()).await }
    });
    tokio::time::sleep(ms(300)).await;
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let next = tokio::time::timeout(SLACK, waiter).await.expect("never woken").unwrap().unwrap();
    assert!(next.fencing_token() > lease.fencing_token());
    assert_eq!(next.release().await.unwrap(), Release::Released);
    assert!(one.inspect(&name).await.unwrap().is_none());
    let names = ["fault:a", "fault:b"];
    for target in [Target::shared("fault:readers"), Target::permit("fault:permits", 2), names.into()] {
        let lease = one.acquire(target, long()).await.unwrap();
        lease.extend(None).await.unwrap();
        assert_eq!(lease.release().await.unwrap(), Release::Released);
    }
}

/// Certificates of an authority of our own.
struct Certificates(PathBuf);

impl Certificates {
    fn make() -> Self {
        let own = Self(std::env::temp_dir().join(format!("polylock-tls-{}-{}", std::process::id(), free_port())));
        std::fs::create_dir_all(&own.0).unwrap();
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2"];
        own.openssl(&[&["req", "-x509"], &new_key[..], &authority].concat());
        for (name, names, days) in [
            ("server", "IP:127.0.0.1", "2"),
            ("other", "DNS:example.org", "2"),
            ("expired", "IP:127.0.0.1", "-1"),
            ("client", "DNS:client", "2"),
            ("former", "DNS:client", "-1"),
        ] {
            std::fs::write(own.0.join("names"), format!("subjectAltName={names}")).unwrap();
            let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
            let ask = ["-keyout", &key, "-out", &request, "-subj", "/CN=somebody"];
            own.openssl(&[&["req"], &new_key[..], &ask].concat());
            let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
            own.openssl(&[&sign[..], &["-out", &certificate, "-days", days, "-extfile", "names"]].concat());
        }
        own
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl").args(arguments).current_dir(&self.0).output().expect("no openssl");
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// A server that shows this certificate, and its port for TLS.
    fn server(&self, certificate: &str, clients: &str) -> (Server, u16) {
        let (file, key) = (self.path(&format!("{certificate}.pem")), self.path(&format!("{certificate}.key")));
        let ca = self.path("ca.pem");
        let tls = ["--tls-port", FREE_PORT, "--tls-cert-file", &file, "--tls-key-file", &key];
        let server =
            Server::with(&[&tls[..], &["--tls-ca-cert-file", &ca, "--tls-auth-clients", clients]].concat(), &[]);
        let port = server.tls_port();
        (server, port)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// At once.
async fn refuses(url: &str, why: &str) {
    fails(&connect(url), why).await;
}

/// When time is up.
async fn gives_up(url: &str, why: &str) {
    fails(&managed::connect(url.to_owned()), why).await;
}

async fn fails(locks: &LockManager, why: &str) {
    let error = locks.try_acquire(fresh("r"), long()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains(why), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified() {
    let files = Certificates::make();
    let ca = files.path("ca.pem");
    let (_server, port) = files.server("server", "no");
    all_works(&format!("rediss://127.0.0.1:{port}?ca={ca}")).await;
    all_works(&format!("rediss://127.0.0.1:{port}?ca={ca}&protocol=3")).await;
    refuses(&format!("rediss://127.0.0.1:{port}"), "UnknownIssuer").await;
    let (_other, port) = files.server("other", "no");
    refuses(&format!("rediss://127.0.0.1:{port}?ca={ca}"), "not valid for name").await;
    let (_expired, port) = files.server("expired", "no");
    refuses(&format!("rediss://127.0.0.1:{port}?ca={ca}"), "certificate: Expired").await;
    // TLS to who does not speak it, and the other way round.
    let plain = Server::start();
    gives_up(&format!("rediss://127.0.0.1:{}?ca={ca}", plain.port), "nothing was answered over TLS").await;
    refuses(&format!("redis://127.0.0.1:{port}"), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_its_certificate() {
    let files = Certificates::make();
    let (_server, port) = files.server("server", "yes");
    let url = format!("rediss://127.0.0.1:{port}?ca={}", files.path("ca.pem"));
    let with = format!("{url}&cert={}&key={}", files.path("client.pem"), files.path("client.key"));
    all_works(&with).await;
    refuses(&url, "").await;
    // One that is over, and one of an authority that the server does not know.
    let (former, key) = (files.path("former.pem"), files.path("former.key"));
    refuses(&format!("{url}&cert={former}&key={key}"), "").await;
    let others = Certificates::make();
    let (stranger, key) = (others.path("client.pem"), others.path("client.key"));
    refuses(&format!("{url}&cert={stranger}&key={key}"), "").await;
    // Files are read when a connection is made: a renewed certificate is taken up.
    let locks = connect(&with);
    for name in ["client.pem", "client.key"] {
        std::fs::rename(files.path(name), files.path("aside")).unwrap();
        std::fs::copy(files.path("aside"), files.path(name)).unwrap();
    }
    soon(&locks, &fresh("r")).await.release().await.unwrap();
    // What is wrong with the files is said before anything is sent.
    for (cert, key) in [("nosuch", "client.key"), ("client.pem", "nosuch"), ("client.pem", "server.key")] {
        let url = format!("{url}&cert={}&key={}", files.path(cert), files.path(key));
        let error = polylock::connect(url).lazy().unwrap_err();
        assert_eq!((error.kind(), error.argument()), (ErrorKind::InvalidArgument, Some("url")), "{error:?}");
    }
}

/// A certificate that is replaced by one that does not hold is noticed by the next connection, and a lease that cannot be
/// renewed any more is lost in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_expires_while_a_lease_is_held() {
    let files = Certificates::make();
    let (server, port) = files.server("server", "no");
    let locks = connect(&format!("rediss://127.0.0.1:{port}?ca={}", files.path("ca.pem")));
    let name = fresh("r");
    let lease = locks.acquire(&name, Acquire::ttl(ms(1500))).await.unwrap();
    let show = |which: &str| {
        let _: () = server.ask(&[
            "CONFIG",
            "SET",
            "tls-cert-file",
            &files.path(&format!("{which}.pem")),
            "tls-key-file",
            &files.path(&format!("{which}.key")),
        ]);
    };
    show("expired");
    // Connections that are open stay so.
    lease.extend(None).await.unwrap();
    server.cut_clients();
    assert!(tokio::time::timeout(SLACK, lease.lost()).await.expect("never told").is_some());
    let error = locks.try_acquire(&name, long()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("certificate: Expired"),
        "{error:?}"
    );
    let waiter = tokio::spawn({
        let (locks, name) = (locks.clone(), name.clone());
        async move { locks.acquire(&name, long()).await }
    });
    tokio::time::sleep(ms(200)).await;
    show("server");
    let next = tokio::time::timeout(SLACK, waiter).await.expect("not tried again").unwrap().unwrap();
    assert_eq!(next.release().await.unwrap(), Release::Released);
}

/// TLS with the sentinels and with the primary that they name, and with all servers of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_those_that_are_managed() {
    let files = Certificates::make();
    let (file, key, ca) = (files.path("server.pem"), files.path("server.key"), files.path("ca.pem"));
    let (_primary, port) = files.server("server", "no");
    let configuration = format!(
        "tls-cert-file {file}\ntls-key-file {key}\ntls-ca-cert-file {ca}\n\
         tls-auth-clients no\ntls-replication yes\nsentinel monitor m 127.0.0.1 {port} 1\n"
    );
    let sentinel = Server::sentinel_with(&configuration, &["--tls-port", FREE_PORT]);
    let sentinel_port = sentinel.tls_port();
    all_works(&format!("rediss+sentinel://127.0.0.1:{sentinel_port}/m?ca={ca}")).await;
    gives_up(&format!("rediss+sentinel://127.0.0.1:{sentinel_port}/m"), "UnknownIssuer").await;

    let tls = ["--tls-port", FREE_PORT, "--tls-cert-file", &file, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let more =
        ["--tls-auth-clients", "no", "--tls-cluster", "yes", "--cluster-enabled", "yes", "--cluster-port", FREE_PORT];
    let cluster = Server::with(&[&tls[..], &more].concat(), &[]);
    let port = cluster.tls_port();
    let _: () = cluster.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let works = || cluster.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    eventually(Duration::from_secs(20), "the cluster is up", works).await;
    let url = format!("rediss+cluster://127.0.0.1:{port}?ca={ca}");
    let locks = connect(&url);
    let lease = soon(&locks, &fresh("r")).await;
    lease.extend(None).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    gives_up(&format!("rediss+cluster://127.0.0.1:{port}"), "UnknownIssuer").await;
}

/// Who is managed is tried until time is up: what then is said is why the tries before failed, not that the last was cut short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_told_though_the_last_try_was_cut_short() {
    for kind in ["redis+cluster://HOST", "redis+sentinel://HOST/m"] {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = kind.replace("HOST", &socket.local_addr().unwrap().to_string());
        let peer = tokio::spawn(async move {
            // The first is told the end, the others hear nothing.
            let (mut first, _) = socket.accept().await.unwrap();
            first.shutdown().await.unwrap();
            let mut silent = vec![first];
            loop {
                silent.push(socket.accept().await.unwrap().0);
            }
        });
        gives_up(&url, "closed").await;
        peer.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_this_host() {
    let path = std::env::temp_dir().join(format!("polylock-{}-{}.sock", std::process::id(), free_port()));
    let path = path.to_string_lossy();
    let server = Server::with(&["--unixsocket", &path], &[]);
    while !Path::new(&*path).exists() {
        tokio::time::sleep(ms(5)).await;
    }
    all_works(&format!("redis+unix://{path}")).await;
    let locks = connect(&format!("redis+unix://{path}?db=3&protocol=3"));
    let name = fresh("r");
    let lease = soon(&locks, &name).await;
    assert!(server.get(&name).is_none(), "it is in another database");
    lease.release().await.unwrap();
    drop(server);
    let _ = std::fs::remove_file(&*path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_databases_and_the_newer_protocol() {
    let server = Server::start();
    // What the documentation says that a user needs, and no more.
    let rights = "+eval +evalsha +time +get +set +del +pexpire +pttl +type +exists +zadd +zrem +zcard \
                  +zscore +zrange +zrevrange +zremrangebyscore +publish +subscribe +unsubscribe +select +hello +scan +ping";
    let mut user =
        vec!["ACL", "SETUSER", "clerk", "on", ">p@ss:w/rd", "~fault:*", "~polylock:*", "&polylock:wake:*", "-@all"];
    user.extend(rights.split_whitespace());
    let _: () = server.ask(&user);
    for protocol in ["", "?protocol=2", "?protocol=3"] {
        all_works(&format!("redis://127.0.0.1:{}{protocol}", server.port)).await;
        all_works(&format!("redis://clerk:p%40ss%3Aw%2Frd@127.0.0.1:{}/5{protocol}", server.port)).await;
        let wrong = connect(&format!("redis://clerk:wrong@127.0.0.1:{}{protocol}", server.port));
        let error =
            tokio::time::timeout(SLACK, wrong.acquire(fresh("r"), long())).await.expect("retried").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
        let none = connect(&format!("redis://127.0.0.1:{}/99{protocol}", server.port));
        let error = tokio::time::timeout(Duration::from_secs(20), none.acquire(fresh("r"), long())).await;
        assert_eq!(error.expect("retried").unwrap_err().argument(), Some("url"));
    }
}
