"""Solvers that may skip steps, ways of handling a skipped step, and triggers that choose which steps are computed.

Notation: x = alpha m + sigma n, m the data, n the noise; `w` is what the network predicts, n - m ("flow") or n
("epsilon"). Steps are counted from 0, the noisiest. Tensors are numpy arrays of f64; the network alone runs in f32.
"""

import copy

import numpy as np
import torch

from nets import variance_preserving

WAYS = ("hold", "line", "over", "corrected", "over+corrected")


def size(x):
    """Mean of absolute values."""
    return float(np.abs(x).mean())


class Schedule:
    """The noise levels of a run of so many steps, and one more for the end, which is without noise."""

    def __init__(self, steps, prediction, shift=3.0):
        self.steps, self.prediction = steps, prediction
        if prediction == "flow":  # as diffusers' use_flow_sigmas with flow_shift
            sigma = np.linspace(1, 1 / 1000, steps + 1)[:-1]
            sigma = shift * sigma / (1 + (shift - 1) * sigma)
            sigma[0] -= 1e-6
            self.alpha, self.sigma, self.t = 1 - np.append(sigma, 0.0), np.append(sigma, 0.0), sigma
        else:  # timestep_spacing="trailing"
            index = np.round(np.arange(1000, 0, -1000 / steps))[:steps] - 1
            alpha, sigma = variance_preserving(index)
            self.alpha, self.sigma, self.t = np.append(alpha, 1.0), np.append(sigma, 0.0), index / 999
        with np.errstate(divide="ignore"):
            self.lam = np.log(self.alpha) - np.log(self.sigma)  # half the logarithm of the signal-to-noise ratio

    def data(self, x, w, i):
        """The data that a prediction at x means."""
        return x - self.sigma[i] * w if self.prediction == "flow" else (x - self.sigma[i] * w) / self.alpha[i]

    def predicted(self, x, m, i):
        """The prediction that means the data m at x."""
        return (x - m) / self.sigma[i] if self.prediction == "flow" else (x - self.alpha[i] * m) / self.sigma[i]

    def moved_by(self, c, i):
        """How far a first-order step from c to i moves for a prediction of 1."""
        if self.prediction == "flow":
            return abs(self.sigma[i] - self.sigma[c])
        return abs(self.sigma[i] - self.alpha[i] * self.sigma[c] / self.alpha[c])


class Euler:
    """First order; with epsilon prediction this is DDIM."""

    def __init__(self, schedule):
        self.schedule, self.x, self.m, self.at = schedule, None, None, None

    def copy(self):
        return copy.copy(self)

    def arrive(self, x, m, i):
        """Takes the data prediction at step i. Returns the sample there, corrected if the solver corrects."""
        self.x, self.m, self.at = x, m, i
        return x

    def leave(self, j):
        """The sample at a later step, from what is known."""
        s, c = self.schedule, self.at
        noise = (self.x - s.alpha[c] * self.m) / s.sigma[c]
        return s.alpha[j] * self.m + s.sigma[j] * noise


class UniPC:
    """UniPC, order 2, bh2, with the data prediction; the last step is of order 1."""

    corrects = True

    def __init__(self, schedule):
        self.schedule, self.x, self.nodes = schedule, None, []

    def copy(self):
        other = copy.copy(self)
        other.nodes = list(self.nodes)
        return other

    def arrive(self, x, m, i):
        if self.nodes and self.corrects:
            base, b, r, slope = self.step(i)
            if slope is None:
                x = base - b * 0.5 * (m - self.nodes[-1][1])
            else:
                h = self.schedule.lam[i] - self.schedule.lam[self.nodes[-1][0]]
                first = np.expm1(-h) / -h - 1
                second = first / -h - 0.5
                rho = np.linalg.solve([[1.0, 1.0], [r, 1.0]], [first / np.expm1(-h), 2 * second / np.expm1(-h)])
                x = base - b * (rho[0] * slope + rho[1] * (m - self.nodes[-1][1]))
        self.nodes, self.x = (self.nodes + [(i, m)])[-2:], x
        return x

    def leave(self, j):
        base, b, _, slope = self.step(j)
        return base if slope is None else base - b * 0.5 * slope

    def step(self, j):
        """The first-order step to j, its factor, how many such steps back the node before is, the data's slope."""
        s, (c, m) = self.schedule, self.nodes[-1]
        h = s.lam[j] - s.lam[c]
        b = s.alpha[j] * np.expm1(-h)
        base = s.sigma[j] / s.sigma[c] * self.x - b * m
        if len(self.nodes) < 2 or j == s.steps:
            return base, b, None, None
        before, m_before = self.nodes[-2]
        r = (s.lam[before] - s.lam[c]) / h
        return base, b, r, (m_before - m) / r


