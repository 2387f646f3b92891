//! What is asked of a server: a script, its keys and its arguments.

use std::{
    future::Future,
    ops::{Deref, Range},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;

use super::{
    call::{CallError, Reply},
    holder,
    keys::{Keys, Side},
    restart::Run,
    round::Ticket,
    script::{self, Name, Script, Words},
};
use crate::{
    Mode, Resource,
    backend::{Claim, Progress, Turn},
    clock::{self, Instant},
    engine::driver::Driver,
    metrics::{NodeStats, Sample},
    mutant::mutant,
};

/// The fence outlives its last use by this at least: long against any ttl, and against clocks that are set back.
const FENCE_OUTLIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// One server, as the algorithm sees it.
pub(super) trait Server: Send + Sync {
    /// What errors call it.
    fn name(&self) -> &str;

    /// The run that it is in, as far as is known.
    fn known_run(&self) -> Option<Run>;

    /// Whether any of the servers that it leads to, as far as they are known, is in a run like this.
    fn any_run(&self, like: &mut dyn FnMut(Run) -> bool) -> bool {
        self.known_run().is_some_and(like)
    }

    /// What has become of the requests to it.
    fn stats(&self) -> &NodeStats;

    /// Runs a script there, on the connection that `driver` drives.
    fn run(self: Arc<Self>, request: Errand, driver: Driver) -> BoxFuture<'static, Answer>;

    /// Sends what a ticket is for; the answer goes to the ticket. For what is not done by that there is a future.
    fn send(self: Arc<Self>, ticket: Ticket) -> Option<BoxFuture<'static, ()>> {
        let answer = self.run(ticket.errand(), ticket.driver().clone());
        Some(async move { ticket.answer(answer.await) }.boxed())
    }

    /// The server's clock shows `now_ms`, whatever it showed when it was last looked at. Answers by how many ms it was set forward.
    fn set_clock(&self, driver: &Driver, now_ms: i64) -> i64;

    /// What it knew may have ended before its time: it counts as restarted.
    fn forgot(&self) {}

    /// Sends one plain command, once.
    fn command(self: Arc<Self>, command: redis::Cmd, driver: Driver, expires: Instant) -> BoxFuture<'static, Reply>;

    /// The servers that it consists of.
    fn parts(self: Arc<Self>, expires: Instant) -> BoxFuture<'static, Result<Vec<Arc<dyn Server>>, CallError>>;

    /// Reads what has come on connections whose driver may be away.
    fn look(&self) {}

    /// Lets go of connections; there will be no others.
    fn close(&self);

    /// Whether it was closed.
    fn is_closed(&self) -> bool;
}

/// What became of a request.
pub(super) type Answer = Result<Answered, CallError>;

/// What a script answered.
pub(super) struct Answered {
    pub(super) value: Value,
    /// It was sent more than once: an earlier request may have been carried out before this one, or may yet be.
    pub(super) repeated: bool,
}

/// The answer, once it is there, counted.
pub(super) async fn counted(stats: &NodeStats, answer: impl Future<Output = Answer>) -> Answer {
    let sample = stats.ask();
    let answer = answer.await;
    count(stats, sample, &answer);
    answer
}

/// Counts an answer.
pub(super) fn count(stats: &NodeStats, sample: Sample, answer: &Answer) {
    match answer {
        Ok(Answered { repeated: false, .. }) | Err(CallError::Refused(_) | CallError::BrokenOff(_)) => {
            stats.answered(sample);
        }
        Ok(_) => stats.answered(Sample::default()),
        Err(_) => stats.unanswered(),
    }
}

/// A script to run, encoded once for all servers.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) script: &'static Script,
    /// Keys and arguments.
    words: Words,
    /// How many of them are keys.
    keys: usize,
    /// Where in `words` the first key stands.
    first_key: Range<usize>,
    /// Where in `words` the arguments begin.
    args_at: usize,
    /// Where in `words` the time stands, in digits, at which the request expires by the server's clock, in ms.
    not_after: Option<usize>,
    /// No answer is waited for after this.
    pub(super) expires: Instant,
    progress: Arc<Progress>,
}

