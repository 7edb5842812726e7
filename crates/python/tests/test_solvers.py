"""Steps that are left to the solver, in diffusers' loops."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny  # noqa: E402

from navicache import _core, generation, solvers  # noqa: E402
from navicache import diffusers as nc  # noqa: E402

torch.set_num_threads(1)

NAVI = "navicache,align_steps=3,process_noise=0.05,measurement_noise=0.05"


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
@pytest.mark.parametrize("steps", [3, 20])
def test_the_solver_in_rust_is_diffusers_own(solver: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step by both, with nothing skipped: 1e-6 of the latents' size."""
    pairs: list[tuple[Any, Any]] = []
    plain, session = solvers.Steps.plain, _core.Session

    class Watched:
        """The session, with what it hands out kept."""

        def __init__(self, *given: Any) -> None:
            self.inner = session(*given)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def advance(self, *given: Any) -> Any:
            following = self.inner.advance(*given)
            pairs[-1] = (pairs[-1][0], following)
            return following

    def kept(self: Any, *given: Any, **more: Any) -> Any:
        result = plain(self, *given, **more)
        pairs.append((result[0], None))
        return result

    monkeypatch.setattr(solvers.Steps, "plain", kept)
    monkeypatch.setattr(generation._core, "Session", Watched, raising=True)
    pipe = tiny.wan(solver)
    with nc.cached(pipe, NAVI + ",threshold=0,reuse=corrected", guards="off"):
        tiny.run(pipe, steps)
    assert len(pairs) == steps
    for step, (theirs, ours) in enumerate(pairs):
        error = (theirs - ours).abs().max() / theirs.abs().max()
        assert error < 1e-6, (step, float(error))


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_leaving_steps_to_the_solver_is_closer_than_holding(solver: str) -> None:
    pipe = tiny.smooth(tiny.wan(solver))
    plain = tiny.run(pipe, 30)
    schedule = "|".join(["SS"] * 4 + ["..", "SS"] * 12 + ["SS", "SS"]) + "|"
    errors = {}
    for reuse in ("residual", "corrected", "step_over"):
        cache = f"schedule,strip={schedule},reuse={reuse}"
        if solver == "euler" and reuse == "step_over":
            with pytest.raises(ValueError, match="its own error grows"):
                with nc.cached(pipe, cache, on_problem="error"):
                    tiny.run(pipe, 30)
            continue
        with nc.cached(pipe, cache, guards="off") as session:
            errors[reuse] = float((tiny.run(pipe, 30) - plain).abs().mean() / plain.abs().mean())
            assert session.report is not None and session.report.strip == schedule
    assert errors["corrected"] < 0.5 * errors["residual"], errors
    if solver != "euler":
        assert errors["step_over"] < 0.5 * errors["residual"], errors


def test_stride_learns_from_the_solver() -> None:
    pipe = tiny.smooth(tiny.wan())
    plain = tiny.run(pipe, 30)
    with nc.cached(pipe, "stride,threshold=0.05") as session:
        latents = tiny.run(pipe, 30)
        report = session.report
    assert report is not None and report["ended"] == "done" and report.strip.count("..|") > 5
    seen = [step["branches"]["cond"]["seen"] for step in report["steps"]]
    assert any("solver_error_magnitude" in numbers for numbers in seen)
    assert float((latents - plain).abs().mean() / plain.abs().mean()) < 0.02


def test_latents_that_a_callback_changes_end_the_skipping() -> None:
    def change(_: Any, step: int, __: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] + 0.5} if step == 12 else {}

    pipe = tiny.wan()
    with nc.cached(pipe, "stride,threshold=2", on_problem="quiet") as session:
        latents = tiny.run(pipe, 24, callback_on_step_end=change)
        report = session.report
    assert report is not None and report["ended"] == "failed"
    assert any("changed between steps" in warning for warning in report.warnings)
    assert torch.isfinite(latents).all() and "step" not in pipe.scheduler.__dict__


def test_other_schedulers_are_refused_with_the_reason() -> None:
    pipe = tiny.wan()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=3)
    reason = nc.refused(pipe, "stride,threshold=0.1")
    assert reason is not None and "solver_order=2" in reason and "has 3" in reason
