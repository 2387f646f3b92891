//! One connection's protocol without its socket: requests in, bytes out; bytes in, replies out.
//!
//! It knows no clock and does no I/O, so whoever is nearest to the caller can drive it, and a test can feed it
//! anything. Encoding and parsing are the redis crate's.

use std::collections::VecDeque;

use bytes::BytesMut;
use redis::{Value, ValueCodec};
use tokio::sync::oneshot;
use tokio_util::codec::Decoder;

use super::{
    batch::{self, Batches},
    call::Reply,
    request::Errand,
    round::Ticket,
    script::Name,
};
use crate::clock::Instant;

/// A server that sends more than this before a reply is complete is not a lock server.
const LONGEST_REPLY: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Link {
    output: Vec<u8>,
    written: usize,
    input: BytesMut,
    codec: ValueCodec,
    /// The codec has taken in a part of a message.
    in_part: bool,
    in_flight: VecDeque<InFlight>,
    batches: Batches,
}

struct InFlight {
    to: To,
    expires: Instant,
}

/// Whose request it is.
pub(super) enum To {
    Caller(oneshot::Sender<Reply>),
    Round(Ticket),
    /// The requests of several.
    Rounds(Vec<Ticket>),
    /// Nobody's: the server learns a script for several.
    Script,
}

/// A complete message from the server.
pub(super) enum Received {
    /// The answer to the oldest request.
    Reply(To, Value),
    /// Nobody asked for it: a published message, or a confirmation of a subscription.
    Push(Value),
}

impl Link {
    /// Queues a request whose answer goes to `to`; it should be there by `expires`.
    pub(super) fn request(&mut self, encode: impl FnOnce(&mut Vec<u8>), to: To, expires: Instant) {
        self.close_batches();
        encode(&mut self.output);
        self.in_flight.push_back(InFlight { to, expires });
    }

    /// Queues what a ticket is for, which may be put together with what is queued next.
    pub(super) fn ticket(&mut self, ticket: Ticket, errand: &Errand, server_time: i64) {
        for _ in 0..self.batches.teach(self.in_flight.len(), &mut self.output) {
            self.in_flight.push_back(InFlight { to: To::Script, expires: errand.expires });
        }
        // What frees goes out first: not before what may grant it.
        if errand.attempt().is_none() && self.batches.has_claim_of(errand) {
            self.close_batches();
        }
        if let Err(ticket) = self.batches.join(ticket, errand, server_time) {
            let encode = |output: &mut Vec<u8>| errand.encode(Name::Sha, server_time, output);
            self.request(encode, To::Round(ticket), errand.expires);
        }
    }

    /// The server is one, so that it can be asked for several things at once.
    pub(super) fn is_to_one_server(&mut self) {
        self.batches.fit();
    }

    /// Queues a request that is answered by pushes.
    pub(super) fn command(&mut self, request: &[u8]) {
        self.output.extend_from_slice(request);
    }

    /// Nothing more is put together with what is queued.
    pub(super) fn close_batches(&mut self) {
        let in_flight = &mut self.in_flight;
        self.batches.write(&mut self.output, |to, expires| in_flight.push_back(InFlight { to, expires }));
    }

    /// What is to be written, without what may be put together yet.
    pub(super) fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// How much there is to write.
    pub(super) fn queued(&self) -> usize {
        self.output().len() + self.batches.len()
    }

    /// So many bytes of the output have been written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
    }

    /// Nothing is on its way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.queued() == 0
    }

    /// Takes bytes that came; messages that are complete go to `received`.
    pub(super) fn receive(&mut self, bytes: &[u8], received: &mut Vec<Received>) -> Result<(), String> {
        let mut bytes = bytes;
        while !self.in_part
            && let Some((value, length)) = plain(bytes)
            && let Some(request) = self.in_flight.pop_front()
        {
            self.hand(request.to, value, received);
            bytes = &bytes[length..];
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.input.extend_from_slice(bytes);
        self.in_part = true;
        while self.in_part {
            match self.codec.decode(&mut self.input) {
                Ok(Some(value)) => {
                    let request = if matches!(value, Value::Push { .. }) { None } else { self.in_flight.pop_front() };
                    match request {
                        Some(request) => self.hand(request.to, value, received),
                        None => received.push(Received::Push(value)),
                    }
                    self.in_part = !self.input.is_empty();
                    if !self.in_part {
                        // Not kept: of one that is used up nothing points to its memory, which is a leak to those who look for one.
                        self.input = BytesMut::new();
                    }
                }
                Ok(None) if self.input.len() > LONGEST_REPLY => return Err("an endless reply".into()),
                Ok(None) => return Ok(()),
                Err(error) => {
                    let why = error.to_string();
                    return Err(format!("not the Redis protocol: {}", why.lines().next().unwrap_or_default()));
                }
            }
        }
        Ok(())
    }

    /// Hands an answer to `received`, unless it is for the link alone.
    fn hand(&mut self, to: To, value: Value, received: &mut Vec<Received>) {
        match &to {
            To::Script => return self.batches.taught(&value),
            To::Rounds(_) => self.batches.answered(&value),
            To::Caller(_) | To::Round(_) => {}
        }
        received.push(Received::Reply(to, value));
    }

    /// When the first answer is due.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.in_flight.iter().map(|request| request.expires).chain(self.batches.next_expiry()).min()
    }

    /// The connection is gone: everything that is on its way.
    pub(super) fn fail(&mut self) -> impl Iterator<Item = To> + use<> {
        let in_flight = std::mem::take(&mut self.in_flight).into_iter().map(|request| request.to);
        in_flight.chain(self.batches.clear())
    }
}

