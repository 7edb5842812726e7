"""What skipping steps costs on the two networks, as PSNR against the run that computes every step.

    python measure.py table photos        # every way of handling skipped steps, three guidances, each solver
    python measure.py keep photos         # what of a corrected step's prediction is kept, by noise level
    python measure.py tolerance photos    # the trigger from the correction's error: does one tolerance hold?

A line a setting: computed steps (mean), PSNR in dB (mean, 5th percentile), and the distance to the full run and to 200
steps of UniPC, relative, in thousandths.
"""

import argparse
import itertools

import numpy as np
import torch

import nets
from skipping import WAYS, DPMSolver, EmbeddedError, Euler, Fixed, NaviCache, Runner, Schedule, UniPC, walk

SOLVERS = {
    "flow": {"unipc": UniPC, "euler": Euler},
    "epsilon": {"ddim": Euler, "dpm++": DPMSolver, "unipc": UniPC},
}


class Bench:
    """A network at one guidance, and the noises and classes that it starts from."""

    def __init__(self, name, guidance, samples, seed=5):
        self.net = nets.load(name)
        kind = self.net.kind
        self.prediction, self.runner = kind.prediction, Runner(self.net, guidance)
        rng = np.random.default_rng([seed, int(10 * guidance)])
        self.noise = rng.standard_normal((samples, kind.channels, kind.size, kind.size))
        self.labels = [k % kind.classes for k in range(samples)]
        self.references = {}

    def schedule(self, steps, shift=3.0):
        return Schedule(steps, self.prediction, shift)

    def run(self, settings):
        """`settings`: (schedule, solver, trigger of a sample, way, more). Returns (samples, computed steps) of each."""
        jobs = [
            (walk(x, schedule, solver, trigger(k), way, **more), schedule, label)
            for schedule, solver, trigger, way, more in settings
            for k, (x, label) in enumerate(zip(self.noise, self.labels))
        ]
        done, n = self.runner.run(jobs), len(self.labels)
        return [tuple(zip(*done[k * n : (k + 1) * n])) for k in range(len(settings))]

    def full(self, solver, steps, shift=3.0):
        """The run that computes every step."""
        key = (solver, steps, shift)
        if key not in self.references:
            setting = (self.schedule(steps, shift), solver, lambda _: Fixed(range(steps)), "hold", {})
            self.references[key] = self.run([setting])[0][0]
        return self.references[key]


def decibels(a, b):
    """PSNR of pictures from -1 to 1, clipped as they are when shown."""
    a, b = (np.clip((x + 1) / 2, 0, 1) for x in (a, b))
    return min(99.0, -10 * np.log10(max(1e-12, ((a - b) ** 2).mean())))


def distance(found, expected):
    """Relative distance, in thousandths."""
    return 1e3 * np.mean([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected)])


def summary(samples, computed, reference, truth):
    """A line of the table."""
    db = [decibels(a, b) for a, b in zip(samples, reference)]
    steps = np.mean([len(c) for c in computed])
    db = f"{np.mean(db):6.2f} dB, p5 {np.percentile(db, 5):6.2f}"
    distances = f"to full {distance(samples, reference):6.1f}, to 200 steps {distance(samples, truth):6.1f}"
    return f"{steps:5.1f} steps {db}, {distances}"


def every(k, steps=50):
    """A uniform strip."""
    return set(range(2, steps, k)) | {0, 1, 2, steps - 1}


def table(name, guidances, samples, solvers):
    """Every way of handling skipped steps."""
    for guidance in guidances:
        bench = Bench(name, guidance, samples)
        truth = bench.full(UniPC, 200)
        for label in solvers:
            solver = SOLVERS[bench.prediction][label]
            s, reference = bench.schedule(50), bench.full(solver, 50)
            off = distance(reference, truth)
            print(f"\n{name}, guidance {guidance:g}, {label}; full to 200 steps: {off:.1f}", flush=True)

            def show(title, trigger, ways):
                results = bench.run([(s, solver, trigger, way, {}) for way in ways])
                for way, (found, computed) in zip(ways, results):
                    print(f"{title:22} {way:15} {summary(found, computed, reference, truth)}", flush=True)

            ways = [way for way in WAYS if solver is not Euler or way in ("hold", "line", "corrected")]
            show("navicache .05, align 3", lambda _: NaviCache(50, 0.05, 3), ways)
            show("every 3rd", lambda _: Fixed(every(3)), ways)
            for tolerance in (0.0015, 0.003, 0.006):
                mine = [way for way in ways if way not in ("hold", "line")]
                show(f"error {tolerance:g}", lambda _: EmbeddedError(50, tolerance), mine)
            for steps in (25, 20, 15):
                found = bench.full(solver, steps)
                print(f"{'plain':38} {summary(found, [range(steps)] * samples, reference, truth)}", flush=True)


