"""The drop-in for redis-py's lock, beside redis-py's own on one server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from redis_server import RedisServer, free_port

import polylock
import polylock.redis
import polylock.redis.asyncio
from conftest import unique, wait_until
from polylock.redis._settings import patience_of, url_of

URL = os.environ.get("POLYLOCK_TEST_REDIS")
pytestmark = pytest.mark.skipif(URL is None, reason="needs a Redis server")


@pytest.fixture
def client() -> Iterator[Any]:
    assert URL is not None
    with redis.Redis.from_url(URL) as client:
        yield client


def locks(client: Any, name: str, **options: Any) -> list[Any]:
    """Ours and theirs."""
    return [client.lock(name, lock_class=lock_class, **options) for lock_class in (polylock.redis.Lock, None)]


def test_each_excludes_the_other(client: Any) -> None:
    ours, theirs = locks(client, unique(), timeout=10)
    for first, second in ((ours, theirs), (theirs, ours)):
        assert first.acquire(blocking=False)
        assert not second.acquire(blocking=False)
        assert first.owned()
        assert not second.owned()
        assert second.locked()
        assert client.get(first.name) == first.local.token
        assert 9000 < client.pttl(first.name) <= 10_000
        first.release()
        assert not second.locked()


def test_errors_are_redis_pys(client: Any) -> None:
    name = unique()
    for lock in locks(client, name, timeout=10):
        for call in (lock.release, lambda lock=lock: lock.extend(1), lock.reacquire):
            with pytest.raises(redis.exceptions.LockError) as caught:
                call()
            assert not isinstance(caught.value, redis.exceptions.LockNotOwnedError)
            assert caught.value.lock_name == name
        for call in (lock.release, lambda lock=lock: lock.extend(1), lock.reacquire):
            assert lock.acquire()
            client.set(name, "somebody")
            with pytest.raises(redis.exceptions.LockNotOwnedError):
                call()
            assert client.get(name) == b"somebody"
            client.delete(name)
            lock.local.token = None
        with pytest.raises(redis.exceptions.LockError, match="within the time"):
            client.set(name, "somebody")
            with client.lock(name, blocking_timeout=0.05, sleep=0.01, lock_class=type(lock)):
                pass
        client.delete(name)


def test_extending_and_reacquiring(client: Any) -> None:
    for lock in locks(client, unique(), timeout=10):
        with lock:
            assert lock.extend(10)
            assert 15_000 < client.pttl(lock.name) <= 20_000
            assert lock.extend(5, replace_ttl=True)
            assert 4_000 < client.pttl(lock.name) <= 5_000
            assert lock.reacquire()
            assert 9_000 < client.pttl(lock.name) <= 10_000


def test_a_lock_with_a_timeout_lasts_for_it_whatever_becomes_of_the_object(client: Any) -> None:
    name = unique()
    assert client.lock(name, timeout=0.4, lock_class=polylock.redis.Lock).acquire()
    assert client.exists(name)
    assert not client.lock(name, timeout=1, lock_class=polylock.redis.Lock).acquire(blocking=False)
    # Not renewed either.
    wait_until(lambda: not client.exists(name), 5)


def test_a_lock_without_a_timeout_stays(client: Any) -> None:
    for lock in locks(client, unique()):
        with lock:
            assert client.pttl(lock.name) == -1
            with pytest.raises(redis.exceptions.LockError, match="no timeout"):
                lock.extend(1)
            client.delete(lock.name)
            with pytest.raises(redis.exceptions.LockNotOwnedError):
                lock.release()
            assert lock.acquire()
        assert not lock.locked()
    assert client.lock(lock.name, timeout=0, lock_class=polylock.redis.Lock).acquire()
    assert client.pttl(lock.name) == -1
    client.delete(lock.name)


def test_a_renewed_lock_without_a_timeout_expires_with_its_process(client: Any) -> None:
    lock = client.lock(unique(), lock_class=polylock.redis.RenewedLock)
    with lock:
        assert lock.lease.is_held
        assert 0 < client.pttl(lock.name) <= 30_000
    assert not lock.locked()


def test_where_the_engine_cannot_connect_it_works_as_redis_pys(client: Any) -> None:
    class Provider(redis.UsernamePasswordCredentialProvider):
        """What it gives may change; redis-py asks it for each connection."""

        def __init__(self) -> None:
            super().__init__("default", "")

    def check(client: Any, name: Any) -> None:
        ours, theirs = locks(client, name, timeout=10, thread_local=False, sleep=0.01)
        assert ours.acquire()
        assert ours.fencing_token is None
        assert not theirs.acquire(blocking_timeout=0.02)
        released = threading.Timer(0.1, ours.release)
        released.start()
        assert theirs.acquire(blocking_timeout=20)
        released.join()  # It reads its answer yet, from this client.
        assert not ours.acquire(blocking=False)
        theirs.release()

    name = unique()
    for odd in (name.encode() + b"\xff", name + "\0", "x" * 2000 + name):
        check(client, odd)
    assert client.lock(name.encode(), timeout=1, lock_class=polylock.redis.Lock).acquire()
    assert client.delete(name) == 1
    assert URL is not None
    with redis.Redis.from_url(URL, credential_provider=Provider()) as secure:
        check(secure, unique())
        with pytest.raises(polylock.Unsupported):
            secure.lock(unique(), lock_class=polylock.redis.RenewedLock).acquire()


def test_what_the_engine_refuses_is_done_as_redis_py_does_it(client: Any) -> None:
    """Its errors, too."""
    name = unique()
    for timeout, expected in ((0.002, True), (0.0001, redis.exceptions.ResponseError), (-1, None)):
        seen: list[object] = []
        for lock in locks(client, name, timeout=timeout):
            try:
                seen.append(lock.acquire(blocking=False))
            except redis.exceptions.RedisError as error:
                seen.append(type(error))
            client.delete(name)
        assert seen[0] == seen[1]
        assert expected is None or seen[0] == expected
    # Waits until there is no semaphore of that name any more.
    assert URL is not None
    with polylock.connect(URL) as others:
        permit = others.semaphore(name, 2).acquire()
        released = threading.Timer(0.1, permit.release)
        released.start()
        with client.lock(name, timeout=10, sleep=0.01, lock_class=polylock.redis.Lock):
            pass
        released.join()


@pytest.mark.parametrize("rule", ["~{name}", "~* -time"])
def test_a_user_who_may_only_what_redis_pys_lock_needs(client: Any, rule: str) -> None:
    name = unique()
    client.execute_command("ACL", "SETUSER", name, "on", ">p", "+@all", "&*", *rule.format(name=name).split())
    address = client.connection_pool.connection_kwargs
    try:
        with redis.Redis(address["host"], address["port"], address.get("db") or 0, "p", username=name) as limited:
            for lock in locks(limited, name, timeout=10):
                with lock:
                    assert lock.owned()
                    assert not limited.lock(name, lock_class=polylock.redis.Lock).acquire(blocking=False)
            with pytest.raises(redis.exceptions.ResponseError):
                limited.lock(name, lock_class=polylock.redis.RenewedLock).acquire()
    finally:
        client.execute_command("ACL", "DELUSER", name)


def test_a_server_without_a_command_that_only_the_engine_needs() -> None:
    with RedisServer("--rename-command", "TIME", "") as server, redis.Redis.from_url(server.url) as client:
        for lock in locks(client, "r", timeout=10):
            with lock:
                assert lock.owned()
                assert not client.lock("r", lock_class=polylock.redis.Lock).acquire(blocking=False)
        with pytest.raises(redis.exceptions.ResponseError, match="ommand"):
            client.lock("r", lock_class=polylock.redis.RenewedLock).acquire()


def test_a_renewed_lock_is_never_one_that_is_not_renewed(client: Any) -> None:
    for name, token in ((unique(), "mine"), (b"\xff", None)):
        lock = client.lock(name, timeout=10, lock_class=polylock.redis.RenewedLock)
        with pytest.raises(polylock.Unsupported, match="renewed"):
            lock.acquire(token=token)
        assert not lock.locked()


def test_clients_of_one_pool_share_a_connection_of_the_engine(client: Any) -> None:
    def manager_of_a_request() -> Any:
        short_lived = redis.Redis(connection_pool=client.connection_pool)
        with short_lived.lock(unique(), timeout=10, lock_class=polylock.redis.Lock):
            return polylock.redis._managers.of(short_lived, needed=True)

    assert manager_of_a_request() is manager_of_a_request()


def test_a_lock_without_a_timeout_that_is_gone_before_it_can_stay(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique()
    lock = client.lock(name, lock_class=polylock.redis.Lock)
    persist = type(lock).lua_persist

    def late(**arguments: Any) -> Any:
        client.delete(name)
        return persist(**arguments)

    monkeypatch.setattr(polylock.redis.Lock, "lua_persist", staticmethod(late))
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        lock.acquire()
    assert not lock.owned()


def test_time_that_somebody_else_makes_pass(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    class Time:
        monotonic = staticmethod(lambda: sum(slept))
        sleep = staticmethod(slept.append)

    monkeypatch.setattr(polylock.redis, "mod_time", Time)
    with client.lock(unique(), timeout=10, lock_class=polylock.redis.Lock) as held:
        assert not client.lock(held.name, lock_class=polylock.redis.Lock).acquire(0.25, blocking_timeout=1)
    assert slept == [0.25] * 4


def test_a_renewed_lock_outlasts_its_timeout(client: Any) -> None:
    told: list[str] = []
    with client.lock(unique(), timeout=0.5, lock_class=polylock.redis.RenewedLock) as lock:
        lock.lease.on_lost(told.append)
        time.sleep(1.2)
        assert lock.owned()
        assert lock.extend(20)
        assert client.pttl(lock.name) > 15_000
        client.set(lock.name, "somebody")
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            lock.reacquire()
        wait_until(lambda: told == ["taken"])
        lock.local.token = None
        lock.raise_on_release_error = False
    client.delete(lock.name)


def test_waiting(client: Any) -> None:
    name = unique()
    ours = client.lock(name, timeout=10, lock_class=polylock.redis.Lock, thread_local=False)
    assert ours.acquire()
    waiter = client.lock(name, timeout=10, blocking_timeout=30, lock_class=polylock.redis.Lock)
    # As redis-py: the first sleep would already be too long.
    began = time.monotonic()
    assert not waiter.acquire(sleep=60, blocking_timeout=20)
    assert time.monotonic() - began < 10
    assert not waiter.acquire(blocking_timeout=0.2)
    released = threading.Timer(0.2, ours.release)
    released.start()
    assert waiter.acquire()
    waiter.release()
    released.join()


def test_fencing_tokens_grow(client: Any) -> None:
    lock = client.lock(unique(), timeout=10, lock_class=polylock.redis.Lock)
    tokens = []
    for _ in range(5):
        with lock:
            tokens.append(lock.fencing_token)
    assert tokens == sorted(set(tokens))
    assert lock.fencing_token is None


def test_tokens_of_ones_own_and_of_others(client: Any) -> None:
    name = unique()
    lock = client.lock(name, timeout=10, thread_local=False, lock_class=polylock.redis.Lock)
    assert lock.acquire(token="mine")
    assert client.get(name) == b"mine"
    # Another object, or process, that knows the token may release.
    other = client.lock(name, timeout=10, lock_class=polylock.redis.Lock)
    other.local.token = lock.local.token
    assert other.owned()
    other.release()
    assert not client.exists(name)
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        lock.release()
    assert lock.local.token is None


def test_a_thread_of_another_sees_no_token(client: Any) -> None:
    lock = client.lock(unique(), timeout=10, lock_class=polylock.redis.Lock)
    errors: list[type] = []

    def release() -> None:
        try:
            lock.release()
        except redis.exceptions.LockError as error:
            errors.append(type(error))

    with lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert lock.owned()
    assert errors == [redis.exceptions.LockError]


def test_subclasses_may_override_the_steps(client: Any) -> None:
    class Counting(polylock.redis.Lock):
        tries = 0

        def do_acquire(self, token: Any) -> bool:
            self.tries += 1
            return self.tries > 2 and super().do_acquire(token)

    lock = client.lock(unique(), timeout=10, sleep=0.01, lock_class=Counting)
    with lock:
        assert lock.tries == 3


def test_a_dead_server_is_a_connection_error_as_soon_as_the_client_has_enough() -> None:
    """Not after the 30 s that the engine would give it."""
    options: Any = {"port": free_port(), "socket_timeout": 1, "retry": Retry(ConstantBackoff(0.01), 3)}
    began = time.monotonic()
    for lock_class in (polylock.redis.Lock, polylock.redis.RenewedLock):
        for blocking in (False, True):
            lock = redis.Redis(**options).lock("r", timeout=1, lock_class=lock_class)
            with pytest.raises(redis.exceptions.ConnectionError):
                lock.acquire(blocking=blocking)

    async def main() -> None:
        client: Any
        async with redis.asyncio.Redis(**options) as client:
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.lock("r", timeout=1, lock_class=polylock.redis.asyncio.Lock).acquire()

    asyncio.run(main())
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("blocking", [True, False])
def test_a_server_that_comes_back_in_time_was_never_away(blocking: bool) -> None:
    """The client is one that tries for ever."""
    with RedisServer() as server, redis.Redis.from_url(server.url, retry=Retry(ConstantBackoff(0.01), -1)) as client:
        lock: Any = client.lock("r", timeout=10, lock_class=polylock.redis.Lock)
        with lock:
            pass
        server.kill()
        started = threading.Timer(0.3, server.start)
        started.start()
        assert lock.acquire(blocking=blocking)
        assert lock.fencing_token is not None
        started.join()


def out_of_memory(client: Any) -> None:
    client.config_set("maxmemory", 1)


def a_replica(client: Any) -> None:
    client.replicaof("127.0.0.1", 1)


def without_replicas(client: Any) -> None:
    client.config_set("min-replicas-to-write", 1)


def unable_to_save(client: Any) -> None:
    # A directory stands where it would save to.
    Path(client.config_get("dir")["dir"], client.config_get("dbfilename")["dbfilename"], "x").mkdir(parents=True)
    client.config_set("save", "1 1")
    client.set("changed", 1)
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 20)


@pytest.mark.parametrize("trouble", [out_of_memory, a_replica, without_replicas, unable_to_save])
def test_what_the_server_says_is_the_error_that_redis_py_makes_of_it(trouble: Any) -> None:
    """And no reason to wait."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        trouble(client)

        def failure(lock_class: Any, blocking: bool) -> tuple[type, str]:
            with pytest.raises(redis.exceptions.RedisError) as caught:
                client.lock("r", timeout=10, lock_class=lock_class).acquire(blocking=blocking)
            return type(caught.value), str(caught.value).rstrip(".").partition(" script: ")[0]

        theirs = failure(None, False)
        for lock_class in (polylock.redis.Lock, polylock.redis.RenewedLock):
            for blocking in (False, True):
                ours = failure(lock_class, blocking)
                assert ours[0] is theirs[0]
                assert ours[1].rstrip(".") == theirs[1]


