//! An ensemble of three whose members are killed and cut off from each other.

use std::time::{Duration, Instant};

use polylock::{Acquire, ErrorKind, LossReason};

use super::{LONG, Servant, acquire, connect, name, session::told};

/// Rounds; `POLYLOCK_TEST_ROUNDS` asks for more.
fn rounds() -> u64 {
    std::env::var("POLYLOCK_TEST_ROUNDS").map_or(2, |rounds| rounds.parse().expect("not a number"))
}

struct Ensemble {
    servant: Servant,
    hosts: Vec<String>,
    root: String,
}

impl Ensemble {
    fn start() -> Self {
        let mut servant = Servant::start("zookeeper_ensemble.py", &[]);
        let ready = servant.line();
        let ports = ready.strip_prefix("ready ").expect("not ready").split(' ');
        Self { servant, hosts: ports.map(|port| format!("127.0.0.1:{port}")).collect(), root: name() }
    }

    /// To all of its members, or to one.
    fn url(&self, member: Option<usize>) -> String {
        let hosts = member.map_or_else(|| self.hosts.join(","), |member| self.hosts[member - 1].clone());
        format!("zookeeper://{hosts}/{}?session_timeout=2", self.root)
    }

    fn does(&mut self, command: &str) -> String {
        tokio::task::block_in_place(|| self.servant.ask(command))
    }

    fn leader(&mut self) -> usize {
        self.does("leader").parse().expect("no leader")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_is_cut_off_with_its_server_is_told_before_the_next_gets_in() {
    let mut ensemble = Ensemble::start();
    let (others, name) = (connect(&ensemble.url(None)), name());
    let mut last_token = 0;
    for round in 0..rounds() {
        let leader = ensemble.leader();
        // The leader itself, and one that follows it and goes on to answer its clients for as long as their sessions last.
        let alone = if round % 2 == 0 { leader % 3 + 1 } else { leader };
        let cut_off = connect(&ensemble.url(Some(alone)));
        let lease = acquire(&cut_off, &name).await;
        assert!(lease.fencing_token() > last_token, "round {round}");
        let told = told(&lease);
        // In line already, at a server of the majority or through it.
        let waiting = tokio::spawn({
            let (others, name) = (others.clone(), name.clone());
            async move {
                let next = acquire(&others, &name).await;
                (next, Instant::now())
            }
        });
        assert_eq!(ensemble.does(&format!("cut {alone}")), "ok");
        let (next, entered) = waiting.await.unwrap();
        assert!(!lease.is_held(), "round {round}: two holders");
        let (reason, at) = told.await.expect("not told");
        assert_eq!(reason, LossReason::Expired);
        assert!(at <= entered, "round {round}: told {:?} too late", at - entered);
        assert!(next.fencing_token() > lease.fencing_token(), "round {round}");
        last_token = next.fencing_token();
        ensemble.does("heal");
        ensemble.does("settle");
        next.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn tokens_grow_though_leaders_are_killed() {
    let mut ensemble = Ensemble::start();
    let (one, other, name) = (connect(&ensemble.url(None)), connect(&ensemble.url(None)), name());
    let mut last_token = 0;
    for round in 0..rounds() {
        let lease = acquire(&one, &name).await;
        assert!(lease.fencing_token() > last_token, "round {round}");
        let waiting = tokio::spawn({
            let (other, name) = (other.clone(), name.clone());
            async move { acquire(&other, &name).await }
        });
        let leader = ensemble.leader();
        ensemble.does(&format!("kill {leader}"));
        // Its session may outlast the election, or not.
        let kept = tokio::time::timeout(Duration::from_secs(1), lease.lost()).await.is_err();
        let others = waiting.is_finished();
        assert!(!others || !kept || !lease.is_held(), "round {round}: two holders");
        lease.release().await.unwrap();
        let next = waiting.await.unwrap();
        assert!(next.fencing_token() > lease.fencing_token(), "round {round}");
        last_token = next.fencing_token();
        ensemble.does(&format!("start {leader}"));
        ensemble.does("settle");
        next.release().await.unwrap();
    }
    // All of them, while somebody acquires.
    let lease = acquire(&one, &name).await;
    let acquiring = tokio::spawn({
        let (other, name) = (other.clone(), name.clone());
        async move { other.acquire(&name, Acquire::ttl(LONG).wait(Duration::from_secs(3))).await }
    });
    for member in 1..=3 {
        ensemble.does(&format!("kill {member}"));
    }
    assert_eq!(lease.lost().await, Some(LossReason::Expired));
    let error = acquiring.await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    let error = other.try_acquire(&name, Acquire::ttl(LONG)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&ensemble.hosts[0]), "it does not say where: {error}");
    for member in 1..=3 {
        ensemble.does(&format!("start {member}"));
    }
    ensemble.does("settle");
    let next = acquire(&other, &name).await;
    assert!(next.fencing_token() > lease.fencing_token());
    next.release().await.unwrap();
}
