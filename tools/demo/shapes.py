"""Procedural captioned clips: one shaded shape, one motion, one background. Everything is batched on one device."""
import functools
import math

import torch

COLORS = {
    "red": (0.90, 0.16, 0.14), "green": (0.16, 0.75, 0.26), "blue": (0.16, 0.36, 0.95),
    "yellow": (0.97, 0.86, 0.16), "purple": (0.60, 0.22, 0.85), "orange": (0.98, 0.55, 0.12),
    "cyan": (0.15, 0.85, 0.90), "pink": (0.98, 0.50, 0.72), "white": (0.95, 0.95, 0.95),
}
BACKGROUNDS = {
    "black": (0.04, 0.04, 0.05), "gray": (0.45, 0.46, 0.48), "navy": (0.06, 0.09, 0.28),
    "brown": (0.33, 0.21, 0.12), "teal": (0.05, 0.33, 0.34), "cream": (0.90, 0.86, 0.74),
}
SHAPES = ["circle", "square", "triangle", "ring", "star"]
MOTIONS = ["moving right", "moving left", "moving up", "moving down", "bouncing", "spinning", "growing", "shrinking",
           "circling"]
HARD = {"bouncing": 2.5, "spinning": 5.0, "circling": 1.5}  # how much more often training sees a motion
ROUND = {"circle", "ring"}  # their spinning does not show


def caption(color, shape, motion, background):
    article = "an" if color[0] in "aeiou" else "a"
    return f"{article} {color} {shape} {motion} on a {background} background"


def all_captions():
    return [caption(c, s, m, b) for c in COLORS for s in SHAPES for m in MOTIONS for b in BACKGROUNDS]


def _distances(x, y, r):
    """Signed distance to each of SHAPES, stacked on dim 0; x, y: (b, f, h, w), r: (b, f, 1, 1)."""
    circle = torch.sqrt(x * x + y * y) - r
    square = torch.maximum(x.abs(), y.abs()) - 0.84 * r
    k = math.sqrt(3.0) / 2
    yy = y - 0.12 * r
    triangle = torch.maximum(torch.maximum(yy, -0.5 * yy + k * x), -0.5 * yy - k * x) - 0.58 * r
    ring = (circle + 0.22 * r).abs() - 0.22 * r
    tips = (((torch.atan2(x, -y) / (2 * math.pi) * 5) % 1.0) - 0.5).abs() * 2
    star = (torch.sqrt(x * x + y * y) - r * (0.48 + 0.57 * tips)) * 0.62
    return torch.stack([circle, square, triangle, ring, star])


def _pick(stack, index):
    """stack: (n, b, ...), index: (b,) -> (b, ...)."""
    return stack[index, torch.arange(index.numel(), device=index.device)]


def held_out(n=20):
    """Captions that training never sees. Every colour, shape, motion and background is among them, and in training too."""
    every = all_captions()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(2026)).tolist()
    return [every[i] for i in order[:n]]


@functools.cache
def _table(device):
    """On the device: indices (color, shape, motion, background) of every caption in order, and the two palettes."""
    sizes = (len(COLORS), len(SHAPES), len(MOTIONS), len(BACKGROUNDS))
    grid = torch.cartesian_prod(*(torch.arange(k) for k in sizes))
    return grid.to(device), *(torch.tensor(list(d.values()), device=device) for d in (COLORS, BACKGROUNDS))


@functools.cache
def _chances(device):
    """The sum of the chances up to each caption: none for the held out, more for the motions that are hard to learn."""
    out = set(held_out())
    weight = lambda shape, motion: 1.0 if shape in ROUND and motion == "spinning" else HARD.get(motion, 1.0)
    weights = torch.tensor([0.0 if caption(c, s, m, b) in out else weight(s, m) for c in COLORS for s in SHAPES for m in MOTIONS
                            for b in BACKGROUNDS], dtype=torch.float64)
    return (weights.cumsum(0) / weights.sum()).float().to(device)


