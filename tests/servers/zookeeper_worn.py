#!/usr/bin/env python3
"""A ZooKeeper in which a directory's counter of sequential nodes is nearly at its end: `zookeeper_worn.py NAME`.

Prints its URL; ends with its standard input. That many nodes cannot be made one by one, so the counter is written into
a snapshot.
"""

from __future__ import annotations

import struct
import sys
import zlib

from zookeeper_server import ZookeeperServer, directory_of

LAST = 2**31 - 1
# Nodes that can be made before the counter stays where it is.
LEFT = 4


def wear_out(snapshot: bytes, path: str) -> bytes:
    """The snapshot of a server, with another counter in the node at `path`."""
    worn = bytearray(snapshot)
    # The path and the data behind their lengths, an ACL's number, four numbers of 8 bytes, the version; the counter.
    entry = struct.pack(">i", len(path)) + path.encode()
    at = worn.index(entry) + len(entry)
    (data,) = struct.unpack_from(">i", worn, at)
    struct.pack_into(">i", worn, at + 4 + max(data, 0) + 8 + 4 * 8 + 4, LAST - LEFT)
    # Each checksum is of all before it, and stands before the path "/".
    for end in range(len(snapshot) - 12):
        is_one = snapshot[end + 8 : end + 13] == b"\0\0\0\x01/"
        if is_one and struct.unpack_from(">q", snapshot, end)[0] == zlib.adler32(snapshot[:end]):
            struct.pack_into(">q", worn, end, zlib.adler32(worn[:end]))
    return bytes(worn)


def main(name: str) -> None:
    with ZookeeperServer() as server:
        client = server.ready().client()
        path = directory_of(client.root, name)
        client.create(client.root)
        client.create(path)
        client.close()
        # It writes a snapshot when it starts.
        server.kill()
        server.start()
        server.ready().kill()
        snapshots = (server.directory / "version-2").glob("snapshot.*")
        last = max(snapshots, key=lambda snapshot: int(snapshot.suffix[1:], 16))
        last.write_bytes(wear_out(last.read_bytes(), path))
        server.start()
        print(server.ready().url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