impl Received {
    /// How many waited for it.
    pub(super) fn answers(&self) -> usize {
        match self {
            Self::Reply(To::Rounds(tickets), _) => tickets.len(),
            _ => 1,
        }
    }
}

impl To {
    /// Hands over what came of the request, from the server that errors call `peer`.
    pub(super) fn reply(self, peer: &str, reply: Reply) {
        match self {
            Self::Caller(caller) => drop(caller.send(reply)),
            Self::Round(ticket) => ticket.reply(reply),
            Self::Rounds(tickets) => batch::hand_out(tickets, peer, reply),
            Self::Script => {}
        }
    }
}

/// The message that `bytes` begin with, and its length, if it is an integer or an array of these: what nearly every answer is,
/// without the parser for all.
fn plain(bytes: &[u8]) -> Option<(Value, usize)> {
    if let Some((number, length)) = integer(b':', bytes) {
        return Some((Value::Int(number), length));
    }
    let (count, mut length) = integer(b'*', bytes)?;
    let count = usize::try_from(count).ok()?;
    let mut numbers = Vec::with_capacity(count.min(bytes.len()));
    for _ in 0..count {
        let (number, after) = integer(b':', &bytes[length..])?;
        numbers.push(Value::Int(number));
        length += after;
    }
    Some((Value::Array(numbers), length))
}

