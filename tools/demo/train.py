"""Trains the embedded demo model: a small text-to-video pipeline with Wan2.1's real architecture, on procedural clips.

    python train.py vae   --work DIR --minutes 25                 # --phase stills first, then clips, if need be decoder
    python train.py dit   --work DIR --minutes 60                 # text encoder and transformer, flow matching, on encoded clips
    python train.py save  --work DIR --out DIR                    # a Diffusers pipeline folder in f16
    python train.py sheet --work DIR --out DIR                    # one contact sheet of the held-out captions

Runs on a CUDA device when there is one, else on the CPU. Every stage goes on from DIR's weights (at first from those of --model, if
given) and stops by itself. `gpu.sh` runs them all within a given time.
"""
import argparse
import json
import math
import os
import pathlib
import time

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

import models
import shapes
from models import TEXT_LEN, make_dit, make_text, make_vae
from optim import Ema, Guard, Optimizer, Step

FRAMES, SIZE = 25, 96
PIECE = 17  # frames of a clip that the VAE trains on at once
SHIFT = 3.0
GUIDANCE = 2.0  # at 4 fast motions ghost
DTYPE = torch.bfloat16  # of products in training; weights stay in f32
UNPROMPTED = 0.1  # share of training without caption, for guidance


def make_tokenizer():
    """One piece a word: the captions have few, and a vocabulary written down is the same on every run."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    words = sorted({w for c in shapes.all_captions() for w in c.split()})
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [("▁" + w, -4.0) for w in words] + [("▁", -8.0)] + [(c, -10.0) for c in letters]
    tok = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=TEXT_LEN)


class Clock:
    """A stage's time. What the process spent stopped counts as lost, not as progress."""

    def __init__(self, args):
        self.end = args.deadline or time.time() + 60 * args.minutes
        self.share, self.active, self.last, self.saved = args.share, 0.0, time.time(), time.time()

    def progress(self):
        """From 0 to 1, through the stage's share of the time until the end."""
        now = time.time()
        self.active += min(now - self.last, 5.0)
        self.last = now
        return min(1.0, self.active / (self.active + max(0.0, self.end - now)) / self.share)

    def time_to_save(self, seconds):
        if time.time() - self.saved < seconds:
            return False
        self.saved = time.time()
        return True


def rate_at(progress, args):
    """Fraction of the highest learning rate: a short warm-up, then in a straight line from 1 to --end."""
    return min(1.0, progress / 0.03 + 0.02) * (1.0 + (args.end - 1.0) * progress) * args.peak


def save_file(state, path):
    """Replaces the file whole: a reader, or a machine taken away, finds the old one or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def halves(model):
    return {k: v.detach().half().cpu() for k, v in model.state_dict().items()}


# ---- VAE ----

def start_as_stills(vae):
    """Before the first clip: temporal taps that no still has trained pass the newest frame on unchanged."""
    with torch.no_grad():
        for name, m in vae.named_modules():
            if not isinstance(m, torch.nn.Conv3d) or m.weight.shape[2] == 1:
                continue
            if name.endswith("time_conv"):
                m.weight.mul_(0.1)
                eye = torch.eye(m.weight.shape[1])
                m.weight[:, :, -1, 0, 0] += eye.repeat(m.weight.shape[0] // eye.shape[0], 1)
                m.bias.zero_()
            else:
                m.weight[:, :, :-1] *= 0.05


def draw_pieces(n, frames, device):
    """Pieces of full-length motions, each from a start of its own."""
    start = torch.floor(torch.rand(n, 1, device=device) * (FRAMES - frames + 1))
    t = (start + torch.arange(frames, device=device)) / (FRAMES - 1)
    return shapes.draw(shapes.pick_rows(n, None, device), t, SIZE, None)


def steps_of(step, clock, opt, guard, args):
    """Makes steps until the clock's end, each at its rate; after each, how many there were and how far the clock was."""
    count, progress = 0, clock.progress()
    while progress < 1:
        opt.scale.fill_(rate_at(progress, args) * guard.rate)
        step()
        count += 1
        if count % 8 == 0:
            opt.scale.item()  # waits, so that the clock tells the truth
        yield count, progress
        progress = clock.progress()


