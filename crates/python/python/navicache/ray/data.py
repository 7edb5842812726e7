"""For pipelines of Ray Data: rows in, videos in files out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from navicache.options import Cache, PathLike
from navicache.ray.jobs import Maker, read_jobs


class Generator:
    """A callable class for ``dataset.map_batches(Generator, batch_size=1, concurrency=2, fn_constructor_kwargs=...)``.

    Columns are those of a job: ``prompt``, ``name`` (needed: a repeated block makes the same files) and any option of
    :func:`navicache.generate`. Columns ``path``, ``strip`` and ``seconds`` are added.
    """

    def __init__(
        self, out: PathLike, model: str, cache: Cache | None = None, load: Mapping[str, Any] | None = None
    ) -> None:
        Path(out).mkdir(parents=True, exist_ok=True)
        self.maker = Maker(out, model, load)
        self.defaults: dict[str, Any] = {} if cache is None else {"cache": cache}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Makes the videos of a batch that are not there yet."""
        if "name" not in batch:
            raise ValueError(f"expected a column `name`, which files are named by; found {', '.join(batch)}")
        rows = [dict(zip(batch, map(_plain, values), strict=True)) for values in zip(*batch.values(), strict=True)]
        jobs = read_jobs(rows, self.defaults)
        reports = [self.maker.make(job) for job in jobs]
        return {
            **batch,
            "path": np.array([str(self.maker.out / f"{job.name}.mp4") for job in jobs]),
            "strip": np.array([report.strip for report in reports]),
            "seconds": np.array([report["totals"]["seconds"]["total"] for report in reports]),
        }


def _plain(value: object) -> object:
    """A number of numpy's as Python's own; names and prompts are texts of numpy's too."""
    return value.item() if isinstance(value, np.generic) else value
