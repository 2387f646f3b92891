"""A real PostgreSQL, and a PgBouncer before it, on free loopback ports.

Needs nothing but Python's own library and Debian's packages postgresql-15 and pgbouncer. Neither server runs as root,
so root starts them as the user postgres.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from types import TracebackType

from clock import Clock
from redis_server import free_port

PROGRAMS = pathlib.Path("/usr/lib/postgresql/15/bin")
# A start takes some 100 ms; a loaded machine gets this many seconds before it counts as failed.
START_LIMIT = 60.0
# Nothing is lost when the server is killed; only a crash of the machine would need the disk.
QUICK = ["fsync=off", "full_page_writes=off", "autovacuum=off"]


class _Server:
    """A program with a directory of its own, a port and a log."""

    def __init__(self, name: str) -> None:
        self.port = 0
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"polylock-{name}-"))
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self._name} does not run")
        return self._process.pid

    def _launch(self, *command: str | pathlib.Path) -> None:
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*_as_postgres(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **self._environment},
                # Ctrl-C is for whoever runs the tests; servers are stopped in order.
                start_new_session=True,
            )

    def _await(self, url: str) -> None:
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process is not None and self._process.poll() is None:
            if run_sql(url, "SELECT 1", check=False) == "1":
                return
            time.sleep(0.02)
        log = (self.directory / "log").read_text(errors="replace")
        raise RuntimeError(f"{self._name} did not start: {log[-2000:]}")

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends it, also if it is paused, and removes what it kept on disk."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class PostgresServer(_Server):
    """A cluster of its own with a database `app`, which belongs to the user `app`; `admin` may do everything."""

    def __init__(
        self,
        *options: str,
        tls: bool = False,
        standby_of: str | None = None,
        own_clock: bool = False,
        disk: str | None = None,
        log_apart: bool = False,
    ) -> None:
        """`options` are settings, as in `max_connections=20`.

        With `own_clock` its wall clock can be set, by `clock` here and by the file `clock` in `directory`.
        With `disk` its data is on one of this size, mounted at `disk` there; with `log_apart` its log is not.

        With `tls` it is `localhost` by a certificate of `ca.pem` in `directory`, knows the user `carol` by
        `client.pem` and `client.key` alone, and lets others in over TLS only. With `standby_of`, an
        administrator's URL, it is a replica of that server, with its users and passwords.
        """
        super().__init__("postgres")
        self.options = options
        self.clock = Clock(self.directory) if own_clock else None
        if self.clock is not None:
            self._environment = self.clock.environment
        self._disk = self.directory / "disk" if disk else None
        if self._disk is not None:
            self._disk.mkdir()
            account = pwd.getpwnam("postgres")
            owner = f"uid={account.pw_uid},gid={account.pw_gid}"
            _check("mount", "-t", "tmpfs", "-o", f"size={disk},mode=0700,{owner}", "polylock", self._disk)
        if standby_of is not None:
            self.password = urllib.parse.urlsplit(standby_of).password or ""
            self.follow(standby_of)
            return
        self.password = secrets.token_hex(8)
        password_file = self.directory / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)
        _check(
            *_as_postgres(),
            *(PROGRAMS / "initdb", "--pgdata", self._data, "--username=admin", "--auth=scram-sha-256"),
            *(f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync"),
            *(["--wal-segsize=1"] if disk else []),
            *([f"--waldir={self.directory / 'wal'}"] if log_apart else []),
        )
        rules = self._data / "pg_hba.conf"
        if tls:
            make_certificates(self.directory)
            files = {"ssl_ca_file": "ca.pem", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key"}
            self.options += ("ssl=on", *(f"{name}={self.directory / file}" for name, file in files.items()))
            rules.write_text(
                "hostssl all carol all cert\nhost all admin all scram-sha-256\nhostssl all all all scram-sha-256\n"
            )
        else:
            rules.write_text("host all all all scram-sha-256\nhost replication admin all scram-sha-256\n")
        self.start()
        run_sql(self.admin_url, "CREATE USER carol")
        run_sql(self.admin_url, f"CREATE USER app PASSWORD '{self.password}'")
        run_sql(self.admin_url, "CREATE DATABASE app OWNER app")

    @property
    def _data(self) -> pathlib.Path:
        return (self._disk or self.directory) / "data"

    def stop(self) -> None:
        """Ends it, also if it is paused, and removes what it kept on disk."""
        self._end(signal.SIGQUIT)
        if self._disk is not None:
            # Lazily: those that served its connections may be about to end.
            subprocess.run(["umount", "--lazy", self._disk], check=False)
        super().stop()

    @property
    def url(self) -> str:
        return f"postgres://app:{self.password}@127.0.0.1:{self.port}/app"

    @property
    def admin_url(self) -> str:
        return f"postgres://admin:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it, on the port it had before if there was one, and waits until it answers."""
        self.port = self.port or free_port()
        settings = [*QUICK, "listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories="]
        options = [word for setting in [*settings, *self.options] for word in ("-c", setting)]
        self._launch(PROGRAMS / "postgres", "-D", self._data, *options)
        self._await(self.admin_url)

    def _all(self) -> list[int]:
        """Its process, and those that serve its connections."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def kill(self) -> None:
        """Kills it without goodbye. `start` brings it back."""
        if self._process is None:
            return
        # It starts no more of the others, which would live on for a moment and keep it from starting again.
        os.kill(self.pid, signal.SIGSTOP)
        everybody = self._all()
        _signal(everybody, signal.SIGKILL)
        self._end(signal.SIGKILL)
        while any(_runs(pid) for pid in everybody):
            time.sleep(0.001)

    def pause(self, number: int = signal.SIGSTOP) -> None:
        """Stops it and all that serve its connections."""
        _signal(self._all(), number)

    def resume(self) -> None:
        """Lets it go on after `pause`."""
        self.pause(signal.SIGCONT)

    def revive(self) -> None:
        """Starts it again if it has ended by itself, and waits until it answers."""
        if self._process is not None and self._process.poll() is None:
            self._await(self.admin_url)
        else:
            self._process = None
            self.start()

    def follow(self, primary: str) -> None:
        """Becomes a standby of that server, an administrator's URL: with a copy of its data, in place of its own."""
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
        target = (f"--pgdata={self._data}", "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        _check(*_as_postgres(), PROGRAMS / "pg_basebackup", f"--dbname={primary}", *target)
        self.start()

    def become_standby(self) -> None:
        """Restarts it as a replica, which can be read only."""
        self._end(signal.SIGINT)
        (self._data / "standby.signal").touch()
        self.start()

    def become_primary(self) -> None:
        """Restarts it as one that can be written to."""
        self._end(signal.SIGINT)
        (self._data / "standby.signal").unlink()
        self.start()

    def __enter__(self) -> PostgresServer:
        return self


class PgBouncer(_Server):
    """A pooler before `server`, which gives each transaction another session."""

    def __init__(self, server: PostgresServer, mode: str = "transaction") -> None:
        super().__init__("pgbouncer")
        self.port = free_port()
        self._server = server
        users = self.directory / "users"
        users.write_text(f'"app" "{server.password}"\n')
        settings = self.directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\napp = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\n"
            "default_pool_size = 3\nmax_client_conn = 500\nserver_tls_sslmode = prefer\n"
        )
        for file in (users, settings):
            file.chmod(0o644)
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self._launch(program, settings)
        self._await(self.url)

    def stop(self) -> None:
        """Ends it. By the one signal that it cannot have been started to ignore, as background jobs ignore SIGQUIT."""
        self._end(signal.SIGKILL)
        super().stop()

    @property
    def url(self) -> str:
        return f"postgres://app:{self._server.password}@127.0.0.1:{self.port}/app"

    def __enter__(self) -> PgBouncer:
        return self


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _runs(pid: int) -> bool:
    """Whether there is such a process, and it is not dead already."""
    try:
        return "(postgres) Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def may_have_disk() -> bool:
    """Whether this process may mount one for a server."""
    with tempfile.TemporaryDirectory(prefix="polylock-disk-") as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "polylock", place], capture_output=True).returncode == 0
        if mounted:
            _check("umount", place)
        return mounted


