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
    """Wraps `transformer.forward`.

    * `is_batched` - both branches come in one call, the conditional one second
    * `samples` - of a batch, each with a rule of its own: a step is reused when all of them would reuse it
    """

    def __init__(
        self,
        transformer: Any,
        method: str,
        threshold: float,
        first: int,
        steps: int,
        branches: int,
        is_batched: bool = False,
        samples: int = 1,
    ) -> None:
        self.is_batched = is_batched
        self.forward, self.branches = transformer.forward, branches
        self.rules = [Rule(method, threshold, first, steps) for _ in range(samples)]
        self.calls = 0
        self.strip = ""
        self.kept: dict[int, torch.Tensor] = {}
        self.reuses = False
        transformer.forward = self

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        x = hidden_states.float().clone()
        if branch == 0:
            # Every rule is asked, whatever the others said.
            self.reuses = all([rule.decide(x, step) for rule, x in self.each(x)])
        if self.reuses:
            o = x + self.kept[branch]
            self.strip += "."
        else:
            o = self.forward(hidden_states, *args, **kwargs)[0]
            self.kept[branch] = o.float() - x
            self.strip += "S"
            if branch == 0:
                for (rule, of_x), (_, of_o) in zip(self.each(x), self.each(o.float()), strict=True):
                    rule.learn(of_x, of_o, step)
        if branch == self.branches - 1:
            self.strip += "|"
        if branch == 0:
            for rule, of_x in self.each(x):
                rule.before = of_x
        return (o.to(hidden_states.dtype),)

    def each(self, t: torch.Tensor) -> list[tuple[Rule, torch.Tensor]]:
        """Every rule with what it sees."""
        observed = t[t.shape[0] // 2 :] if self.is_batched else t
        return list(zip(self.rules, observed.chunk(len(self.rules)), strict=True))


class Rule:
    """One rule, over a run."""

    def __init__(self, method: str, threshold: float, first: int, steps: int) -> None:
        self.method, self.threshold, self.first, self.steps = method, threshold, first, steps
        self.before: Any = None
        self.at_compute: Any = None
        self.out: Any = None
        self.ratio: float | None = None
        self.variance, self.sum = 1.0, 0.0

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
