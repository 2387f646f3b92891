//! One connection's protocol without its socket: requests in, bytes out; bytes in, replies out.
//!
//! It knows no clock and does no I/O, so whoever is nearest to the caller can drive it, and a test can feed it
//! anything. Encoding and parsing are the redis crate's.

use std::collections::VecDeque;

use bytes::BytesMut;
use redis::{Value, ValueCodec};
use tokio::sync::oneshot;
use tokio_util::codec::Decoder;

use super::{call::Reply, round::Ticket};
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
}

struct InFlight {
    to: To,
    expires: Instant,
}

/// Whose request it is.
pub(super) enum To {
    Caller(oneshot::Sender<Reply>),
    Round(Ticket),
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
        encode(&mut self.output);
        self.in_flight.push_back(InFlight { to, expires });
    }

    /// Queues a request that is answered by pushes.
    pub(super) fn command(&mut self, request: &[u8]) {
        self.output.extend_from_slice(request);
    }

    /// What is to be written.
    pub(super) fn output(&self) -> &[u8] {
        &self.output[self.written..]
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
        self.in_flight.is_empty() && self.output().is_empty()
    }

    /// Takes bytes that came; messages that are complete go to `received`.
    pub(super) fn receive(&mut self, bytes: &[u8], received: &mut Vec<Received>) -> Result<(), String> {
        let mut bytes = bytes;
        while !self.in_part
            && let Some((number, length)) = integer(bytes)
            && let Some(request) = self.in_flight.pop_front()
        {
            received.push(Received::Reply(request.to, Value::Int(number)));
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
                    received.push(match request {
                        Some(request) => Received::Reply(request.to, value),
                        None => Received::Push(value),
                    });
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

    /// When the first answer is due.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.in_flight.iter().map(|request| request.expires).min()
    }

    /// The connection is gone: everything that is on its way.
    pub(super) fn fail(&mut self) -> impl Iterator<Item = To> + use<> {
        std::mem::take(&mut self.in_flight).into_iter().map(|request| request.to)
    }
}

impl To {
    /// Hands over what came of the request.
    pub(super) fn reply(self, reply: Reply) {
        match self {
            Self::Caller(caller) => drop(caller.send(reply)),
            Self::Round(ticket) => ticket.reply(reply),
        }
    }
}

/// The integer that `bytes` begin with, and its length: what nearly every answer is, without the parser for all.
fn integer(bytes: &[u8]) -> Option<(i64, usize)> {
    const LONGEST: usize = 20;
    let digits = bytes.strip_prefix(b":")?;
    let length = digits.iter().take(LONGEST).position(|byte| *byte == b'\r')?;
    (digits.get(length + 1) == Some(&b'\n')).then_some(())?;
    let number = std::str::from_utf8(&digits[..length]).ok()?.parse().ok()?;
    Some((number, length + 3))
}

#[cfg(test)]
mod tests {
    use super::*;

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
                reply.reply(Ok(value));
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
}
