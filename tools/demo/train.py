"""Trains the embedded demo model: a small text-to-video pipeline with Wan2.1's real architecture, on procedural clips.

    python train.py vae   --work DIR --minutes 15 --phase stills   # single frames first: a causal network needs no clip for them
    python train.py vae   --work DIR --minutes 25 --phase clips    # then 5 to 17 frames
    python train.py vae   --work DIR --minutes 8 --phase decoder   # polishes the decoder alone: a bank stays valid
    python train.py bank  --work DIR --clips 4000                  # encodes clips once; run again for more
    python train.py dit   --work DIR --minutes 60                  # text encoder and transformer, flow matching
    python train.py save  --work DIR --out DIR                     # a Diffusers pipeline folder in f16
    python train.py sheet --work DIR --out DIR                     # contact sheets of the held-out captions

Runs on a CUDA device when there is one, else on the CPU. Every stage resumes from DIR and stops by itself.
"""
import argparse
import contextlib
import copy
import json
import math
import pathlib
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import shapes

FRAMES, SIZE = 17, 64
TEXT_LEN = 32
SHIFT = 3.0
GUIDANCE = 4.0


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


def make_vae():
    return AutoencoderKLWan(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
                            temperal_downsample=[False, True, True])


def make_text():
    return UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
                                       feed_forward_proj="gated-gelu", dropout_rate=0.0))


def make_dit():
    return WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=64, in_channels=16,
                                 out_channels=16, text_dim=128, freq_dim=256, ffn_dim=768, num_layers=6,
                                 cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=1024)


class Clock:
    """Progress through a stage's minutes, and when to save."""

    def __init__(self, minutes, save_every=3):
        self.start, self.budget, self.every = time.time(), minutes * 60, save_every * 60
        self.saved = self.start

    def progress(self):
        return min(1.0, (time.time() - self.start) / self.budget)

    def time_to_save(self):
        if time.time() - self.saved < self.every:
            return False
        self.saved = time.time()
        return True


