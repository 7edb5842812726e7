"""Decisions on recorded numbers, in milliseconds and without a model: replay, tuning, predictors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from navicache import _core
from navicache.native import Pipeline, request
from navicache.options import Options, PathLike

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Trace:
    """What a run that computed everything measured: the file of ``navicache trace``."""

    def __init__(self, trace: _core.Trace) -> None:
        self._trace = trace

    @staticmethod
    def load(path: PathLike) -> Trace:
        """Reads one that was written, by the program, by :meth:`save` or from a pipeline of diffusers."""
        return Trace(_core.Trace.load(path))

    @staticmethod
    def record(
        model: Pipeline | PathLike, prompt: str, *, lags: int | None = None, **options: Unpack[Options]
    ) -> Trace:
        """Runs the engine once with everything computed. Nothing is decoded.

        :param lags: earlier steps that distances of features are recorded to; more memory, and a truer replay
        """
        pipeline = model if isinstance(model, Pipeline) else Pipeline(model)
        return Trace(_core.Trace.record(pipeline._opened, request(prompt, options), lags))

    def save(self, path: PathLike) -> None:
        """Writes it as JSON lines, whole or not at all."""
        self._trace.save(path)

    @property
    def header(self) -> dict[str, Any]:
        """What was run: model, family, prompt, seed, branches, blocks."""
        return dict(json.loads(self._trace.header()))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What was measured, step by step."""
        return list(json.loads(self._trace.steps()))


class Preset(dict[str, Any]):
    """A setting that was tuned: give it as ``cache=``, or :meth:`save` it for ``--cache @FILE``."""

    def save(self, path: PathLike) -> None:
        """Writes it, whole or not at all."""
        _core.save_preset(json.dumps(self), path)


def replay(traces: Trace | Iterable[Trace], *caches: str) -> list[dict[str, Any]]:
    """What methods would compute, and how far off they would be. Options may be ranges: ``threshold=0.02..0.2``.

    :param caches: settings; left out, all methods that have presets for the family
    """
    return list(json.loads(_core.replay(_inner(traces), list(caches))))


def tune(
    traces: Trace | Iterable[Trace], *caches: str, speedup: float | None = None, error: float | None = None
) -> Preset:
    """The best setting: for a speed-up, the smallest predicted error; for an error, the largest speed-up.

    :param caches: methods that are tried; left out, all that have presets for the family
    """
    return Preset(json.loads(_core.tune(_inner(traces), list(caches), speedup, error)))


def predict(files: PathLike | Iterable[PathLike], *caches: str) -> list[dict[str, Any]]:
    """How well methods predict the change of a model's output: mean absolute error on CSV files of changes."""
    paths = [files] if isinstance(files, str) or not isinstance(files, Iterable) else list(files)
    return list(json.loads(_core.predict(paths, list(caches))))


def _inner(traces: Trace | Iterable[Trace]) -> list[_core.Trace]:
    return [trace._trace for trace in ([traces] if isinstance(traces, Trace) else traces)]
