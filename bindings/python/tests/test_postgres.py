"""SQL for a transaction of the caller's, from psycopg; and the examples of docs/postgres.md."""

from __future__ import annotations

import os
import pathlib
import re

import psycopg
import pytest

import polylock
from conftest import unique
from polylock import postgres

ROOT = pathlib.Path(__file__).resolve().parents[3]
URL = os.environ.get("POLYLOCK_TEST_POSTGRES", "")
needs_server = pytest.mark.skipif(not URL, reason="POLYLOCK_TEST_POSTGRES says where a server is")


def test_ids_are_golden() -> None:
    golden = (ROOT / "tests/golden/advisory_lock_ids.tsv").read_text().splitlines()
    lines = [line.split("\t") for line in golden if not line.startswith("#")]
    assert len(lines) > 1
    for number, name in lines:
        assert postgres.lock_id(name) == int(number), name


def test_the_statements_are_the_engines() -> None:
    for file, ours in [
        ("transaction/claim.sql", postgres.CLAIM),
        ("transaction/claim_table.sql", postgres.CLAIM_TABLE),
        ("lease/table.sql", postgres.LEASE_TABLE),
        ("session/table.sql", postgres.SESSION_TABLE),
    ]:
        engines = (ROOT / "core/src/backend/postgres/sql" / file).read_text()
        engines = re.sub("^ *--.*\n| +--.*", "", engines, flags=re.MULTILINE)
        assert ours.replace("%(resource)s", "$1").replace("%(token)s", "$2") == engines


@needs_server
def test_a_transaction_and_a_session_exclude_each_other() -> None:
    name = unique()
    with polylock.connect(f"{URL}?mode=session") as locks, psycopg.connect(URL, autocommit=True) as connection:
        with connection.transaction():
            connection.execute(postgres.LOCK, {"id": postgres.lock_id(name)})
            assert locks.try_acquire(name) is None
        with locks.lock(name, ttl=10):
            assert connection.execute(postgres.TRY_LOCK, {"id": postgres.lock_id(name)}).fetchone() == (False,)


@needs_server
def test_a_stale_holder_writes_nothing() -> None:
    name = unique()
    with polylock.connect(URL) as locks, psycopg.connect(URL, autocommit=True) as connection:
        connection.execute(postgres.CLAIM_TABLE)
        connection.execute("CREATE TABLE IF NOT EXISTS python_paid (name text)")
        tokens = []
        for _ in range(2):
            with locks.lock(name, ttl=10) as lease:
                tokens.append(lease.fencing_token)
        stale, fresh = tokens
        with connection.transaction():
            connection.execute(postgres.CLAIM, {"resource": name, "token": fresh})
        refused = pytest.raises(psycopg.errors.InvalidTextRepresentation, match=f"token {stale} of {name}")
        with refused, connection.transaction():
            connection.execute("INSERT INTO python_paid VALUES (%s)", [name])
            connection.execute(postgres.CLAIM, {"resource": name, "token": stale})
        assert connection.execute("SELECT count(*) FROM python_paid WHERE name = %s", [name]).fetchone() == (0,)


@needs_server
def test_the_examples_of_the_page_run() -> None:
    page = (ROOT / "docs/postgres.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example.replace("postgres://user:password@host/database", URL), "docs/postgres.md", "exec"), {})
