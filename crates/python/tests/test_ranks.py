"""T13: several processes make one video, over gloo."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]

HERE = pathlib.Path(__file__).parent


def ranks(out: pathlib.Path, mode: str) -> list[Any]:
    """What two processes have made."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out.mkdir()
    command = [sys.executable, str(HERE / "ranks.py")]
    paths = os.pathsep.join(path for path in sys.path if path)
    started = [
        subprocess.Popen(
            [*command, str(rank), "2", str(port), str(out), mode],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=400)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_processes_that_make_one_video_decide_alike(tmp_path: pathlib.Path) -> None:
    first, second = ranks(tmp_path / "apart", "apart")
    assert first["strips"] != second["strips"], "numbers that differ should show somewhere"
    together = ranks(tmp_path / "together", "together")
    assert together[0]["strips"] == together[1]["strips"] == first["strips"]
    assert together[0]["latents"] == together[1]["latents"] == first["latents"]
    assert sum("." in strip for strip in first["strips"]) >= 4
