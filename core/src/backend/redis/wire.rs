//! Bytes between a link and its socket, as many as the socket takes or has.

use std::io::{self, Read, Write};

use rustls::ClientConnection;
use socket2::Socket;

use super::link::{Link, Received};
use crate::backend::quiet::Quiet;

/// Writes what the link has to say.
pub(super) fn write(socket: &Socket, link: &mut Link) -> io::Result<()> {
    while !link.output().is_empty() {
        match Quiet(socket).write(link.output()) {
            Ok(written) => link.wrote(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// As [`write`], under TLS, which may have something to say by itself.
pub(super) fn write_tls(tls: &mut ClientConnection, socket: &Socket, link: &mut Link) -> io::Result<()> {
    while !link.output().is_empty() {
        let written = tls.writer().write(link.output())?;
        if written == 0 {
            break; // its buffer is full
        }
        link.wrote(written);
    }
    while tls.wants_write() {
        match tls.write_tls(&mut Quiet(socket)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what has come, through `buffer`.
pub(super) fn read(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    link: &mut Link,
    received: &mut Vec<Received>,
) -> Result<(), String> {
    const AT_ONCE: usize = 16 * 1024;
    loop {
        buffer.clear();
        buffer.reserve(AT_ONCE);
        match rustix::io::read(socket, rustix::buffer::spare_capacity(buffer)) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(_) => {
                link.receive(buffer, received)?;
                if buffer.len() < buffer.capacity() {
                    return Ok(());
                }
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("reading failed: {error}")),
        }
    }
}

/// As [`read`], under TLS.
pub(super) fn read_tls(
    tls: &mut ClientConnection,
    mut socket: &Socket,
    link: &mut Link,
    received: &mut Vec<Received>,
) -> Result<(), String> {
    let mut buffer = [0; 8 * 1024];
    loop {
        match tls.read_tls(&mut socket) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(_) => {
                tls.process_new_packets().map_err(|error| format!("TLS: {error}"))?;
                loop {
                    match tls.reader().read(&mut buffer) {
                        Ok(0) => return Err("the server closed the connection".into()),
                        Ok(read) => link.receive(&buffer[..read], received)?,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(format!("TLS: {error}")),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("reading failed: {error}")),
        }
    }
}