def pick_rows(n, generator, device):
    """Rows of `all_captions` for training, (n,)."""
    chances = _chances(device)
    at = torch.rand(n, device=device, generator=generator) * 0.999999
    return torch.searchsorted(chances, at, right=True).clamp_max(len(chances) - 1)


def batch(n, frames, size, generator, device):
    """Videos (n, 3, frames, size, size) in [-1, 1] and their captions, all equally likely. `generator` lives on `device`."""
    allowed = (_chances(device).diff(prepend=torch.zeros(1, device=device)) > 0).nonzero()[:, 0]
    rows = allowed[torch.randint(len(allowed), (n,), device=device, generator=generator)]
    t = torch.linspace(0, 1, frames, device=device)[None].expand(n, frames)
    every = all_captions()
    return draw(rows, t, size, generator), [every[i] for i in rows.tolist()]


def draw(rows, t, size, generator):
    """Clips (n, 3, frames, size, size) in [-1, 1] of captions `rows` (n,) at the moments `t` (n, frames) of a motion that lasts from 0
    to 1. Nothing here waits for the device."""
    n, device = rows.numel(), rows.device
    u = lambda lo, hi: torch.rand(n, 1, device=device, generator=generator) * (hi - lo) + lo
    combinations, colors, backgrounds = _table(device)
    color, shape, motion, background = combinations[rows].unbind(1)
    sign = torch.where(u(0, 1) < 0.5, -1.0, 1.0)

    zero = torch.zeros_like(t)
    cx0, cy0, r0, span = u(-0.15, 0.15), u(-0.15, 0.15), u(0.26, 0.40), u(0.85, 1.1)
    travel = span * (t - 0.5)
    bounce = 0.45 - 0.85 * torch.sin(math.pi * (torch.where(sign > 0, 1.5, 2.0) * t + u(0, 0.3))).abs()
    orbit = u(0, 2 * math.pi) + sign * u(1.6, 2.1) * math.pi * t
    spin = u(0, 2 * math.pi) + sign * u(0.9, 1.3) * math.pi * t
    here_x, here_y, same = cx0 + zero, cy0 + zero, r0 + zero
    # one row per entry of MOTIONS
    cx = torch.stack([travel, -travel, here_x, here_x, here_x, here_x, here_x, here_x, 0.36 * torch.cos(orbit)])
    cy = torch.stack([here_y, here_y, -travel, travel, bounce, here_y, here_y, here_y, 0.36 * torch.sin(orbit)])
    r = torch.stack([same] * 6 + [r0 * (0.40 + 1.10 * t), r0 * (1.50 - 1.10 * t), same])
    angle = torch.stack([zero] * 5 + [spin] + [zero] * 3)
    cx, cy, r, angle = (_pick(v, motion)[:, :, None, None] for v in (cx, cy, r, angle))

    grid = torch.linspace(-1, 1, size, device=device) * (1 - 1 / size)
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    x, y = xx - cx, yy - cy
    c, s = torch.cos(angle), torch.sin(angle)
    xr, yr = c * x + s * y, -s * x + c * y
    edge = 6.0 / size  # edges three pixels wide: a small autoencoder learns them in an hour instead of a day
    alpha = (0.5 - _pick(_distances(xr, yr, r), shape) / edge).clamp(0, 1)[:, None]
    shadow = (0.5 - _pick(_distances(xr - 0.05, yr - 0.07, r), shape) / (3 * edge)).clamp(0, 1)[:, None]
    light = (0.92 - 0.35 * (x * 0.6 + y * 0.8) / r).clamp(0.45, 1.25)[:, None]
    behind = backgrounds[background][:, :, None, None, None] * (1.08 - 0.30 * (yy + 1) / 2) * (1 - 0.45 * shadow)
    video = behind * (1 - alpha) + colors[color][:, :, None, None, None] * light * alpha
    return video.clamp(0, 1) * 2 - 1
