//! The smallest use: acquire, act, release.

use std::time::Duration;

use polylock::Acquire;

#[tokio::main(flavor = "current_thread")]
async fn main() -> polylock::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let locks = polylock::connect(url).await?;
    let options = Acquire::ttl(Duration::from_secs(10)).wait(Duration::from_secs(5));
    let lease = locks.acquire("invoice:42", options).await?;
    println!("charging with fencing token {}", lease.fencing_token());
    lease.release().await?;
    Ok(())
}