class DPMSolver(UniPC):
    """DPM-Solver++ 2M."""

    corrects = False


class Fixed:
    """Computes the steps it is told."""

    def __init__(self, steps):
        self.steps = steps

    def wants(self, i, x):
        return i in self.steps

    def computed(self, i, x, corrected, cond, error, scales):
        pass


class NaviCache:
    """The released rule: predicted output change, input change times a ratio that a Kalman filter tracks."""

    def __init__(self, steps, threshold, align):
        self.steps, self.threshold, self.align = steps, threshold, align
        self.change, self.ratio, self.variance = 0.0, None, 1.0
        self.visited = self.anchor = self.output = None

    def wants(self, i, x):
        wanted = True
        if i < self.align or i == self.steps - 1:
            self.change = 0.0
        elif self.ratio is not None:
            self.change += self.ratio * size(x - self.visited) / size(self.output)
            wanted = self.change >= self.threshold
            self.change = 0.0 if wanted else self.change
        self.visited = x
        return wanted

    def computed(self, i, x, corrected, cond, error, scales):
        if self.output is not None:
            seen = size(cond - self.output) / (size(x - self.anchor) + 1e-8)
            if self.ratio is None or i < self.align:
                self.ratio, self.variance = seen, 1.0
            else:
                self.variance += 0.05
                gain = self.variance / (self.variance + 0.05 + 1e-8)
                self.ratio += gain * (seen - self.ratio)
                self.variance *= 1 - gain
        self.anchor, self.output, self.visited = x, cond, corrected


class EmbeddedError:
    """The correction's own move is the error of the run before it; the next length follows by step-size control.

    `scale` names what the error is divided by before it is compared with the tolerance, `longest` the longest distance
    between computed steps, `growth` how much longer than the last one the next may be (None: no limit).
    """

    def __init__(self, steps, tolerance, scale="sample", longest=5, growth=1):
        self.steps, self.tolerance, self.scale = steps, tolerance, scale
        self.longest, self.growth = longest, growth
        self.next, self.last = 0, -1

    def wants(self, i, x):
        return i < 4 or i >= self.next or i == self.steps - 1

    def computed(self, i, x, corrected, cond, error, scales):
        run, self.last = i - self.last, i
        length = 1
        if error is not None and i >= 3:
            wanted = run * (self.tolerance * scales[self.scale] / max(error, 1e-12)) ** (1 / 3)
            length = int(np.clip(np.floor(wanted), 1, self.longest))
            if self.growth is not None:
                length = min(length, run + self.growth)
        self.next = min(i + length, self.steps - 1)


def interpolated(points, at):
    """The value at `at` of the polynomial through points (where, value)."""
    value = 0
    for where, seen in points:
        weight = 1.0
        for other, _ in points:
            if other != where:
                weight *= (at - other) / (where - other)
        value = value + weight * seen
    return value


