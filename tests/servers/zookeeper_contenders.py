#!/usr/bin/env python3
"""Prints who holds or wants a lock in a ZooKeeper: `zookeeper_contenders.py URL`, one path a line."""

from __future__ import annotations

import sys

from zookeeper_server import ZookeeperClient

if __name__ == "__main__":
    client = ZookeeperClient(sys.argv[1])
    for contender in client.contenders():
        print(contender)
    client.close()