def test_a_server_that_says_nothing_is_either_of_redis_pys_errors() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url, socket_timeout=0.1) as client:
        lock = client.lock("r", timeout=10, lock_class=polylock.redis.Lock)
        server.pause()
        for expected in (redis.exceptions.TimeoutError, redis.exceptions.ConnectionError):
            with pytest.raises(expected):
                lock.acquire()
        server.resume()


def test_how_long_a_client_tries() -> None:
    retry: Any = Retry(ConstantBackoff(2), 3)
    assert patience_of(redis.Redis(retry=retry, socket_timeout=1)) == (3, 3, 6.0)
    assert patience_of(redis.asyncio.Redis(retry=retry, socket_timeout=1)) == (3, 3, 6.0)
    assert patience_of(redis.Redis(retry=retry, socket_timeout=None)) == (3, 15, 6.0)
    assert patience_of(redis.Redis(connection_pool=redis.ConnectionPool(socket_timeout=1))) == (0, 0, 0.0)


class Connection(redis.Connection):
    """What connects in a way of its own, or as in fakeredis to nothing at all."""


def test_settings_become_a_url() -> None:
    assert url_of(redis.Redis()) == "redis://localhost:6379/0"
    assert url_of(redis.Redis("::1", 7, 3, password="p@ss/w")) == "redis://:p%40ss%2Fw@[::1]:7/3"
    assert (
        url_of(redis.Redis(username="u", password="p", ssl=True, ssl_check_hostname=True))
        == "rediss://u:p@localhost:6379/0"
    )
    assert url_of(redis.Redis(unix_socket_path="/run/r.sock", db=2)) == "redis+unix:///run/r.sock?db=2"
    assert url_of(redis.asyncio.Redis(host="h")) == "redis://h:6379/0"
    provider = redis.UsernamePasswordCredentialProvider("u", "p")
    assert url_of(redis.Redis(credential_provider=provider)) == "redis://u:p@localhost:6379/0"
    tls: Any = {"ssl": True, "ssl_check_hostname": True}
    files: Any = {"ssl_ca_certs": "/a b", "ssl_certfile": "/c", "ssl_keyfile": "/k"}
    assert url_of(redis.Redis(**tls, **files)) == "rediss://localhost:6379/0?ca=%2Fa%20b&cert=%2Fc&key=%2Fk"
    sentinels: Any = redis.Sentinel(  # type: ignore[no-untyped-call]
        [("a", 1), ("b", 2)], sentinel_kwargs={"username": "s", "password": "x&y"}, password="p/w", db=3
    )
    expected = "redis+sentinel://:p%2Fw@a:1,b:2/m/3?sentinel_user=s&sentinel_password=x%26y"
    assert url_of(sentinels.master_for("m")) == expected
    for client in (
        redis.Redis(ssl=True, ssl_cert_reqs="none"),
        redis.Redis(ssl=True, ssl_check_hostname=False),
        redis.Redis(**tls, ssl_ca_data="pem"),
        sentinels.slave_for("m"),
        redis.Redis(redis_connect_func=print),
        redis.Redis(connection_pool=redis.ConnectionPool(Connection)),
        object(),
    ):
        with pytest.raises(polylock.Unsupported):
            url_of(client)