def walk(x, schedule, solver, trigger, way, keep=lambda sigma: 0.5, probe=None):
    """One generation. Yields (sample, step), is sent (conditional, guided prediction); returns sample, computed steps.

    `keep` says, by sigma, what part of a correction the kept data prediction moves with: 1 keeps the prediction w, 0
    the data m. `probe`, a list, takes what the network says at the corrected sample, for one more evaluation each.

    Ways: hold (the last computed difference to the sample is added again), line (in sigma, through the last two
    computed predictions), over (the solver steps from computed step to computed step), corrected (along the line; when
    a step is computed, the skipped ones are integrated again, with predictions interpolated between both ends),
    over+corrected (a jump to find the sample, then the same).
    """
    s = schedule
    solver, anchors, computed, held, at = solver(s), [], [], None, None
    for i in range(s.steps):
        jumping = way in ("over", "over+corrected")
        if not trigger.wants(i, x):
            if jumping:
                x = held.leave(i + 1)
            else:
                line = interpolated(anchors, s.sigma[i]) if way != "hold" and len(anchors) > 1 else x + residual
                solver.arrive(x, s.data(x, line, i), i)
                x = solver.leave(i + 1)
            continue
        cond, w = yield x, i
        computed.append(i)
        seen, corrected, error, residual = x, x, None, w - x
        skipped = at is not None and i - at > 1
        if at is not None and not skipped and len(anchors) > 1:
            error = 0.5 * s.moved_by(at, i) * size(w - interpolated(anchors, s.sigma[i]))
        m = s.data(x, w, i)
        if skipped and way.endswith("corrected"):
            solver, points = held.copy(), anchors + [(s.sigma[i], w)]
            for j in range(at + 1, i):
                z = solver.leave(j)
                solver.arrive(z, s.data(z, interpolated(points, s.sigma[j]), j), j)
            corrected = solver.leave(i)
            error, moved = size(corrected - x), s.data(corrected, w, i) - m
            if probe is not None:
                _, true = yield corrected, i
                probe.append((s.sigma[i], moved, s.data(corrected, true, i) - m))
            m = m + keep(s.sigma[i]) * moved
            w = s.predicted(corrected, m, i)
        elif skipped and way == "over":
            solver = held.copy()
        settled = solver.arrive(corrected, m, i)
        if skipped and way == "over":
            error = size(settled - x)
        before = held.x if held is not None else x
        scales = {
            "one": 1.0,
            "sample": size(settled),
            "sigma": s.sigma[i],
            "move": size(settled - before),
            "prediction": size(w),
            "share": s.moved_by(at, i) if at is not None else 1.0,
        }
        held, anchors, at = solver.copy(), (anchors + [(s.sigma[i], w)])[-2:], i
        trigger.computed(i, seen, corrected if way.endswith("corrected") else seen, cond, error, scales)
        x = solver.leave(i + 1)
    return x, computed


class Runner:
    """Runs walks together, so that the network sees batches."""

    def __init__(self, net, guidance, batch=64):
        self.net, self.guidance, self.batch = net, guidance, batch

    @torch.no_grad()
    def predict(self, samples, times, labels):
        x = torch.from_numpy(np.stack(samples)).float()
        t, label = torch.tensor(times, dtype=torch.float32), torch.tensor(labels)
        cond = self.net(x, t, label).double().numpy()
        if self.guidance == 1:
            return cond, cond
        uncond = self.net(x, t, torch.full_like(label, self.net.kind.classes)).double().numpy()
        return cond, uncond + self.guidance * (cond - uncond)

    def run(self, jobs):
        """`jobs`: (walk, schedule, label). Returns what each walk returned."""
        results, waiting = [None] * len(jobs), {}

        def advance(k, message):
            try:
                waiting[k] = jobs[k][0].send(message)
            except StopIteration as end:
                results[k] = end.value
                waiting.pop(k, None)

        for k in range(len(jobs)):
            advance(k, None)
        while waiting:
            # Those that are farthest behind go first, so that batches stay full.
            batch = sorted(waiting, key=lambda k: waiting[k][1] / jobs[k][1].steps)[: self.batch]
            samples, steps = zip(*(waiting[k] for k in batch))
            times = [jobs[k][1].t[i] for k, i in zip(batch, steps)]
            cond, guided = self.predict(samples, times, [jobs[k][2] for k in batch])
            for n, k in enumerate(batch):
                advance(k, (cond[n], guided[n]))
        return results
