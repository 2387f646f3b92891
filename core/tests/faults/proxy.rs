//! A proxy in front of one server that knows where a request and a reply end, and does to each what it is told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};

/// What becomes of one request and its reply.
#[derive(Clone)]
pub enum Fate {
    /// Both pass.
    Pass,
    /// The request never arrives, nor does any later one of its connection.
    Swallow,
    /// It is carried out, but its reply and all later ones of its connection never come.
    LoseReply,
    /// Its reply comes this much later.
    Delay(Duration),
    /// It is delivered when the gate opens, also if its client is gone by then.
    Hold(Arc<Gate>),
    /// It is carried out, and the connection is cut after so many bytes of the reply.
    CutReply(usize),
    /// The connection is cut after so many bytes of the request were delivered.
    CutRequest(usize),
}

/// What becomes of new connections.
#[derive(Clone, Copy, PartialEq)]
pub enum Door {
    Open,
    /// Taken and closed at once.
    Slam,
    /// Taken, and never answered.
    Blackhole,
}

type Rule = Arc<dyn Fn(&Request) -> Fate + Send + Sync>;

/// The arguments of a request.
pub type Request = [Vec<u8>];

/// Whether a request runs a script.
pub fn is_script(request: &Request) -> bool {
    matches!(&request[0][..], b"EVAL" | b"EVALSHA")
}

/// Whether a request is an attempt to take a lock: the only script whose first key's fence comes with six arguments.
pub fn is_acquire(request: &Request) -> bool {
    is_script(request) && request.len() == 3 + 3 + 6
}

pub struct Proxy {
    pub port: u16,
    plan: Arc<Mutex<Plan>>,
    task: JoinHandle<()>,
}

struct Plan {
    door: Door,
    rule: Rule,
}

impl Proxy {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("no free port");
        let own_port = listener.local_addr().expect("no address").port();
        let plan = Arc::new(Mutex::new(Plan { door: Door::Open, rule: Arc::new(|_| Fate::Pass) }));
        let task = tokio::spawn(accept(listener, port, Arc::clone(&plan)));
        Self { port: own_port, plan, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn door(&self, door: Door) {
        self.plan.lock().unwrap().door = door;
    }

    pub fn rule(&self, rule: impl Fn(&Request) -> Fate + Send + Sync + 'static) {
        self.plan.lock().unwrap().rule = Arc::new(rule);
    }

    /// From now on everything passes; what was lost stays lost, and connections that lost something stay dumb.
    pub fn heal(&self) {
        self.door(Door::Open);
        self.rule(|_| Fate::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Holds requests until it is opened.
pub struct Gate {
    open: watch::Sender<bool>,
    /// Requests that have come to it.
    pub arrived: Notify,
    /// Requests that it let through and that the server has answered since.
    pub delivered: Notify,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { open: watch::Sender::new(false), arrived: Notify::new(), delivered: Notify::new() })
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self) {
        self.arrived.notify_one();
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

async fn accept(listener: TcpListener, port: u16, plan: Arc<Mutex<Plan>>) {
    let mut blackholed = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        let door = plan.lock().unwrap().door;
        match door {
            Door::Open => drop(tokio::spawn(serve(client, port, Arc::clone(&plan)))),
            Door::Slam => {
                let _ = client.set_zero_linger();
            }
            Door::Blackhole => blackholed.push(client),
        }
    }
}

/// What the side of the replies is to do with the next one.
enum Reply {
    Fate(Fate),
    /// The connection is subscribed: replies are no longer matched with requests.
    Stream,
}

async fn serve(client: TcpStream, port: u16, plan: Arc<Mutex<Plan>>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (fates, expected) = mpsc::unbounded_channel();
    let cut = Arc::new(Notify::new());
    let replies = tokio::spawn(pass_replies(from_server, to_client, expected, Arc::clone(&cut)));
    let requests = pass_requests(from_client, to_server, &plan, fates);
    tokio::select! {
        () = requests => {}
        () = cut.notified() => {}
    }
    // The server has the end of the requests, answers what it has, and closes.
    drop(replies);
}

/// Bytes that have come, cut into messages.
struct Frames {
    from: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Frames {
    fn new(from: OwnedReadHalf) -> Self {
        Self { from, buffer: Vec::new() }
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = frame_length(&self.buffer) {
                return Some(self.buffer.drain(..length).collect());
            }
            if self.from.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

async fn pass_requests(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    plan: &Mutex<Plan>,
    fates: mpsc::UnboundedSender<Reply>,
) {
    let mut frames = Frames::new(from);
    while let Some(frame) = frames.next().await {
        let request = arguments(&frame);
        if request[0].ends_with(b"SUBSCRIBE") {
            let _ = fates.send(Reply::Stream);
            if to.write_all(&frame).await.is_err() {
                return;
            }
            continue;
        }
        let rule = Arc::clone(&plan.lock().unwrap().rule);
        let fate = rule(&request);
        match &fate {
            Fate::Swallow => return drain(frames).await,
            Fate::CutRequest(bytes) => {
                let _ = to.write_all(&frame[..*bytes]).await;
                return;
            }
            Fate::Hold(gate) => gate.pass().await,
            _ => {}
        }
        let _ = fates.send(Reply::Fate(fate));
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Reads and forgets until the client closes.
async fn drain(mut frames: Frames) {
    loop {
        frames.buffer.clear();
        if !matches!(frames.from.read_buf(&mut frames.buffer).await, Ok(1..)) {
            return;
        }
    }
}

async fn pass_replies(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut expected: mpsc::UnboundedReceiver<Reply>,
    cut: Arc<Notify>,
) {
    let mut frames = Frames::new(from);
    let mut streaming = false;
    while let Some(frame) = frames.next().await {
        let fate = match streaming {
            true => Fate::Pass,
            false => match expected.recv().await {
                Some(Reply::Fate(fate)) => fate,
                Some(Reply::Stream) | None => {
                    streaming = true;
                    Fate::Pass
                }
            },
        };
        match fate {
            Fate::LoseReply => return drain(frames).await,
            Fate::CutReply(bytes) => {
                let _ = to.write_all(&frame[..bytes.min(frame.len())]).await;
                break;
            }
            Fate::Delay(delay) => tokio::time::sleep(delay).await,
            Fate::Hold(gate) => gate.delivered.notify_one(),
            Fate::Pass | Fate::Swallow | Fate::CutRequest(_) => {}
        }
        // A client that is gone does not keep the server's later replies from being read.
        let _ = to.write_all(&frame).await;
    }
    cut.notify_one();
}

/// How long the first message in `bytes` is, if it is there as a whole.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).ok()?.parse::<i64>().ok();
    let mut length = line + 2;
    match bytes[0] {
        b'$' => {
            length += usize::try_from(number()?).map_or(0, |body| body + 2);
            (bytes.len() >= length).then_some(length)
        }
        b'*' | b'>' => {
            for _ in 0..number()?.max(0) {
                length += frame_length(&bytes[length..])?;
            }
            Some(length)
        }
        _ => Some(length),
    }
}

/// The arguments of a request, which is an array of strings.
fn arguments(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = frame;
    let mut line = || {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a whole request");
        let (line, after) = (&rest[1..end], &rest[end + 2..]);
        let number: usize = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()).expect("a number");
        let is_text = rest[0] == b'$';
        rest = after;
        if !is_text {
            return (number, Vec::new());
        }
        let text = rest[..number].to_vec();
        rest = &rest[number + 2..];
        (number, text)
    };
    let (count, _) = line();
    (0..count).map(|_| line().1).collect()
}
