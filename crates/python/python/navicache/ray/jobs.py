"""What a batch is made of: jobs, the files that they leave, and the journal. Knows nothing of Ray."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from navicache import native
from navicache.options import PathLike
from navicache.report import Report


# Options of `navicache.Pipeline` that a video does not depend on.
_PLACE = ("device", "memory")


@dataclass(frozen=True)
class Job:
    """A video of a batch."""

    name: str
    """Of its files: ``NAME.mp4`` and ``NAME.json``, the report."""
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)
    """As :func:`navicache.generate` takes them."""

    def digest(self, model: str, load: Mapping[str, Any] | None = None) -> str:
        """What the video depends on: its request, the model's name, and how it is opened. When it changes, the video is
        made again. Where it runs, and in how much memory, is none of it."""
        request = native.request(self.prompt, self.options)  # type: ignore[arg-type]
        opened = {key: value for key, value in (load or {}).items() if key not in _PLACE and value is not None}
        text = f"{model}\n{request}\n{json.dumps(opened, sort_keys=True, default=os.fspath)}"
        return hashlib.sha256(text.encode()).hexdigest()


def read_jobs(jobs: PathLike | Iterable[Mapping[str, Any] | Job], defaults: Mapping[str, Any]) -> list[Job]:
    """Jobs from a file of JSON lines, or from objects: ``prompt``, ``name`` and any option of ``generate``.

    :param defaults: options of all jobs that do not say otherwise
    :raises ValueError: a job has no prompt, an unknown option, or a name that is no file's or another job's
    """
    rows: Iterable[Mapping[str, Any] | Job]
    if isinstance(jobs, (str, os.PathLike)):
        lines = Path(jobs).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    else:
        rows = jobs
    made: list[Job] = []
    names: set[str] = set()
    for number, row in enumerate(rows):
        job = row if isinstance(row, Job) else _job(number, dict(row), defaults)
        if not job.name or job.name.startswith(".") or set(job.name) & set("/\\\0"):
            raise ValueError(f"job {number}: name {job.name!r} is no name of a file")
        if job.name in names:
            raise ValueError(f"job {number}: name {job.name!r} is that of an earlier one; give each its own `name`")
        names.add(job.name)
        made.append(job)
    return made


def _job(number: int, row: dict[str, Any], defaults: Mapping[str, Any]) -> Job:
    if not isinstance(row.get("prompt"), str):
        raise ValueError(f"job {number}: expected a `prompt`, found {row}")
    prompt, name = row.pop("prompt"), row.pop("name", f"{number:05}")
    options = {**defaults, **row}
    try:
        native.request(prompt, options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"job {number}, {name!r}: {error}") from None
    return Job(str(name), prompt, options)


class Maker:
    """Makes jobs with one open model, on whatever process it lives in."""

    def __init__(self, out: PathLike, model: str, load: Mapping[str, Any] | None = None) -> None:
        self.out, self.model, self.load = Path(out), model, load
        self.pipeline = native.Pipeline(model, **(load or {}))  # type: ignore[arg-type]

    def make(self, job: Job) -> Report:
        """Makes a job, unless its files are there. Files are written whole: doing it twice does no harm."""
        done = finished(self.out, job, self.model, self.load)
        if done is not None:
            return done
        video = native.generate(self.pipeline, job.prompt, output=self.out / f"{job.name}.mp4", **job.options)
        report = Report(video.report, job={"name": job.name, "digest": job.digest(self.model, self.load)})
        report.save(self.out / f"{job.name}.json")
        return report


def finished(out: Path, job: Job, model: str, load: Mapping[str, Any] | None = None) -> Report | None:
    """The report of a job whose files are there, made from the same request by the same model."""
    try:
        report = Report(json.loads((out / f"{job.name}.json").read_text(encoding="utf-8")))
        is_same = report["job"]["digest"] == job.digest(model, load)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_same and (out / f"{job.name}.mp4").exists() else None


class Journal:
    """``journal.jsonl``: a line whenever a job begins, ends, is lost or fails. For people; nothing is read from it.

    It is locked, so that two batches do not share a folder.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(out / "journal.jsonl", "ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{out}: another batch writes there; wait for it, or give another folder") from None
        # The last line of a driver that was killed may have no end.
        if self._file.tell() > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: str, job: Job, **fields: object) -> None:
        """Adds a line, and waits until it is on the disk."""
        line = {"event": event, "job": job.name, "time": round(time.time(), 3), **fields}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