/// A request on its way to one of the servers that are asked.
#[derive(Clone)]
pub(super) struct Errand {
    request: Arc<Request>,
    /// Which of the backend's servers that is.
    server: usize,
}

impl Deref for Errand {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

/// Digits of a time, and of a fencing token.
const DIGITS: usize = 16;

/// How a lock with several holders is kept: what stands before the owner token, and how many may hold (0: any
/// number).
fn sharing(mode: Mode) -> Option<(&'static str, u32)> {
    match mode {
        Mode::Exclusive => None,
        Mode::Shared => Some(("shared:", 0)),
        Mode::Permit { of } => Some(("permit:", of)),
    }
}

impl Request {
    fn new(script: &'static Script, keys: Keys, sides: &[Side], progress: &Arc<Progress>, expires: Instant) -> Self {
        let mut words = Words { bytes: Vec::with_capacity(512), count: 0 };
        let mut first_key = 0..0;
        for key in keys.each() {
            words.push(&[key.lock()]);
            if first_key.is_empty() {
                let end = words.bytes.len() - 2;
                first_key = end - key.lock().len()..end;
            }
        }
        for side in sides {
            for key in keys.each() {
                words.push(&key.parts(*side));
            }
        }
        let (keys, args_at) = (words.count, words.bytes.len());
        Self { script, words, keys, first_key, args_at, not_after: None, expires, progress: Arc::clone(progress) }
    }

    fn word(mut self, word: &str) -> Self {
        self.words.push(&[word]);
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.words.number(number);
        self
    }

    fn not_after(mut self) -> Self {
        self.words.push(&["0000000000000000"]);
        self.not_after = Some(self.words.bytes.len() - DIGITS - 2);
        self
    }

    /// Takes the locks. Permits are numbered if there is a number to begin with.
    pub(super) fn acquire(keys: &Keys, claim: &Claim, number: Option<u32>, expires: Instant) -> Arc<Self> {
        let (script, sides) = match (sharing(claim.mode), keys.len(), &claim.turn) {
            (None, 1, None) => (&script::ACQUIRE, &[Side::Fence, Side::Writer][..]),
            (None, 1, Some(_)) => {
                (&script::ACQUIRE_IN_TURN, &[Side::Fence, Side::Writer, Side::Queue, Side::QueueUntil][..])
            }
            (None, ..) => (&script::ACQUIRE_ALL, &[Side::Fence][..]),
            (Some(_), ..) if number.is_some() => (&script::SHARE, &[Side::Fence, Side::Writer, Side::Permits][..]),
            (Some(_), ..) => (&script::SHARE, &[Side::Fence, Side::Writer][..]),
        };
        let mut proposed = [b'0'; DIGITS];
        let proposed = digits(&mut proposed, clock::unix_micros());
        let mut request = Self::new(script, *keys, sides, &claim.progress, expires)
            .word(claim.owner.as_str())
            .number(millis(claim.ttl))
            .word(proposed)
            .not_after();
        let record = holder::record(claim.label.as_deref());
        request.words.push(&[proposed, " ", claim.owner.as_str(), " ", &record]);
        request = request.number(millis(outlives(claim.ttl)));
        if let Some((kind, limit)) = sharing(claim.mode) {
            request = request.word(kind).number(limit.into());
            if let Some(number) = number {
                request = request.number(number.into());
            }
        } else if let (1, Some(turn)) = (keys.len(), &claim.turn) {
            let remember = if claim.waits { Turn::STAYS } else { Duration::ZERO };
            let waited = u64::try_from(turn.waited.as_micros()).unwrap_or(u64::MAX);
            request = request
                .word(turn.number.as_str())
                .number(waited)
                .number(millis(remember))
                .number(turn.insists.into());
        }
        Arc::new(request)
    }

