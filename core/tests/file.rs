//! What only the file backend has: other processes, files that others touch, directories that will not do.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use polylock::{Acquire, ErrorKind, Lease, LockManager, LossReason, Release, Seen, blocking};
use rustix::process::{Pid, Signal, kill_process};

const NAME: &str = "r";
const LONG: Duration = Duration::from_secs(300);

/// A directory of its own for each test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("polylock-file-{}-{count}", std::process::id())))
    }

    fn url(&self) -> String {
        url(&self.0)
    }

    fn locks(&self) -> LockManager {
        manager(&self.url())
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("r.lock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn manager(url: &str) -> LockManager {
    polylock::connect(url).lazy().unwrap()
}

fn acquire(locks: &LockManager, options: Acquire) -> polylock::Result<Lease> {
    blocking::wait(|driver| async move { locks.acquire_by(NAME, options, &driver).await })
}

/// Acquires what is free or will be soon.
fn soon(locks: &LockManager) -> Lease {
    acquire(locks, Acquire::ttl(LONG).wait(Duration::from_secs(30))).unwrap()
}

fn is_free(locks: &LockManager) -> bool {
    let lease = blocking::wait(|driver| async move {
        locks.try_acquire_by(NAME, Acquire::ttl(LONG), &driver).await.unwrap().map(|lease| (lease, driver))
    });
    lease.inspect(|(lease, _)| assert_eq!(release(lease), Release::Released)).is_some()
}

fn release(lease: &Lease) -> Release {
    blocking::wait(|driver| async move { lease.release_by(&driver).await.unwrap() })
}

/// Why an acquisition fails.
fn refusal(url: &str) -> ErrorKind {
    acquire(&manager(url), Acquire::ttl(LONG).no_wait()).unwrap_err().kind()
}

/// Another process, which does what it is told: this program again, with [`in_another_process`] alone.
struct Other {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const URL: &str = "POLYLOCK_TEST_OTHER_PROCESS";

impl Other {
    fn start(directory: &Directory) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "in_another_process", "--nocapture", "--test-threads=1"])
            .env(URL, directory.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, orders, answers: BufReader::new(answers) }
    }

    /// Gives an order and waits for the answer.
    fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the other process has ended");
            // What the test harness writes stands in between, and before the first answer.
            if let Some((_, answer)) = line.trim_end().split_once("answer: ") {
                return answer.to_owned();
            }
        }
    }

    fn acquire(&mut self) -> u64 {
        self.ask("acquire").parse().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "is what the other process of a test does"]
fn in_another_process() {
    let locks = manager(&std::env::var(URL).unwrap());
    let mut lease = None;
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let held = || lease.as_ref().unwrap();
        let answer = match order.split_once(' ').unwrap_or((&order, "")) {
            ("acquire", _) => {
                let won = soon(&locks);
                let token = won.fencing_token().to_string();
                lease = Some(won);
                token
            }
            ("acquire_for", ttl) => {
                let ttl = Duration::from_millis(ttl.parse().unwrap());
                lease = Some(acquire(&locks, Acquire::ttl(ttl)).unwrap());
                "held".to_owned()
            }
            ("release", _) => release(held()).name().to_owned(),
            ("held", _) => held().is_held().to_string(),
            ("lost", _) => blocking::wait(|_| held().lost()).map_or("released", LossReason::name).to_owned(),
            ("count", file) => {
                (0..100).for_each(|_| count(&locks, Path::new(file)));
                "counted".to_owned()
            }
            other => panic!("unknown order {other:?}"),
        };
        println!("answer: {answer}");
    }
}

/// Adds one to the number in `file`, which also has the last fencing token.
fn count(locks: &LockManager, file: &Path) {
    let lease = soon(locks);
    let text = fs::read_to_string(file).unwrap_or_else(|_| "0 0".to_owned());
    let (number, token) = text.split_once(' ').unwrap();
    assert!(lease.fencing_token() > token.parse().unwrap());
    let next = number.parse::<u64>().unwrap() + 1;
    fs::write(file, format!("{next} {}", lease.fencing_token())).unwrap();
    assert_eq!(release(&lease), Release::Released);
}

