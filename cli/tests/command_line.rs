//! `polylock` as a shell sees it: real processes, real signals, locks in files and on real servers.
//!
//! `POLYLOCK_TEST_COMMAND` names another program to be tested in its place, as in `python -m polylock`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// What a busy machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory of its own, where locks and the commands' files are.
struct Place {
    directory: PathBuf,
    url: String,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("polylock-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let url = format!("file://{}/locks", directory.display());
        Self { directory, url }
    }

    /// On the Redis of the tests, if there is one.
    fn redis() -> Option<Self> {
        let url = std::env::var("POLYLOCK_TEST_REDIS").ok()?;
        let mut place = Self::new();
        place.url = url;
        Some(place)
    }

    /// A name that no other test uses.
    fn name(&self, word: &str) -> String {
        format!("{}:{word}", self.directory.file_name().unwrap().to_str().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // A shell's background jobs, which the tests may be among, ignore some signals.
        let mut command = Command::new("env");
        let program = std::env::var("POLYLOCK_TEST_COMMAND");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_polylock"));
        command.arg("--default-signal=HUP,INT,QUIT").args(program.split(' '));
        command.args(arguments).env("POLYLOCK_URL", &self.url).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs `script` by a shell under a lock, in the background.
    fn run(&self, options: &[&str], script: &str) -> Running {
        let arguments = [&["run"], options, &["--", "sh", "-c", script]].concat();
        Running(self.command(&arguments).spawn().unwrap())
    }

    /// What a file of the command's says, as soon as it says something.
    fn said(&self, file: &str) -> String {
        let mut said = String::new();
        until(&format!("{file} is written"), || {
            said = std::fs::read_to_string(self.directory.join(file)).unwrap_or_default();
            said.ends_with('\n')
        });
        said.trim().to_owned()
    }

    fn pid(&self, file: &str) -> Pid {
        Pid::from_raw(self.said(file).parse().unwrap()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its status, and what it wrote to standard error.
    fn ended(mut self) -> (i32, String) {
        let mut status = None;
        until("it ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let mut errors = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.and_then(|status| status.code()).unwrap(), errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: Pid) -> bool {
    // Whoever adopted it may not have buried it.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn ends_with_the_commands_status() {
    let place = Place::new();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
        assert_eq!(code(&place.output(&["run", "--lock", "a", "--", "sh", "-c", script])), status, "{script}");
    }
    let missing = place.output(&["run", "--lock", "a", "no-such-command-at-all"]);
    assert_eq!(code(&missing), 127, "{}", text(&missing.stderr));
    std::fs::write(place.directory.join("plain"), "not a program").unwrap();
    assert_eq!(code(&place.output(&["run", "--lock", "a", "./plain"])), 126);
    // Nothing of these holds it any more.
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--no-wait", "true"])), 0);
}

#[test]
fn refuses_what_it_does_not_understand() {
    let place = Place::new();
    for arguments in [
        &["run", "--lock", "a"][..],
        &["run", "true"],
        &["run", "--lock", "a", "--ttl", "soon", "true"],
        &["run", "--lock", "a", "--ttl", "1ms", "true"],
        &["run", "--lock", "", "true"],
        &["run", "--lock", "a", "--no-wait", "--wait", "1s", "true"],
        &["run", "--lock", "a", "--shared", "true"],
        &["break", "a"],
        &["ls", ""],
        &["nothing"],
        &[],
    ] {
        assert_eq!(code(&place.output(arguments)), 64, "{arguments:?}");
    }
    let mut anywhere = place.command(&["ls"]);
    let anywhere = anywhere.env_remove("POLYLOCK_URL").output().unwrap();
    assert_eq!(code(&anywhere), 64);
    assert!(text(&anywhere.stderr).contains("--url"), "{}", text(&anywhere.stderr));
    let mut nowhere = place.command(&["ls"]);
    assert_eq!(code(&nowhere.env("POLYLOCK_URL", "redis://127.0.0.1:1").output().unwrap()), 69);
    assert_eq!(code(&place.output(&["--help"])), 0);
    assert!(text(&place.output(&["--version"]).stdout).starts_with("polylock "));
    // A password in the environment is not in the help.
    let help = place.command(&["--help"]).env("POLYLOCK_URL", "redis://:s3cret@h").output().unwrap();
    assert!(!text(&help.stdout).contains("s3cret"));
    // Nor one that was given in a wrong place.
    for arguments in [&["redis://:s3cret@h", "ls"][..], &["ls", "--limit", "redis://:s3cret@h"]] {
        let said = place.output(arguments);
        assert_eq!((code(&said), text(&said.stderr).contains("s3cret")), (64, false), "{}", text(&said.stderr));
    }
}

#[test]
fn a_taken_lock_is_a_conflict() {
    let place = Place::new();
    let holder = place.run(&["--lock", "a"], "echo > held; while [ ! -e go ]; do sleep 0.02; done; exit 3");
    place.said("held");
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--no-wait", "true"])), 1);
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--wait", "50ms", "-E", "42", "true"])), 42);
    assert_eq!(code(&place.output(&["run", "--lock", "other", "--no-wait", "true"])), 0);
    let waiting = place.run(&["--lock", "a", "--wait", "60s"], "echo $POLYLOCK_FENCING_TOKEN > second");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!place.directory.join("second").exists(), "two at one time");
    std::fs::write(place.directory.join("go"), "").unwrap();
    assert_eq!(holder.ended().0, 3);
    assert_eq!(waiting.ended().0, 0);
    assert!(place.said("second").parse::<u64>().unwrap() > 0);
}

#[test]
fn the_command_has_the_token_the_name_and_standard_input() {
    let place = Place::new();
    let mut cat =
        place.command(&["run", "--lock", "a", "--", "sh", "-c", "cat; echo $POLYLOCK_LOCK $POLYLOCK_FENCING_TOKEN"]);
    let mut cat = cat.stdin(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    let output = cat.wait_with_output().unwrap();
    let said = text(&output.stdout);
    let token = said.strip_prefix("one\ntwo\na ").expect(&said);
    assert!(token.parse::<u64>().unwrap() > 0);
    // The next holder's token is greater.
    let next = text(&place.output(&["run", "-l", "a", "--", "sh", "-c", "echo $POLYLOCK_FENCING_TOKEN"]).stdout);
    assert!(next.parse::<u64>().unwrap() > token.parse().unwrap());
}

#[test]
fn the_url_may_be_anywhere_before_the_command() {
    let place = Place::new();
    for arguments in [
        &["--url", &place.url, "run", "--lock", "a", "--", "echo", "--url"][..],
        &["run", "--url", &place.url, "--lock", "a", "echo", "--url"],
    ] {
        let mut command = place.command(arguments);
        let output = command.env_remove("POLYLOCK_URL").output().unwrap();
        assert_eq!(text(&output.stdout), "--url", "{}", text(&output.stderr));
    }
    // What is said here is stronger than the environment.
    let mut there = place.command(&["ls", "--url", &place.url]);
    assert_eq!(code(&there.env("POLYLOCK_URL", "redis://127.0.0.1:1").output().unwrap()), 0);
}

#[test]
fn a_lock_that_keeps_nobody_out_is_told() {
    let output = Place::new().output(&["run", "--url", "memory:", "--lock", "a", "echo", "ran"]);
    assert_eq!((code(&output), text(&output.stdout)), (0, "ran".to_owned()));
    assert!(text(&output.stderr).contains("keep nobody out"), "{}", text(&output.stderr));
}

#[test]
fn a_pause_longer_than_the_lease_ends_the_command() {
    let Some(place) = Place::redis() else { return };
    let lock = place.name("pause");
    let running = place.run(&["--lock", &lock, "--ttl", "500ms"], "echo $$ > child; while :; do sleep 0.02; done");
    let child = place.pid("child");
    running.signal(Signal::STOP);
    // Held as far as others can tell, until the ttl is over.
    assert_eq!(code(&place.output(&["run", "--lock", &lock, "--wait", "30s", "true"])), 0);
    running.signal(Signal::CONT);
    let (status, errors) = running.ended();
    assert_eq!(status, 75, "{errors}");
    assert!(is_gone(child));
}

#[test]
fn can_be_nested() {
    let place = Place::new();
    let inner = format!("{} run --lock b --no-wait -- sh -c 'exit 5'", env!("CARGO_BIN_EXE_polylock"));
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--", "sh", "-c", &inner])), 5);
    let same = format!("{} run --lock a --no-wait true", env!("CARGO_BIN_EXE_polylock"));
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--", "sh", "-c", &same])), 1, "it is not re-entrant");
}

#[test]
fn signals_are_passed_on() {
    let place = Place::new();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::QUIT, "QUIT"),
    ] {
        let script =
            format!("trap 'echo {name} > {name}.got; exit 9' {name}; echo > {name}.up; while :; do sleep 0.02; done");
        let running = place.run(&["--lock", name], &script);
        place.said(&format!("{name}.up"));
        running.signal(signal);
        assert_eq!(running.ended().0, 9, "{name}");
        assert_eq!(place.said(&format!("{name}.got")), name);
    }
}

#[test]
fn what_it_was_started_to_ignore_stays_ignored() {
    let place = Place::new();
    let script = "trap 'exit 9' USR1; echo > up; while :; do sleep 0.02; done";
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_polylock"), "run", "--lock", "a"]);
    nohup.args(["--", "sh", "-c", script]).env("POLYLOCK_URL", &place.url).current_dir(&place.directory);
    let running = Running(nohup.stderr(Stdio::piped()).spawn().unwrap());
    place.said("up");
    running.signal(Signal::HUP);
    running.signal(Signal::USR1);
    assert_eq!(running.ended().0, 9);
}

#[test]
fn it_ends_with_the_command_though_that_signal_is_blocked() {
    let place = Place::new();
    let mut blocked = Command::new("env");
    blocked.args(["--block-signal=CHLD", env!("CARGO_BIN_EXE_polylock"), "run", "--lock", "a", "sh", "-c", "exit 5"]);
    let running = Running(blocked.env("POLYLOCK_URL", &place.url).stderr(Stdio::piped()).spawn().unwrap());
    assert_eq!(running.ended().0, 5);
}

/// The kernel keeps from process 1 what it has no handler for, as it does in a container.
#[test]
fn it_may_be_process_1() {
    let namespace = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    if !Command::new("unshare").args(namespace).arg("true").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("skip: no namespaces are to be had here");
    }
    let place = Place::new();
    let script = "trap 'exit 9' TERM; [ $PPID = 1 ] && kill -TERM 1; while :; do sleep 0.02; done";
    let mut contained = Command::new("unshare");
    contained.args(namespace).args([env!("CARGO_BIN_EXE_polylock"), "run", "--lock", "a", "sh", "-c", script]);
    let running = Running(contained.env("POLYLOCK_URL", &place.url).stderr(Stdio::piped()).spawn().unwrap());
    assert_eq!(running.ended().0, 9);
}

#[test]
fn nobody_has_to_read_what_it_says() {
    let place = Place::new();
    for arguments in [vec!["ls"], vec!["doctor"], vec!["show", "a"], vec!["--help"]] {
        let mut command = place.command(&arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        assert_eq!(code(&output), i32::from(arguments[0] == "show"), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_written_is_no_success() {
    let place = Place::new();
    for arguments in [&["ls"][..], &["ls", "--limit", "1"], &["show", "a"], &["watch", "--count", "1"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = place.command(arguments).stdout(full).output().unwrap();
        assert_eq!(code(&output), 70, "{arguments:?}");
        assert!(text(&output.stderr).contains("standard output: "), "{}", text(&output.stderr));
    }
}

#[test]
fn who_watches_for_nobody_ends() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let watching = Running(place.command(&["watch", "--interval", "10ms"]).stdout(writer).spawn().unwrap());
    drop(reader);
    assert_eq!(watching.ended(), (0, String::new()));
}

/// Nor does a command outlive the lock because nobody reads that it is lost.
#[test]
fn what_nobody_reads_is_done_all_the_same() {
    let place = Place::new();
    let options = ["--lock", "a", "--ttl", "300ms", "--max-hold", "300ms", "--kill-after", "100ms", "--verbose"];
    let script = "trap '' TERM; echo $$ > child; while :; do sleep 0.02; done";
    let mut command = place.command(&[&["run"], &options[..], &["--", "sh", "-c", script]].concat());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(code(&command.stderr(writer).output().unwrap()), 75);
    assert!(is_gone(place.pid("child")));
}

#[test]
fn orphans_are_buried() {
    let place = Place::new();
    let script = "(sh -c 'echo $$ > orphan' &); while [ ! -e go ]; do sleep 0.02; done; exit 4";
    let running = place.run(&["--lock", "a"], script);
    let orphan = place.pid("orphan");
    until("the orphan is no zombie", || test_kill_process(orphan).is_err());
    std::fs::write(place.directory.join("go"), "").unwrap();
    assert_eq!(running.ended().0, 4);
}

/// Hands the bytes of one connection after the other to a server, until it is dropped with all of them.
struct Relay {
    port: u16,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
    listens: Option<JoinHandle<()>>,
}

impl Relay {
    fn to(server: &str) -> Self {
        Self::at(0, server)
    }

    fn at(port: u16, server: &str) -> Self {
        let server = server.strip_prefix("redis://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let shared = Arc::clone(&open);
        let listens = std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let mut open = shared.lock().unwrap();
                let Some(open) = &mut *open else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
                open.extend([client, server]);
            }
        });
        Self { port, open, listens: Some(listens) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for stream in self.open.lock().unwrap().take().unwrap_or_default() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // The listener ends by the next connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.listens.take().map(JoinHandle::join);
    }
}

#[test]
fn a_failed_release_leaves_the_status() {
    let Some(mut place) = Place::redis() else { return };
    let server = std::mem::take(&mut place.url);
    for status in [0, 6] {
        let relay = Relay::to(&server);
        place.url = format!("redis://127.0.0.1:{}", relay.port);
        let script = format!("echo > held; while [ ! -e go ]; do sleep 0.02; done; exit {status}");
        let running = place.run(&["--lock", &place.name(&status.to_string())], &script);
        place.said("held");
        drop(relay);
        std::fs::write(place.directory.join("go"), "").unwrap();
        let (code, errors) = running.ended();
        assert_eq!(code, status, "{errors}");
        assert!(errors.contains("by its ttl"), "{errors}");
        std::fs::remove_file(place.directory.join("go")).unwrap();
        std::fs::remove_file(place.directory.join("held")).unwrap();
    }
}

impl Running {
    /// Until it waits for the lock: it says so.
    fn waits(&mut self) {
        let mut said = Vec::new();
        let errors = self.0.stderr.as_mut().unwrap();
        let mut byte = [0];
        while errors.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            said.push(byte[0]);
        }
        assert!(text(&said).contains("waiting"), "{}", text(&said));
    }
}

#[test]
fn a_signal_ends_the_waiting() {
    let place = Place::new();
    let holder = place.run(&["--lock", "a"], "echo > held; while :; do sleep 0.02; done");
    place.said("held");
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut waiting = place.run(&["--lock", "a", "--verbose"], "echo > never");
        waiting.waits();
        waiting.signal(signal);
        assert_eq!(waiting.ended().0, status);
    }
    holder.signal(Signal::TERM);
    assert_eq!(holder.ended().0, 143);
    assert_eq!(code(&place.output(&["run", "--lock", "a", "--wait", "20s", "true"])), 0);
    assert!(!place.directory.join("never").exists());
}

#[test]
fn the_command_goes_with_a_killed_parent() {
    let place = Place::new();
    let mut running = place.run(&["--lock", "a"], "echo $$ > child; while :; do sleep 0.02; done");
    let child = place.pid("child");
    running.0.kill().unwrap();
    until("the command ends", || is_gone(child));
    running.0.wait().unwrap();
}

#[test]
fn everything_is_stopped_when_the_lease_is_lost() {
    let Some(place) = Place::redis() else { return };
    let lock = place.name("lost");
    // A shell in a shell, and an orphan that ignores SIGTERM.
    let script = "echo $$ > one; (trap '' TERM; while :; do sleep 0.05; done) & echo $! > orphan; \
                  sh -c 'echo $$ > two; while :; do sleep 0.05; done'; echo > survived";
    let running = place.run(&["--lock", &lock, "--ttl", "5s", "--kill-after", "300ms"], script);
    let processes = ["one", "two", "orphan"].map(|file| place.pid(file));
    let token = text(&place.output(&["show", "--json", &lock]).stdout);
    let token =
        token.split("\"fencing_token\":").nth(1).and_then(|rest| rest.split(',').next()).expect(&token).to_owned();
    let wrong = place.output(&["break", &lock, "--token", "1"]);
    assert_eq!((code(&wrong), processes.map(is_gone)), (1, [false; 3]));
    let broken = place.output(&["break", &lock, "--token", &token]);
    assert_eq!(code(&broken), 0, "{}", text(&broken.stderr));
    let (status, errors) = running.ended();
    assert_eq!(status, 75, "{errors}");
    assert!(errors.contains("taken"), "{errors}");
    assert_eq!(processes.map(is_gone), [true; 3]);
    assert!(!place.directory.join("survived").exists());
    assert_eq!(code(&place.output(&["show", &lock])), 1);
}

#[test]
fn a_command_that_runs_too_long_is_stopped() {
    let place = Place::new();
    let options = ["--lock", "a", "--ttl", "300ms", "--max-hold", "300ms"];
    let (status, errors) = place.run(&options, "while :; do sleep 0.02; done").ended();
    assert_eq!(status, 75);
    assert!(errors.contains("--max-hold"), "{errors}");
}

#[test]
fn shows_who_holds_what() {
    for place in [Some(Place::new()), Place::redis()].into_iter().flatten() {
        let (one, two) = (place.name("one"), place.name("two"));
        let script = "echo > held; while [ ! -e go ]; do sleep 0.02; done";
        let running = place.run(&["--lock", &one, "--label", "night shift"], script);
        place.said("held");
        let pattern = place.name("*");
        let listed = text(&place.output(&["ls", &pattern]).stdout);
        let lines: Vec<_> = listed.lines().collect();
        assert_eq!(lines.len(), 2, "{listed}");
        assert!(
            lines[0].starts_with("LOCK") && lines[1].starts_with(&one) && lines[1].contains("night shift"),
            "{listed}"
        );
        let shown = place.output(&["show", &one]);
        assert_eq!(code(&shown), 0);
        assert!(text(&shown.stdout).contains("night shift"));
        let free = place.output(&["show", &two]);
        assert_eq!((code(&free), text(&free.stdout)), (1, format!("{two}: free")));
        let watched = text(&place.output(&["watch", &pattern, "--count", "2", "--interval", "10ms"]).stdout);
        assert_eq!(watched.matches(&*one).count(), 2, "{watched}");
        let json = text(&place.output(&["ls", "--json", &pattern]).stdout);
        assert!(json.starts_with('{') && json.contains(r#""label":"night shift""#) && json.contains(&one), "{json}");
        std::fs::write(place.directory.join("go"), "").unwrap();
        assert_eq!(running.ended().0, 0);
        assert_eq!(text(&place.output(&["ls", &pattern]).stdout).lines().count(), 1);
    }
}

#[test]
fn watches_on_while_the_server_is_away() {
    let Some(mut place) = Place::redis() else { return };
    let (server, pattern) = (std::mem::take(&mut place.url), place.name("*"));
    let relay = Relay::to(&server);
    let port = relay.port;
    place.url = format!("redis://127.0.0.1:{port}");
    let mut watching = Running(place.command(&["watch", &pattern, "--interval", "10ms"]).spawn().unwrap());
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let mut comes = |start| assert!(lines.any(|line| line.unwrap().starts_with(start)), "it ended before {start:?}");
    comes("LOCK");
    drop(relay);
    comes("polylock: ");
    let _back = Relay::at(port, &server);
    comes("LOCK");
}

#[test]
fn shares_and_counts() {
    let Some(place) = Place::redis() else { return };
    let lock = place.name("shared");
    let script = "echo > $0.held; while [ ! -e go ]; do sleep 0.02; done";
    let start = |options: &[&str], word: &str| {
        let arguments = [&["run"], options, &["--", "sh", "-c", script, word]].concat();
        let running = Running(place.command(&arguments).spawn().unwrap());
        place.said(&format!("{word}.held"));
        running
    };
    let readers = [start(&["-l", &lock, "--shared"], "r1"), start(&["-l", &lock, "--shared"], "r2")];
    assert_eq!(code(&place.output(&["run", "-l", &lock, "-n", "true"])), 1);
    let permits = place.name("permits");
    let holders =
        [start(&["-l", &permits, "--permits", "2"], "p1"), start(&["-l", &permits, "--permits", "2"], "p2")];
    assert_eq!(code(&place.output(&["run", "-l", &permits, "--permits", "2", "-n", "true"])), 1);
    assert_eq!(text(&place.output(&["ls", &place.name("*")]).stdout).lines().count(), 1 + 4);
    std::fs::write(place.directory.join("go"), "").unwrap();
    for running in readers.into_iter().chain(holders) {
        assert_eq!(running.ended().0, 0);
    }
}

#[test]
fn the_doctor_looks() {
    let place = Place::new();
    let healthy = place.output(&["doctor"]);
    assert_eq!(code(&healthy), 0, "{}", text(&healthy.stdout));
    assert!(text(&healthy.stdout).contains("acquire, extend and release take"));
    for variable in
        ["POLYLOCK_TEST_REDIS", "POLYLOCK_TEST_REDLOCK", "POLYLOCK_TEST_POSTGRES", "POLYLOCK_TEST_PGBOUNCER"]
    {
        let Ok(url) = std::env::var(variable) else { continue };
        let said = place.command(&["doctor"]).env("POLYLOCK_URL", &url).output().unwrap();
        let report = text(&said.stdout);
        // The PostgreSQL of the tests runs without fsync, which it has to say.
        let wrong: Vec<_> = report.lines().filter(|line| line.starts_with("WRONG")).collect();
        let known = wrong.iter().all(|line| variable != "POLYLOCK_TEST_REDIS" && line.contains("fsync is off"));
        assert!(known, "{variable}: {report}{}", text(&said.stderr));
        assert_eq!(code(&said), i32::from(!wrong.is_empty()), "{variable}: {report}{}", text(&said.stderr));
        let finding = match variable {
            "POLYLOCK_TEST_REDIS" => "restarts (appendonly no)",
            "POLYLOCK_TEST_REDLOCK" => "on 1 host(s)",
            "POLYLOCK_TEST_PGBOUNCER" => "a pooler is in between",
            _ => "PostgreSQL ",
        };
        assert!(report.contains(finding), "{variable}: {report}");
    }
    let nowhere = place.command(&["doctor"]).env("POLYLOCK_URL", "redis://127.0.0.1:1").output().unwrap();
    assert_eq!(code(&nowhere), 1);
    assert!(text(&nowhere.stdout).contains("does not answer"));
}

#[test]
fn measures() {
    let place = Place::new();
    let output = place.output(&["bench", "--time", "50ms", "--in-flight", "4", "--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("\"pairs_per_second\":"));
}
