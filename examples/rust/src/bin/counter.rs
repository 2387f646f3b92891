//! Adds 1 to the number in a file, many times: `counter URL FILE COUNT [LOG]`.
//!
//! With `none` for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token to
//! LOG while it holds the lock. Prints one line of JSON.

use std::{
    error::Error,
    fs::OpenOptions,
    io::{Read, Seek, Write},
    time::{Duration, Instant},
};

use polylock::Acquire;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, file, count, log @ ..] = &arguments[..] else {
        return Err("usage: counter URL FILE COUNT [LOG]".into());
    };
    let locks = if url == "none" { None } else { Some(polylock::connect(url.as_str()).await?) };
    let mut log = log.first().map(|log| OpenOptions::new().append(true).create(true).open(log)).transpose()?;
    let (mut waits, mut tokens) = (Vec::new(), Vec::new());
    for _ in 0..count.parse()? {
        let began = Instant::now();
        let lease = match &locks {
            Some(locks) => Some(locks.acquire("counter", Acquire::default()).await?),
            None => None,
        };
        waits.push(format!("{:.3}", began.elapsed().as_secs_f64() * 1e3));
        if let Some(lease) = &lease {
            tokens.push(lease.fencing_token().to_string());
            if let Some(log) = &mut log {
                log.write_all(format!("{}\n", lease.fencing_token()).as_bytes())?;
            }
        }
        add_one(file).await?;
        if let Some(lease) = lease {
            lease.release().await?;
        }
    }
    let (waits, tokens) = (waits.join(","), tokens.join(","));
    println!(r#"{{"language":"rust","acquisitions":{count},"wait_ms":[{waits}],"tokens":[{tokens}]}}"#);
    Ok(())
}

/// Reads, takes a moment, writes back: wrong unless nobody else does so meanwhile.
async fn add_one(file: &str) -> Result<(), Box<dyn Error>> {
    let mut file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number: u64 = text.trim().parse()?;
    tokio::time::sleep(Duration::from_micros(100)).await;
    file.rewind()?;
    // As wide as before, so that one write replaces the whole number.
    file.write_all(format!("{:010}\n", number + 1).as_bytes())?;
    Ok(())
}