    /// Writes the token back where the locks are held.
    pub(super) fn raise(keys: &Keys, claim: &Claim, token: u64, expires: Instant) -> Arc<Self> {
        let kind = sharing(claim.mode).map_or("", |(kind, _)| kind);
        let mut request = Self::new(&script::RAISE, *keys, &[Side::Fence], &claim.progress, expires);
        request.words.push(&[kind, claim.owner.as_str()]);
        let request = request.word(digits(&mut [b'0'; DIGITS], token)).number(millis(outlives(claim.ttl)));
        Arc::new(request)
    }

    /// Lets the locks live on.
    pub(super) fn extend(keys: &Keys, claim: &Claim, ttl: Duration, expires: Instant) -> Arc<Self> {
        let (script, kind) = match sharing(claim.mode) {
            None => (&script::EXTEND, None),
            Some((kind, _)) => (&script::SHARE_EXTEND, Some(kind)),
        };
        let permit = claim.progress.permit.get();
        let sides = if permit.is_some() { &[Side::Permits][..] } else { &[] };
        let mut request = Self::new(script, *keys, sides, &claim.progress, expires);
        request = request.word(claim.owner.as_str()).number(millis(ttl));
        if let Some(kind) = kind {
            request = request.word(kind);
        }
        if let Some(number) = permit {
            request = request.number((*number).into());
        }
        Arc::new(request)
    }

    /// Lets the locks of `owner` live on, whoever that is.
    pub(super) fn extend_for(keys: &Keys, owner: &str, ttl: Duration, expires: Instant) -> Arc<Self> {
        let request = Self::new(&script::EXTEND, *keys, &[], &Arc::default(), expires);
        Arc::new(request.word(owner).number(millis(ttl)))
    }

    /// Puts the locks back on a server that lost them.
    pub(super) fn repair(keys: &Keys, claim: &Claim, token: u64, ttl: Duration, expires: Instant) -> Arc<Self> {
        let request = Self::new(&script::REPAIR, *keys, &[Side::Fence], &claim.progress, expires)
            .word(claim.owner.as_str())
            .number(millis(ttl))
            .word(digits(&mut [b'0'; DIGITS], token))
            .not_after()
            .number(millis(outlives(ttl)));
        Arc::new(request)
    }

    /// Frees the locks.
    pub(super) fn release(keys: &Keys, claim: &Claim, expires: Instant) -> Arc<Self> {
        let (script, kind) = match sharing(claim.mode) {
            None => (&script::RELEASE, None),
            Some((kind, _)) => (&script::SHARE_RELEASE, Some(kind)),
        };
        let sides = if matches!(claim.mode, Mode::Permit { .. }) { &[Side::Permits][..] } else { &[] };
        let request = Self::new(script, *keys, sides, &claim.progress, expires).word(claim.owner.as_str());
        let request = match (kind, claim.progress.permit.get()) {
            (None, _) => request,
            (Some(kind), None) => request.word(kind).word(""),
            (Some(kind), Some(number)) => request.word(kind).number((*number).into()),
        };
        Arc::new(request.channels(keys))
    }

    /// Gives up a place in the line.
    pub(super) fn leave(prefix: &str, resource: &Resource, turn: &Turn, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let sides = [Side::Queue, Side::QueueUntil];
        let request = Self::new(&script::LEAVE, keys, &sides, &Arc::default(), expires).word(turn.number.as_str());
        Arc::new(request.channels(&keys))
    }

    /// Looks at a lock.
    pub(super) fn inspect(prefix: &str, resource: &Resource, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let request = Self::new(&script::INSPECT, keys, &[Side::Fence], &Arc::default(), expires);
        Arc::new(request.channels(&keys))
    }

    /// Takes a lock away from `owner`.
    pub(super) fn break_lock(prefix: &str, resource: &Resource, owner: &str, expires: Instant) -> Arc<Self> {
        let keys = Keys::of(prefix, std::slice::from_ref(resource));
        let request = Self::new(&script::BREAK, keys, &[], &Arc::default(), expires).word(owner);
        Arc::new(request.channels(&keys))
    }

