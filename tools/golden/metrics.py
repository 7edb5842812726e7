"""Writes crates/metrics/tests/golden/metrics.json and lpips-lin.pth: metrics of small clips, straight from the definitions.

    pip install torch==2.11.0 torchvision==0.26.0 lpips==0.1.4 diffusers==0.42.1 transformers==5.23.0 && python tools/golden/metrics.py

SSIM by a two-dimensional 11x11 window and explicit sums; LPIPS by the `lpips` package with random weights, which follow from their
names as in pipeline.py and are not stored, but for those of the linear layers, in the kind of file that the package ships. The clips
are drawn again by the test.
"""
import collections
import json
import math
import warnings

import lpips
import numpy as np
import torch

from pipeline import ROOT, seed_of

GOLDEN = ROOT / "crates/metrics/tests/golden"


def draw(case):
    shape = (case["frames"], case["height"], case["width"], 3)
    randn = lambda seed: torch.randn(math.prod(shape), generator=torch.Generator("cpu").manual_seed(seed)).numpy().reshape(shape)
    picture = lambda seed: np.clip(np.trunc(np.float32(128) + np.float32(50) * randn(seed)), 0, 255)
    reference = np.zeros(shape) if case["seed"] is None else picture(case["seed"])
    match case["other"]:
        case "equal": other = reference
        case "black": other = np.zeros(shape)
        case "shifted": other = np.roll(reference, 1, axis=2)
        case {"drawn": seed}: other = picture(seed)
        case {"noise": (seed, amount)}:
            other = np.clip(np.trunc(reference.astype(np.float32) + np.float32(amount) * randn(seed)), 0, 255)
    return reference.astype(np.float64) / 255, other.astype(np.float64) / 255


def psnr(a, b):
    mse = ((a - b) ** 2).mean()
    return 100.0 if mse < 1e-10 else -10 * math.log10(mse)


def ssim(x, y):
    """Of one channel, mean over positions: all of it, and contrast and structure alone."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2

    def smooth(x):
        views = np.lib.stride_tricks.sliding_window_view(x, (11, 11))
        return (views * window).sum(axis=(-2, -1))

    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    whole = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return whole.mean(), ((2 * cov + c2) / (vx + vy + c2)).mean()


def ms_ssim(x, y):
    halve = lambda x: torch.nn.functional.avg_pool2d(torch.from_numpy(x)[None], 2)[0].numpy()
    product = 1.0
    for scale, beta in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = halve(x), halve(y)
        product *= max(ssim(x, y)[0 if scale == 4 else 1], 0.0) ** beta
    return product


def over_channels(metric, a, b):
    return float(np.mean([metric(a[..., c], b[..., c]) for c in range(3)]))


class Published(dict):
    """Is saved as Python 2 saves an OrderedDict: as a list of pairs."""
    def __reduce__(self):
        return collections.OrderedDict, ([list(item) for item in self.items()],)


def network():
    """AlexNet and linear layers: weights as `fill` of pipeline.py makes them, those of the linear layers not negative."""
    warnings.simplefilter("ignore")
    model = lpips.LPIPS(net="alex", spatial=True, pretrained=False, pnet_rand=True, verbose=False).eval()
    linear = {}
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if name.startswith(("scaling_layer", "lins.")):
                continue
            name = "features." + name.split(".", 2)[2] if name.startswith("net.") else name
            x = torch.randn(p.numel(), generator=torch.Generator("cpu").manual_seed(seed_of(f"lpips.{name}"))).view(p.shape)
            x = x / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * x
            if name.startswith("lin"):
                x = linear[name] = x.abs()
            p.copy_(x)
    torch.save(Published(linear), GOLDEN / "lpips-lin.pth", _use_new_zipfile_serialization=False)
    return model


def distance(model, a, b):
    tensor = lambda x: torch.from_numpy(x).float().permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        return model(tensor(a), tensor(b)).mean().item()


def main():
    model, cases = network(), []
    for name, width, height, frames, seed, other in [
        ("noisy", 20, 14, 3, 1, {"noise": (2, 9.0)}), ("equal", 16, 16, 2, 3, "equal"), ("smallest", 11, 11, 1, 4, {"noise": (5, 30.0)}),
        ("far", 17, 12, 2, 6, {"noise": (7, 200.0)}), ("random", 64, 48, 3, 8, {"drawn": 9}), ("identical", 40, 33, 2, 10, "equal"),
        ("to black", 48, 48, 2, 11, "black"), ("black", 32, 40, 2, None, "black"), ("from black", 33, 35, 2, None, {"drawn": 12}),
        ("single frame", 67, 53, 1, 13, {"noise": (14, 20.0)}), ("shifted", 80, 60, 2, 15, "shifted"),
        ("smallest of LPIPS", 31, 31, 1, 16, {"noise": (17, 60.0)}), ("five sizes", 208, 176, 1, 18, {"noise": (19, 40.0)}),
        ("five sizes, odd", 193, 181, 1, 20, {"noise": (21, 15.0)}), ("five sizes, shifted", 176, 192, 1, 22, "shifted"),
    ]:
        case = {"name": name, "width": width, "height": height, "frames": frames, "seed": seed, "other": other}
        a, b = draw(case)
        motion = lambda x: np.abs(np.diff(x, axis=0)).mean() if len(x) > 1 else 0.0
        case |= {
            "psnr": [psnr(x, y) for x, y in zip(a, b)],
            "psnr_of_video": psnr(a, b),
            "ssim": [over_channels(lambda x, y: ssim(x, y)[0], x, y) for x, y in zip(a, b)],
            "ms_ssim": [over_channels(ms_ssim, x, y) for x, y in zip(a, b)] if min(width, height) >= 176 else None,
            "lpips": [distance(model, x, y) for x, y in zip(a, b)] if min(width, height) >= 31 else None,
            "motion_kept": motion(b) / motion(a) if motion(a) > 0 else None,
            "temporal_flickering": [(255 - motion(255 * x)) / 255 for x in (a, b)],
        }
        cases.append(case)
    (GOLDEN / "metrics.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
