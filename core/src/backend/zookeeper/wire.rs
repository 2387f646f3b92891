//! ZooKeeper's wire format: what is asked and how answers are read. No I/O.
//!
//! Numbers are big endian; texts, buffers and lists come behind their length. A request is a number of its own,
//! the number of the operation and its arguments; an answer is that first number, the last transaction that the server
//! had carried out, an error code and the result.

use std::{fmt, time::Duration};

/// The permissions of a node: all of them.
const ALL: i32 = 31;

/// Error codes that we decide by.
pub(super) mod code {
    pub(in super::super) const CONNECTION_LOSS: i32 = -4;
    pub(in super::super) const OPERATION_TIMEOUT: i32 = -7;
    pub(in super::super) const NO_NODE: i32 = -101;
    pub(in super::super) const NO_AUTH: i32 = -102;
    pub(in super::super) const BAD_VERSION: i32 = -103;
    pub(in super::super) const NODE_EXISTS: i32 = -110;
    pub(in super::super) const SESSION_EXPIRED: i32 = -112;
    pub(in super::super) const AUTH_FAILED: i32 = -115;
    pub(in super::super) const SESSION_MOVED: i32 = -118;
    pub(in super::super) const AUTH_REQUIRED: i32 = -124;
    /// An operation of a transaction of which another one failed.
    pub(super) const NOT_DONE: i32 = -2;
}

/// Numbers that stand for what is not an answer to a numbered request.
pub(super) const XID_EVENT: i32 = -1;
pub(super) const XID_PING: i32 = -2;
pub(super) const XID_AUTH: i32 = -4;

const OP_CREATE: i32 = 1;
const OP_DELETE: i32 = 2;
const OP_GET_DATA: i32 = 4;
const OP_SET_DATA: i32 = 5;
const OP_GET_CHILDREN: i32 = 8;
const OP_SYNC: i32 = 9;
const OP_EXISTS: i32 = 3;
const OP_PING: i32 = 11;
const OP_MULTI: i32 = 14;
/// As create, but it answers with the node's metadata too.
const OP_CREATE_WITH_STAT: i32 = 15;
const OP_CREATE_CONTAINER: i32 = 19;
const OP_AUTH: i32 = 100;
const OP_CLOSE: i32 = -11;

/// What a node is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Persistent = 0,
    EphemeralSequential = 3,
    /// Deleted by the server some time after its last child.
    Container = 4,
}

/// Who may use a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acl {
    Anyone,
    /// Whoever has logged in as its creator has.
    Creator,
}

/// One operation.
#[derive(Debug)]
pub(super) struct Request {
    op: i32,
    body: Vec<u8>,
}

/// The bytes are not what the protocol says.
#[derive(Debug)]
pub(super) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer is not ZooKeeper's protocol")
    }
}

#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn flag(mut self, value: bool) -> Self {
        self.0.push(u8::from(value));
        self
    }

    /// Nothing that we send comes near the 2 GB that do not fit.
    fn bytes(self, value: &[u8]) -> Self {
        let mut this = self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        this.0.extend(value);
        this
    }

    fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    fn create(self, path: &str, data: &[u8], acl: Acl, kind: Kind) -> Self {
        let (scheme, id) = match acl {
            Acl::Anyone => ("world", "anyone"),
            Acl::Creator => ("auth", ""),
        };
        self.text(path).bytes(data).int(1).int(ALL).text(scheme).text(id).int(kind as i32)
    }

    fn framed(self) -> Vec<u8> {
        Encoder::default().bytes(&self.0).0
    }
}

impl Request {
    pub(super) fn create(path: &str, data: &[u8], acl: Acl, kind: Kind) -> Self {
        let op = match kind {
            Kind::Persistent => OP_CREATE,
            Kind::EphemeralSequential => OP_CREATE_WITH_STAT,
            Kind::Container => OP_CREATE_CONTAINER,
        };
        Self { op, body: Encoder::default().create(path, data, acl, kind).0 }
    }

    /// All of them or none.
    pub(super) fn create_all(paths: &[String], data: &[u8], acl: Acl) -> Self {
        Self::multi(OP_CREATE, paths, |body, path| body.create(path, data, acl, Kind::EphemeralSequential))
    }

    pub(super) fn delete(path: &str) -> Self {
        Self::delete_version(path, -1)
    }

    /// Only while its data have this version.
    pub(super) fn delete_version(path: &str, version: i32) -> Self {
        Self { op: OP_DELETE, body: Encoder::default().text(path).int(version).0 }
    }

