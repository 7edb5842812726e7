"""A step's tensors under the walk: what the session in Rust asks of whoever holds them.

The twin in Rust is the engine's `denoise/forward.rs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from navicache import measure
from navicache.measure import Anchor, Value
from navicache.run import Unfit


@dataclass
class Forward:
    """The tensors of the step under way. Nothing of them outlives it but what the session keeps."""

    # What the model sees in this step, and the same as policies see it; made when it is asked for.
    shown: Tensor | None = None
    entry: Tensor | None = None
    # Predictions of this step's branches, in f32. // the shape of the latents
    predicted: dict[str, Tensor] = field(default_factory=dict)
    # The shape and the number format of a prediction, known from the first on.
    shape: torch.Size | None = None
    dtype: torch.dtype = torch.float32
    # A forward of other latents than the step's, for trials.
    run_thinned: Callable[[Tensor], Tensor] | None = None
    # Blocks, where a method asks about spans of them.
    spans: Any = None
    # Whether both branches are in one batch: policies observe the second half, which is the conditional one.
    is_batched: bool = False
    # What a prediction is kept in: None is f32. And where: None is where it was made.
    keep: torch.dtype | None = None
    keep_on: torch.device | None = None
    # Samples of the batch that are measured apart; 1: all are measured together.
    samples: int = 1
    # Processes that compute this video together: torch's group of them.
    group: Any = None

    def begin_step(self, shown: Tensor) -> None:
        """Another step comes, of these latents."""
        self.shown = shown
        self.entry = None
        self.predicted = {}

    def take(self, branch: str, output: Tensor) -> None:
        """A branch's prediction was computed."""
        self.shape, self.dtype = output.shape, output.dtype
        # What a later kernel writes into its input must not reach what is remembered.
        self.predicted[branch] = output.detach().to(torch.float32, copy=True)

    def x(self) -> Tensor:
        """What goes in, as policies see it: of the shape of what comes out, its leading part."""
        if self.entry is None:
            if self.shown is None or self.shape is None:
                raise Unfit("nothing was computed yet")
            self.entry = leading(self.shown, self.shape).detach().to(torch.float32, copy=True)
        return self.entry

    # What the session asks

    def amend_input(self, sample: Tensor) -> None:
        """The step's sample is another than the model saw: policies observe this one."""
        self.entry = sample.to(torch.float32)

    def subject(self, branch: str, name: str, sigma: float) -> Value | None:
        """A subject's value at a branch; `None` where it does not exist."""
        if name == "input":
            return (self.observed(self.x()),)
        if name in ("output", "residual"):
            output = self.predicted.get(branch)
            if output is None:
                return None
            return (self.observed(output if name == "output" else output - self.x()),)
        if name == "cfg_difference":
            outputs = list(self.predicted.values())
            return (outputs[1] - outputs[0],) if len(outputs) > 1 else None
        return None if self.spans is None else self.spans.subject(name, sigma)

    def observed(self, t: Tensor) -> Tensor:
        """What policies see of a batch."""
        return t.narrow(0, t.shape[0] // 2, t.shape[0] // 2) if self.is_batched else t

    def trial(self, branch: str, frames: int, size: int) -> Value | None:
        """The low frequencies of the prediction for thinned-out latents."""
        if self.run_thinned is None or self.shown is None:
            return None
        thin = self.shown
        for axis, factor in ((-3, frames), (-2, size), (-1, size)):
            thin = _pick(thin, axis, factor)
        return (self.observed(measure.low_pass(self.run_thinned(thin))),)

    def measure(
        self,
        name: str,
        lag: int,
        now: Value | Tensor,
        visited: Value | Tensor | None,
        computed: Sequence[tuple[float, Value | Tensor]],
        timestep: float,
    ) -> Tensor | None:
        """See `navicache.measure.measure`."""
        anchors: list[Anchor] = [(at, _value(value)) for at, value in computed]
        before = None if visited is None else _value(visited)
        joint = measure.measure(name, lag, _value(now), before, anchors, timestep)
        if joint is None or self.samples == 1:
            return joint
        return torch.stack([joint, *self._apart(name, lag, _value(now), before, anchors, timestep)])

    def _apart(
        self, name: str, lag: int, now: Value, visited: Value | None, computed: list[Anchor], timestep: float
    ) -> list[Tensor]:
        """The same measure of each sample of the batch."""

        def of(value: Value, sample: int) -> Value:
            return tuple(t[sample : sample + 1] for t in value)

        if any(t.shape[0] != self.samples for t in now):
            raise Unfit(f"{name} of tensors {[tuple(t.shape) for t in now]}: expected {self.samples} samples along the first axis")
        scalars = []
        for sample in range(self.samples):
            anchors = [(at, of(value, sample)) for at, value in computed]
            before = None if visited is None else of(visited, sample)
            scalar = measure.measure(name, lag, of(now, sample), before, anchors, timestep)
            assert scalar is not None  # as the one of the whole batch
            scalars.append(scalar)
        return scalars

    def read(self, scalars: Sequence[Tensor]) -> list[list[float]]:
        """The only read-back there is: at most one a step."""
        return measure.read(scalars, self.group)

    def kept(self, branch: str, what: str) -> Value | Tensor:
        """What is to be kept of what was just computed."""
        if self.spans is not None and what.startswith("span"):
            return tuple(self._put_away(t) for t in self.spans.kept(what))
        output = self.predicted[branch]
        if what == "residual":
            output = output - self.x()
        elif what == "cfg_difference":
            output = output - next(iter(self.predicted.values()))
        return (self._put_away(output if self.keep is None else output.to(self.keep)),)

    def _put_away(self, t: Tensor) -> Tensor:
        """A tensor where what is kept stays. Nothing waits for the copy: what reads it comes behind it in the queue."""
        if self.keep_on is None or t.device == self.keep_on:
            return t
        away = torch.empty(t.shape, dtype=t.dtype, device=self.keep_on, pin_memory=t.is_cuda)
        return away.copy_(t, non_blocking=True)

    def _taken_back(self, t: Tensor) -> Tensor:
        device = t.device if self.shown is None else self.shown.device
        return t.to(device, torch.float32, non_blocking=True)

    def sum(
        self, terms: Sequence[tuple[float, Value | Tensor]], split: tuple[float, float] | None
    ) -> Value | Tensor:
        """The sum of values times weights. The solver's are tensors, the walk's are tuples of them."""
        if isinstance(terms[0][1], Tensor):
            of_one = [(weight, (value.to(torch.float32),)) for weight, value in terms if isinstance(value, Tensor)]
            return measure.weighted(of_one)[0]
        values = [(weight, tuple(self._taken_back(t) for t in _value(value))) for weight, value in terms]
        return measure.weighted(values, split)

    def approximate(self, branch: str, what: str, value: Value) -> None:
        """Takes a value for a branch's prediction, or for what was kept in the place of it."""
        if what == "residual":
            self.predicted[branch] = self.x() + value[0]
        elif what == "cfg_difference":
            self.predicted[branch] = next(iter(self.predicted.values())) + value[0]
        else:
            self.predicted[branch] = value[0]

    def enter(self, start: int, end: int, since: int) -> None:
        """The units before a span have run."""
        self.spans.enter(start, end, since)

    def replace(self, end: int, is_output: bool, value: Value) -> None:
        """An approximated value takes the place of the entered span."""
        self.spans.replace(end, is_output, value)

    def compute(self, branch: str) -> None:
        """The pipeline leads its forwards itself."""
        raise AssertionError(f"the session led a forward of {branch} itself")


def leading(x: Tensor, shape: torch.Size) -> Tensor:
    """The first entries of `x` along each axis, of a shape: the latents, where conditions stand behind them."""
    if x.ndim != len(shape) or any(have < want for have, want in zip(x.shape, shape, strict=True)):
        raise Unfit(f"the transformer is shown {tuple(x.shape)} and predicts {tuple(shape)}: expected at most as much")
    for axis, want in enumerate(shape):
        if x.shape[axis] > want:
            x = x.narrow(axis, 0, want)
    return x


def _pick(x: Tensor, axis: int, factor: int) -> Tensor:
    """Every `factor`-th entry: picked, not averaged, since a mean of noise has less noise in it."""
    n = x.shape[axis]
    count = min(-(-n // factor), n)
    count = min(count + count % 2, n)  # patches are of two
    # Reckoned where it is used: a list of numbers would be waited for.
    return x.index_select(axis, torch.arange(count, device=x.device) * n // count)


def _value(value: Value | Tensor) -> Value:
    return (value,) if isinstance(value, Tensor) else value
