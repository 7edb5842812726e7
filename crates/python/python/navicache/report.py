"""What a run did and cost: the JSON of docs/report.md, with a few names for what is asked for most."""

from __future__ import annotations

import json
import os
from typing import Any

from navicache import _core


class Report(dict[str, Any]):
    """A report as it is written to a file. Fields are those of docs/report.md."""

    @property
    def strip(self) -> str:
        """What ran, a character a branch: ``S`` computed, ``.`` reused, ``m`` mixed; a bar after each step."""
        return str(self["strip"])

    @property
    def warnings(self) -> list[str]:
        """What there was to be warned of."""
        return list(self["warnings"])

    @property
    def forwards_computed(self) -> int:
        """Forwards (a branch of a step) that were computed, in whole."""
        return int(self["totals"]["forwards_computed"])

    @property
    def seconds_saved(self) -> float | None:
        """Estimated seconds that reuse saved; None where the report does not tell."""
        return _core.seconds_saved(json.dumps(self["steps"]))

    @property
    def speedup(self) -> float | None:
        """Seconds of all steps without reuse over the seconds that they took; None where the report does not tell."""
        saved, took = self.seconds_saved, self["totals"]["seconds"]["denoise"]
        return None if saved is None or not took else (took + saved) / took

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all."""
        _core.write_whole(path, json.dumps(self, indent=2, sort_keys=True) + "\n")

    def __str__(self) -> str:
        totals = self["totals"]
        computed, reused = totals["forwards_computed"], totals["forwards_reused"]
        mixed = f", {totals['forwards_mixed']} in part" if totals["forwards_mixed"] else ""
        return f"{self.strip}\n{computed} forwards computed{mixed}, {reused} reused"


def of_session(finished: str, *, store_bytes: int, denoise: float, warnings: list[str], **about: Any) -> Report:
    """The report of a loop that is not the engine's.

    * `finished` - what its session says of it, as JSON
    * `store_bytes` - that were kept at most
    * `denoise` - seconds of all steps; such a loop has no other stage
    * `warnings` - that were given before the end
    * `about` - what only who led it knows: model, request, source, ended, machine
    """
    report = Report(json.loads(finished))
    report["warnings"] = warnings + report["warnings"]
    report["totals"]["store_bytes"] = store_bytes
    report["totals"]["seconds"] = {"denoise": denoise, "total": denoise}
    report.update(about)
    return report