def train_vae(args, device):
    torch.manual_seed(int(time.time()))
    vae, before = load_vae(args)
    if args.phase == "clips" and before["phase"] == "stills":
        start_as_stills(vae)
    vae.to(device).requires_grad_(True)
    trained = vae if args.phase != "decoder" else torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    opt, ema = Optimizer(trained.named_parameters(), 0.02, 2e-3), Ema(vae, 0.998)
    guard, clock = Guard(ema, opt), Clock(args)
    n, frames = (args.batch * PIECE, 1) if args.phase == "stills" else (args.batch, PIECE)
    seen = torch.zeros(3, device=device)  # sums of loss and squared error, steps

    def one():
        video = draw_pieces(n, frames, device)
        mean = models.encode(vae, video.to(DTYPE)).float()
        out = models.decode(vae, (mean + 0.02 * torch.randn_like(mean)).to(DTYPE))
        err = out.float() - video
        dx, dy = err[..., 1:] - err[..., :-1], err[..., 1:, :] - err[..., :-1, :]
        square = err.square().mean()
        loss = err.abs().mean() + 6 * square + 0.5 * (dx.abs().mean() + dy.abs().mean()) + 1e-3 * mean.square().mean()
        opt.step(torch.autograd.grad(loss, opt.params, materialize_grads=True))
        ema.update()
        seen.add_(torch.stack([loss.detach(), square.detach() / 4, torch.ones_like(loss)]))

    step, count = Step(one, device, args.graph == "on"), 0
    torch.backends.cudnn.benchmark = True
    for count, progress in steps_of(step, clock, opt, guard, args):
        if count % args.every == 0:
            loss, square, steps = seen.tolist()
            seen.zero_()
            well = guard.look(loss / steps)
            print(f"vae {args.phase} step {count} {clock.active:.0f}s {progress:.0%} loss {loss / steps:.4f} "
                  f"psnr {-10 * math.log10(square / steps):.2f} dB{'' if well else ' BROKE LOOSE, back at half the rate'}", flush=True)
        if clock.time_to_save(args.save_every):
            finish_vae(args, ema.model, before, device, min(8, args.measure))
    print(f"vae {args.phase}: {count} steps in {clock.active:.0f}s")
    finish_vae(args, ema.model, before, device, args.measure)
    (args.work / "vae.ready").write_text("ready\n")


def finish_vae(args, vae, before, device, clips):
    torch.backends.cudnn.benchmark = False  # it pays for sizes that come again and again: the step's, recorded by now
    psnr, mean, std = measure_vae(vae, device, clips)
    if args.phase == "decoder":  # what was encoded stays valid to the last bit
        mean, std = before["mean"], before["std"]
    save_file({"vae": halves(vae), "mean": mean, "std": std, "psnr": psnr, "phase": args.phase}, args.work / "vae.pt")