PARTS = {
    **{f"{part:g}": lambda sigma, part=part: part for part in (0.0, 0.25, 0.5, 0.75, 1.0)},
    **{f"0 below {at:g}, else 1": lambda sigma, at=at: float(sigma > at) for at in (0.2, 0.4)},
}


def keep(name, guidances, samples, solvers):
    """What part of a correction the kept data prediction moves with."""
    for guidance in guidances:
        bench = Bench(name, guidance, samples)
        for label in solvers:
            solver = SOLVERS[bench.prediction][label]
            s, reference, probe = bench.schedule(50), bench.full(solver, 50), []
            navicache = lambda _: NaviCache(50, 0.05, 3)
            triggers = {"navicache .05, align 3": navicache, "every 3rd": lambda _: Fixed(every(3))}
            bench.run([(s, solver, navicache, "corrected", {"probe": probe})])
            print(f"\n{name}, guidance {guidance:g}, {label}. The network's answer to a correction, as a part of it:")
            for low, high in itertools.pairwise((0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.01)):
                moves = [(moved.ravel(), true.ravel()) for sigma, moved, true in probe if low <= sigma < high]
                if moves:
                    part = sum(a @ b for a, b in moves) / sum(a @ a for a, _ in moves)
                    print(f"  sigma {low:g} to {high:g}: {part:.2f} ({len(moves)})", end="")
            print(flush=True)
            ways = ("corrected",) if solver is Euler else ("corrected", "over+corrected")
            for (title, trigger), way in itertools.product(triggers.items(), ways):
                found = bench.run([(s, solver, trigger, way, {"keep": part}) for part in PARTS.values()])
                db = [np.mean([decibels(a, b) for a, b in zip(x, reference)]) for x, _ in found]
                steps = np.mean([len(c) for c in found[0][1]])
                text = "  ".join(f"{part}: {value:.1f}" for part, value in zip(PARTS, db))
                print(f"{title:22} {way:15} {steps:4.1f} steps  {text}", flush=True)


# What the error is divided by, with a tolerance each of about as many computed steps.
TOLERANCES = {"one": 0.002, "sample": 0.003, "prediction": 0.002, "sigma": 0.004, "move": 0.02, "share": 0.03}


def tolerance(name, guidances, samples, solvers):
    """Whether one tolerance holds for several numbers of steps, guidances and shifts."""
    prediction = nets.KINDS[name].prediction
    shifts = (3.0, 7.0) if prediction == "flow" else (3.0,)
    benches = {guidance: Bench(name, guidance, samples) for guidance in guidances}
    cells = list(itertools.product(guidances, (20, 50, 100), shifts))
    heads = " ".join(f"g{g:g},{n},shift{shift:g}" for g, n, shift in cells)
    print("computed steps / mean dB / worst dB, for", heads, flush=True)
    settings = [(scale, tol, None, 1) for scale, tol in TOLERANCES.items()]
    settings += [("sample", 0.0015, None, 1), ("sample", 0.006, None, 1)]
    settings += [("sample", 0.003, 5, 1), ("sample", 0.003, None, None)]
    for label, (scale, tol, longest, growth) in itertools.product(solvers, settings):
        solver = SOLVERS[prediction][label]
        way = "corrected" if solver is Euler else "over+corrected"
        found = []
        for guidance, n, shift in cells:
            bench = benches[guidance]
            trigger = lambda _: EmbeddedError(n, tol, scale, longest or max(2, n // 10), growth)
            x, computed = bench.run([(bench.schedule(n, shift), solver, trigger, way, {})])[0]
            db = [decibels(a, b) for a, b in zip(x, bench.full(solver, n, shift))]
            found.append((np.mean([len(c) for c in computed]), np.mean(db), min(db)))
        counts, means, worst = zip(*found)
        text = " ".join(f"{c:.0f}/{mean:.0f}/{low:.0f}" for c, mean, low in found)
        rule = f"{scale} {tol:g}, longest {longest or 'S/10'}, growth {growth or 'free'}"
        print(f"{label:6} {rule:42} {np.mean(counts):5.1f} steps, worst {min(worst):5.1f} | {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "keep", "tolerance"))
    parser.add_argument("name", choices=nets.KINDS)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--guidances", default="1,3,5")
    parser.add_argument("--solvers", help="left out: all that suit the network")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    guidances = [float(g) for g in args.guidances.split(",")]
    suiting = SOLVERS[nets.KINDS[args.name].prediction]
    solvers = args.solvers.split(",") if args.solvers else list(suiting)
    {"table": table, "keep": keep, "tolerance": tolerance}[args.what](args.name, guidances, args.samples, solvers)