def make_certificates(directory: pathlib.Path) -> None:
    """ca.pem, other.pem (of another authority), and by the first server.pem for localhost and client.pem for carol."""

    def make(name: str, subject: str, *options: str) -> None:
        files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        _check("openssl", "req", "-x509", *kind, *files, "-subj", f"/CN={subject}", *options)

    signed = ["-CA", str(directory / "ca.pem"), "-CAkey", str(directory / "ca.key")]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    make("ca", "polylock tests")
    make("other", "somebody else")
    make("server", "localhost", *signed, *leaf, "-addext", "subjectAltName=DNS:localhost")
    make("client", "carol", *signed, *leaf)
    for key in directory.glob("*.key"):
        key.chmod(0o600)
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(key, account.pw_uid, account.pw_gid)


def run_sql(url: str, text: str, check: bool = True, **variables: str) -> str:
    """What `psql` prints for `text`, in which :'name' stands for a variable."""
    options = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    command = ["psql", "--no-psqlrc", "-qtA", "-v", "ON_ERROR_STOP=1", *options, url]
    # By its standard input: with -c, variables are not filled in.
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"psql: {done.stderr}")
    return done.stdout.strip()


def _check(*command: str | pathlib.Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


def _as_postgres() -> list[str]:
    """What to put before a command: another user, and an end with the tests should they be killed."""
    if os.getuid() != 0:
        return ["setpriv", "--pdeathsig=KILL"]
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL"]


def _obey(options: list[str]) -> None:
    """Runs a server for tests in other languages: a line of URLs, then orders by standard input, each answered `ok`.

    `kill`, `start`, `pause` and `resume` do just that; `standby` restarts it as a replica, `primary` undoes that. It
    ends with the input. Options that begin with `--` are the arguments of `PostgresServer`, the others are settings.
    """
    settings = [option for option in options if not option.startswith("--")]

    def value(name: str) -> str | None:
        return next((option.partition("=")[2] for option in options if option.startswith(f"{name}=")), None)

    started = PostgresServer(
        *settings,
        tls="--tls" in options,
        standby_of=value("--standby-of"),
        own_clock="--own-clock" in options,
        disk=value("--disk"),
        log_apart="--log-apart" in options,
    )
    with started as server, PgBouncer(server) as pooler:
        print(server.url, server.admin_url, pooler.url, server.directory, flush=True)
        for order in sys.stdin:
            if order == "kill\n":
                server.kill()
            elif order == "start\n":
                server.start()
            elif order == "pause\n":
                server.pause()
            elif order == "resume\n":
                server.resume()
            elif order == "standby\n":
                server.become_standby()
            elif order == "primary\n":
                server.become_primary()
            else:
                raise ValueError(order)
            print("ok", flush=True)


if __name__ == "__main__":
    _obey(sys.argv[1:])
