"""The engine: models opened, videos made on a thread of Rust's, frames as numpy arrays."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from navicache import _core
from navicache.options import LoadOptions, Options, PathLike
from navicache.report import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    Pixels = NDArray[np.uint8]

# numpy takes longer to import than all the rest: it is, where there are pixels.


def generate(
    model: Pipeline | PathLike,
    prompt: str,
    *,
    output: PathLike | None = None,
    on_event: Callable[[Event], object] | None = None,
    **options: Unpack[Options],
) -> Video:
    """Makes a video, and waits for it. Other threads of Python run meanwhile.

    :param model: an open one, or the name or path of one that is opened for this video
    :param output: a file that the video is written to; should that fail, its latents are kept beside it
    :param on_event: hears what happens; if it answers ``False`` or raises, the run stops at the next step
    """
    job = start(model, prompt, output=output, **options)
    try:
        for event in job:
            if on_event is not None and on_event(event) is False:
                job.cancel()
        return job.result()
    except BaseException:
        job.cancel()
        raise


def start(
    model: Pipeline | PathLike, prompt: str, *, output: PathLike | None = None, **options: Unpack[Options]
) -> Job:
    """Begins a video on a thread of Rust's. It stops when nobody holds the job any more."""
    pipeline = model if isinstance(model, Pipeline) else Pipeline(model)
    return Job(pipeline._opened.start(request(prompt, options), output))


class Pipeline:
    """An open model, for any number of videos. Threads may share it: their videos are made one after the other."""

    def __init__(self, model: PathLike, **options: Unpack[LoadOptions]) -> None:
        """Opens a model.

        :param model: ``demo``, which is built in; a name that :func:`models` lists; a folder or file of weights; or
            ``""`` for what the files in ``options`` make up
        """
        self._opened = _core.Pipeline(model, **options)

    @property
    def name(self) -> str:
        """Name or path, as it was opened."""
        return self._opened.name

    @property
    def defaults(self) -> dict[str, Any]:
        """What a request leaves open."""
        return dict(json.loads(self._opened.defaults()))

    def resolve(self, prompt: str, **options: Unpack[Options]) -> dict[str, Any]:
        """A request with every default filled in, as it stands in the report."""
        return dict(json.loads(self._opened.resolve(request(prompt, options))))

    def estimate(self, prompt: str = "", **options: Unpack[Options]) -> dict[str, Any]:
        """What a video will take: memory by stage, seconds of the steps and of decoding. Runs a block as a probe."""
        return dict(json.loads(self._opened.estimate(request(prompt, options))))

    def __repr__(self) -> str:
        return f"navicache.Pipeline({self.name!r})"


class Job:
    """A video that is being made. Iterate it, or ``async for``, for what happens; :meth:`result` is the video."""

    def __init__(self, job: _core.Job) -> None:
        self._job = job
        self._video: Video | None = None

    def __iter__(self) -> Iterator[Event]:
        while (said := self._job.next_event()) is not None:
            yield Event.of(*said)

    async def __aiter__(self) -> AsyncIterator[Event]:
        import asyncio  # takes longer to import than this package does

        while (said := await asyncio.to_thread(self._job.next_event)) is not None:
            yield Event.of(*said)

    def cancel(self) -> None:
        """Asks it to stop at the next step or chunk of frames; :meth:`result` then raises ``Cancelled``."""
        self._job.cancel()

    @property
    def done(self) -> bool:
        """Whether it is over, however it ended."""
        return self._job.done

    def result(self, timeout: float | None = None) -> Video:
        """Waits for the video, at most so many seconds (``TimeoutError``); raises what went wrong."""
        if self._video is None:
            self._video = Video(self._job.result(timeout))
        return self._video


@dataclass(frozen=True)
class Event:
    """Something that happened: ``event.kind`` and its fields as attributes, as docs/events.md lists them.

    ``image`` is the picture of a ``preview``: 8-bit RGB, (height, width, 3).
    """

    kind: str
    fields: dict[str, Any]
    image: Pixels | None = None

    @staticmethod
    def of(text: str, pixels: bytes | None) -> Event:
        """From the engine's own form."""
        fields = json.loads(text)
        image = None
        if pixels is not None:
            import numpy as np

            image = np.frombuffer(pixels, np.uint8).reshape(fields["height"], fields["width"], 3)
        return Event(fields.pop("event"), fields, image)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(f"an event {self.__dict__.get('kind')!r} has no {name!r}") from None