def excludes(client: Any) -> None:
    """Locks of ours and of redis-py through `client` exclude each other; ours is the engine's."""
    ours, theirs = locks(client, unique(), timeout=10, sleep=0.01)
    with ours:
        assert ours.fencing_token > 0
        assert not theirs.acquire(blocking_timeout=0.05)
    with theirs:
        assert not ours.acquire(blocking=False)
    with client.lock(unique(), timeout=0.5, lock_class=polylock.redis.RenewedLock) as renewed:
        assert renewed.lease.is_held


def test_a_cluster() -> None:
    server = RedisServer("--cluster-enabled", "yes")
    try:
        with closing(server.client()) as direct:
            direct.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in bytes(direct.command("CLUSTER", "INFO")))  # type: ignore[arg-type]
        with redis.RedisCluster.from_url(server.url) as client:
            excludes(client)

        async def main() -> None:
            client: Any
            async with redis.asyncio.RedisCluster.from_url(server.url) as client:
                lock = client.lock(unique(), timeout=10, lock_class=polylock.redis.asyncio.Lock)
                async with lock:
                    assert lock.fencing_token > 0

        asyncio.run(main())
    finally:
        server.stop()


def test_a_primary_behind_a_sentinel(tmp_path: Path) -> None:
    primary = RedisServer()
    (tmp_path / "sentinel.conf").write_text(f"sentinel monitor m 127.0.0.1 {urlsplit(primary.url).port} 1\n")
    port = free_port()
    command = ["redis-server", str(tmp_path / "sentinel.conf"), "--sentinel", "--port", str(port)]
    sentinel = subprocess.Popen([*command, "--bind", "127.0.0.1"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        names: Any = redis.Sentinel([("127.0.0.1", port)])  # type: ignore[no-untyped-call]

        def found() -> bool:
            try:
                return bool(names.discover_master("m"))
            except redis.ConnectionError:
                return False

        wait_until(found)
        excludes(names.master_for("m"))
    finally:
        sentinel.kill()
        sentinel.wait()
        primary.stop()


def test_asyncio() -> None:
    assert URL is not None

    async def main() -> None:
        client: Any
        async with redis.asyncio.Redis.from_url(URL) as client:
            name = unique()
            ours = client.lock(name, timeout=10, lock_class=polylock.redis.asyncio.Lock)
            theirs = client.lock(name, timeout=10)
            for first, second in ((ours, theirs), (theirs, ours)):
                assert await first.acquire(blocking=False)
                assert not await second.acquire(blocking=False)
                assert await first.owned()
                assert not await second.owned()
                assert await second.locked()
                assert await first.extend(10)
                assert 15_000 < await client.pttl(name) <= 20_000
                assert await first.reacquire()
                assert 9_000 < await client.pttl(name) <= 10_000
                await first.release()
            for call in (lambda: ours.extend(1), ours.reacquire):
                with pytest.raises(redis.exceptions.LockError):
                    call()  # at the call, not when it is awaited
            async with ours:
                assert ours.fencing_token > 0
                await client.set(name, "somebody")
                with pytest.raises(redis.exceptions.LockNotOwnedError):
                    await ours.release()
                await client.delete(name)
                assert await ours.acquire(token="mine")
                assert await client.get(name) == b"mine"
            async with client.lock(name, timeout=0.5, lock_class=polylock.redis.asyncio.RenewedLock) as renewed:
                waiting = asyncio.create_task(ours.acquire())
                await asyncio.sleep(1.2)
                assert renewed.lease.is_held
                assert await renewed.owned()
                assert not waiting.done()
            assert await waiting
            await ours.release()
            assert not await client.exists(name)

    asyncio.run(main())


def test_asyncio_cancelling_a_release_keeps_the_state() -> None:
    assert URL is not None

    async def main() -> None:
        client: Any
        async with redis.asyncio.Redis.from_url(URL) as client:
            for steps in range(1, 8):
                lock = client.lock(unique(), timeout=10, lock_class=polylock.redis.asyncio.Lock)
                assert await lock.acquire()
                task = asyncio.create_task(lock.release())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if lock.local.token is not None:
                    assert task.cancelled()
                    await client.delete(lock.name)

    asyncio.run(main())
