//! Stores to test on: fresh names in them, and fresh managers on them.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use polylock::LockManager;
use redis::Commands;
use tokio::runtime::Handle;
use tokio_postgres::types::Type;

/// Where one test keeps its locks.
pub struct Store {
    urls: Vec<String>,
    unique: String,
    /// Removed afterwards.
    directory: Option<PathBuf>,
}

impl Store {
    pub fn memory() -> Self {
        let unique = unique();
        Self { urls: vec![format!("memory:{unique}")], unique, directory: None }
    }

    pub fn file() -> Self {
        let unique = unique();
        let directory = std::env::temp_dir().join(&unique);
        Self { urls: vec![format!("file://{}", directory.display())], unique, directory: Some(directory) }
    }

    pub fn redis() -> Self {
        Self { urls: vec![server("POLYLOCK_TEST_REDIS")], unique: unique(), directory: None }
    }

    pub fn redlock() -> Self {
        let urls = server("POLYLOCK_TEST_REDLOCK").split(',').map(str::to_owned).collect();
        Self { urls, unique: unique(), directory: None }
    }

    pub fn postgres() -> Self {
        Self { urls: vec![server("POLYLOCK_TEST_POSTGRES")], unique: unique(), directory: None }
    }

    pub fn postgres_session() -> Self {
        let url = format!("{}?mode=session", server("POLYLOCK_TEST_POSTGRES"));
        Self { urls: vec![url], unique: unique(), directory: None }
    }

    /// PostgreSQL behind a pooler that gives each transaction another session.
    pub fn pgbouncer() -> Self {
        Self { urls: vec![server("POLYLOCK_TEST_PGBOUNCER")], unique: unique(), directory: None }
    }

    pub fn zookeeper() -> Self {
        Self { urls: vec![server("POLYLOCK_TEST_ZOOKEEPER")], unique: unique(), directory: None }
    }

    /// A new manager on this store.
    pub fn manager(&self) -> LockManager {
        polylock::connect(self.urls.clone()).lazy().expect("no manager")
    }

    /// The name of a resource that only this test uses.
    pub fn name(&self, word: &str) -> String {
        format!("{}:{word}", self.unique)
    }

    /// What is left of this test's locks, apart from what must outlive them: what counts the fencing tokens.
    pub fn leftovers(&self) -> Vec<String> {
        if let Some(directory) = &self.directory {
            let files = std::fs::read_dir(directory).expect("no directory");
            let files = files.map(|file| file.expect("no file").file_name().to_string_lossy().into_owned());
            return files.filter(|file| !file.ends_with(".lock")).collect();
        }
        let mut left = Vec::new();
        for url in self.urls.iter().filter(|url| url.starts_with("redis:")) {
            let client = redis::Client::open(url.as_str()).expect("not a Redis URL");
            let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).expect("no Redis");
            let keys: Vec<String> = connection.keys(format!("*{}*", self.unique)).expect("no keys");
            left.extend(keys.into_iter().filter(|key| !key.starts_with("polylock:fence:")));
        }
        for url in self.urls.iter().filter(|url| url.starts_with("zookeeper:")) {
            let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/servers/zookeeper_contenders.py");
            let listed = std::process::Command::new(program).arg(url).output().expect("cannot look around");
            assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
            let paths = String::from_utf8(listed.stdout).expect("not UTF-8");
            left.extend(paths.lines().filter(|path| path.contains(&self.unique)).map(str::to_owned));
        }
        for url in self.urls.iter().filter(|url| url.starts_with("postgres:")) {
            left.extend(tokio::task::block_in_place(|| {
                Handle::current().block_on(held_in_postgres(url, &self.unique))
            }));
        }
        left
    }
}

/// The names with `unique` in them that are held. The rows themselves stay: they count the fencing tokens.
async fn held_in_postgres(url: &str, unique: &str) -> Vec<String> {
    let (server, session) = url.split_once('?').map_or((url, false), |(server, _)| (server, true));
    let (client, connection) = tokio_postgres::connect(server, tokio_postgres::NoTls).await.expect("no PostgreSQL");
    let driven = tokio::spawn(connection);
    let held = if session {
        "SELECT key FROM polylock_session WHERE key LIKE '%' || $1 || '%'
         AND backend IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
    } else {
        "SELECT key FROM polylock_lease WHERE owner IS NOT NULL AND key LIKE '%' || $1 || '%'"
    };
    let rows = client.query_typed(held, &[(&unique, Type::TEXT)]).await.expect("no rows");
    driven.abort();
    rows.iter().map(|row| row.get(0)).collect()
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Where a real server is.
fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run this through tests/servers/with_servers.py, which starts real servers")
    })
}

fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("polylock-case-{}-{now}-{count}", std::process::id())
}
