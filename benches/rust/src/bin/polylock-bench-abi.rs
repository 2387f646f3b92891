//! What the C library adds to the engine: a pair through `libpolylock.so` and through this language, side by side in one
//! process: `polylock-bench-abi LIBRARY REDIS_URL`. Prints a line of JSON per comparison.

use std::{
    error::Error,
    ffi::{CString, c_char},
    time::{Duration, Instant},
};

use libloading::{Library, Symbol};
use polylock::{Acquire, LockManager, blocking};

const ROUNDS: usize = 200;
const WARM_UP: usize = 20;
const TTL: Duration = Duration::from_secs(30);

type Connect = unsafe extern "C" fn(*const c_char, u64, *mut u64, *mut u64) -> i32;
type AcquireLease = unsafe extern "C" fn(u64, *const c_char, u64, *mut u64, *mut u64) -> i32;
type Release = unsafe extern "C" fn(u64, *mut i32, *mut u64) -> i32;
type Free = unsafe extern "C" fn(u64) -> i32;

/// The functions of the C library that a pair takes, and a manager made by it.
struct Abi<'a> {
    acquire: Symbol<'a, AcquireLease>,
    release: Symbol<'a, Release>,
    free: Symbol<'a, Free>,
    manager: u64,
}

impl<'a> Abi<'a> {
    fn connect(library: &'a Library, url: &str) -> Result<Self, Box<dyn Error>> {
        let url = CString::new(url)?;
        let mut manager = 0;
        // SAFETY: the types are those of include/polylock.h, and the pointers are good for the call.
        unsafe {
            let connect: Symbol<'_, Connect> = library.get(b"polylock_connect")?;
            ok(connect(url.as_ptr(), 0, &raw mut manager, std::ptr::null_mut()))?;
            Ok(Self {
                acquire: library.get(b"polylock_acquire")?,
                release: library.get(b"polylock_release")?,
                free: library.get(b"polylock_lease_free")?,
                manager,
            })
        }
    }

    fn pair(&self) -> Result<(), String> {
        let mut lease = 0;
        // SAFETY: as above.
        unsafe {
            ok((self.acquire)(self.manager, c"bench:c".as_ptr(), 0, &raw mut lease, std::ptr::null_mut()))?;
            ok((self.release)(lease, std::ptr::null_mut(), std::ptr::null_mut()))?;
            ok((self.free)(lease))
        }
    }
}

fn ok(status: i32) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("status {status}")) }
}

/// What the blocking calls of the bindings do.
fn pair(locks: &LockManager) -> polylock::Result<()> {
    let locks = locks.clone();
    let lease =
        blocking::wait(|driver| async move { locks.acquire_by("bench:rust", Acquire::ttl(TTL), &driver).await })?;
    blocking::wait(|driver| async move { lease.release_by(&driver).await })?;
    Ok(())
}

fn compare(abi: &Abi<'_>, locks: &LockManager, pairs: u32) -> Result<[f64; 2], Box<dyn Error>> {
    let mut samples: [Vec<f64>; 2] = Default::default();
    for round in 0..WARM_UP + ROUNDS {
        for (contender, samples) in samples.iter_mut().enumerate() {
            let began = Instant::now();
            for _ in 0..pairs {
                if contender == 0 { abi.pair()? } else { pair(locks)? }
            }
            if round >= WARM_UP {
                samples.push(began.elapsed().as_secs_f64() / f64::from(pairs));
            }
        }
    }
    Ok(samples.map(|mut values| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(library), Some(redis)) = (arguments.next(), arguments.next()) else {
        return Err("usage: polylock-bench-abi LIBRARY REDIS_URL".into());
    };
    // SAFETY: it is our own library.
    let library = unsafe { Library::new(library)? };
    for (backend, url, pairs, unit, scale) in
        [("memory", "memory:", 1000, "ns", 1e9), ("redis", &redis, 25, "us", 1e6)]
    {
        let abi = Abi::connect(&library, url)?;
        let locks = polylock::connect(url).lazy()?;
        let [c, rust] = compare(&abi, &locks, pairs)?;
        let row = serde_json::json!({
            "language": "c", "backend": backend, "what": format!("acquire + release, {backend}"), "unit": unit,
            "ours": c * scale, "peer": rust * scale, "peer_name": "the same in Rust"
        });
        println!("{row}");
    }
    Ok(())
}
