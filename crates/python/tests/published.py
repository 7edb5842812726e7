"""EasyCache's and NaviCache's rules as released, in plain Python around a transformer's forward: what decisions and
latents are compared with.

Transcribed from the papers (arXiv 2507.02860, arXiv 2606.26795) and the order of operations of their released code:
mean absolute changes of the latents shown and the prediction of the conditional branch; the first steps and the last
are computed; a reused prediction is the latents plus the residual of the last computed step.
"""

from __future__ import annotations

from typing import Any

import torch


class Published:
    """Wraps `transformer.forward`. `is_batched`: both branches come in one call, the conditional one second."""

    def __init__(
        self,
        transformer: Any,
        method: str,
        threshold: float,
        first: int,
        steps: int,
        branches: int,
        is_batched: bool = False,
    ) -> None:
        self.is_batched = is_batched
        self.forward, self.method, self.threshold = transformer.forward, method, threshold
        self.first, self.steps, self.branches = first, steps, branches
        self.calls = 0
        self.strip = ""
        self.before = self.at_compute = self.out = None
        self.kept: dict[int, torch.Tensor] = {}
        self.ratio: float | None = None
        self.variance, self.sum, self.reuses = 1.0, 0.0, False
        transformer.forward = self

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        x = hidden_states.float().clone()
        if branch == 0:
            self.reuses = self.decide(self.observed(x), step)
        if self.reuses:
            o = x + self.kept[branch]
            self.strip += "."
        else:
            o = self.forward(hidden_states, *args, **kwargs)[0]
            self.kept[branch] = o.float() - x
            self.strip += "S"
            if branch == 0:
                self.learn(self.observed(x), self.observed(o.float()), step)
        if branch == self.branches - 1:
            self.strip += "|"
        if branch == 0:
            self.before = self.observed(x)
        return (o.to(hidden_states.dtype),)

    def observed(self, t: torch.Tensor) -> torch.Tensor:
        return t[t.shape[0] // 2 :] if self.is_batched else t

    def decide(self, x: torch.Tensor, step: int) -> bool:
        if step < self.first or step == self.steps - 1 or self.ratio is None:
            return False
        moved = mean(x - self.before)
        self.sum += self.ratio * moved / mean(self.out)
        return self.sum < self.threshold

    def learn(self, x: torch.Tensor, o: torch.Tensor, step: int) -> None:
        self.sum = 0.0
        if self.at_compute is not None:
            moved, changed = mean(x - self.at_compute), mean(o - self.out)
            if self.method == "easycache":
                self.ratio = changed / moved
            else:
                self.filter(changed / (moved + 1e-8), step)
        self.at_compute, self.out = x, o

    def filter(self, ratio: float, step: int) -> None:
        if step < self.first:
            self.ratio, self.variance = ratio, 1.0
            return
        assert self.ratio is not None
        prior = self.variance + 0.05
        gain = prior / (prior + 0.05 + 1e-8)
        self.ratio += gain * (ratio - self.ratio)
        self.variance = (1 - gain) * prior


def mean(t: Any) -> float:
    return float(t.abs().double().mean())
