//! A disk that is full, and has room again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

/// A server on a small disk of its own. None where this process may not mount one.
fn on_a_small_disk(options: &[&str]) -> Option<(Server, PathBuf)> {
    let probe = own_directory();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "polylock"]).arg(&probe).output();
    let may = mounted.is_ok_and(|mounted| mounted.status.success());
    if may {
        assert!(Command::new("umount").arg(&probe).status().unwrap().success());
    }
    fs::remove_dir(&probe).unwrap();
    if !may {
        let _ = writeln!(std::io::stderr(), "SKIPPED, nothing was tested: no disk of its own");
        return None;
    }
    let server = Server::start(&[&["--disk=100M", "min_wal_size=2MB", "max_wal_size=2MB"], options].concat());
    let disk = Path::new(&server.directory).join("disk");
    Some((server, disk))
}

fn own_directory() -> PathBuf {
    let path =
        std::env::temp_dir().join(format!("polylock-disk-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir(&path).unwrap();
    path
}

/// Takes all the room that is left; gives the file that does.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut filler = fs::File::create(&path).unwrap();
    for size in [1 << 20, 1 << 12] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    path
}

/// New names take room: the error says why there is none, and what is held stays held.
async fn a_full_disk_costs_new_names_and_no_lease(mode: &str) {
    let Some((server, disk)) = on_a_small_disk(&["--log-apart"]) else { return };
    let locks = manager(&format!("{}{mode}", server.url));
    let held = locks.acquire("held", Acquire::ttl(3000 * MS)).await.unwrap();
    let filler = fill(&disk);
    let mut number = 0;
    let error = loop {
        number += 1;
        match locks.try_acquire(&format!("{number} {}", "x".repeat(1000)), long()).await {
            Ok(lease) => drop(lease.expect("not free")),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains("No space left"), "{error:?}");
    renewed(&held).await;
    fs::remove_file(filler).unwrap();
    let lease = locks.acquire("new", long().wait(LIMIT)).await.unwrap();
    assert_eq!(lease.release().await.unwrap(), Release::Released);
    let token = held.fencing_token();
    assert_eq!(held.release().await.unwrap(), Release::Released);
    assert!(locks.acquire("held", long().wait(LIMIT)).await.unwrap().fencing_token() > token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_new_names_and_no_lease_in_lease_mode() {
    a_full_disk_costs_new_names_and_no_lease("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_new_names_and_no_lease_in_session_mode() {
    a_full_disk_costs_new_names_and_no_lease("?mode=session").await;
}

/// Without room for its log the server goes down: leases are lost by their deadline, and told; no row is half-written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_for_its_log_costs_leases_and_no_token() {
    // With no checkpoint, which would let it use the room of its old log again, for ever.
    let Some((mut server, disk)) = on_a_small_disk(&["max_wal_size=1GB", "checkpoint_timeout=1h"]) else { return };
    let (locks, ttl) = (manager(&server.url), 2000 * MS);
    let held = locks.acquire("held", Acquire::ttl(ttl)).await.unwrap();
    let filler = fill(&disk);
    // Room for pages of the table, and none for another part of the log, which has 1 MB.
    let length = fs::metadata(&filler).unwrap().len() - (1 << 19);
    fs::OpenOptions::new().write(true).open(&filler).unwrap().set_len(length).unwrap();
    let mut last = 0;
    let error = loop {
        match locks.try_acquire("r", Acquire::ttl(ttl)).await {
            Ok(Some(lease)) => {
                assert!(lease.fencing_token() > last);
                last = lease.fencing_token();
                lease.release().await.unwrap();
            }
            Ok(None) => tokio::time::sleep(MS).await, // a release that was not answered
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    tokio::time::timeout(LIMIT, held.lost()).await.expect("never told").expect("not lost");
    assert!(!held.is_held());
    fs::remove_file(filler).unwrap();
    tokio::task::block_in_place(|| server.order("kill"));
    tokio::task::block_in_place(|| server.order("start"));
    for (name, token) in [("held", held.fencing_token()), ("r", last)] {
        let lease = locks.acquire(name, long().wait(LIMIT)).await.unwrap();
        assert!(lease.fencing_token() > token, "{name}");
    }
    assert_eq!(count(&server.sql().await, crash::HALVES).await, 0, "a row is half-written");
}
