"""Measures on tensors. The numbers of the first tests are those of the engine's (`denoise/arithmetic.rs`)."""

from __future__ import annotations

import json
import math
import pathlib

import numpy
import pytest

torch = pytest.importorskip("torch")

from navicache import measure  # noqa: E402
from navicache.forward import leading  # noqa: E402
from navicache.run import Unfit  # noqa: E402


ROOT = pathlib.Path(__file__).parents[3]


def play(name: str, steps: list[tuple[list[float], bool]], lag: int = 0) -> list[float | None]:
    """A value, step by step, and whether the step was computed in full: what is measured at each."""
    seen: list[float | None] = []
    visited: measure.Value | None = None
    computed: list[measure.Anchor] = []
    for step, (numbers, full) in enumerate(steps):
        now, timestep = (torch.tensor(numbers),), 1000.0 - 10.0 * step
        scalar = measure.measure(name, lag, now, visited, computed, timestep)
        seen.append(None if scalar is None else measure.read([scalar])[0][0])
        visited = now
        if full:
            computed.insert(0, (timestep, now))
    return seen


def test_reference_points_are_the_step_before_and_the_last_full_one() -> None:
    steps = [([0.0, 2.0], True), ([1.0, -1.0], False), ([2.0, -1.0], True)]
    assert play("change_since_visit", steps) == [None, 2.0, 0.5]
    assert play("change_since_compute", steps) == [None, 2.0, 2.5]
    assert play("relative_change_since_visit", steps) == [None, 2.0, 0.5]
    assert play("relative_change_since_compute", steps) == [None, 2.0, 2.5]
    assert play("magnitude", steps) == [1.0, 1.0, 1.5]


def test_measures_of_two_anchors() -> None:
    steps = [([1.0], True), ([2.0], True), ([9.0], False), ([6.0], True)]
    assert play("anchor_position", steps) == [None, None, 8.0, 5.0]
    assert play("line_error", steps)[3] == 2.0 / 6.0  # the line through 1 and 2 is at 4 in step 3
    assert play("lag", steps, 2) == [None, None, 8.0, 5.0]
    assert play("lag_distance", steps, 2) == [None, None, 8.0, 5.0]


def test_norms_and_angles() -> None:
    steps = [([3.0, 4.0], True), ([4.0, -3.0], True)]
    assert play("norm", steps) == [5.0, 5.0]
    assert play("cosine_since_compute", steps) == [None, 0.0]
    assert play("distance_since_visit", steps) == [None, math.sqrt(50)]
    assert play("token_ratio_since_visit", [([3.0, 4.0], True), ([6.0, 8.0], True)]) == [None, 2.0]


# T5


def test_measures_are_their_definitions() -> None:
    """Against numpy, by the file that the engine's are held to (`engine/src/denoise/arithmetic.rs`): 1e-12."""
    golden = json.loads((ROOT / "crates/engine/tests/golden/measures.json").read_text())
    tokens, dim, full = golden["tokens"], golden["dim"], golden["full"]

    def tensor(step: int) -> torch.Tensor:
        i = torch.arange(tokens * dim)
        numbers = (i * i * 7919 + i * 104729 * (step + 1) + 15485863 * step) % 65537
        return (numbers.double() / 32768 - 1).float().reshape(1, tokens, dim)

    for name, expected in golden["measures"].items():
        of, lag = (name[:-2], int(name[-1])) if name[-1].isdigit() else (name, 0)
        computed: list[measure.Anchor] = []
        for step, (wanted, is_full) in enumerate(zip(expected, full, strict=True)):
            now, visited = (tensor(step),), (tensor(step - 1),) if step else None
            scalar = measure.measure(of, lag, now, visited, computed, 1000.0 - 10.0 * step)
            if wanted is None:
                assert scalar is None, (name, step)
            else:
                assert scalar is not None and float(scalar) == pytest.approx(wanted, rel=1e-12, abs=0), (name, step)
            if is_full:
                computed.insert(0, (1000.0 - 10.0 * step, now))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_values_are_summed_in_64_bits(dtype: torch.dtype) -> None:
    """Against numpy in f64 of the same numbers: 1e-12, whatever the size."""
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn((1, 8, 5, 40, 64), generator=source).to(dtype).float() for _ in range(2))
    x, y = a.double().numpy(), b.double().numpy()
    difference = (a - b).double().numpy()  # differences are taken in f32, as in the engine
    anchors = [(990.0, (b,))]
    for name, expected in [
        ("magnitude", numpy.abs(x).mean()),
        ("norm", numpy.sqrt((x * x).sum())),
        ("change_since_compute", numpy.abs(difference).mean()),
        ("relative_change_since_compute", numpy.abs(difference).mean() / numpy.abs(y).mean()),
        ("cosine_since_compute", (x * y).sum() / numpy.sqrt((x * x).sum() * (y * y).sum())),
    ]:
        scalar = measure.measure(name, 0, (a,), None, anchors, 980.0)
        assert scalar is not None
        found = float(scalar)
        assert abs(found - expected) <= 1e-12 * abs(expected), (name, found, expected)


