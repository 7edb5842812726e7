"""Video diffusion that computes only the steps that matter."""

from typing import TYPE_CHECKING, Any

from navicache._core import __version__, use_threads
from navicache.errors import Bug, Cancelled, Error, MissingError, ModelError, RequestError
from navicache.native import (
    Event,
    Job,
    Pipeline,
    Video,
    estimate,
    generate,
    inspect,
    methods,
    metrics,
    models,
    start,
)
from navicache.offline import Preset, Trace, predict, replay, tune
from navicache.report import Report

if TYPE_CHECKING:
    from navicache.diffusers import cached, disable, enable, explain

__all__ = [
    "Bug",
    "Cancelled",
    "Error",
    "Event",
    "Job",
    "MissingError",
    "ModelError",
    "Pipeline",
    "Preset",
    "Report",
    "RequestError",
    "Trace",
    "Video",
    "__version__",
    "cached",
    "disable",
    "enable",
    "estimate",
    "explain",
    "generate",
    "inspect",
    "methods",
    "metrics",
    "models",
    "predict",
    "replay",
    "start",
    "tune",
    "use_threads",
]


def __getattr__(name: str) -> Any:
    """What is for pipelines of diffusers is there, and torch imported, when it is asked for."""
    if name in ("cached", "disable", "enable", "explain"):
        from navicache import diffusers

        return getattr(diffusers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