    /// All of them or none.
    pub(super) fn set_all(paths: &[String], data: &[u8]) -> Self {
        Self::multi(OP_SET_DATA, paths, |body, path| body.text(path).bytes(data).int(-1))
    }

    pub(super) fn children(path: &str, watch: bool) -> Self {
        Self { op: OP_GET_CHILDREN, body: Encoder::default().text(path).flag(watch).0 }
    }

    pub(super) fn data(path: &str, watch: bool) -> Self {
        Self { op: OP_GET_DATA, body: Encoder::default().text(path).flag(watch).0 }
    }

    pub(super) fn stat(path: &str) -> Self {
        Self { op: OP_EXISTS, body: Encoder::default().text(path).flag(false).0 }
    }

    /// Answered when the server has carried out all that the ensemble had agreed on before.
    pub(super) fn sync(path: &str) -> Self {
        Self { op: OP_SYNC, body: Encoder::default().text(path).0 }
    }

    /// A transaction without operations: needs no permission and changes nothing, but a majority has to agree on it.
    pub(super) fn nothing() -> Self {
        Self::multi(OP_DELETE, &[], |body, _| body)
    }

    pub(super) fn close() -> Self {
        Self { op: OP_CLOSE, body: Vec::new() }
    }

    /// Whether a majority has to agree before it is answered.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.op, OP_CREATE | OP_DELETE | OP_SET_DATA | OP_MULTI | OP_CREATE_WITH_STAT | OP_CREATE_CONTAINER)
    }

    fn multi(op: i32, paths: &[String], each: impl Fn(Encoder, &str) -> Encoder) -> Self {
        let body = paths.iter().fold(Encoder::default(), |body, path| each(body.int(op).flag(false).int(-1), path));
        Self { op: OP_MULTI, body: body.int(-1).flag(true).int(-1).0 }
    }

    /// As it is sent.
    pub(super) fn frame(&self, xid: i32) -> Vec<u8> {
        let mut header = Encoder::default().int(xid).int(self.op);
        header.0.extend(&self.body);
        header.framed()
    }
}

pub(super) fn ping() -> Vec<u8> {
    Encoder::default().int(XID_PING).int(OP_PING).framed()
}

/// Logs in: `user:password`.
pub(super) fn log_in(login: &str) -> Vec<u8> {
    Encoder::default().int(XID_AUTH).int(OP_AUTH).int(0).text("digest").text(login).framed()
}

/// A session as its server knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    /// 0 before there is one.
    id: i64,
    secret: Vec<u8>,
    pub(super) timeout_ms: i32,
    /// A server that is behind this one must not serve us.
    pub(super) last_zxid: i64,
}

impl Identity {
    /// To open a session that the servers are to keep for so long without hearing of it.
    pub(super) fn asking_for(timeout: Duration) -> Self {
        Self { timeout_ms: i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX), ..Self::default() }
    }

    /// No session has been opened yet.
    pub(super) fn is_new(&self) -> bool {
        self.id == 0
    }

    /// The first bytes on a connection: opens the session, or goes on with it.
    pub(super) fn greeting(&self) -> Vec<u8> {
        let secret: &[u8] = if self.secret.is_empty() { &[0; 16] } else { &self.secret };
        let body = Encoder::default().int(0).long(self.last_zxid).int(self.timeout_ms).long(self.id);
        body.bytes(secret).flag(false).framed()
    }

    /// The answer to the greeting; `None` if the session has expired.
    pub(super) fn greeted(&self, body: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut body = Decoder(body);
        let (_, timeout_ms, id, secret) = (body.int()?, body.int()?, body.long()?, body.bytes()?.to_vec());
        Ok((id != 0 && timeout_ms > 0).then_some(Self { id, secret, timeout_ms, last_zxid: self.last_zxid }))
    }
}