def test_values_of_several_tensors_give_the_mean() -> None:
    now, before = (torch.tensor([1.0]), torch.tensor([4.0])), (torch.tensor([0.0]), torch.tensor([1.0]))
    scalar = measure.measure("change_since_visit", 0, now, before, [], 0.0)
    assert scalar is not None and float(scalar) == 2.0


def test_sums() -> None:
    values = [(2.0, (torch.tensor([1.0, 3.0]),)), (-1.0, (torch.tensor([5.0, 1.0]),))]
    assert measure.weighted(values)[0].tolist() == [-3.0, 5.0]
    one = (torch.tensor([7.0]),)
    assert measure.weighted([(1.0, one)])[0] is one[0]


def wave(height: int, width: int, fy: int, fx: int) -> torch.Tensor:
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    return torch.cos(2 * math.pi * (fy * rows[:, None] + fx * columns[None, :]) + 0.3).reshape(1, 1, 1, height, width)


@pytest.mark.parametrize("height, width", [(10, 15), (16, 11)])
def test_waves_inside_the_disc_pass_and_others_do_not(height: int, width: int) -> None:
    for fy, fx, passes in [(0, 0, True), (1, 1, True), (0, 2, True), (2, 2, False), (0, 4, False)]:
        x = wave(height, width, fy, fx)
        rest = measure.low_pass(x) - x if passes else measure.low_pass(x)
        assert float(rest.abs().max()) < 1e-4, (fy, fx)
    x = wave(height, width, 0, 4) + wave(height, width, 1, 1)
    low, high = measure.weighted([(1.0, (x,))], (1.0, 0.0))[0], measure.weighted([(1.0, (x,))], (0.0, 1.0))[0]
    assert torch.allclose(low, wave(height, width, 1, 1), atol=1e-4)
    assert torch.allclose(high, wave(height, width, 0, 4), atol=1e-4)


def test_the_filter_weighs_frequencies_as_wiener_did() -> None:
    n, sigma = 12, 0.7

    def gain(k: int) -> float:
        s = 1 / ((min(k, n - k) / n) ** 3 + 1e-16)
        return 0.3 * s / (0.09 * s + 0.49 + 1e-16)

    for f in (0, 1, 3, 6):
        x = torch.cos(2 * math.pi * f * torch.arange(n) / n).reshape(1, n, 1)
        expected = x * (gain(f) / sum(map(gain, range(n))) * n)
        assert torch.allclose(measure.wiener(x, (1, 1, n), sigma), expected, rtol=1e-4, atol=1e-4)


def test_what_is_observed_is_the_leading_part() -> None:
    x = torch.arange(24.0).reshape(1, 6, 4)
    assert torch.equal(leading(x, torch.Size((1, 4, 4))), x[:, :4])
    with pytest.raises(Unfit, match="at most as much"):
        leading(x, torch.Size((1, 8, 4)))
