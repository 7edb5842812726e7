"""What a training step needs beside gradients. Everything stays on the device, rates included, so that a CUDA graph can hold it."""
import copy

import torch


def orthogonal(g, steps=5):
    """The nearest matrices with singular values of about 1, by a quintic Newton-Schulz iteration; g: (k, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g) / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if g.is_cuda else x
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """Muon for matrices and kernels: momentum, orthogonalised (Jordan et al. 2024), matrices of one size at once. Adam for the rest."""

    def __init__(self, named, muon_peak, adam_peak, skip=(), momentum=0.95, betas=(0.9, 0.98)):
        named = list(named)
        self.params, self.peaks = [p for _, p in named], (muon_peak, adam_peak)
        self.momentum, self.betas = momentum, betas
        self.sizes, self.rest = {}, []
        for i, (name, p) in enumerate(named):
            if p.ndim > 1 and min(p.flatten(1).shape) > 1 and not any(k in name for k in skip):
                self.sizes.setdefault(tuple(p.flatten(1).shape), []).append(i)
            else:
                self.rest.append(i)
        some = self.params[0]
        self.scale = torch.zeros((), device=some.device)  # of the peak rates, for the next step
        self.count = torch.zeros((), device=some.device)
        self.trace = {size: torch.zeros(len(which), *size, device=some.device) for size, which in self.sizes.items()}
        self.first = [torch.zeros_like(self.params[i]) for i in self.rest]
        self.second = [torch.zeros_like(self.params[i]) for i in self.rest]

    @torch.no_grad()
    def step(self, grads):
        muon_peak, adam_peak = self.peaks
        for size, which in self.sizes.items():
            g = torch.stack([grads[i].flatten(1) for i in which])
            m = self.trace[size].lerp_(g, 1 - self.momentum)
            update = orthogonal(g.lerp(m, self.momentum)) * (self.scale * (-muon_peak * max(1, size[0] / size[1]) ** 0.5))
            torch._foreach_add_([self.params[i] for i in which], [u.view_as(self.params[i]) for u, i in zip(update.unbind(), which)])
        self.count += 1
        b1, b2 = self.betas
        g = [grads[i] for i in self.rest]
        torch._foreach_lerp_(self.first, g, 1 - b1)
        torch._foreach_mul_(self.second, b2)
        torch._foreach_addcmul_(self.second, g, g, 1 - b2)
        below = torch._foreach_sqrt(self.second)
        torch._foreach_add_(below, 1e-8)
        update = torch._foreach_div(self.first, below)
        torch._foreach_mul_(update, self.scale * (-adam_peak) * (1 - b2**self.count).sqrt() / (1 - b1**self.count))
        torch._foreach_add_([self.params[i] for i in self.rest], update)

    @torch.no_grad()
    def forget(self):
        """As if no step had been made."""
        for t in (self.count, *self.trace.values(), *self.first, *self.second):
            t.zero_()


class Ema:
    """A running mean of the weights: short at first, then over 1 / (1 - longest) steps."""

    def __init__(self, model, longest):
        self.model, self.longest = copy.deepcopy(model).eval().requires_grad_(False), longest
        self.params, self.source = list(self.model.parameters()), list(model.parameters())
        self.count = torch.zeros((), device=self.params[0].device)

    @torch.no_grad()
    def update(self):
        self.count += 1
        weight = (9 / (10 + self.count)).clamp_min(1 - self.longest)
        change = torch._foreach_sub(self.source, self.params)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(self.params, change)


class Guard:
    """Falls back to the last good mean of the weights, at half the rate, when the loss breaks loose."""

    def __init__(self, ema, opt):
        self.ema, self.opt, self.rate, self.best = ema, opt, 1.0, float("inf")
        self.good = [p.clone() for p in ema.params]

    @torch.no_grad()
    def look(self, loss):
        """To be called every few seconds with the mean loss; returns whether all is well."""
        if loss == loss and loss < 1.5 * self.best + 0.02:
            self.best = min(self.best, loss)
            torch._foreach_copy_(self.good, self.ema.params)
            return True
        torch._foreach_copy_(self.ema.params, self.good)
        torch._foreach_copy_(self.ema.source, self.good)
        self.opt.forget()
        self.rate /= 2
        return False


class Step:
    """Runs a step over and over: on a GPU as one CUDA graph after a few ordinary steps, or plainly where that fails."""

    def __init__(self, step, device, graph=True):
        self.step, self.cuda, self.graph, self.made, self.wanted = step, device.type == "cuda", None, 0, graph

    def __call__(self):
        if self.graph is not None:
            return self.graph.replay()
        if not self.cuda or not self.wanted:
            return self.step()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.made += 1
        if self.made == 4:
            self.capture()

    def capture(self):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
            self.graph = graph
            print("the step is one CUDA graph", flush=True)
        except Exception as e:
            print(f"no CUDA graph, going on without: {type(e).__name__}: {e}", flush=True)
            self.wanted = False
            torch.cuda.synchronize()
