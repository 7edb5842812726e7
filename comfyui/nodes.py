"""The nodes. What they say and do is the package's; nothing is decided here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import navicache

from .adapter import Runs, patched

CATEGORY = "navicache"


class NaviCache:
    """Puts a model under a cache method."""

    CATEGORY, FUNCTION = CATEGORY, "patch"
    RETURN_TYPES = ("MODEL", "NAVICACHE_RUN")
    RETURN_NAMES = ("model", "run")
    DESCRIPTION = "Computes only the steps that matter. Connect `run` to NaviCache Report to see which they were."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        methods = ["navicache", "easycache", "trend", "taylorseer", "stride"]
        return {
            "required": {
                "model": ("MODEL",),
                "method": (methods, {"tooltip": "what decides whether a step is computed"}),
                "preset": (["mid", "slow", "fast"], {"tooltip": "numbers measured for the model; threshold overrides them"}),
                "threshold": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.001, "tooltip": "0: the preset's"},
                ),
                "options": ("STRING", {"default": "", "tooltip": "further options, as in max_run=3,reuse=linear"}),
            },
            "optional": {"tuned": ("NAVICACHE_PRESET", {"tooltip": "takes the place of all settings here"})},
        }

    def patch(
        self, model: Any, method: str, preset: str, threshold: float, options: str, tuned: str | None = None
    ) -> tuple[Any, Runs]:
        runs = Runs()
        return patched(model, tuned or text_of(method, preset, threshold, options), runs), runs


def text_of(method: str, preset: str, threshold: float, options: str) -> str:
    """The settings as one text. Where the threshold is given no preset is looked up, so any model will do."""
    head = f"{method},threshold={threshold:g}" if threshold > 0 else f"{method}:{preset}"
    return f"{head},{options.strip()}" if options.strip() else head


class Report:
    """Shows what the last sampling computed."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "show", True
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    DESCRIPTION = "Put it between the sampler and the VAE: S is a step that was computed, . one that was reused."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"latent": ("LATENT",), "run": ("NAVICACHE_RUN",)},
            "optional": {"file": ("STRING", {"default": "", "tooltip": "the report as JSON goes here"})},
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")  # a sampling does not show in its inputs

    def show(self, latent: Any, run: Runs, file: str = "") -> dict[str, Any]:
        if run.report is None:
            text = "\n".join(run.warnings) or "nothing was sampled with this model yet"
        else:
            text = "\n".join([str(run.report), *run.report.warnings])
            if file.strip():
                run.report.save(Path(file.strip()))
        return {"ui": {"text": [text]}, "result": (latent, text)}


class Trace:
    """Records a sampling that computes everything."""

    CATEGORY, FUNCTION = CATEGORY, "patch"
    RETURN_TYPES = ("MODEL", "NAVICACHE_RUN")
    RETURN_NAMES = ("model", "trace")
    DESCRIPTION = "Sample once with this model, then let NaviCache Tune find the settings for a speed-up."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any, Runs]:
        runs = Runs()
        return patched(model, None, runs), runs


class Tune:
    """The best setting for a speed-up, from a trace."""

    CATEGORY, FUNCTION = CATEGORY, "tune"
    RETURN_TYPES = ("NAVICACHE_PRESET", "STRING")
    RETURN_NAMES = ("tuned", "prediction")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "latent": ("LATENT", {"tooltip": "of the sampler that was recorded, so that it has run"}),
                "trace": ("NAVICACHE_RUN",),
                "speedup": ("FLOAT", {"default": 2.0, "min": 1.0, "max": 10.0, "step": 0.1}),
                "method": (["navicache", "easycache"],),
            }
        }

    def tune(self, latent: Any, trace: Runs, speedup: float, method: str) -> tuple[str, str]:
        if trace.trace is None:
            raise ValueError("nothing was recorded: sample once with the model of NaviCache Trace")
        preset = navicache.tune(trace.trace, method, speedup=speedup)
        options = {name: value for name, value in preset["cache"].items() if name != "method" and value is not None}
        text = ",".join([preset["cache"]["method"], *(f"{name}={_plain(value)}" for name, value in options.items())])
        return text, json.dumps(preset["predicted"], indent=2)


class Schedule:
    """Repeats what a strip says: S computed, . reused."""

    CATEGORY, FUNCTION = CATEGORY, "schedule"
    RETURN_TYPES = ("NAVICACHE_PRESET",)
    RETURN_NAMES = ("tuned",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"strip": ("STRING", {"default": "SS|SS|..|SS|", "multiline": True})}}

    def schedule(self, strip: str) -> tuple[str]:
        return (f"schedule,strip={''.join(strip.split())}",)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


NODE_CLASS_MAPPINGS = {
    "NaviCache": NaviCache,
    "NaviCacheReport": Report,
    "NaviCacheTrace": Trace,
    "NaviCacheTune": Tune,
    "NaviCacheSchedule": Schedule,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "NaviCache": "NaviCache",
    "NaviCacheReport": "NaviCache Report",
    "NaviCacheTrace": "NaviCache Trace",
    "NaviCacheTune": "NaviCache Tune",
    "NaviCacheSchedule": "NaviCache Schedule",
}