class Video:
    """A finished video."""

    def __init__(self, video: _core.Video) -> None:
        self._video = video
        self._frames: Pixels | None = None

    @property
    def frames(self) -> Pixels:
        """8-bit RGB, (frames, height, width, 3); read-only. Copied out of the engine when first asked for."""
        if self._frames is None:
            import numpy as np

            frames, height, width, _ = self._video.spec()
            self._frames = np.frombuffer(self._video.pixels(), np.uint8).reshape(frames, height, width, 3)
        return self._frames

    @property
    def latents(self) -> NDArray[np.float32]:
        """The final latents, before the VAE's own mean and deviation: (1, channels, latent frames, height, width)."""
        import numpy as np

        numbers, shape = self._video.latents()
        return np.frombuffer(numbers, "<f4").reshape(shape)

    @property
    def fps(self) -> float:
        """Frames a second, of files that are written."""
        return self._video.spec()[3]

    @property
    def report(self) -> Report:
        """What was computed, and what it cost."""
        return Report(json.loads(self._video.report()))

    def save(self, path: PathLike) -> None:
        """Writes it, whole or not at all: ``.mp4``, ``.gif``, ``.y4m``, ``.safetensors``, or a folder of PNG files."""
        self._video.save(path)

    def __repr__(self) -> str:
        frames, height, width, fps = self._video.spec()
        return f"<navicache.Video: {frames} frames of {width}x{height}, {fps:g} a second>"


def metrics(
    reference: Pixels | Video | PathLike,
    video: Pixels | Video | PathLike,
    *,
    convention: str | None = None,
    lpips_weights: list[PathLike] | None = None,
) -> dict[str, Any]:
    """How far a video is from a reference: PSNR, SSIM, MS-SSIM, motion kept; LPIPS where there are weights.

    :param reference: frames (frames, height, width, 3), a video, a file, or a folder of PNG files
    :param convention: ``raw``, ``videosys`` or ``easycache``, see docs/metrics.md
    """
    return dict(json.loads(_core.compare(_clip(reference), _clip(video), convention, lpips_weights or [])))


def _clip(video: Pixels | Video | PathLike) -> PathLike | tuple[bytes, int, int]:
    if isinstance(video, (str, os.PathLike)):
        return video
    import numpy as np

    frames = np.asarray(video.frames if isinstance(video, Video) else video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames {frames.dtype} {frames.shape}: expected uint8 (frames, height, width, 3)")
    return frames.tobytes(), frames.shape[1], frames.shape[2]


def models() -> list[dict[str, Any]]:
    """The models that are known by name, their sizes, and the folders of those that were downloaded."""
    return list(json.loads(_core.models()))


def methods() -> list[dict[str, Any]]:
    """Every cache method: name, paper, options, and presets by family of models."""
    return list(json.loads(_core.methods()))


def estimate(model: Pipeline | PathLike, prompt: str = "", **options: Unpack[Options]) -> dict[str, Any]:
    """What a video will take, before it is begun."""
    pipeline = model if isinstance(model, Pipeline) else Pipeline(model)
    return pipeline.estimate(prompt, **options)


def inspect(path: PathLike) -> dict[str, Any]:
    """What a file or folder of weights is, and what is missing to run it."""
    return dict(json.loads(_core.inspect(path)))


def request(prompt: str, options: Options) -> str:
    """A request as the engine reads it.

    :raises TypeError: an option is not known
    """
    unknown = options.keys() - set(_core.request_fields())
    if unknown or "prompt" in options:
        names = ", ".join(sorted(unknown)) or "prompt, which is given already"
        known = ", ".join(name for name in _core.request_fields() if name != "prompt")
        of_model = ", ".join(sorted(unknown & LoadOptions.__annotations__.keys()))
        hint = f"{of_model}: for Pipeline(model, ...), which opens a model; " if of_model else ""
        raise TypeError(f"unexpected options {names}; {hint}there are {known}")
    # What is None is left out: it is the model's to decide.
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    size = fields.get("size")
    if isinstance(size, tuple):
        fields["size"] = "x".join(str(pixels) for pixels in size)
    return json.dumps({"prompt": prompt, **fields}, default=_plain)


def _plain(value: object) -> object:
    """What JSON has no form for: paths and numpy's numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    numpy = sys.modules.get("numpy")  # who has a number of it has imported it
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    raise TypeError(f"{value!r}: expected a text, a number or a path, found {type(value).__name__}")
