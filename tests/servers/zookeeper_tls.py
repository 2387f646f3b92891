#!/usr/bin/env python3
"""A ZooKeeper that speaks TLS alone and wants certificates of its clients.

Prints `ready PORT DIRECTORY`; the directory has `ca.pem`, `client.pem` with `client.key`, and `other.pem`, a root that
signed nothing here. Ends with its standard input. The server's certificate is for `localhost`.
"""

from __future__ import annotations

import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from redis_server import free_port
from zookeeper_server import START_LIMIT, JavaServer

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(directory: pathlib.Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def make_certificates(directory: pathlib.Path) -> None:
    for root in ("ca", "other"):
        openssl(
            directory, "req", "-x509", *KEY, "-keyout", f"{root}.key", "-out", f"{root}.pem", "-subj", f"/CN={root}"
        )
    for name in ("server", "client"):
        openssl(directory, "req", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / f"{name}.ext").write_text("subjectAltName=DNS:localhost\n")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    both = (directory / "server.key").read_text() + (directory / "server.pem").read_text()
    (directory / "keystore.pem").write_text(both)


def main() -> None:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="polylock-zookeeper-tls-"))
    port = free_port()
    options = [f"secureClientPort={port}", "secureClientPortAddress=127.0.0.1", "tickTime=500"]
    options += [
        "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
        "ssl.hostnameVerification=false",
    ]
    options += [f"ssl.keyStore.location={directory}/keystore.pem", "ssl.keyStore.type=PEM"]
    options += [f"ssl.trustStore.location={directory}/ca.pem", "ssl.trustStore.type=PEM"]
    make_certificates(directory)
    server = JavaServer(directory, port, options, [])
    try:
        limit = time.monotonic() + START_LIMIT
        while server.runs() and time.monotonic() < limit:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.02)
        print("ready", port, directory, flush=True)
        sys.stdin.read()
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
