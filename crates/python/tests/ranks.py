"""Processes that make one video together; run by `test_ranks.py`.

    python ranks.py RANK WORLD PORT OUT MODE

MODE: `apart`, every process decides by its own numbers; `together`, by the first one's. Context parallel as diffusers
0.42.1 has it needs an accelerator: `enable_parallelism` divides by the number of them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

import tiny
from navicache import diffusers as nc
from navicache import measure

CACHES = [f"easycache,threshold={threshold},warmup_steps=3" for threshold in (0.2, 0.3, 0.5, 0.8, 1.1, 1.5)]


def main() -> None:
    rank, world, port, out, mode = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    made: dict[str, Any] = {"strips": [], "latents": []}
    if rank > 0:
        differ()
    for cache in CACHES:
        pipe = tiny.wan()
        group = dist.group.WORLD if mode == "together" else None
        with nc.cached(pipe, cache, guards="off", group=group) as session:
            latents = tiny.run(pipe, 24)
            assert session.report is not None
            made["strips"].append(session.report.strip)
            made["latents"].append(latents.flatten().tolist())
    with open(f"{out}/{rank}.json", "w") as file:
        json.dump(made, file)
    dist.barrier()
    dist.destroy_process_group()


def differ() -> None:
    """What this process measures is off by two in a hundred, as another card's rounding would be, only more."""
    plain = measure.measure

    def off(*given: Any) -> Any:
        scalar = plain(*given)
        return None if scalar is None else scalar * (1.02 if given[0].startswith("change") else 1.0)

    measure.measure = off


main()
