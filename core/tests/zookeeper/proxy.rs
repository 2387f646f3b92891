//! A proxy that sees whole requests and answers, and cuts where it is told. Knows as much of the protocol as that needs.

use std::{
    io::{Read, Result, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use super::url;

/// What a proxy does with the connections through it.
#[derive(Default)]
pub struct Rules {
    /// The next creation of a contender is passed on, and then the connection is cut: its answer is never seen.
    pub cut_after_create: AtomicBool,
    /// Requests up to the one at which the connection is cut; 0 for none.
    pub cut_at: AtomicI64,
    /// At that one: whether it is passed on before.
    pub passes_on: AtomicBool,
    pub cuts: AtomicU64,
    /// Connections that a client gave up, or that were cut.
    pub ended: AtomicU64,
    /// Nothing is passed on, nothing is closed.
    pub silent: AtomicBool,
    /// What the server said when it opened or took up a session: id and secret.
    session: Mutex<Option<[u8; 24]>>,
    open: Mutex<Vec<TcpStream>>,
}

/// A proxy before the server; ends with the process.
pub fn proxy() -> (String, Arc<Rules>) {
    proxy_at("127.0.0.1")
}

/// At this address of ours.
pub fn proxy_at(address: &str) -> (String, Arc<Rules>) {
    let url = url();
    let (server, path) = url.trim_start_matches("zookeeper://").split_once('/').expect("no path");
    let (server, rules): (SocketAddr, _) = (server.parse().expect("no address"), Arc::new(Rules::default()));
    let listener = TcpListener::bind((address, 0)).expect("no port");
    let own = format!("zookeeper://{}/{path}", listener.local_addr().expect("no address"));
    let watched = Arc::clone(&rules);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(server) else { continue };
            let both = || (client.try_clone().expect("no clone"), server.try_clone().expect("no clone"));
            let (one, other) = both();
            watched.open.lock().unwrap().extend([one, other]);
            let (forth, back) = (Arc::clone(&watched), Arc::clone(&watched));
            let (from_client, to_server) = both();
            std::thread::spawn(move || {
                let _ = pass_requests(&forth, &from_client, &to_server);
                forth.ended.fetch_add(1, Ordering::SeqCst);
                let _ = to_server.shutdown(Shutdown::Write);
            });
            let (to_client, from_server) = both();
            std::thread::spawn(move || {
                let _ = pass_answers(&back, &from_server, &to_client);
                let _ = to_client.shutdown(Shutdown::Both);
            });
        }
    });
    (own, rules)
}

fn frame(mut from: &TcpStream) -> Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let mut frame = len.to_vec();
    frame.resize(4 + usize::try_from(i32::from_be_bytes(len)).expect("not a length"), 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn pass_requests(rules: &Rules, client: &TcpStream, mut server: &TcpStream) -> Result<()> {
    const OP_CREATE_WITH_STAT: i32 = 15;
    let mut is_greeting = true;
    loop {
        let request = frame(client)?;
        if rules.silent.load(Ordering::SeqCst) {
            continue;
        }
        if std::mem::take(&mut is_greeting) {
            server.write_all(&request)?;
            continue;
        }
        let op = i32::from_be_bytes(request[8..12].try_into().unwrap());
        let is_it = rules.cut_at.load(Ordering::SeqCst) > 0 && rules.cut_at.fetch_sub(1, Ordering::SeqCst) == 1;
        let is_create = op == OP_CREATE_WITH_STAT && rules.cut_after_create.swap(false, Ordering::SeqCst);
        if is_it || is_create {
            // The client sees the end, and no answer.
            client.shutdown(Shutdown::Both)?;
            rules.cuts.fetch_add(1, Ordering::SeqCst);
            return if is_create || rules.passes_on.load(Ordering::SeqCst) {
                server.write_all(&request)
            } else {
                Ok(())
            };
        }
        server.write_all(&request)?;
    }
}

fn pass_answers(rules: &Rules, server: &TcpStream, mut client: &TcpStream) -> Result<()> {
    let mut is_greeting = true;
    loop {
        let answer = frame(server)?;
        if std::mem::take(&mut is_greeting) {
            // Behind the length: version, timeout, id, the length of the secret, the secret.
            let session = [&answer[12..20], &answer[24..40]].concat();
            *rules.session.lock().unwrap() = session.try_into().ok();
        }
        if !rules.silent.load(Ordering::SeqCst) {
            client.write_all(&answer)?;
        }
    }
}

impl Rules {
    pub fn cut_all(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends the session that was opened last, as whoever knows its id and secret can.
    pub fn kill_session(&self) {
        const CLOSE: [u8; 12] = [0, 0, 0, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf5];
        let session = self.session.lock().unwrap().expect("no session");
        let (id, secret) = session.split_at(8);
        let server = url().trim_start_matches("zookeeper://").split_once('/').expect("no path").0.to_owned();
        let mut server = TcpStream::connect(server).expect("no server");
        // Version, last transaction, timeout in ms, id, secret behind its length, not read-only.
        let greeting = [&[0; 12], &2000_i32.to_be_bytes()[..], id, &16_i32.to_be_bytes(), secret, &[0]].concat();
        server.write_all(&i32::try_from(greeting.len()).unwrap().to_be_bytes()).unwrap();
        server.write_all(&greeting).unwrap();
        frame(&server).expect("not greeted");
        server.write_all(&CLOSE).unwrap();
        frame(&server).expect("not closed");
    }
}
