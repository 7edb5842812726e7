"""A batch on Ray: an actor holds a model and makes one video at a time; the queue is ours.

Ray could repeat what a dead actor was doing, but unseen: here a job that is lost is written into the journal, counted,
and given to another actor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from navicache import _core
from navicache.options import Cache, PathLike
from navicache.ray.jobs import Job, Journal, Maker, finished, read_jobs
from navicache.report import Report


@dataclass(frozen=True)
class Result:
    """A job that is done."""

    job: Job
    report: Report
    is_new: bool
    """Whether this call made it; it was there before otherwise."""


@dataclass(frozen=True)
class Failed:
    """A job that could not be made."""

    job: Job
    reasons: list[str]
    """Of every try."""


@dataclass
class Summary:
    """What came of a batch."""

    results: list[Result] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    @property
    def made(self) -> int:
        """Videos that this call made."""
        return sum(result.is_new for result in self.results)

    def __str__(self) -> str:
        there = len(self.results) - self.made
        return f"{self.made} videos made, {there} were there, {len(self.failed)} failed"


def generate(
    jobs: PathLike | Iterable[Mapping[str, Any] | Job],
    *,
    out: PathLike,
    model: str,
    cache: Cache | None = None,
    load: Mapping[str, Any] | None = None,
    actors: int | None = None,
    cpus: int | None = None,
    gpus: float = 0,
    retries: int = 3,
    address: str | None = None,
    on_result: Callable[[Result], object] | None = None,
) -> Summary:
    """Makes a batch of videos. Kill any process and call it again: only what is missing is made.

    :param jobs: a file of JSON lines, or objects: ``prompt``, ``name`` and any option of :func:`navicache.generate`
    :param out: a folder that all machines see; it gets ``NAME.mp4``, ``NAME.json`` (the report), ``journal.jsonl``
    :param model: name or path, which every machine opens for itself
    :param cache: of all jobs that do not say otherwise
    :param load: how the model is opened, as for :class:`navicache.Pipeline`
    :param actors: how many models are held at once; left out, as many as the cluster has room for
    :param cpus: cores of an actor; left out, all of the smallest machine
    :param retries: how often a job is begun again whose actor died
    :param address: of the cluster; left out, the one of the environment, or a new one on this machine
    """
    out = Path(out).resolve()
    todo = read_jobs(jobs, {} if cache is None else {"cache": cache})
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False)  # type: ignore[no-untyped-call]
    summary = Summary()
    with Journal(out) as journal:
        pending: deque[Job] = deque()
        for job in todo:
            report = finished(out, job, model, load)
            if report is None:
                pending.append(job)
            else:
                _done(summary, Result(job, report, is_new=False), on_result)
        if pending:
            cpus = cpus or _cores_of_smallest()
            hired = Actor.options(num_cpus=cpus, num_gpus=gpus)  # type: ignore[attr-defined]
            hire = lambda: hired.remote(str(out), model, load, cpus)  # noqa: E731
            count = min(actors or _room(cpus, gpus), len(pending))
            _work(pending, [hire() for _ in range(count)], hire, retries, journal, summary, on_result)
    return summary


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor:
    """A process that holds a model."""

    def __init__(self, out: str, model: str, load: Mapping[str, Any] | None, cpus: int) -> None:
        _core.use_threads(cpus)
        self._open = lambda: Maker(out, model, load)
        self._maker: Maker | None = None

    def maker(self) -> Maker:
        """Opens the model, if it is not yet."""
        if self._maker is None:
            self._maker = self._open()
        return self._maker

    def ready(self) -> None:
        """Answers when the model is open; an error here is not a job's."""
        self.maker()

    def make(self, job: Job) -> Report:
        """Makes a job and its files."""
        return self.maker().make(job)


def _work(
    pending: deque[Job],
    idle: list[Any],
    hire: Callable[[], Any],
    retries: int,
    journal: Journal,
    summary: Summary,
    on_result: Callable[[Result], object] | None,
) -> None:
    """Gives jobs to actors until none is left."""
    actors = list(idle)
    running: dict[Any, tuple[Any, Job]] = {}
    reasons: dict[str, list[str]] = {}
    try:
        try:
            ray.get([actor.ready.remote() for actor in actors])
        except RayTaskError as error:
            # A model that cannot be opened is no matter of a job.
            raise error.cause from None
        while pending or running:
            while pending and idle:
                actor, job = idle.pop(), pending.popleft()
                journal.write("begin", job, **{"try": len(reasons.get(job.name, [])) + 1})
                running[actor.make.remote(job)] = (actor, job)
            [made], _ = ray.wait(list(running), num_returns=1)
            actor, job = running.pop(made)
            try:
                report = ray.get(made)
            except RayTaskError as error:
                # The job itself is at fault: it would be again.
                idle.append(actor)
                _failed(journal, summary, job, [*reasons.get(job.name, []), str(error.cause)])
            except RayError as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                journal.write("lost", job, reason=reason)
                reasons.setdefault(job.name, []).append(reason)
                actors.remove(actor)
                ray.kill(actor)
                actors.append(hire())
                idle.append(actors[-1])
                if len(reasons[job.name]) > retries:
                    _failed(journal, summary, job, reasons[job.name])
                else:
                    pending.append(job)
            else:
                idle.append(actor)
                journal.write("end", job, strip=report.strip, seconds=report["totals"]["seconds"]["total"])
                _done(summary, Result(job, report, is_new=True), on_result)
    finally:
        for actor in actors:
            ray.kill(actor)


def _done(summary: Summary, result: Result, on_result: Callable[[Result], object] | None) -> None:
    summary.results.append(result)
    if on_result is not None:
        on_result(result)


def _failed(journal: Journal, summary: Summary, job: Job, reasons: list[str]) -> None:
    journal.write("failed", job, reasons=reasons)
    summary.failed.append(Failed(job, reasons))


def _cores_of_smallest() -> int:
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in cores if count > 0), default=1)


def _room(cpus: int, gpus: float) -> int:
    """Actors that fit on the machines there are; at least one, which waits for one to come."""
    free = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    of_cpus = [int(resources.get("CPU", 0) // cpus) for resources in free]
    of_gpus = [int(resources.get("GPU", 0) // gpus) for resources in free] if gpus else of_cpus
    return max(1, sum(map(min, of_cpus, of_gpus)))
