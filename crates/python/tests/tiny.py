"""Tiny pipelines of diffusers with random weights, made from a seed: no text encoders, no VAE, a few layers."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

# Where everything runs: `cuda` for the same tests on a GPU.
DEVICE = torch.device(os.environ.get("NAVICACHE_TEST_DEVICE", "cpu"))
TEXT = 16  # numbers a text token
SHAPE = (1, 8, 3, 8, 8)  # latents of Wan and HunyuanVideo: batch, channels, frames, height, width


def scheduler(solver: str = "unipc", shift: float = 3.0) -> Any:
    """The flow schedulers as they are published with video models."""
    flow: Any = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if solver == "unipc":
        return UniPCMultistepScheduler(**flow)
    if solver == "dpmpp":
        return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **flow)
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that make outputs move with time and text: defaults leave gates at 0."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=source)
            if weight.ndim < 2:
                norm = "norm" in name and name.endswith("weight")
                weight.copy_(1 + 0.1 * noise if norm else 0.05 * noise)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    model.eval().to(DEVICE)


def wan_transformer(seed: int = 0, **config: Any) -> WanTransformer3DModel:
    """Four layers of two heads."""
    sizes: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 8,
        "out_channels": 8,
        "text_dim": TEXT,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 4,
    }
    model = WanTransformer3DModel(**{**sizes, **config})
    randomize(model, seed)
    return model


def smooth(pipe: Any) -> Any:
    """The same with a velocity that changes as slowly from step to step as that of trained models does."""
    model = pipe.transformer
    with torch.no_grad():
        model.condition_embedder.time_embedder.linear_2.weight.mul_(0.1)
        model.condition_embedder.time_proj.weight.mul_(0.1)
        model.proj_out.weight.mul_(0.3)
    return pipe


class Graphs(list[Any]):
    """The graphs that torch.compile makes, with a backend that only keeps them."""

    def __init__(self) -> None:
        super().__init__()
        torch._dynamo.reset()

    def backend(self, graph: Any, _: Any) -> Any:
        self.append(graph)
        return graph.forward


def wan(solver: str = "unipc", experts: int = 1, seed: int = 0, **config: Any) -> WanPipeline:
    """Wan from text; with two experts as Wan2.2 A14B is."""
    parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": scheduler(solver)}
    second = wan_transformer(seed + 1, **config) if experts > 1 else None
    boundary = 0.8 if experts > 1 else None
    pipe = WanPipeline(
        transformer=wan_transformer(seed, **config), transformer_2=second, boundary_ratio=boundary, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunyuan(seed: int = 0) -> HunyuanVideoPipeline:
    """HunyuanVideo: one branch, embedded guidance, no contexts."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=TEXT,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    )
    randomize(model, seed)
    empty: Any = None
    pipe = HunyuanVideoPipeline(empty, empty, model, empty, scheduler("euler", 7.0), empty, empty)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox(seed: int = 0) -> CogVideoXPipeline:
    """CogVideoX: both branches in one batch, frames before channels, no flow."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=8,
        text_embed_dim=TEXT,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=6,
    )
    randomize(model, seed)
    empty: Any = None
    source = CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
    pipe = CogVideoXPipeline(empty, empty, empty, model, source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ltx(seed: int = 0) -> LTXPipeline:
    """LTX: tokens come packed, both branches in one batch."""
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=3,
        caption_channels=TEXT,
    )
    randomize(model, seed)
    empty: Any = None
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), empty, empty, empty, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def mochi(seed: int = 0) -> MochiPipeline:
    """Mochi: both branches in one batch, timesteps that count upwards."""
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        pooled_projection_dim=24,
        in_channels=8,
        text_embed_dim=TEXT,
        time_embed_dim=16,
        max_sequence_length=6,
    )
    randomize(model, seed)
    empty: Any = None
    source = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = MochiPipeline(source, empty, empty, empty, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(seed: int = 0) -> FluxPipeline:
    """Flux: pictures, packed; blocks of two kinds, time divided by 1000, two branches where it is asked for both."""
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 4),
    )
    randomize(model, seed)
    empty: Any = None
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), empty, empty, empty, empty, empty, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen(seed: int = 0) -> QwenImagePipeline:
    """QwenImage: pictures, packed; channels are counted before they are."""
    model = QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 4),
    )
    randomize(model, seed)
    empty: Any = None
    pipe = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), empty, empty, empty, model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text(seed: int, tokens: int = 6, batch: int = 1) -> torch.Tensor:
    """The embedding of a prompt. // (batch, tokens, TEXT)"""
    return torch.randn((batch, tokens, TEXT), generator=torch.Generator().manual_seed(1000 + seed)).to(DEVICE)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Latents to begin with."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def run(
    pipe: Any, steps: int = 20, guidance: float = 5.0, seed: int = 0, size: int = 64, batch: int = 1, **more: Any
) -> torch.Tensor:
    """The final latents of one generation."""
    given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent", "height": size, "width": size}
    given["prompt_embeds"] = text(seed, batch=batch)
    side = size // 8
    if isinstance(pipe, (FluxPipeline, QwenImagePipeline)):
        given.update(negative_prompt_embeds=text(seed + 500, batch=batch), true_cfg_scale=guidance)
        given.update(latents=noise(seed, (batch, side * side // 4, 8)))
        if isinstance(pipe, FluxPipeline):
            pooled = torch.zeros(batch, 8, device=DEVICE)
            given.update(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=pooled)
        else:
            mask = torch.ones(batch, 6, dtype=torch.long, device=DEVICE)
            given.update(prompt_embeds_mask=mask, negative_prompt_embeds_mask=mask)
        return pipe(**{**given, **more}).images
    if isinstance(pipe, (LTXPipeline, MochiPipeline)):
        mask = torch.ones(batch, 6, dtype=torch.bool, device=DEVICE)
        given.update(prompt_attention_mask=mask, negative_prompt_attention_mask=mask)
    if isinstance(pipe, HunyuanVideoPipeline):
        pooled, mask = torch.zeros(batch, 8, device=DEVICE), torch.ones(batch, 6, device=DEVICE)
        given.update(pooled_prompt_embeds=pooled, prompt_attention_mask=mask)
    else:
        given.update(negative_prompt_embeds=text(seed + 500, batch=batch), guidance_scale=guidance)
    shape = (batch, 3, 8, side, side) if isinstance(pipe, CogVideoXPipeline) else (batch, 8, 3, side, side)
    given.update(latents=noise(seed, shape), num_frames=9)
    if isinstance(pipe, LTXPipeline):  # 32 pixels a latent, 8 frames
        given.update(latents=noise(seed, (batch, 3 * side * side, 8)), num_frames=17, height=4 * size, width=4 * size)
    if isinstance(pipe, MochiPipeline):  # 6 frames a latent
        given.update(num_frames=13)
    return pipe(**{**given, **more}).frames


def save_wan(folder: Any, seed: int = 0) -> None:
    """A whole pipeline on disk, that the engine can open too: text encoder, tokenizer and VAE as tiny as the rest."""
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    special = ["<pad>", "</s>", "<s>", "<unk>"]
    pieces = special + ["\u2581"] + [chr(c) for c in range(32, 127)]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(special)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=128,
            d_model=TEXT,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[], temperal_downsample=[False, True, True]
    )
    for model in (encoder, vae):
        randomize(model, seed + 5)
    pipe = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names),
        text_encoder=encoder,
        vae=vae,
        scheduler=scheduler("unipc"),
        transformer=wan_transformer(
            seed,
            in_channels=16,
            out_channels=16,
            cross_attn_norm=True,
            attention_head_dim=24,
            freq_dim=256,
        ),
    )
    smooth(pipe)
    pipe.save_pretrained(folder)
