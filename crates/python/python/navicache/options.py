"""What may be asked for, as types. The engine knows what each option means and what is left open stands for; a test
holds these names against its own."""

from __future__ import annotations

import os
from typing import Any, Literal, TypedDict

PathLike = str | os.PathLike[str]
"""A file or a folder."""

Cache = str | dict[str, Any]
"""``navicache:mid,threshold=0.1``, ``@preset.json``, a preset of :func:`navicache.tune`, or a method with its options."""


class LoadOptions(TypedDict, total=False):
    """How a model is opened."""

    device: str | None
    dtype: str | None
    memory: int | str | None
    loras: list[str | tuple[PathLike, float]]
    transformer: PathLike | None
    transformer_2: PathLike | None
    text_encoder: PathLike | None
    text_encoder_2: PathLike | None
    vae: PathLike | None
    image_encoder: PathLike | None
    tokenizer: PathLike | None
    tokenizer_2: PathLike | None


class Options(TypedDict, total=False):
    """What a video is to be, beside its prompt. ``None`` is the model's default."""

    negative_prompt: str | None
    image: PathLike | None
    size: str | tuple[int, int] | None
    resolution: str | None
    aspect_ratio: str | None
    frames: int | None
    fps: float | None
    scale: int | None
    steps: int | None
    solver: str | None
    shift: float | None
    guidance: float | None
    guidance_2: float | None
    true_guidance: float | None
    dynamic_guidance: bool
    seed: int | None
    cache: Cache | None
    target: str | None
    guard: Literal["act", "warn", "off"] | None
    max_sequence_length: int | None
    latents: PathLike | None
    save_latents: PathLike | None
    cache_memory: int | None
    tile: str | int
    preview: float | None
    checkpoint: dict[str, Any] | None
    resume: dict[str, Any] | None
