//! polylock on one PostgreSQL beside its own statements, sent by hand over tokio-postgres: `polylock-bench-postgres URL`. Prints a
//! line of JSON per comparison.

use std::{error::Error, time::Instant};

use polylock::{Acquire, LockManager, postgres::lock_id};
use tokio_postgres::{
    Client, NoTls, Statement,
    types::{ToSql, Type},
};

const ROUNDS: usize = 300;
const PAIRS: usize = 5;
const WARM_UP: usize = 25;
const TTL_US: i64 = 30_000_000;

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../../../core/src/backend/postgres/sql/", $name, ".sql"))
    };
}

/// The statements of one mode, prepared.
struct ByHand {
    client: Client,
    acquire: Statement,
    release: Statement,
    session: bool,
    pairs: u64,
}

impl ByHand {
    async fn open(url: &str, session: bool) -> Result<Self, Box<dyn Error>> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        const TEXT: Type = Type::TEXT;
        const INT8: Type = Type::INT8;
        let (table, acquire, release, third) = if session {
            (sql!("session/table"), sql!("session/acquire"), sql!("session/release"), INT8)
        } else {
            (sql!("lease/table"), sql!("lease/acquire"), sql!("lease/release"), TEXT)
        };
        client.batch_execute(table).await?;
        let plain = |text: &str| text.replace("advisory($3)", "$3").replace("advisory($2)", "$2");
        let types = if session {
            [TEXT, TEXT, INT8, TEXT, Type::INT4, TEXT, Type::BOOL, INT8]
        } else {
            [TEXT, TEXT, INT8, INT8, TEXT, Type::INT4, TEXT, Type::BOOL]
        };
        let acquire = client.prepare_typed(&plain(acquire), &types).await?;
        let release = client.prepare_typed(&plain(release), &[TEXT, third]).await?;
        Ok(Self { client, acquire, release, session, pairs: 0 })
    }

    async fn pair(&mut self, key: &str) -> Result<(), Box<dyn Error>> {
        self.pairs += 1;
        let (owner, id, host, pid) = (format!("{:040x}", self.pairs), lock_id(key), "host", 1);
        let (label, want) = (None::<&str>, false);
        let acquire: [&(dyn ToSql + Sync); 8] = if self.session {
            [&key, &owner, &id, &host, &pid, &label, &want, &TTL_US]
        } else {
            [&key, &owner, &TTL_US, &i64::MAX, &host, &pid, &label, &want]
        };
        let token: Option<i64> = self.client.query_one(&self.acquire, &acquire).await?.get("token");
        let freed: bool = if self.session {
            self.client.query_one(&self.release, &[&key, &id]).await?.get(0)
        } else {
            self.client.query_one(&self.release, &[&key, &owner]).await?.get(0)
        };
        if token.is_none() || !freed {
            return Err("the statements by hand do not lock".into());
        }
        Ok(())
    }
}

async fn ours(locks: &LockManager, name: &str) -> Result<(), Box<dyn Error>> {
    let ttl = std::time::Duration::from_micros(TTL_US.unsigned_abs());
    locks.acquire(name, Acquire::ttl(ttl)).await?.release().await?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: polylock-bench-postgres URL")?;
    for (mode, session) in [("lease", false), ("session", true)] {
        let locks = polylock::connect(format!("{url}?mode={mode}")).await?;
        let mut by_hand = ByHand::open(&url, session).await?;
        // They take turns, so that both see the same machine.
        let mut samples: [Vec<f64>; 2] = Default::default();
        for round in 0..WARM_UP + ROUNDS {
            for (contender, samples) in samples.iter_mut().enumerate() {
                for _ in 0..PAIRS {
                    let began = Instant::now();
                    match contender {
                        0 => ours(&locks, "bench:ours").await?,
                        _ => by_hand.pair("bench:by hand").await?,
                    }
                    if round >= WARM_UP {
                        samples.push(began.elapsed().as_secs_f64() * 1e6);
                    }
                }
            }
        }
        let [of_us, of_hand] = samples.map(median);
        let row = serde_json::json!({
            "language": "rust", "backend": "postgres", "what": format!("acquire + release, {mode} mode"), "unit": "us",
            "ours": of_us, "peer": of_hand, "peer_name": "the same statements, tokio-postgres"
        });
        println!("{row}");
        locks.close().await;
    }
    Ok(())
}
