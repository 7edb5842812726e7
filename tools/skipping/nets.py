"""Two small diffusion transformers, trained on pictures that Python packages ship.

    python nets.py photos              # patches of 14 photographs of scikit-image, 32x32, predicts flow velocity
    python nets.py digits              # scikit-learn's handwritten digits, 8x8, predicts epsilon

Training writes NAME.pt beside this file every 50 iterations and goes on from there when it is started again. It makes
the same network whether it was stopped or not: what an iteration draws depends on its number alone.
"""

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
CLASSLESS = 0.12  # part of the training pictures that are shown without their class, for guidance
FREQUENCIES = 64  # of the embedding of time, from 1 to FASTEST rad per unit of time
FASTEST = 60.0  # fast ones make small networks jitter from step to step, which hides the order of a method


@dataclass
class Kind:
    """A network and what it is trained on."""

    prediction: str  # "flow": noise less data; "epsilon": noise
    channels: int
    size: int
    patch: int
    dim: int
    heads: int
    depth: int
    classes: int
    iterations: int
    batch: int


KINDS = {
    "photos": Kind("flow", 3, 32, 4, dim=128, heads=4, depth=4, classes=14, iterations=2000, batch=32),
    "digits": Kind("epsilon", 1, 8, 1, dim=64, heads=4, depth=4, classes=10, iterations=1200, batch=64),
}
PHOTOS = (
    "astronaut chelsea coffee rocket hubble_deep_field immunohistochemistry retina stereo_motorcycle camera brick "
    "grass gravel coins moon"
).split()

# The noise schedule of Stable Diffusion: 1000 betas, linear in their square roots.
LOG_ALPHA_BAR = np.cumsum(np.log(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


def variance_preserving(index):
    """alpha and sigma at an index of the 1000, between them too."""
    alpha_bar = np.exp(np.interp(index, np.arange(1000), LOG_ALPHA_BAR))
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


class Block(nn.Module):
    """Attention and a feed-forward network, modulated by time and class."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x, c):  # (b, tokens, dim), (b, dim)
        b, tokens, dim = x.shape
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        h = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(h).view(b, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, tokens, dim)
        x = x + gate * self.out(h)
        h = self.norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class Net(nn.Module):
    """A diffusion transformer. The class after the last means: none given."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        side, values = kind.size // kind.patch, kind.channels * kind.patch**2
        self.embed = nn.Linear(values, kind.dim)
        self.position = nn.Parameter(torch.randn(1, side * side, kind.dim) * 0.02)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, kind.dim), nn.SiLU(), nn.Linear(kind.dim, kind.dim))
        self.label = nn.Embedding(kind.classes + 1, kind.dim)
        self.blocks = nn.ModuleList(Block(kind.dim, kind.heads) for _ in range(kind.depth))
        self.norm = nn.LayerNorm(kind.dim, elementwise_affine=False)
        self.modulation, self.head = nn.Linear(kind.dim, 2 * kind.dim), nn.Linear(kind.dim, values)
        for layer in [self.modulation, self.head, *(block.modulation for block in self.blocks)]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, label):  # (b, channels, size, size), (b), (b); t from 0 (data) to 1 (noise)
        b, channels, size, _ = x.shape
        patch, side = self.kind.patch, size // self.kind.patch
        x = x.view(b, channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, side * side, -1)
        phase = t[:, None] * torch.logspace(0, math.log10(FASTEST), FREQUENCIES)
        c = F.silu(self.time(torch.cat([phase.cos(), phase.sin()], 1)) + self.label(label))
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        return x.view(b, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, size, size)