@torch.no_grad()
def measure_vae(vae, device, n):
    """Reconstruction of full-length clips that no training step has seen, and the latents' statistics."""
    g = torch.Generator(device=device).manual_seed(7)
    zs, errors = [], []
    for _ in range(n // 4):
        video, _ = shapes.batch(4, FRAMES, SIZE, g, device)
        z = models.encode(vae, video)
        zs.append(z)
        errors += ((models.decode(vae, z).clamp(-1, 1) - video) / 2).square().mean(dim=(1, 2, 3, 4)).tolist()
    z = torch.cat(zs)
    every = [-10 * math.log10(e) for e in errors]
    psnr = sum(every) / len(every)
    print(f"vae held-out psnr {psnr:.2f} dB, worst clip {min(every):.2f} dB, of the mean error "
          f"{-10 * math.log10(sum(errors) / len(errors)):.2f} dB", flush=True)
    return psnr, z.mean(dim=(0, 2, 3, 4)).tolist(), z.std(dim=(0, 2, 3, 4)).tolist()


def load_vae(args):
    """The VAE as trained last, and what was saved with it."""
    vae, path = make_vae(), args.work / "vae.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        vae.load_state_dict(saved["vae"])
        vae.register_to_config(latents_mean=saved["mean"], latents_std=saved["std"])
        return vae, saved
    if not args.model:
        return vae, {"phase": "none"}
    vae.load_state_dict(read_part(args.model, "vae"))
    config = json.loads((args.model / "vae/config.json").read_text())
    saved = {"mean": config["latents_mean"], "std": config["latents_std"], "phase": "clips"}
    vae.register_to_config(latents_mean=saved["mean"], latents_std=saved["std"])
    return vae, saved


def read_part(folder, part):
    """A saved component's weights, in f32."""
    from safetensors.torch import load_file
    (path,) = (folder / part).glob("*.safetensors")
    return {k: v.float() for k, v in load_file(path).items()}


# ---- text encoder and transformer ----

class Bank:
    """Encoded clips with their captions, on the device. New clips take the place of the oldest."""

    def __init__(self, size, device):
        latent = (1 + (FRAMES - 1) // 4, SIZE // 8, SIZE // 8)
        self.tokens = torch.zeros(size, math.prod(latent) // 4, 64, dtype=torch.float16, device=device)
        self.rows = torch.zeros(size, dtype=torch.int64, device=device)
        self.filled = torch.ones((), device=device)
        self.latent, self.made, self.device, self.vae = latent, 0, device, None

    def use(self, vae):
        self.vae = vae.to(self.device, DTYPE)
        to = lambda values: torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
        self.mean, self.std = to(vae.config.latents_mean), to(vae.config.latents_std)

    @torch.no_grad()
    def add(self, n):
        rows = shapes.pick_rows(n, None, self.device)
        t = torch.linspace(0, 1, FRAMES, device=self.device).expand(n, FRAMES)
        video = shapes.draw(rows, t, SIZE, None).to(DTYPE)
        z = (models.encode(self.vae, video).float() - self.mean) / self.std
        at = torch.arange(self.made, self.made + n, device=self.device) % len(self.rows)
        self.tokens[at], self.rows[at] = models.to_tokens(z).half(), rows
        self.made += n
        self.filled.fill_(min(self.made, len(self.rows)))

    def pick(self, n):
        at = (torch.rand(n, device=self.device) * self.filled).long().clamp_max(len(self.rows) - 1)
        return self.tokens[at].float(), self.rows[at]


def draw_sigma(n, device):
    """Noise levels: most from the middle, some from everywhere, all shifted as sampling shifts them."""
    raw = torch.where(torch.rand(n, device=device) < 0.3, torch.rand(n, device=device), torch.randn(n, device=device).sigmoid())
    return SHIFT * raw / (1 + (SHIFT - 1) * raw)


def compiled_block(args, device):
    if args.compile == "off" or device.type != "cuda":
        return models.block
    return torch.compile(models.block, dynamic=False)


def train_dit(args, device):
    torch.manual_seed(int(time.time()))
    model, origin = load_dit(args)
    model.to(device)
    text, dit = model["text"], model["dit"]
    captions = shapes.all_captions() + [""]
    tables = models.text_tables(text, make_tokenizer(), captions, device)
    ema = Ema(model, 0.999)
    opt = Optimizer(model.named_parameters(), 0.02, 1.5e-3, skip=("shared", "relative_attention_bias", "scale_shift_table"))
    bank, n, run = Bank(args.bank, device), args.batch, compiled_block(args, device)
    rotary = models.angles(dit, bank.latent, DTYPE)
    seen = torch.zeros(2, device=device)  # sum of the loss, steps

    def one():
        clean, rows = bank.pick(n)
        rows = torch.where(torch.rand(n, device=device) < UNPROMPTED, len(captions) - 1, rows)
        sigma, noise = draw_sigma(n, device), torch.randn_like(clean)
        s = sigma[:, None, None]
        context = models.encode_text(text, tables, rows, DTYPE)
        velocity = models.transformer(dit, (1 - s) * clean + s * noise, sigma, context, rotary, run)
        loss = F.mse_loss(velocity, noise - clean)
        opt.step(torch.autograd.grad(loss, opt.params, materialize_grads=True))
        ema.update()
        seen.add_(torch.stack([loss.detach(), torch.ones_like(loss)]))

    step = Step(one, device, args.graph == "on")
    if device.type == "cuda":
        for _ in range(6):  # compiles and records while the VAE trains; at rate 0 nothing moves
            step()
        torch.cuda.synchronize()
    if args.out:
        import diffusers.pipelines.wan.pipeline_wan  # takes seconds: better now than after training
    print("dit: ready for clips", flush=True)
    while not (args.work / "vae.ready").exists():
        time.sleep(0.1)
    bank.use(load_vae(args)[0].eval().requires_grad_(False))
    clock, begin = Clock(args), time.time()
    while bank.made < min(args.clips, args.bank):
        bank.add(min(64, args.bank, args.clips))
    opt.forget()
    ema.count.zero_()
    seen.zero_()
    guard = Guard(ema, opt)
    print(f"dit: {bank.made} clips encoded in {time.time() - begin:.0f}s; weights from {origin}", flush=True)
    checkpoint = lambda: save_file({"dit": halves(ema.model)}, args.work / "dit.pt")
    count = 0
    for count, progress in steps_of(step, clock, opt, guard, args):
        if count % args.fresh == 0:
            bank.add(min(64, args.bank))
        if count % args.every == 0:
            loss, steps = seen.tolist()
            seen.zero_()
            well = guard.look(loss / steps)
            print(f"dit step {count} {clock.active:.0f}s {progress:.0%} loss {loss / steps:.4f} clips {bank.made}"
                  f"{'' if well else ' BROKE LOOSE, back at half the rate'}", flush=True)
        if clock.time_to_save(args.save_every):
            checkpoint()
    checkpoint()
    print(f"dit: {count} steps of {n} in {clock.active:.0f}s", flush=True)
    if args.out:
        sheet(args, device)


def load_dit(args):
    """Text encoder and transformer, and where their weights come from. Blocks that --model lacks begin as the identity."""
    torch.manual_seed(1)
    model, path = torch.nn.ModuleDict({"text": make_text(), "dit": make_dit()}), args.work / "dit.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["dit"])
        return model, path
    if not args.model:
        return model, "nowhere: random"
    model["text"].load_state_dict(read_part(args.model, "text_encoder"), strict=False)  # one of its two names for the embedding
    weights = read_part(args.model, "transformer")
    new = {i for i in range(len(model["dit"].blocks)) if f"blocks.{i}.ffn.net.2.weight" not in weights}
    with torch.no_grad():
        for m in (model["dit"].blocks[i] for i in new):
            for last in (m.attn1.to_out[0], m.attn2.to_out[0], m.ffn.net[2]):
                last.weight.zero_()
                last.bias.zero_()
    fresh = {k: v for k, v in model["dit"].state_dict().items() if any(k.startswith(f"blocks.{i}.") for i in new)}
    model["dit"].load_state_dict(weights | fresh)
    return model, args.model


# ---- results ----

def pipeline(args):
    from diffusers import UniPCMultistepScheduler, WanPipeline
    (vae, saved), (model, _) = load_vae(args), load_dit(args)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000,
                                        flow_shift=SHIFT)
    pipe = WanPipeline(tokenizer=make_tokenizer(), text_encoder=model["text"].eval(), vae=vae.eval(), transformer=model["dit"].eval(), scheduler=scheduler)
    return pipe, saved


def save(args, _):
    pipe, saved = pipeline(args)
    pipe.to(torch.float16)
    pipe.save_pretrained(args.out, safe_serialization=True)
    motions = [w for m in shapes.MOTIONS for w in m.split()]
    words = ["a", "an", "on", "background", *shapes.COLORS, *shapes.BACKGROUNDS, *shapes.SHAPES, *dict.fromkeys(motions)]
    defaults = {"width": SIZE, "height": SIZE, "frames": FRAMES, "fps": 8, "scale": 3, "steps": 50, "guidance": GUIDANCE,
                "max_sequence_length": TEXT_LEN, "presets": "demo",
                "trained": {"size": f"{SIZE}x{SIZE}", "frames": FRAMES, "words": "WORDS",
                            "example": "an orange ring growing on a brown background"}}
    text = json.dumps(defaults, indent=1).replace('"WORDS"', json.dumps(words))
    (args.out / "navicache.json").write_text(text + "\n")
    print(f"saved; vae {saved['psnr']:.2f} dB")


def sheet(args, device):
    """Held-out captions at one seed, all in one batch: nine frames each, two captions a row."""
    from PIL import Image
    pipe, _ = pipeline(args)
    pipe.to(device, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    captions = shapes.held_out()
    with torch.no_grad():
        videos = pipe(prompt=captions, negative_prompt="", height=SIZE, width=SIZE, num_frames=FRAMES, guidance_scale=args.guidance,
                      num_inference_steps=args.steps, max_sequence_length=TEXT_LEN, output_type="pt",
                      generator=[torch.Generator("cpu").manual_seed(args.seed) for _ in captions]).frames  # (b, frames, 3, h, w)
    strips = [torch.cat(list(v[:: (FRAMES - 1) // 8].permute(0, 2, 3, 1)), dim=1) for v in videos.float().cpu()]
    strips += [torch.ones_like(strips[0])] * (len(strips) % 2)
    picture = torch.cat([torch.cat(strips[i : i + 2], dim=1) for i in range(0, len(strips), 2)])
    args.out.mkdir(parents=True, exist_ok=True)
    part = args.out / "sheet.part.png"
    Image.fromarray((picture * 255).clamp(0, 255).byte().numpy()).save(part)
    os.replace(part, args.out / "sheet.png")
    for i, caption in enumerate(captions):
        print(f"row {i // 2 + 1} {'left right'.split()[i % 2]}: {caption}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["vae", "dit", "save", "sheet"])
    p.add_argument("--work", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, help="where to save; dit draws its sheet there")
    p.add_argument("--model", type=pathlib.Path, help="a saved pipeline to start from")
    p.add_argument("--minutes", type=float, default=8)
    p.add_argument("--deadline", type=float, help="instead of --minutes: when to end, in seconds since 1970")
    p.add_argument("--share", type=float, default=1.0, help="how much of the time until the end this stage takes")
    p.add_argument("--phase", choices=["stills", "clips", "decoder"], default="clips")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--peak", type=float, default=1.0, help="factor on the highest learning rates")
    p.add_argument("--end", type=float, default=0.01, help="the last learning rate's share of the highest")
    p.add_argument("--bank", type=int, default=4096, help="how many encoded clips are kept")
    p.add_argument("--clips", type=int, default=1024, help="how many clips to encode before the first step")
    p.add_argument("--fresh", type=int, default=40, help="steps between two batches of new encoded clips")
    p.add_argument("--every", type=int, default=100, help="steps between two lines of progress")
    p.add_argument("--save-every", type=float, default=180, help="seconds between two checkpoints")
    p.add_argument("--measure", type=int, default=32, help="clips to measure the VAE with")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--guidance", type=float, default=GUIDANCE)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--graph", choices=["on", "off"], default="on", help="on a GPU, a step as one CUDA graph")
    p.add_argument("--compile", choices=["on", "off"], default="on", help="on a GPU, torch.compile of the transformer's block")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    {"vae": train_vae, "dit": train_dit, "save": save, "sheet": sheet}[args.stage](args, device)


if __name__ == "__main__":
    main()