    /// Whether `answer` says that something was granted, or goes on.
    pub(super) fn is_granted(&self, answer: &Value) -> bool {
        let grants = [
            &script::ACQUIRE,
            &script::ACQUIRE_IN_TURN,
            &script::ACQUIRE_ALL,
            &script::SHARE,
            &script::EXTEND,
            &script::SHARE_EXTEND,
        ];
        let granted = match answer {
            Value::Int(number) => *number > 0,
            Value::Array(parts) => parts.first() == Some(&Value::Int(1)),
            _ => false,
        };
        granted && grants.iter().any(|script| std::ptr::eq(*script, self.script))
    }

    /// The first of its keys.
    pub(super) fn first_key(&self) -> &str {
        std::str::from_utf8(&self.words.bytes[self.first_key.clone()]).unwrap_or_default()
    }

    /// Where those who wait are woken.
    fn channels(mut self, keys: &Keys) -> Self {
        for key in keys.each() {
            self.words.push(&key.parts(Side::Wake));
        }
        for signal in keys.signals() {
            self.words.push(&[&signal]);
        }
        self
    }

    /// The same with more time.
    pub(super) fn until(&self, expires: Instant) -> Arc<Self> {
        Arc::new(Self { expires, ..self.clone() })
    }

    /// The claim's, if this may grant it.
    pub(super) fn attempt(&self) -> Option<&Progress> {
        self.not_after.is_some().then_some(&*self.progress)
    }

    /// It, to be sent to the backend's server of this index.
    pub(super) fn to(self: &Arc<Self>, server: usize) -> Errand {
        Errand { request: Arc::clone(self), server }
    }
}

impl Errand {
    /// Appends it to `output` for a server whose clock shows `server_time` when it expires. A claim that is over must
    /// not be granted anywhere any more: its time is up.
    ///
    /// Here it becomes bytes, or by the two below among others, and `output` is what a connection that is open has to write. What
    /// waits for a connection, or for its turn, is the errand. So it counts as sent from here on, whatever comes of the bytes, and
    /// certainly was not sent before; see [`Progress::sends`].
    pub(super) fn encode(&self, name: Name, server_time: i64, output: &mut Vec<u8>) {
        let (keys, args) = self.shape();
        self.script.begin(name, keys, args, output);
        self.encode_keys(output);
        self.encode_args(server_time, output);
    }

    /// How many keys and arguments it has.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.keys, self.words.count - self.keys)
    }

    /// How many bytes these are.
    pub(super) fn len(&self) -> usize {
        self.words.bytes.len()
    }

    /// The keys alone, as words.
    pub(super) fn encode_keys(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.words.bytes[..self.args_at]);
    }

    /// The arguments alone, as words.
    pub(super) fn encode_args(&self, server_time: i64, output: &mut Vec<u8>) {
        let start = output.len();
        output.extend_from_slice(&self.words.bytes[self.args_at..]);
        if let Some(at) = self.not_after
            && let Some(place) = output[start + at - self.args_at..].first_chunk_mut()
        {
            let not_after = match self.progress.sends(self.server) {
                _ if mutant!("D15") => i64::MAX,
                false => 0,
                true => server_time,
            };
            write_digits(place, u64::try_from(not_after).unwrap_or(0));
        }
    }

    /// It is tried again, though this went wrong. What may have been granted, and is freed, does not tell of what is sent then.
    pub(super) fn meets(&self, trouble: &CallError) {
        self.progress.meets(trouble.clone().into_error());
        if trouble.is_ambiguous()
            && let Some(progress) = self.attempt()
        {
            progress.doubt(self.server);
        }
    }

    /// Whether both are of one claim.
    pub(super) fn is_of_the_claim_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }

    /// Keys and arguments, for a server that is simulated.
    #[cfg(test)]
    pub(super) fn keys_and_args(&self, server_time: i64) -> (Vec<String>, Vec<String>) {
        let mut encoded = Vec::new();
        self.encode(Name::Sha, server_time, &mut encoded);
        let text = String::from_utf8(encoded).unwrap();
        let (_, mut rest) = text.split_once("\r\n").unwrap();
        let mut words = Vec::new();
        while let Some((length, after)) = rest.split_once("\r\n") {
            let length: usize = length[1..].parse().unwrap();
            words.push(after[..length].to_owned());
            rest = &after[length + 2..];
        }
        let keys: usize = words[2].parse().unwrap();
        let args = words.split_off(3 + keys);
        (words.split_off(3), args)
    }
}

