//! Opening a connection: address, socket, TLS, log-in, and a look at the server's clock.
//!
//! All of it runs on the engine, so that an attempt that is decided without this server, or a caller that
//! goes away, does not keep the connection from coming about for the next one.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::Value;
use socket2::{Socket, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::{
    call::{CallError, Elsewhere, Reply},
    config::{self, Address, NodeConfig},
    connection::{Connection, OnPush},
    restart::{self, Run},
};
use crate::{Error, ErrorKind, clock::Instant, engine::driver::Driver, error::Trouble};

/// How long opening may take in all.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether there is a socket yet, for those who give up before the connection can be used.
#[derive(Default)]
pub(super) struct Progress(AtomicBool);

impl Progress {
    /// Time is up.
    pub(super) fn late(&self, config: &NodeConfig) -> CallError {
        let why = match (self.0.load(Ordering::Relaxed), &config.tls) {
            (false, _) => "no connection in time",
            (true, None) => "connected, but the log-in was not answered in time",
            (true, Some(_)) => "connected, but nothing was answered over TLS in time",
        };
        CallError::not_sent(&config.name, why)
    }
}

/// Opens a connection, logged in and driven by `driver`, and says which run of the server it leads to, if that tells. To
/// be awaited on the engine.
pub(super) async fn open(
    config: &NodeConfig,
    driver: &Driver,
    on_push: Option<OnPush>,
    progress: &Progress,
) -> Result<(Arc<Connection>, Option<Run>), CallError> {
    let expires = Instant::now().after(OPEN_TIMEOUT);
    let socket = match tokio::time::timeout(OPEN_TIMEOUT, connect(&config.address)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            let error = Error::unavailable(format!("{}: {error}", config.name)).in_trouble(Trouble::NoConnection);
            return Err(CallError::NotSent(error));
        }
        Err(_) => return Err(progress.late(config)),
    };
    progress.0.store(true, Ordering::Relaxed);
    let tls = match (&config.address, &config.tls) {
        (Address::Tcp(host, _), Some(tls)) => Some(tls.client(host).map_err(CallError::NotSent)?),
        _ => None,
    };
    let connection = Connection::new(&config.name, socket, tls, on_push);
    // The log-in is driven here, and only then handed over: nobody may be at hand at the driver's.
    let log_in = log_in(config, &connection, expires);
    let run = match connection.drive_here(log_in).await {
        Ok(run) => run,
        Err(error) => {
            connection.close("the log-in failed");
            if Instant::now() >= expires {
                return Err(progress.late(config));
            }
            // Nothing of a caller's was sent.
            return Err(CallError::NotSent(error.into_error()));
        }
    };
    connection.attach(driver).map_err(|error| CallError::not_sent(&config.name, error))?;
    Ok((connection, run))
}

async fn connect(address: &Address) -> io::Result<Socket> {
    let socket = match address {
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            let socket = Socket::from(stream.into_std()?);
            socket.set_tcp_nodelay(true)?;
            // A peer that vanished without a word is noticed within half a minute, even with nothing on the way.
            let keepalive =
                TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
            socket.set_tcp_keepalive(&keepalive)?;
            socket
        }
        Address::Unix(path) => Socket::from(UnixStream::connect(path).await?.into_std()?),
    };
    Ok(socket)
}

async fn log_in(
    config: &NodeConfig,
    connection: &Arc<Connection>,
    expires: Instant,
) -> Result<Option<Run>, CallError> {
    const LOOKS: [&[&str]; 3] = [&["TIME"], &["INFO", "server"], &["ROLE"]];
    let looks = match config.role {
        config::Role::Any => &LOOKS[..2],
        config::Role::Primary => &LOOKS[..],
        config::Role::Sentinel => &[],
    };
    let login = config.login();
    let looks: Vec<_> = looks.iter().map(|look| redis::cmd(look[0]).arg(&look[1..]).get_packed_command()).collect();
    let requests = login.iter().map(|(_, request)| request).chain(&looks);
    let mut replies =
        futures_util::future::join_all(requests.map(|request| connection.call(request, expires))).await.into_iter();
    for ((step, _), reply) in login.iter().zip(&mut replies) {
        if let Err(error) = reply {
            return Err(name_step(config, step, error));
        }
    }
    let [time, info, role] = [replies.next(), replies.next(), replies.next()];
    if let Some(time) = time {
        connection.set_server_clock(server_ms(&config.name, time)?);
    }
    if let Some(role) = role
        && !matches!(&role?, Value::Array(parts) if matches!(&parts[..], [Value::BulkString(role), ..] if role == b"master"))
    {
        let error = Error::unavailable(format!("{}: it is not the primary", config.name));
        return Err(CallError::Elsewhere(Elsewhere::Primary, error));
    }
    match info {
        Some(Ok(info)) => {
            if is_one_server(&info) {
                connection.is_to_one_server();
            }
            Ok(Run::read(&info, config.database))
        }
        // A user who may not ask: then restarts go unnoticed.
        Some(Err(CallError::Refused(error))) => {
            tracing::debug!(%error, "whether the server was restarted is not known");
            Ok(None)
        }
        Some(Err(error)) => Err(error),
        None => Ok(None),
    }
}

/// Whether the answer of `INFO server` is that of one server, which has all keys. Valkey says it in a word of its own; what Envoy
/// puts together of the answers of several says that they are a cluster.
fn is_one_server(info: &Value) -> bool {
    ["redis_mode", "server_mode"].iter().any(|mode| restart::field(info, mode) == Some("standalone"))
}

/// What a failed step of the log-in means.
fn name_step(config: &NodeConfig, step: &str, error: CallError) -> CallError {
    match (step, error) {
        ("SELECT", CallError::Refused(error)) if error.kind() == ErrorKind::Unavailable => {
            let why = format!("names the database {} that the server does not have", config.database);
            CallError::Refused(Error::invalid("url", why).caused_by(error))
        }
        (_, error) => error,
    }
}

/// The reply of TIME in ms.
fn server_ms(peer: &str, reply: Reply) -> Result<i64, CallError> {
    let number = |value: &Value| match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok()),
        Value::Int(number) => Some(*number),
        _ => None,
    };
    if let Value::Array(parts) = reply?
        && let [seconds, micros] = &parts[..]
        && let (Some(seconds), Some(micros)) = (number(seconds), number(micros))
    {
        return Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000));
    }
    Err(CallError::unanswered(peer, "TIME gave no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_servers_can_be_asked_for_several_locks_at_once() {
        for (info, one) in [
            ("redis_version:7.0.15\r\nredis_mode:standalone\r\n", true),
            ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\nserver_mode:standalone\r\n", true),
            ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\nserver_mode:cluster\r\n", false),
            ("redis_version:7.0.15\r\nredis_mode:cluster\r\n", false),
            ("proxy_version:1.0.5\r\n", false),
        ] {
            assert_eq!(is_one_server(&Value::BulkString(format!("# Server\r\n{info}").into())), one, "{info}");
        }
    }
}
