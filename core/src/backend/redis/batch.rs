//! Requests of one kind that are written as one: taking a lock, and freeing one.
//!
//! To be called costs a script as much as its commands do, so a server does it for many in two thirds of the time. Nobody waits
//! for others to come: what is put together is what a busy connection would have written anyway, at the end of its
//! driver's turn. Each keeps its ticket and gets the answer that it would have got alone.
//!
//! What can happen:
//!
//! * *They are refused for what one of them asks* (a key that the user may not touch): nothing was done, and each is asked
//!   alone ([`CallError::NotTogether`]).
//! * *The script breaks off in the middle*, or its answer is lost: any of them may have been carried out, and is undone as if
//!   it had been alone.
//! * *A lock is freed and asked for in one turn*: it is freed first. So what frees never waits beside what may grant it to the
//!   same claim, which goes out before.
//! * *The server is not one but many, behind a proxy* that goes by the first key, or a cluster: there, requests go alone. Only
//!   what calls itself `standalone` is asked for several at once, and only once it has run the scripts for many without a key,
//!   for which such a proxy knows no server.

use std::ptr;

use redis::Value;

use super::{
    call::{CallError, Reply},
    link::To,
    request::Errand,
    round::Ticket,
    script::{self, Name, Script},
};
use crate::clock::Instant;

/// With fewer on their way, the scripts for many are not worth to be sent, once for each connection.
const CROWD: usize = 4;

/// What waits to be written.
pub(super) struct Batches {
    /// In the order in which they are written.
    of: [Batch; 2],
    /// How many bytes that will be.
    bytes: usize,
    scripts: Scripts,
}

/// Whether the server has the scripts for many.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scripts {
    /// It is not to be asked for many.
    Unfit,
    Unknown,
    /// So many of them are on their way.
    Sent(usize),
    Known,
}

/// Those of one kind.
struct Batch {
    one: &'static Script,
    many: &'static Script,
    /// How many keys and arguments each has.
    shape: (usize, usize),
    /// With the time that the server's clock will show when each expires.
    waiting: Vec<(Ticket, i64)>,
}

impl Default for Batches {
    fn default() -> Self {
        let batch = |one, many, shape| Batch { one, many, shape, waiting: Vec::new() };
        Self {
            of: [
                batch(&script::RELEASE, &script::RELEASE_MANY, (1, 2)),
                batch(&script::ACQUIRE, &script::ACQUIRE_MANY, (3, 6)),
            ],
            bytes: 0,
            scripts: Scripts::Unfit,
        }
    }
}

impl Batches {
    /// The server can be asked for many.
    pub(super) fn fit(&mut self) {
        self.scripts = Scripts::Unknown;
    }

    /// Takes in a request, if it is one for that; gives the ticket back otherwise.
    pub(super) fn join(&mut self, ticket: Ticket, errand: &Errand, server_time: i64) -> Result<(), Ticket> {
        let fits = |batch: &&mut Batch| ptr::eq(batch.one, errand.script) && batch.shape == errand.shape();
        match self.of.iter_mut().find(fits) {
            Some(batch) if self.scripts == Scripts::Known => {
                batch.waiting.push((ticket, server_time));
                self.bytes += errand.len();
                Ok(())
            }
            _ => Err(ticket),
        }
    }

    fn errands(&self) -> impl Iterator<Item = Errand> {
        self.of.iter().flat_map(|batch| &batch.waiting).map(|(ticket, _)| ticket.errand())
    }

    /// Whether a request of the same claim waits.
    pub(super) fn has_claim_of(&self, errand: &Errand) -> bool {
        self.errands().any(|other| other.is_of_the_claim_of(errand))
    }

    /// When the first of them is due.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.errands().map(|errand| errand.expires).min()
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Writes what waits; tells `sent` who waits for each answer, and until when.
    pub(super) fn write(&mut self, output: &mut Vec<u8>, mut sent: impl FnMut(To, Instant)) {
        self.bytes = 0;
        for batch in &mut self.of {
            batch.write(output, &mut sent);
        }
    }

    /// Those who wait, of whom nothing was written.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = To> + use<> {
        self.bytes = 0;
        let waiting = self.of.each_mut().map(|batch| std::mem::take(&mut batch.waiting));
        waiting.into_iter().flatten().map(|(ticket, _)| To::Round(ticket))
    }

    /// So many are on their way: has the server learn the scripts, if that is worth it. Says how many answers will come.
    pub(super) fn teach(&mut self, on_their_way: usize, output: &mut Vec<u8>) -> usize {
        if self.scripts != Scripts::Unknown || on_their_way < CROWD {
            return 0;
        }
        for batch in &self.of {
            // With no keys they do nothing.
            batch.many.begin(Name::Text, 0, 0, output);
        }
        self.scripts = Scripts::Sent(self.of.len());
        self.of.len()
    }

    /// What the server answered to one of these.
    pub(super) fn taught(&mut self, answer: &Value) {
        self.scripts = match (self.scripts, answer) {
            (_, Value::ServerError(_)) => Scripts::Unfit,
            (Scripts::Sent(1), _) => Scripts::Known,
            (Scripts::Sent(more), _) => Scripts::Sent(more - 1),
            (other, _) => other,
        };
    }

    /// What the server answered to several at once.
    pub(super) fn answered(&mut self, answer: &Value) {
        match answer {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => self.scripts = Scripts::Unknown,
            // A right is missing, for a command or for a key that will be asked for again; or it is no one server after all.
            Value::ServerError(error) if matches!(error.code(), "NOPERM" | "CROSSSLOT" | "ERR") => {
                self.scripts = Scripts::Unfit
            }
            _ => {}
        }
    }
}

impl Batch {
    fn write(&mut self, output: &mut Vec<u8>, sent: &mut impl FnMut(To, Instant)) {
        let errands: Vec<_> = self.waiting.iter().map(|(ticket, time)| (ticket.errand(), *time)).collect();
        let Some(expires) = errands.iter().map(|(errand, _)| errand.expires).min() else { return };
        let script = if let [_] = errands[..] { self.one } else { self.many };
        let (keys, args) = self.shape;
        script.begin(Name::Sha, errands.len() * keys, errands.len() * args, output);
        errands.iter().for_each(|(errand, _)| errand.encode_keys(output));
        errands.iter().for_each(|(errand, time)| errand.encode_args(*time, output));
        let tickets: Vec<_> = self.waiting.drain(..).map(|(ticket, _)| ticket).collect();
        let to = match <[Ticket; 1]>::try_from(tickets) {
            Ok([ticket]) => To::Round(ticket),
            Err(tickets) => To::Rounds(tickets),
        };
        sent(to, expires);
    }
}

/// Hands to each what came of several.
pub(super) fn hand_out(tickets: Vec<Ticket>, peer: &str, reply: Reply) {
    let each = match reply {
        Ok(Value::Array(answers)) if answers.len() == tickets.len() => {
            for (ticket, answer) in tickets.into_iter().zip(answers) {
                ticket.reply(CallError::check(peer, answer));
            }
            return;
        }
        Ok(_) => CallError::unanswered(peer, "an answer of another kind"),
        Err(error) if error.is_ambiguous() => error,
        Err(_) => CallError::NotTogether,
    };
    tickets.into_iter().for_each(|ticket| ticket.reply(Err(each.clone())));
}