/// Writes `number` with leading zeros; what does not fit becomes the largest that does.
fn write_digits(place: &mut [u8; DIGITS], number: u64) {
    let mut rest = number.min(10_u64.pow(DIGITS as u32) - 1);
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// As [`write_digits`], as text.
fn digits(place: &mut [u8; DIGITS], number: u64) -> &str {
    write_digits(place, number);
    std::str::from_utf8(place).unwrap_or_default()
}

/// How long the fence of a lock with this ttl outlives it.
fn outlives(ttl: Duration) -> Duration {
    FENCE_OUTLIVES.max(ttl.saturating_mul(2))
}

/// Redis counts whole milliseconds; rounding up keeps the lock at least as long as its holder thinks.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::OwnerToken;

    pub(in super::super) fn claim() -> Claim {
        Claim {
            resources: Arc::new([Resource::new("r").unwrap()]),
            mode: Mode::Exclusive,
            owner: OwnerToken::draw().unwrap(),
            ttl: Duration::from_micros(1_500),
            label: Some("l".into()),
            turn: None,
            waits: true,
            thorough: false,
            gives_back: false,
            progress: Arc::default(),
        }
    }

    #[test]
    fn a_request_is_encoded_once_and_the_time_is_each_servers() {
        let claim = claim();
        let request = Request::acquire(&Keys::of("p:", &claim.resources), &claim, None, Instant::now());
        let (keys, args) = request.to(0).keys_and_args(1_234);
        assert_eq!(keys, ["p:r", "polylock:fence:{p:r}", "polylock:writer:{p:r}"]);
        assert_eq!(request.first_key(), "p:r");
        let (token, fence) = args[4].split_once(' ').unwrap();
        assert_eq!((&args[0][..], &args[1][..], &args[3][..]), (claim.owner.as_str(), "2", "0000000000001234"));
        assert_eq!((token, token.len()), (&args[2][..], DIGITS));
        assert!(fence.starts_with(claim.owner.as_str()) && fence.ends_with("\nl"));
        assert_eq!(request.until(Instant::now()).to(0).keys_and_args(7).1[3], "0000000000000007");
        claim.progress.give_up();
        assert_eq!(request.to(0).keys_and_args(1_234).1[3], "0000000000000000");
    }

    #[test]
    fn only_where_something_was_sent_before_it_was_over_is_there_a_doubt() {
        let claim = claim();
        let (keys, progress) = (Keys::of("p:", &claim.resources), &claim.progress);
        let request = Request::acquire(&keys, &claim, None, Instant::now());
        progress.track();
        (0..3).for_each(|server| progress.doubt(server));
        assert!(progress.is_unsent() && progress.is_certain());
        // What cannot be granted is nothing.
        Request::release(&keys, &claim, Instant::now()).to(0).keys_and_args(1_234);
        assert!(progress.is_unsent());
        request.to(1).keys_and_args(1_234);
        progress.give_up();
        assert_eq!(request.to(2).keys_and_args(1_234).1[3], "0000000000000000");
        assert_eq!([0, 1, 2].map(|server| progress.is_in_doubt(server)), [false, true, false]);
        assert!(!progress.is_unsent() && !progress.is_certain());
        progress.resolve(1);
        assert!(!progress.is_unsent() && progress.is_certain());
    }
}
