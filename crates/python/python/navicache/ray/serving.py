"""A service on Ray Serve: ``/v1/videos`` in, jobs in a store, workers that lease them.

    serve run navicache.ray.serving:app model=demo data=/srv/videos

A video is no request: one that lasts an hour would die with a proxy, a client or a replica. A worker that is killed
loses the steps since its last checkpoint; another one goes on.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from ray import serve

from navicache import errors, native
from navicache.options import PathLike
from navicache.ray.store import Record, Store

_api = FastAPI(title="navicache")
# What clients of this interface send, and no option of ours.
_TAKEN = ("model", "prompt")
# Options that name files of this machine.
_FILES = ("image", "latents", "save_latents", "checkpoint", "resume")
# Seconds between two looks into an empty store.
_PAUSE = 0.2


def application(
    model: str, data: PathLike, *, workers: int = 1, cpus: float = 1, gpus: float = 0, lease: float = 30.0
) -> serve.Application:
    """A Serve application.

    :param model: name or path, which every worker opens for itself
    :param data: a folder that all machines see: jobs, videos and reports
    :param workers: how many models are held, each with so many ``cpus`` and ``gpus``
    :param lease: seconds after which a job is given to another worker when nothing is heard of the one it has
    """
    options = {"num_cpus": cpus, "num_gpus": gpus}
    of_workers = Worker.options(num_replicas=workers, ray_actor_options=options).bind(model, str(data), lease)  # type: ignore[attr-defined]
    return Api.bind(model, str(data), of_workers)  # type: ignore[attr-defined,no-any-return]


def app(arguments: dict[str, str]) -> serve.Application:
    """The same from the arguments of ``serve run``, which are texts."""
    numbers = {"workers": int, "cpus": float, "gpus": float, "lease": float}
    return application(**{name: numbers.get(name, str)(text) for name, text in arguments.items()})


@serve.deployment(ray_actor_options={"num_cpus": 0})
@serve.ingress(_api)
class Api:
    """Answers at once: jobs are made by workers."""

    def __init__(self, model: str, data: str, workers: Any) -> None:
        self.model, self.data, self.store = model, Path(data), Store(Path(data) / "jobs.sqlite")

    @_api.post("/v1/videos")
    async def create(self, request: Request) -> dict[str, Any]:
        """Takes a job in: JSON or a form with `prompt` and any option of `navicache.generate`."""
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                fields = json.loads(await request.body())
            except ValueError as error:
                raise HTTPException(400, f"not JSON: {error}") from None
        else:
            fields = {name: _number(text) for name, text in (await request.form()).items()}
        if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
            raise HTTPException(400, "expected an object with a `prompt`")
        if fields.get("model", self.model) != self.model:
            raise HTTPException(400, f"model {fields['model']!r}: this service runs {self.model!r}")
        options = {name: value for name, value in fields.items() if name not in _TAKEN}
        texts = {name: str(options.get(name, "")) for name in ("cache", "target")}
        forbidden = [name for name in options if name in _FILES]
        # A preset, a strip, a curve and a codebook may come from files.
        forbidden += [name for name, text in texts.items() if any(sign in text for sign in "@/\\") or "curve" in text]
        forbidden += ["cache"] if texts["cache"].strip().startswith("schedule:") else []
        if forbidden:
            raise HTTPException(400, f"{', '.join(forbidden)}: files of the server cannot be named")
        try:
            native.request(fields["prompt"], options)  # type: ignore[arg-type]
        except TypeError as error:
            raise HTTPException(400, str(error)) from None
        return self.described(self.store.add(fields["prompt"], options))

    @_api.get("/v1/videos")
    def list(self, limit: int = 20) -> dict[str, Any]:
        """The newest jobs."""
        records = self.store.list(max(1, min(limit, 100)))
        return {"object": "list", "data": [self.described(record) for record in records]}

    @_api.get("/v1/videos/{name}")
    def retrieve(self, name: str) -> dict[str, Any]:
        """A job as it stands."""
        return self.described(self.found(name))

    @_api.get("/v1/videos/{name}/content")
    def content(self, name: str) -> FileResponse:
        """The video."""
        record = self.found(name)
        if record.status != "completed":
            raise HTTPException(409, f"{name} is {record.status}")
        return FileResponse(self.data / f"{record.id}.mp4", media_type="video/mp4")

    @_api.delete("/v1/videos/{name}")
    def delete(self, name: str) -> dict[str, Any]:
        """Forgets a job, and stops it."""
        record = self.found(name)
        self.store.delete(record.id)
        for ending in (".mp4", ".json", ".checkpoint"):
            (self.data / f"{record.id}{ending}").unlink(missing_ok=True)
        return {"id": record.id, "object": "video.deleted", "deleted": True}

    @_api.get("/health")
    def health(self) -> dict[str, str]:
        """Whether jobs are taken in."""
        return {"status": "ok"}

    def found(self, name: str) -> Record:
        """A job, or 404."""
        record = self.store.get(name)
        if record is None:
            raise HTTPException(404, f"no video {name!r}")
        return record

    def described(self, record: Record) -> dict[str, Any]:
        """A job as clients see it."""
        return {
            "id": record.id,
            "object": "video",
            "created_at": int(record.created),
            "completed_at": None if record.completed is None else int(record.completed),
            "status": record.status,
            "progress": round(100 * record.progress),
            "model": self.model,
            "prompt": record.prompt,
            "size": record.options.get("size"),
            "error": None if record.error is None else {"code": "failed", "message": record.error},
        }


@serve.deployment(graceful_shutdown_timeout_s=3600)
class Worker:
    """Holds a model, and makes one job after the other."""

    def __init__(self, model: str, data: str, lease: float) -> None:
        self.data, self.lease = Path(data), lease
        self.store, self.pipeline = Store(self.data / "jobs.sqlite"), native.Pipeline(model)
        self.is_stopping = False
        self.thread = threading.Thread(target=self.work, name="navicache-worker", daemon=True)
        self.thread.start()

    def check_health(self) -> None:
        """Asked by Serve: a worker that does not work is replaced."""
        if not self.thread.is_alive():
            raise RuntimeError("the thread that makes videos has ended")

    def work(self) -> None:
        """Makes jobs until it is told to stop."""
        while not self.is_stopping:
            record = self.store.take(self.lease)
            if record is None:
                time.sleep(_PAUSE)
                continue
            try:
                if self.make(record):
                    self.store.complete(record)
            except (errors.Error, OSError, TypeError, ValueError) as error:
                self.store.fail(record, str(error))

    def make(self, record: Record) -> bool:
        """Makes a job, from its last checkpoint if there is one; whether it is still ours to complete."""
        output, checkpoint = self.data / f"{record.id}.mp4", self.data / f"{record.id}.checkpoint"
        options = dict(record.options, checkpoint={"path": str(checkpoint)})
        if checkpoint.exists():
            options["resume"] = {"path": str(checkpoint)}
        job = native.start(self.pipeline, record.prompt, output=output, **options)
        stop = threading.Event()
        progress = [record.progress]
        is_ours = [True]

        def keep() -> None:
            while not stop.wait(self.lease / 3):
                if not self.store.renew(record, self.lease, progress[0]):
                    is_ours[0] = False
                    job.cancel()

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            for event in job:
                if event.kind == "step":
                    progress[0] = (event.index + 1) / event.steps
            job.result().report.save(self.data / f"{record.id}.json")
        except errors.Cancelled:
            if is_ours[0]:
                raise
        finally:
            stop.set()
            keeper.join()
        return is_ours[0]

    def __del__(self) -> None:
        self.is_stopping = True


def _number(text: Any) -> Any:
    """A form's text as JSON has it, where it is a number."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return text
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else text