def photos():
    """Draws patches, from -1 to 1, with the photograph that each is of as its class."""
    import skimage.data
    from skimage.transform import rescale

    def read(name):
        image = getattr(skimage.data, name)()
        image = image[0] if isinstance(image, tuple) else image  # a stereo pair
        image = image[..., None].repeat(3, 2) if image.ndim == 2 else image[..., :3]
        image = image.astype(np.float32) / 255
        whole = min(1, 420 / min(image.shape[:2]))
        sizes = [rescale(image, whole * part, channel_axis=2, anti_aliasing=True) for part in (1, 0.6, 0.35, 0.2)]
        return [2 * np.clip(image, 0, 1).astype(np.float32).transpose(2, 0, 1) - 1 for image in sizes]

    images = [read(name) for name in PHOTOS]

    def draw(rng, n):
        labels, patches = rng.integers(0, len(images), n), []
        for label in labels:
            image = images[label][rng.choice(4, p=[0.3, 0.3, 0.25, 0.15])]
            top, left = (rng.integers(0, length - 31) for length in image.shape[1:])
            patch = image[:, top : top + 32, left : left + 32]
            patches.append(patch[..., ::-1] if rng.random() < 0.5 else patch)
        return np.stack(patches), labels

    return draw


def digits():
    """Draws digits, from -1 to 1, moved by at most one pixel."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.images[:, None].astype(np.float32) / 8 - 1, data.target

    def draw(rng, n):
        which = rng.integers(0, len(images), n)
        return np.roll(images[which], tuple(rng.integers(-1, 2, 2)), (2, 3)), labels[which]

    return draw


def loss_of(net, rng, draw):
    """Mean squared error of a batch."""
    kind, n = net.kind, net.kind.batch
    x, label = draw(rng, n)
    noise = rng.standard_normal(x.shape, dtype=np.float32)
    label = np.where(rng.random(n) < CLASSLESS, kind.classes, label)
    t = (np.arange(n) + rng.random(n)) / n
    if kind.prediction == "flow":
        t = 2 * t / (1 + t)  # more of the noisy end, as a shifted schedule has
        (alpha, sigma), target = (1 - t, t), noise - x
    else:
        (alpha, sigma), target = variance_preserving(999 * t), noise
    alpha, sigma = (part.astype(np.float32)[:, None, None, None] for part in (alpha, sigma))
    tensors = (alpha * x + sigma * noise, t.astype(np.float32), label.astype(np.int64), target)
    x, t, label, target = map(torch.from_numpy, tensors)
    return F.mse_loss(net(x, t, label), target)


def train(name, iterations):
    """Trains, from the last checkpoint if there is one."""
    kind, file = KINDS[name], HERE / f"{name}.pt"
    torch.manual_seed(0)
    net = Net(kind)
    mean = copy.deepcopy(net)  # exponential moving average of the weights: the result
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), foreach=True)
    done, losses, started = 0, [], time.time()
    if file.exists():
        saved = torch.load(file, weights_only=True)
        if saved["iterations"] != iterations:
            planned = saved["iterations"]
            raise SystemExit(f"{file} is of a training of {planned} iterations, not {iterations}: delete it")
        net.load_state_dict(saved["net"])
        mean.load_state_dict(saved["mean"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["done"]
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M parameters, {done} of {iterations} iterations done", flush=True)
    draw = {"photos": photos, "digits": digits}[name]() if done < iterations else None
    while done < iterations:
        rate = 1e-3 * min(1, (done + 1) / 80) * (1 - 0.95 * done / iterations)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(net, np.random.default_rng([1, done]), draw)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        done += 1
        losses.append(loss.item())
        decay = min(0.998, (1 + done) / (20 + done))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - decay)
        if done % 50 == 0 or done == iterations:
            state = {"net": net.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "done": done, "iterations": iterations}, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            seconds = time.time() - started
            print(f"{done} iterations, {seconds:.0f} s, loss {np.mean(losses[-100:]):.4f}", flush=True)


def load(name):
    """The trained network."""
    file = HERE / f"{name}.pt"
    if not file.exists():
        raise SystemExit(f"{file} is missing: python nets.py {name}")
    saved = torch.load(file, weights_only=True)
    net = Net(KINDS[name])
    net.load_state_dict(saved["mean"])
    return net.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=KINDS)
    parser.add_argument("--iterations", type=int, help="left out: about seven minutes of one core")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train(args.name, args.iterations or KINDS[args.name].iterations)