#[test]
fn excludes_another_process() {
    let directory = Directory::new();
    let (locks, mut other) = (directory.locks(), Other::start(&directory));
    let first = soon(&locks).fencing_token();
    let token = other.acquire();
    assert!(token > first);
    assert!(!is_free(&locks));
    let holder = blocking::wait(|driver| {
        let locks = &locks;
        async move { locks.inspect_by(NAME, &driver).await.unwrap().unwrap() }
    });
    assert_eq!(holder.pid, Some(other.pid().as_raw_nonzero().get().cast_unsigned()));
    assert_eq!((holder.fencing_token, holder.label), (Some(token), None));
    assert!(holder.expires_in.is_some_and(|left| left > LONG / 2 && left <= LONG));
    assert_eq!(other.ask("release"), "released");
    assert!(is_free(&locks));
}

#[test]
fn breaks_what_another_process_holds() {
    let directory = Directory::new();
    let (locks, mut other) = (directory.locks(), Other::start(&directory));
    let breaks = |token| {
        blocking::wait(|driver| {
            let locks = &locks;
            async move { locks.break_lock_by(NAME, Seen::FencingToken(token), &driver).await.unwrap() }
        })
    };
    assert!(!breaks(1), "nobody holds it");
    assert_eq!(other.ask("acquire_for 2000"), "held");
    let token = blocking::wait(|driver| {
        let locks = &locks;
        async move { locks.inspect_by(NAME, &driver).await.unwrap().unwrap().fencing_token.unwrap() }
    });
    assert!(!breaks(token - 1));
    let waiter = std::thread::spawn({
        let locks = directory.locks();
        move || soon(&locks).fencing_token()
    });
    // A stopped holder as well; it learns of it when it goes on.
    other.signal(Signal::STOP);
    assert!(breaks(token));
    assert!(waiter.join().unwrap() > token, "whoever waits is woken, and gets a greater token");
    assert!(!breaks(token), "a later holder is not hit");
    other.signal(Signal::CONT);
    let lost = other.ask("lost");
    assert!(["taken", "expired"].contains(&&*lost), "{lost}");
    assert_eq!(release(&soon(&locks)), Release::Released);
    assert!(other.acquire() > token);
    let files: Vec<_> = fs::read_dir(&directory.0).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["r.lock"]);
}

/// How long the sixth fastest of ten hand-overs takes, from `free` to the next holder.
fn ten_hand_overs(mut free: impl FnMut(Other)) -> Duration {
    let directory = Directory::new();
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut other = Other::start(&directory);
        let token = other.acquire();
        let locks = directory.locks();
        let waiter = std::thread::spawn({
            let locks = locks.clone();
            move || (soon(&locks).fencing_token(), Instant::now())
        });
        while locks.waiting(NAME).unwrap() == 0 {
            std::thread::yield_now();
        }
        // Past its first tries, or it would not have to be woken.
        std::thread::sleep(Duration::from_millis(20));
        let freed = Instant::now();
        free(other);
        let (next, at) = waiter.join().unwrap();
        assert!(next > token);
        times.push(at.saturating_duration_since(freed));
    }
    times.sort_unstable();
    times[5]
}

/// Who is not woken looks again after 125 ms in the middle.
const WOKEN: Duration = Duration::from_millis(70);

#[test]
fn is_woken_by_a_release_in_another_process() {
    let took = ten_hand_overs(|mut other| assert_eq!(other.ask("release"), "released"));
    assert!(took < WOKEN, "{took:?}");
}

#[test]
fn is_woken_when_the_holder_is_killed() {
    let took = ten_hand_overs(|other| other.signal(Signal::KILL));
    assert!(took < WOKEN, "{took:?}");
}

#[test]
fn several_processes_lose_no_update() {
    let directory = Directory::new();
    let mut others: Vec<_> = (0..3).map(|_| Other::start(&directory)).collect();
    let numbers = std::env::temp_dir().join(format!("polylock-file-{}-numbers", std::process::id()));
    for other in &mut others {
        other.tell(&format!("count {}", numbers.display()));
    }
    for other in &mut others {
        assert_eq!(other.answer(), "counted");
    }
    let text = fs::read_to_string(&numbers).unwrap();
    fs::remove_file(&numbers).unwrap();
    assert_eq!(text.split_once(' ').unwrap().0, "300");
}

#[test]
fn a_stopped_holder_keeps_it_until_it_notices() {
    let directory = Directory::new();
    let (locks, mut other) = (directory.locks(), Other::start(&directory));
    assert_eq!(other.ask("acquire_for 300"), "held");
    other.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(600));
    assert!(!is_free(&locks), "a holder that goes on would not be alone");
    other.signal(Signal::CONT);
    let lease = soon(&locks);
    assert_eq!(other.ask("held"), "false");
    assert_eq!(other.ask("lost"), "expired");
    assert!(lease.is_held());
}