/// The number that stands behind `mark`, and the length of both.
fn integer(mark: u8, bytes: &[u8]) -> Option<(i64, usize)> {
    const LONGEST: usize = 20;
    let digits = bytes.strip_prefix(&[mark])?;
    let length = digits.iter().take(LONGEST).position(|byte| *byte == b'\r')?;
    (digits.get(length + 1) == Some(&b'\n')).then_some(())?;
    let number = std::str::from_utf8(&digits[..length]).ok()?.parse().ok()?;
    Some((number, length + 3))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::{
        ErrorKind, Resource,
        backend::{
            Claim,
            redis::{
                call::CallError,
                keys::Keys,
                request::{Request, tests::claim},
                round::Answers,
            },
        },
        engine::driver::Driver,
    };

    fn receive(link: &mut Link, bytes: &[u8]) -> Result<Vec<Received>, String> {
        let mut received = Vec::new();
        link.receive(bytes, &mut received).map(|()| received)
    }

    #[test]
    fn matches_replies_in_order_however_the_bytes_are_cut() {
        let stream = b":1\r\n$2\r\nab\r\n*2\r\n:1\r\n:-1\r\n:-7\r\n";
        for cut in 0..stream.len() {
            let mut link = Link::default();
            let mut replies = Vec::new();
            for _ in 0..4 {
                let (reply, receiver) = oneshot::channel();
                link.request(|output| output.push(b'x'), To::Caller(reply), Instant::now());
                replies.push(receiver);
            }
            let (one, two) = stream.split_at(cut);
            for received in receive(&mut link, one).unwrap().into_iter().chain(receive(&mut link, two).unwrap()) {
                let Received::Reply(reply, value) = received else { panic!("a push") };
                reply.reply("peer", Ok(value));
            }
            let values: Vec<_> = replies.iter_mut().map(|reply| reply.try_recv().unwrap().unwrap()).collect();
            assert_eq!(values[0], Value::Int(1));
            assert_eq!(values[1], Value::BulkString(b"ab".to_vec()));
            assert_eq!(values[2], Value::Array(vec![Value::Int(1), Value::Int(-1)]));
            assert_eq!(values[3], Value::Int(-7));
        }
    }

    #[test]
    fn keeps_count_of_what_was_written() {
        let mut link = Link::default();
        link.command(b"abc");
        link.wrote(2);
        assert_eq!(link.output(), b"c");
        link.command(b"d");
        assert_eq!(link.output(), b"cd");
        link.wrote(2);
        assert!(link.is_idle());
    }

    #[test]
    fn refuses_garbage_and_endless_replies() {
        assert!(receive(&mut Link::default(), b"HTTP/1.1 400 Bad Request\r\n\r\n").is_err());
        let mut endless = vec![b'$'];
        endless.extend_from_slice(b"9999999\r\n");
        endless.resize(LONGEST_REPLY + 100, b'x');
        assert!(receive(&mut Link::default(), &endless).is_err());
    }

    #[test]
    fn what_nobody_asked_for_is_a_push() {
        let received = receive(&mut Link::default(), b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$0\r\n\r\n").unwrap();
        assert!(matches!(received[..], [Received::Push(Value::Array(_))]));
    }

    /// A link with so many tickets that the scripts are worth it, whose server has just answered `1` to each.
    fn crowded() -> Link {
        let mut link = Link::default();
        link.is_to_one_server();
        for _ in 0..5 {
            queue(&mut link, &Request::inspect("", &Resource::new("r").unwrap(), Instant::now()));
        }
        link.wrote(link.output().len());
        let received = receive(&mut link, b":1\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n:1\r\n").unwrap();
        assert!(received.len() == 5 && link.is_idle());
        link
    }

    fn queue(link: &mut Link, request: &Arc<Request>) -> Answers {
        let mut answers = Answers::none(request, &Driver::engine());
        link.ticket(answers.ticket(0), &request.to(0), 1_234);
        answers
    }

    #[test]
    fn what_frees_goes_first_but_not_before_what_may_grant_it() {
        for own in [false, true] {
            let (mut link, one, two) = (crowded(), claim(), claim());
            let (freed, now) = (if own { &one } else { &two }, Instant::now());
            let _taking = queue(&mut link, &Request::acquire(&Keys::of("", &one.resources), &one, None, now));
            let _freeing = queue(&mut link, &Request::release(&Keys::of("", &freed.resources), freed, now));
            assert!(link.queued() > 0 && !link.is_idle());
            link.close_batches();
            let output = String::from_utf8(link.output().to_vec()).unwrap();
            let (takes, frees) = (output.find("polylock:fence:"), output.find("polylock:wake:"));
            assert!(takes.is_some() && frees.is_some() && (takes < frees) == own, "{output}");
        }
    }

    #[test]
    fn several_are_one_request_and_whatever_else_is_asked_comes_after_them() {
        let (mut link, claims, now) = (crowded(), [(); 3].map(|()| claim()), Instant::now());
        let acquire = |claim: &Claim| Request::acquire(&Keys::of("", &claim.resources), claim, None, now);
        let mut taking: Vec<_> = claims.iter().map(|claim| queue(&mut link, &acquire(claim))).collect();
        let (caller, _answer) = oneshot::channel();
        link.request(|output| output.extend_from_slice(b"*1\r\n$4\r\nPING\r\n"), To::Caller(caller), now);
        let output = String::from_utf8(link.output().to_vec()).unwrap();
        assert_eq!(output.matches("EVALSHA").count(), 1, "{output}");
        assert!(output.starts_with("*30\r\n") && output.ends_with("PING\r\n"), "{output}");
        // One is granted, one busy, one refused by what it met.
        let answer = b"*3\r\n:7\r\n*2\r\n:0\r\n:9\r\n-WRONGTYPE the fence\r\n+PONG\r\n";
        for received in receive(&mut link, answer).unwrap() {
            let Received::Reply(to, value) = received else { panic!("a push") };
            to.reply("peer", CallError::check("peer", value));
        }
        let mut answer = |index: usize| taking[index].next().now_or_never().expect("an answer").1;
        assert_eq!(answer(0).unwrap().value, Value::Int(7));
        assert_eq!(answer(1).unwrap().value, Value::Array(vec![Value::Int(0), Value::Int(9)]));
        assert_eq!(answer(2).err().unwrap().into_error().kind(), ErrorKind::Conflict);
        // What is lost with the connection is lost for each; so is what was not written yet.
        let _written = queue(&mut link, &acquire(&claims[0]));
        link.close_batches();
        let _unwritten = queue(&mut link, &acquire(&claims[1]));
        assert_eq!(link.next_expiry(), Some(now));
        assert_eq!(link.fail().count(), 2);
        assert!(link.next_expiry().is_none());
    }
}