def schedule(progress):
    """Fraction of the highest learning rate: a short warm-up, then down in a straight line."""
    return min(1.0, progress / 0.02 + 0.02) * max(0.01, 1.0 - progress)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised for every matrix (Jordan et al. 2024): needs about a third of AdamW's steps here."""

    def __init__(self, params, lr=0.02, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"]).flatten(1)
                p.add_(orthogonal(update).view_as(p), alpha=-group["lr"] * max(1, update.shape[0] / update.shape[1]) ** 0.5)


def orthogonal(g, steps=5):
    """The nearest matrix with singular values of about 1, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g) / (g.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


class Optimizers:
    """Muon for matrices and kernels, AdamW for the rest."""

    def __init__(self, model, muon_lr, adam_lr, skip=()):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim > 1 and min(p.flatten(1).shape) > 1 and not any(k in n for k in skip)]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts = [(Muon(matrices), muon_lr), (torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0), adam_lr)]

    def step(self, scale):
        """One step at a fraction of the highest learning rates, then forgets the gradients."""
        for opt, peak in self.parts:
            for group in opt.param_groups:
                group["lr"] = peak * scale
            opt.step()
            opt.zero_grad(set_to_none=True)

    def state_dict(self):
        return [opt.state_dict() for opt, _ in self.parts]

    def load_state_dict(self, states):
        for (opt, _), state in zip(self.parts, states):
            opt.load_state_dict(state)


def autocast(device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


def save_file(state, path):
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.rename(path)


class Ema:
    def __init__(self, model, longest=0.999):
        self.model, self.step, self.longest = copy.deepcopy(model).eval().requires_grad_(False), 0, longest

    def update(self, model):
        self.step += 1
        decay = min(self.longest, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


# ---- VAE ----

def conv_by_taps(self, x, cache_x=None):
    """WanCausalConv3d.forward as one 2-D convolution a temporal tap: on a CPU about three times as fast."""
    before, pad, (stride, *_) = self._padding[4], self._padding[0], self.stride
    if cache_x is not None and before > 0:
        x = torch.cat([cache_x, x], dim=2)
        before -= cache_x.shape[2]
    if stride != 1:
        return F.conv3d(F.pad(x, (pad, pad, pad, pad, before, 0)), self.weight, self.bias, stride=self.stride)
    b, c, t, h, w = x.shape
    taps = self.weight.shape[2]
    n, out = t + before - taps + 1, 0
    for k in range(taps):
        lo = max(0, before - k)  # the first output frame whose tap k is not padding
        if lo >= n:
            continue
        frames = x[:, :, lo + k - before : n + k - before]
        bias = self.bias if k == taps - 1 else None
        y = F.conv2d(frames.transpose(1, 2).reshape(-1, c, h, w), self.weight[:, :, k], bias, padding=pad)
        y = y.view(b, n - lo, *y.shape[1:]).transpose(1, 2)
        out = out + (F.pad(y, (0, 0, 0, 0, lo, 0)) if lo else y)
    return out


def start_as_stills(vae):
    """Before the first clip: temporal taps that no still has trained pass the newest frame on unchanged."""
    with torch.no_grad():
        for name, m in vae.named_modules():
            if not isinstance(m, WanCausalConv3d) or m.weight.shape[2] == 1:
                continue
            if name.endswith("time_conv"):
                m.weight.mul_(0.1)
                eye = torch.eye(m.weight.shape[1])
                m.weight[:, :, -1, 0, 0] += eye.repeat(m.weight.shape[0] // eye.shape[0], 1)
                m.bias.zero_()
            else:
                m.weight[:, :, :-1] *= 0.05


def draw_stills(g, device):
    """Four frames each of four clips, as clips of one frame."""
    video, _ = shapes.batch(4, FRAMES, SIZE, g, device)
    picks = torch.randint(FRAMES, (4,))
    return video[:, :, picks].transpose(1, 2).reshape(16, 3, 1, SIZE, SIZE)


def draw_clips(step, g, device):
    """Pieces of the full-length motion. A long clip teaches little more than a short one and costs its length: it is rare."""
    frames, n = (FRAMES, 1) if step % 16 == 0 else (9, 2) if step % 2 else (5, 4)
    video, _ = shapes.batch(n, FRAMES, SIZE, g, device)
    start = torch.randint(FRAMES - frames + 1, (1,)).item()
    return video[:, :, start : start + frames].contiguous()


def train_vae(args, device):
    if device.type == "cpu":
        WanCausalConv3d.forward = conv_by_taps
    torch.manual_seed(0)
    vae = make_vae()
    path, state = args.work / "vae.pt", {}
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["ema" if state["phase"] != args.phase else "vae"])
    if args.phase == "clips" and state.get("phase") != "clips":
        start_as_stills(vae)
    vae.to(device).train()
    if args.phase == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    ema = Ema(vae)
    opt = Optimizers(vae, args.peak or 0.02, 2e-3)
    if state.get("phase") == args.phase:
        ema.model.load_state_dict(state["ema"])
        opt.load_state_dict(state["opt"])
        ema.step = state["step"]
    g = torch.Generator(device=device).manual_seed(int(time.time()))
    clock, step, average = Clock(args.minutes), ema.step, None

    def checkpoint():
        save_file({"vae": vae.state_dict(), "ema": ema.model.state_dict(), "opt": opt.state_dict(), "phase": args.phase,
                   "step": step}, path)

    while clock.progress() < 1:
        video = draw_stills(g, device) if args.phase == "stills" else draw_clips(step, g, device)
        with autocast(device):
            posterior = vae.encode(video).latent_dist
            z = posterior.mode() + 0.02 * torch.randn_like(posterior.mean)
            out = vae.decode(z).sample
        err = out.float() - video
        dx = lambda v: v[..., 1:] - v[..., :-1]
        dy = lambda v: v[..., 1:, :] - v[..., :-1, :]
        loss = err.abs().mean() + 6 * err.square().mean() + 0.5 * (dx(err).abs().mean() + dy(err).abs().mean())
        loss = loss + 1e-3 * posterior.mean.float().square().mean()
        loss.backward()
        opt.step(schedule(args.begin + (1 - args.begin) * clock.progress()))
        ema.update(vae)
        step += 1
        mse = (err / 2).square().mean().item()
        average = mse if average is None else 0.98 * average + 0.02 * mse
        if step % args.every == 0:
            print(f"vae {args.phase} step {step} {clock.progress():.0%} loss {loss.item():.4f} "
                  f"psnr {-10 * math.log10(average):.2f} dB", flush=True)
        if clock.time_to_save():
            checkpoint()
    checkpoint()
    psnr, mean, std = measure_vae(ema.model, device)
    save_file({"vae": ema.model.state_dict(), "mean": mean, "std": std, "psnr": psnr}, args.work / "vae-done.pt")


def measure_vae(vae, device, n=32):
    """Reconstruction of full-length clips that no training step has seen, and the latents' statistics."""
    g = torch.Generator(device=device).manual_seed(7)
    zs, errors = [], []
    with torch.no_grad():
        for _ in range(n // 4):
            video, _ = shapes.batch(4, FRAMES, SIZE, g, device)
            z = vae.encode(video).latent_dist.mode()
            zs.append(z.float().cpu())
            errors += ((vae.decode(z).sample.clamp(-1, 1) - video) / 2).square().mean(dim=(1, 2, 3, 4)).tolist()
    z = torch.cat(zs)
    every = [-10 * math.log10(e) for e in errors]
    psnr = sum(every) / n
    print(f"vae held-out psnr {psnr:.2f} dB, worst clip {min(every):.2f} dB, of the mean error "
          f"{-10 * math.log10(sum(errors) / n):.2f} dB")
    return psnr, z.mean(dim=(0, 2, 3, 4)).tolist(), z.std(dim=(0, 2, 3, 4)).tolist()


def load_vae(args):
    saved = torch.load(args.work / "vae-done.pt", weights_only=True)
    vae = make_vae()
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(latents_mean=saved["mean"], latents_std=saved["std"])
    return vae.eval().requires_grad_(False), saved


# ---- text encoder and transformer ----

def make_bank(args, device):
    """Normalised latents of clips with their captions: encoding costs more than a training step, so it is done once."""
    if device.type == "cpu":
        WanCausalConv3d.forward = conv_by_taps
    vae, saved = load_vae(args)
    vae.to(device)
    mean = torch.tensor(saved["mean"], device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(saved["std"], device=device).view(1, -1, 1, 1, 1)
    made, part = 0, len(list(args.work.glob("bank-*.pt")))
    g = torch.Generator(device=device).manual_seed(100 + part)
    latents, captions = [], []
    while made < args.clips:
        with torch.no_grad(), autocast(device):
            video, text = shapes.batch(16, FRAMES, SIZE, g, device)
            latents.append(((vae.encode(video).latent_dist.mode().float() - mean) / std).half().cpu())
        captions += text
        made += 16
    save_file({"latents": torch.cat(latents), "captions": captions}, args.work / f"bank-{part}.pt")
    print(f"bank-{part}: {made} clips")


def load_bank(args):
    parts = [torch.load(p, weights_only=True) for p in sorted(args.work.glob("bank-*.pt"))]
    return torch.cat([p["latents"] for p in parts]), [c for p in parts for c in p["captions"]], len(parts)


def encode_text(tok, text, captions, device):
    """(b, TEXT_LEN, d), zero beyond each caption's end, as the pipeline does."""
    ids = tok(captions, padding="max_length", max_length=TEXT_LEN, truncation=True, return_tensors="pt").to(device)
    hidden = text(ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
    return hidden * ids.attention_mask[..., None].to(hidden.dtype)


def train_dit(args, device):
    tok = make_tokenizer()
    torch.manual_seed(1)
    model = torch.nn.ModuleDict({"text": make_text(), "dit": make_dit()}).to(device).train()
    ema = Ema(model, 0.9995)
    opt = Optimizers(model, args.peak or 0.02, 1.5e-3, skip=("shared", "relative_attention_bias", "scale_shift_table"))
    path, step = args.work / "dit.pt", 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.model.load_state_dict(state["ema"])
        opt.load_state_dict(state["opt"])
        step = ema.step = state["step"]
    torch.manual_seed(1000 + step)
    clean_bank, captions_bank, parts = load_bank(args)
    n, clock, average = args.batch or 32, Clock(args.minutes), None

    def checkpoint():
        save_file({"model": model.state_dict(), "ema": ema.model.state_dict(), "opt": opt.state_dict(), "step": step}, path)

    while clock.progress() < 1:
        pick = torch.randint(len(captions_bank), (n,))
        clean = clean_bank[pick].float().to(device)
        captions = ["" if torch.rand(()) < 0.1 else captions_bank[i] for i in pick.tolist()]
        raw = torch.sigmoid(torch.randn(n, device=device))
        sigma = SHIFT * raw / (1 + (SHIFT - 1) * raw)
        s = sigma.view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(clean)
        with autocast(device):
            context = encode_text(tok, model["text"], captions, device)
            velocity = model["dit"](hidden_states=(1 - s) * clean + s * noise, timestep=sigma * 1000,
                                    encoder_hidden_states=context, return_dict=False)[0]
        loss = F.mse_loss(velocity.float(), noise - clean)
        loss.backward()
        opt.step(schedule(args.begin + (1 - args.begin) * clock.progress()))
        ema.update(model)
        step += 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % args.every == 0:
            print(f"dit step {step} {clock.progress():.0%} loss {average:.4f} clips {len(captions_bank)}", flush=True)
        if clock.time_to_save():
            checkpoint()
            if len(list(args.work.glob("bank-*.pt"))) > parts:  # more clips were encoded meanwhile
                clean_bank, captions_bank, parts = load_bank(args)
    checkpoint()
    print(f"dit saved at step {step}, loss {average:.4f}")


# ---- results ----

def pipeline(args):
    vae, saved = load_vae(args)
    text, dit = make_text(), make_dit()
    state = torch.load(args.work / "dit.pt", map_location="cpu", weights_only=True)["ema"]
    text.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("text.")})
    dit.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("dit.")})
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000,
                                        flow_shift=SHIFT)
    pipe = WanPipeline(tokenizer=make_tokenizer(), text_encoder=text.eval(), vae=vae, transformer=dit.eval(), scheduler=scheduler)
    return pipe, saved