/// Reads an answer from its front.
#[derive(Clone, Copy)]
pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn int(&mut self) -> Result<i32, Malformed> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    pub(super) fn long(&mut self) -> Result<i64, Malformed> {
        let bytes = self.take(8)?;
        Ok(i64::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.int()? {
            // Null is written as the length -1.
            -1 => Ok(&[]),
            len => self.take(usize::try_from(len).map_err(|_| Malformed)?),
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    pub(super) fn children(mut self) -> Result<Vec<String>, Malformed> {
        let count = self.int()?;
        (0..count).map(|_| self.text().map(str::to_owned)).collect()
    }

    pub(super) fn stat(mut self) -> Result<Stat, Malformed> {
        let (created_zxid, _, _, modified_ms) = (self.long()?, self.long()?, self.long()?, self.long()?);
        Ok(Stat { created_zxid, modified_ms, version: self.int()? })
    }

    pub(super) fn data(mut self) -> Result<(Vec<u8>, Stat), Malformed> {
        Ok((self.bytes()?.to_vec(), self.stat()?))
    }

    /// The path and the metadata of a contender that was made.
    pub(super) fn placed(mut self) -> Result<(String, Stat), Malformed> {
        Ok((self.text()?.to_owned(), self.stat()?))
    }

    /// The paths that a transaction of creations made, or the code of the error that it failed with.
    pub(super) fn created(mut self) -> Result<Result<Vec<String>, i32>, Malformed> {
        let mut paths = Vec::new();
        while let Some(op) = self.step()? {
            match op {
                Ok(_) => paths.push(self.text()?.to_owned()),
                Err(code) => return Ok(Err(code)),
            }
        }
        Ok(Ok(paths))
    }

    /// Whether a transaction whose steps answer with a stat was carried out, or the code of the error.
    pub(super) fn all_set(mut self) -> Result<Result<(), i32>, Malformed> {
        const STAT_LEN: usize = 68;
        while let Some(op) = self.step()? {
            match op {
                Ok(_) => drop(self.take(STAT_LEN)?),
                Err(code) => return Ok(Err(code)),
            }
        }
        Ok(Ok(()))
    }

    /// The head of a transaction's next step; `None` at its end. Steps that failed only because of another are skipped.
    fn step(&mut self) -> Result<Option<Result<i32, i32>>, Malformed> {
        loop {
            let (op, done) = (self.int()?, self.take(1)?[0] != 0);
            self.int()?;
            match op {
                _ if done => return Ok(None),
                -1 => match self.int()? {
                    0 | code::NOT_DONE => {}
                    code => return Ok(Some(Err(code))),
                },
                op => return Ok(Some(Ok(op))),
            }
        }
    }
}

/// What we need of a node's metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    /// The transaction that created it: grows over the whole ensemble, for ever.
    pub(super) created_zxid: i64,
    /// By the clock of the leader, since 1970.
    pub(super) modified_ms: i64,
    /// How often its data were written.
    pub(super) version: i32,
}

/// What an error code means to somebody who reads it.
pub(super) fn describe(code: i32) -> String {
    let known = match code {
        code::CONNECTION_LOSS => "the server lost its connection to the others",
        code::OPERATION_TIMEOUT => "the ensemble took too long",
        code::NO_NODE => "there is no such node",
        code::NO_AUTH => "no permission for this node",
        code::NODE_EXISTS => "there is such a node",
        code::SESSION_EXPIRED => "the session has expired",
        code::AUTH_FAILED => "the log-in failed",
        code::AUTH_REQUIRED => "the server wants another kind of log-in",
        code::SESSION_MOVED => "the session has moved to another server",
        _ => return format!("error {code}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed() {
        assert_eq!(ping(), [0, 0, 0, 8, 255, 255, 255, 254, 0, 0, 0, 11]);
        let frame = Request::delete("/a").frame(7);
        assert_eq!(frame, [0, 0, 0, 18, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 2, b'/', b'a', 255, 255, 255, 255]);
    }

    #[test]
    fn a_short_answer_is_malformed() {
        for len in 0..8 {
            let answer = [0, 0, 0, 2, 0, 0, 0, 1, b'a'];
            assert!(Decoder(&answer[..len]).children().is_err());
        }
        assert!(Decoder(&[127, 255, 255, 255]).text().is_err());
        assert!(Decoder(&[255, 255, 255, 0]).text().is_err());
    }

    #[test]
    fn a_failed_transaction_names_the_step_that_failed() {
        let failed = |code: i32| Encoder::default().int(-1).flag(false).int(code).int(code).0;
        let end = Encoder::default().int(-1).flag(true).int(-1).0;
        let answer = [failed(0), failed(code::NO_NODE), failed(code::NOT_DONE), end.clone()].concat();
        assert_eq!(Decoder(&answer).created().unwrap(), Err(code::NO_NODE));
        let created = Encoder::default().int(1).flag(false).int(0).text("/a0").0;
        assert_eq!(Decoder(&[created, end].concat()).created().unwrap(), Ok(vec!["/a0".to_owned()]));
    }
}
