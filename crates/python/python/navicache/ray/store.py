"""Jobs of a service, in SQLite: who works on one holds a lease, and one whose lease ran out is anybody's again.

The file is on the disk of one machine, or on one whose locks work between machines. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navicache.options import PathLike

_TABLE = """
create table if not exists videos (
    id text primary key,
    created real not null,
    prompt text not null,
    options text not null,
    status text not null default 'queued',
    progress real not null default 0,
    tries integer not null default 0,
    lease text,
    lease_until real,
    completed real,
    error text
)
"""
# How often a job is begun whose worker was lost each time.
_TRIES = 4


@dataclass(frozen=True)
class Record:
    """A job as it stands."""

    id: str
    created: float
    prompt: str
    options: dict[str, Any]
    status: str
    """``queued``, ``in_progress``, ``completed`` or ``failed``."""
    progress: float
    """Steps done, 0 to 1."""
    tries: int
    lease: str | None
    completed: float | None
    error: str | None


class Store:
    """The jobs. Every statement is a transaction of its own, so processes may share the file."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as base:
            base.execute("pragma journal_mode = wal")
            base.execute(_TABLE)

    def add(self, prompt: str, options: dict[str, Any]) -> Record:
        """Takes a job in."""
        name = f"video_{uuid.uuid4().hex}"
        with self._open() as base:
            row = (name, time.time(), prompt, json.dumps(options))
            base.execute("insert into videos (id, created, prompt, options) values (?, ?, ?, ?)", row)
        record = self.get(name)
        assert record is not None
        return record

    def get(self, name: str) -> Record | None:
        """A job; `None` where there is none."""
        with self._open() as base:
            row = base.execute("select * from videos where id = ?", (name,)).fetchone()
        return None if row is None else _record(row)

    def list(self, limit: int) -> list[Record]:
        """The newest jobs first."""
        with self._open() as base:
            rows = base.execute("select * from videos order by created desc, rowid desc limit ?", (limit,)).fetchall()
        return [_record(row) for row in rows]

    def delete(self, name: str) -> bool:
        """Forgets a job; whoever works on it finds out when the lease is renewed."""
        with self._open() as base:
            return base.execute("delete from videos where id = ?", (name,)).rowcount > 0

    def take(self, seconds: float) -> Record | None:
        """The oldest job that nobody works on, with a new lease; `None` where there is none."""
        now, lease = time.time(), uuid.uuid4().hex
        with self._open() as base:
            lost = "status = 'in_progress' and lease_until < ?"
            base.execute(
                f"update videos set status = 'failed', error = 'its worker was lost ' || tries || ' times', lease = null "
                f"where {lost} and tries >= {_TRIES}",
                (now,),
            )
            row = base.execute(
                "update videos set status = 'in_progress', lease = ?, lease_until = ?, tries = tries + 1 where id = ("
                f"select id from videos where status = 'queued' or ({lost}) order by created, rowid limit 1) returning *",
                (lease, now + seconds, now),
            ).fetchone()
        return None if row is None else _record(row)

    def renew(self, record: Record, seconds: float, progress: float) -> bool:
        """Keeps a lease; whether it still is one: the job may be deleted, or given to another."""
        return self._change(record, "lease_until = ?, progress = ?", time.time() + seconds, progress)

    def complete(self, record: Record) -> bool:
        """The video is there."""
        change = "status = 'completed', progress = 1, completed = ?, lease = null"
        return self._change(record, change, time.time())

    def fail(self, record: Record, error: str) -> bool:
        """The job cannot be done."""
        return self._change(record, "status = 'failed', error = ?, lease = null", error)

    def _change(self, record: Record, change: str, *values: Any) -> bool:
        with self._open() as base:
            done = base.execute(
                f"update videos set {change} where id = ? and lease = ?", (*values, record.id, record.lease)
            )
            return done.rowcount > 0

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        base.row_factory = sqlite3.Row
        try:
            yield base
        finally:
            base.close()


def _record(row: sqlite3.Row) -> Record:
    fields = {name: row[name] for name in row.keys() if name != "lease_until"}
    return Record(**{**fields, "options": json.loads(row["options"])})
