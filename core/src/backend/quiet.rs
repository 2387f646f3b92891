//! Sockets that raise no SIGPIPE when the peer has gone: writing fails with an error, and nothing else happens.
//!
//! Programs of Rust ignore that signal, as Python, Node, Go and Java do. A program of C that loads this library does
//! not: it would be ended by a server that closes a connection. One write to a TCP stream of `std` is quiet by itself;
//! several at once (`writev`, as TLS does it) and `socket2` are not.

use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use rustix::net::SendFlags;
use socket2::Socket;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A socket to write to. It writes one buffer at a time: the `write_vectored` of the traits does so.
pub(super) struct Quiet<S>(pub(super) S);

impl Write for Quiet<&Socket> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Quiet<TcpStream> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Quiet<TcpStream> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