def save(args, _):
    pipe, saved = pipeline(args)
    pipe.to(torch.float16)
    pipe.save_pretrained(args.out, safe_serialization=True)
    defaults = {"width": SIZE, "height": SIZE, "frames": FRAMES, "fps": 8, "steps": 50, "guidance": GUIDANCE,
                "max_sequence_length": TEXT_LEN, "presets": "demo"}
    (args.out / "navicache.json").write_text(json.dumps(defaults, indent=1) + "\n")
    print(f"saved; vae {saved['psnr']:.2f} dB")


def sheet(args, device):
    """Held-out captions, eight frames each, ten captions a picture."""
    from PIL import Image
    pipe, _ = pipeline(args)
    pipe.to(device, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for caption in shapes.held_out()[: args.clips]:
        out = pipe(prompt=caption, negative_prompt="", height=SIZE, width=SIZE, num_frames=FRAMES, guidance_scale=GUIDANCE,
                   num_inference_steps=args.steps, max_sequence_length=TEXT_LEN, output_type="pt",
                   generator=torch.Generator("cpu").manual_seed(0)).frames[0]
        rows.append(torch.cat(list(out[::2][:9].permute(0, 2, 3, 1)), dim=1))
        print(len(rows), caption, flush=True)
        if len(rows) == 10 or caption == shapes.held_out()[: args.clips][-1]:
            picture = (torch.cat(rows) * 255).clamp(0, 255).byte().cpu().numpy()
            Image.fromarray(picture).save(args.out / f"held-out-{caption[:3].strip()}-{time.time():.0f}.png")
            rows = []


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["vae", "bank", "dit", "save", "sheet"])
    p.add_argument("--minutes", type=float, default=8)
    p.add_argument("--work", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path)
    p.add_argument("--phase", choices=["stills", "clips", "decoder"], default="stills")
    p.add_argument("--batch", type=int)
    p.add_argument("--peak", type=float, help="highest learning rate")
    p.add_argument("--begin", type=float, default=0.0, help="where in the learning-rate schedule this run begins, 0 to 1")
    p.add_argument("--clips", type=int, default=1600, help="how many clips or captions")
    p.add_argument("--every", type=int, default=100, help="steps between two lines of progress")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    {"vae": train_vae, "bank": make_bank, "dit": train_dit, "save": save, "sheet": sheet}[args.stage](args, device)


if __name__ == "__main__":
    main()
