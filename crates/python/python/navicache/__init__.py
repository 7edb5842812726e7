"""Video diffusion that computes only the steps that matter."""

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
    "estimate",
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