#[test]
fn a_deleted_file_is_a_lost_lease() {
    let directory = Directory::new();
    let (locks, mut other) = (directory.locks(), Other::start(&directory));
    let lease = soon(&locks);
    fs::remove_file(directory.lock_file()).unwrap();
    assert!(other.acquire() > lease.fencing_token(), "the clock stands in for the counter");
    let extended = blocking::wait(|driver| {
        let lease = &lease;
        async move { lease.extend_by(None, &driver).await }
    });
    assert_eq!(extended.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(lease.loss(), Some(LossReason::Taken));
    assert_eq!(release(&lease), Release::NotHeld);
    assert!(!is_free(&locks));
    assert_eq!(other.ask("release"), "released");
    assert!(is_free(&locks));

    // A release notices as well, and leaves the next holder alone.
    let lease = soon(&locks);
    fs::rename(directory.lock_file(), directory.0.join("moved")).unwrap();
    other.acquire();
    assert_eq!(release(&lease), Release::NotHeld);
    assert!(!is_free(&locks));
    assert_eq!(other.ask("held"), "true");
}

#[test]
fn a_deleted_directory_is_made_again() {
    let directory = Directory::new();
    let locks = directory.locks();
    drop(soon(&locks));
    fs::remove_dir_all(&directory.0).unwrap();
    let lease = soon(&locks);
    assert_eq!(release(&lease), Release::Released);
}

#[test]
fn two_ways_to_one_directory_exclude_each_other() {
    let (directory, link) = (Directory::new(), Directory::new());
    let locks = directory.locks();
    let lease = soon(&locks);
    symlink(&directory.0, &link.0).unwrap();
    let linked = link.locks();
    assert!(!is_free(&linked));
    let waiter = std::thread::spawn(move || soon(&linked).fencing_token());
    assert_eq!(release(&lease), Release::Released);
    assert!(waiter.join().unwrap() > lease.fencing_token());
    fs::remove_file(&link.0).unwrap();
}

#[test]
fn touches_nothing_that_is_not_its_own() {
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    let (path, precious) = (directory.lock_file(), directory.0.join("precious"));
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, &path).unwrap();
    assert_eq!(refusal(&directory.url()), ErrorKind::Conflict);
    fs::remove_file(&path).unwrap();
    fs::rename(&precious, &path).unwrap();
    assert_eq!(refusal(&directory.url()), ErrorKind::Conflict);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    symlink("/nowhere/at/all", &path).unwrap();
    assert_eq!(refusal(&directory.url()), ErrorKind::Conflict);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(refusal(&directory.url()), ErrorKind::Conflict);
    fs::remove_dir(&path).unwrap();
    assert!(is_free(&directory.locks()));
}

#[test]
fn refuses_directories_that_are_not_safe() {
    let directory = Directory::new();
    assert!(is_free(&directory.locks()));
    let mode = |mode| fs::set_permissions(&directory.0, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(&directory.0).unwrap().permissions().mode() & 0o7777, 0o700);
    mode(0o777);
    // A manager of its own, because a directory is looked at once.
    let other = format!("{}?network=allow", directory.url());
    assert_eq!(refusal(&other), ErrorKind::Unsupported);
    mode(0o1777);
    assert!(is_free(&manager(&other)));
    fs::write(directory.0.join("file"), "").unwrap();
    assert_eq!(refusal(&url(&directory.0.join("file"))), ErrorKind::Unsupported);
    assert_eq!(refusal(&url(&directory.0.join("file/under"))), ErrorKind::Unsupported);
}

#[test]
fn tokens_survive_the_process_and_a_damaged_record() {
    let directory = Directory::new();
    let mut last = 0;
    for _ in 0..3 {
        let token = Other::start(&directory).acquire();
        assert!(token > last);
        last = token;
    }
    // As after a crash of the machine in the middle of a write.
    let mut bytes = fs::read(directory.lock_file()).unwrap();
    let newest = bytes.windows(16).position(|window| window == last.to_string().as_bytes()).unwrap();
    bytes[newest] ^= 1;
    fs::write(directory.lock_file(), bytes).unwrap();
    assert!(soon(&directory.locks()).fencing_token() > last);
}

#[test]
fn no_descriptor_of_a_parent_is_named_in_the_parent() {
    let directory = Directory::new();
    let lease = soon(&directory.locks());
    assert_eq!(polylock::host::inherited_fds(), Vec::<i32>::new());
    assert_eq!(release(&lease), Release::Released);
}
