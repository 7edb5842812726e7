"""What tensors do for the walk: measures, reduced on the device and read later, and weighted sums.

A value is a tuple of tensors, a measurement a tensor without axes. The twin in Rust is the engine's
`denoise/arithmetic.rs`: sums are of 64-bit numbers, where the device has them, so that the size of a video does not
blur a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Value = tuple[Tensor, ...]
# A value at an earlier step that was computed in full, and that step's timestep.
Anchor = tuple[float, Value]


def measure(
    name: str, lag: int, now: Value, visited: Value | None, computed: Sequence[Anchor], timestep: float
) -> Tensor | None:
    """A measure of a value, by its name in reports; `None` where what it refers to does not exist yet.

    `visited`: the value at the step before; `computed`: at the steps computed in full, newest first. Values of several
    tensors give the mean of theirs.
    """
    scalars = []
    for part, tensor in enumerate(now):
        before = visited[part] if visited is not None and part < len(visited) else None
        anchors = [(at, value[part]) for at, value in computed if part < len(value)]
        scalar = _one(name, lag, tensor, before, anchors, timestep)
        if scalar is None:
            return None
        scalars.append(scalar)
    if not scalars:
        return None
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).mean()


def read(scalars: Sequence[Tensor], group: Any = None) -> list[list[float]]:
    """The numbers behind measurements, in one transfer: of the whole batch, then of samples that are measured apart.

    `group`: processes that compute one video together. All take the first one's numbers, so that they decide alike.
    """
    if not scalars:
        return []
    packed = torch.stack([scalar.reshape(-1) for scalar in scalars])
    if group is not None:
        torch.distributed.broadcast(packed, group_src=0, group=group)
    numbers: list[list[float]] = packed.tolist()
    return numbers


def weighted(terms: Sequence[tuple[float, Value]], split: tuple[float, float] | None = None) -> Value:
    """The sum of values times weights; `split`: times these weights of its low and its high spatial frequencies."""
    parts = []
    for part in range(len(terms[0][1])):
        total: Tensor | None = None
        for weight, value in terms:
            term = value[part] if weight == 1.0 else value[part] * weight
            total = term if total is None else total + term
        assert total is not None
        if split is not None:
            low = low_pass(total)
            total = low * split[0] + (total - low) * split[1]
        parts.append(total)
    return tuple(parts)


def low_pass(x: Tensor) -> Tensor:
    """The low spatial frequencies: those within a disc of radius `min(height, width) / 5`, rounded down.

    x: (..., height, width)

    Source: FasterCache's split (diffusers 0.42.1 `_split_low_high_freq`), which PreciseCache's is too.
    """
    height, width = x.shape[-2:]
    radius = min(height, width) // 5
    rows = torch.fft.fftfreq(height, 1 / height, device=x.device).round()
    columns = torch.fft.fftfreq(width, 1 / width, device=x.device).round()
    disc = rows[:, None] ** 2 + columns[None, :] ** 2 <= radius * radius  # (height, width)
    return torch.fft.ifft2(torch.fft.fft2(x.float()) * disc).real


def wiener(features: Tensor, grid: tuple[int, int, int], sigma: float) -> Tensor:
    """Features through a Wiener filter along time, height and width: what of each frequency is data at this noise.

    features: (batch, frames * height * width, dim)

    Source: SeaCache (arXiv 2602.18993), as in the engine's `spectrum.rs`.
    """
    batch, _, dim = features.shape
    x = features.float().reshape(batch, *grid, dim)
    for axis, size in enumerate(grid, start=1):
        spectrum = torch.fft.fft(x, dim=axis)
        shape = [1] * x.ndim
        shape[axis] = size
        x = torch.fft.ifft(spectrum * _gains(size, sigma, x.device).reshape(shape), dim=axis).real
    return x.reshape(features.shape)


def _gains(size: int, sigma: float, device: torch.device) -> Tensor:
    """One for each frequency, of mean 1. Reckoned where they are used: nothing waits for a copy. // (size)"""
    noise = min(max(sigma, 1e-6), 1 - 1e-6)
    data = 1 - noise
    k = torch.arange(size, device=device).to(_wide_on(device))
    power = 1 / ((torch.minimum(k, size - k) / size) ** 3 + 1e-16)
    gains = data * power / (data * data * power + noise * noise + 1e-16)
    return (gains / gains.mean()).float()


def _wide_on(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(t: Tensor) -> torch.dtype:
    return _wide_on(t.device)


def mean_abs(t: Tensor) -> Tensor:
    """`m(.)`: the mean of absolute values."""
    return t.abs().mean(dtype=_wide(t))


def norm(t: Tensor) -> Tensor:
    """The Euclidean norm."""
    return t.to(_wide(t)).square().sum().sqrt()


def _cosine(now: Tensor, earlier: Tensor) -> Tensor:
    wide = _wide(now)
    return (now.to(wide) * earlier.to(wide)).sum() / (norm(now) * norm(earlier))


def _token_ratio(now: Tensor, earlier: Tensor) -> Tensor:
    def sizes(t: Tensor) -> Tensor:
        return t.to(_wide(t)).square().sum(-1).sqrt()

    return (sizes(now) / sizes(earlier)).mean()


# Measures of a value and of one earlier value: that of the step before, or of the last computed one.
_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "change_since_visit": lambda now, earlier: mean_abs(now - earlier),
    "change_since_compute": lambda now, earlier: mean_abs(now - earlier),
    "relative_change_since_visit": lambda now, earlier: mean_abs(now - earlier) / mean_abs(earlier),
    "relative_change_since_compute": lambda now, earlier: mean_abs(now - earlier) / mean_abs(earlier),
    "distance_since_visit": lambda now, earlier: norm(now - earlier),
    "token_ratio_since_visit": _token_ratio,
    "cosine_since_compute": _cosine,
    "lag": lambda now, earlier: mean_abs(now - earlier),
    "lag_distance": lambda now, earlier: norm(now - earlier),
}


def _one(
    name: str, lag: int, now: Tensor, visited: Tensor | None, computed: list[tuple[float, Tensor]], timestep: float
) -> Tensor | None:
    if name == "magnitude":
        return mean_abs(now)
    if name == "norm":
        return norm(now)
    if name == "anchor_position":
        return _anchor_position(now, computed)
    if name == "line_error":
        return _line_error(now, computed, timestep)
    if name in ("lag", "lag_distance"):
        earlier = computed[lag - 1][1] if len(computed) >= lag else None
    elif name.endswith("_since_visit"):
        earlier = visited
    else:
        earlier = computed[0][1] if computed else None
    return None if earlier is None else _OF_TWO[name](now, earlier)


def _anchor_position(now: Tensor, computed: list[tuple[float, Tensor]]) -> Tensor | None:
    if len(computed) < 2:
        return None
    (_, newer), (_, older) = computed[:2]
    return mean_abs(now - older) / mean_abs(newer - older)


def _line_error(now: Tensor, computed: list[tuple[float, Tensor]], timestep: float) -> Tensor | None:
    if len(computed) < 2:
        return None
    (at_newer, newer), (at_older, older) = computed[:2]
    if math.isclose(at_newer, at_older, rel_tol=0.0, abs_tol=0.0):
        return None  # no line through two values at one place
    along = (timestep - at_newer) / (at_newer - at_older)
    line = newer + (newer - older) * along
    return mean_abs(now - line) / mean_abs(now)
