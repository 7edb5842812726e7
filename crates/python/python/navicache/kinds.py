"""What is known of the blocks of diffusers' transformers, class by class: what goes in and out, signals, and parts.

A part (self-attention, cross-attention, feed-forward) is run by the block's own layers, as the block runs them: what
is hooked into a layer or takes its place (LoRA, quantised weights) stays in force. `Spans` compares parts with whole
blocks before it goes by them, since a release of diffusers may change how a block uses its layers.

Sources: diffusers 0.42.1, `models/transformers` and `hooks/_helpers.py`. The engine has the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from navicache.measure import Value

# A block's arguments by their names.
Given = Mapping[str, Any]


class Part(Protocol):
    """A part: the features behind it, from the block, those before it, and the block's arguments."""

    def __call__(self, block: Any, now: Value, given: Given) -> Value: ...


Signal = Callable[[Any, Given], Tensor]

VIDEO, TEXT = "hidden_states", "encoder_hidden_states"


@dataclass(frozen=True)
class Kind:
    """What is known of a class of blocks."""

    # Names of what it returns, in order. A value is the video's features, and behind them the text's, if they are here.
    returns: tuple[str, ...]
    # The parts that can be told apart, in the order they run. None: the block is one piece.
    parts: Mapping[str, Part] = field(default_factory=dict)
    # What policies may ask for at its beginning.
    signals: Mapping[str, Signal] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of its parts."""
        return list(self.parts) or ["whole"]

    def value(self, given: Given) -> Value:
        """The features that go in."""
        return (given[VIDEO], given[TEXT]) if TEXT in self.returns else (given[VIDEO],)

    def taken(self, output: Any) -> Value:
        """The features that came out."""
        if len(self.returns) == 1:
            return (output,)
        return (output[self.returns.index(VIDEO)], output[self.returns.index(TEXT)])

    def returned(self, value: Value) -> Any:
        """Features in the form that the block returns its own in."""
        if len(self.returns) == 1:
            return value[0]
        return value if self.returns[0] == VIDEO else (value[1], value[0])


# Wan: modulation is added to a table of the block's own; self-attention, cross-attention and feed-forward.


def _wan_rows(block: Any, given: Given) -> tuple[Tensor, ...]:
    """Shift, scale and gate of self-attention, then of the feed-forward. // each (batch, 1 or tokens, dim)"""
    table, time = block.scale_shift_table, given["temb"].float()
    if time.ndim == 4:  # a time of every token
        return tuple((table.unsqueeze(0) + time).unbind(2))
    return tuple(row.unsqueeze(1) for row in (table + time).unbind(1))


def _wan_modulated(block: Any, given: Given) -> Tensor:
    rows, x = _wan_rows(block, given), given[VIDEO]
    modulated: Tensor = block.norm1(x.float()) * (1 + rows[1]) + rows[0]
    return modulated


def _wan_self_attn(block: Any, now: Value, given: Given) -> Value:
    (x,), rows = now, _wan_rows(block, given)
    mixed = block.attn1((block.norm1(x.float()) * (1 + rows[1]) + rows[0]).type_as(x), None, None, given["rotary_emb"])
    return ((x.float() + mixed * rows[2]).type_as(x),)


def _wan_cross_attn(block: Any, now: Value, given: Given) -> Value:
    (x,) = now
    return (x + block.attn2(block.norm2(x.float()).type_as(x), given[TEXT], None, None),)


def _wan_mlp(block: Any, now: Value, given: Given) -> Value:
    (x,), rows = now, _wan_rows(block, given)
    added = block.ffn((block.norm3(x.float()) * (1 + rows[4]) + rows[3]).type_as(x))
    return ((x.float() + added.float() * rows[5]).type_as(x),)


# HunyuanVideo: attention over video and text together, and a feed-forward for each; then blocks of one piece.


def _joint_modulated(block: Any, given: Given) -> Tensor:
    modulated: Tensor = block.norm1(given[VIDEO], emb=given["temb"])[0]
    return modulated


def _joint_projection(block: Any, given: Given) -> Tensor:
    projection: Tensor = block.norm1.linear(block.norm1.silu(given["temb"]))
    return projection


def _hunyuan_self_attn(block: Any, now: Value, given: Given) -> Value:
    video, text = now
    x, gate, *_ = block.norm1(video, emb=given["temb"])
    y, text_gate, *_ = block.norm1_context(text, emb=given["temb"])
    mixed = block.attn(
        hidden_states=x,
        encoder_hidden_states=y,
        attention_mask=given["attention_mask"],
        image_rotary_emb=given["freqs_cis"],
    )
    return (video + mixed[0] * gate.unsqueeze(1), text + mixed[1] * text_gate.unsqueeze(1))


def _hunyuan_mlp(block: Any, now: Value, given: Given) -> Value:
    def added(x: Tensor, rows: Any, norm: nn.Module, net: nn.Module) -> Tensor:
        _, _, shift, scale, gate = rows(x[:, :1], emb=given["temb"])  # which follow from the time alone
        made: Tensor = x + gate.unsqueeze(1) * net(norm(x) * (1 + scale[:, None]) + shift[:, None])
        return made

    video, text = now
    return (
        added(video, block.norm1, block.norm2, block.ff),
        added(text, block.norm1_context, block.norm2_context, block.ff_context),
    )


# CogVideoX: norms of its own for video and text, one feed-forward over both.


def _cogvideox_modulated(block: Any, given: Given) -> Tensor:
    modulated: Tensor = block.norm1(given[VIDEO], given[TEXT], given["temb"])[0]
    return modulated


def _cogvideox_self_attn(block: Any, now: Value, given: Given) -> Value:
    video, text = now
    x, y, gate, text_gate = block.norm1(video, text, given["temb"])
    mixed = block.attn1(
        hidden_states=x,
        encoder_hidden_states=y,
        image_rotary_emb=given["image_rotary_emb"],
        **(given.get("attention_kwargs") or {}),
    )
    return (video + gate * mixed[0], text + text_gate * mixed[1])


def _cogvideox_mlp(block: Any, now: Value, given: Given) -> Value:
    (video, text), words = now, now[1].shape[1]
    x, y, gate, text_gate = block.norm2(video, text, given["temb"])
    added = block.ff(torch.cat([y, x], dim=1))
    return (video + gate * added[:, words:], text + text_gate * added[:, :words])


# LTX: a table of the block's own, as Wan; cross-attention sees features that are not modulated.


def _ltx_rows(block: Any, given: Given) -> tuple[Tensor, ...]:
    table, time = block.scale_shift_table, given["temb"]
    rows = time.reshape(time.shape[0], time.shape[1], table.shape[0], -1)
    return tuple((table[None, None].to(time.device) + rows).unbind(2))


def _ltx_modulated(block: Any, given: Given) -> Tensor:
    rows = _ltx_rows(block, given)
    modulated: Tensor = block.norm1(given[VIDEO]) * (1 + rows[1]) + rows[0]
    return modulated


def _ltx_self_attn(block: Any, now: Value, given: Given) -> Value:
    (x,), rows = now, _ltx_rows(block, given)
    mixed = block.attn1(
        hidden_states=block.norm1(x) * (1 + rows[1]) + rows[0],
        encoder_hidden_states=None,
        image_rotary_emb=given["image_rotary_emb"],
    )
    return (x + mixed * rows[2],)


def _ltx_cross_attn(block: Any, now: Value, given: Given) -> Value:
    (x,), mask = now, given["encoder_attention_mask"]
    return (x + block.attn2(x, encoder_hidden_states=given[TEXT], image_rotary_emb=None, attention_mask=mask),)


def _ltx_mlp(block: Any, now: Value, given: Given) -> Value:
    (x,), rows = now, _ltx_rows(block, given)
    return (x + block.ff(block.norm2(x) * (1 + rows[4]) + rows[3]) * rows[5],)


# Mochi: gates are bent by tanh and norms stand behind the layers; the last block's text goes no further.


def _mochi_modulated(block: Any, given: Given) -> Tensor:
    modulated: Tensor = block.norm1(given[VIDEO], given["temb"])[0]
    return modulated


def _bent(gate: Tensor) -> Tensor:
    return torch.tanh(gate).unsqueeze(1)


def _mochi_self_attn(block: Any, now: Value, given: Given) -> Value:
    video, text = now
    x, gate, *_ = block.norm1(video, given["temb"])
    of_text = block.norm1_context(text, given["temb"])
    mixed = block.attn1(
        hidden_states=x,
        encoder_hidden_states=of_text if block.context_pre_only else of_text[0],
        image_rotary_emb=given["image_rotary_emb"],
        attention_mask=given["encoder_attention_mask"],
    )
    video = video + block.norm2(mixed[0], _bent(gate))
    if not block.context_pre_only:
        text = text + block.norm2_context(mixed[1], _bent(of_text[1]))
    return (video, text)


def _mochi_mlp(block: Any, now: Value, given: Given) -> Value:
    def added(x: Tensor, rows: Any, norms: tuple[Any, Any], net: nn.Module) -> Tensor:
        _, _, scale, gate = rows(x[:, :1], given["temb"])  # which follow from the time alone
        made: Tensor = x + norms[1](net(norms[0](x, 1 + scale.unsqueeze(1).to(torch.float32))), _bent(gate))
        return made

    video, text = now
    video = added(video, block.norm1, (block.norm3, block.norm4), block.ff)
    if not block.context_pre_only:
        text = added(text, block.norm1_context, (block.norm3_context, block.norm4_context), block.ff_context)
    return (video, text)


# Flux and QwenImage are known as wholes.


def _qwen_modulated(block: Any, given: Given) -> Tensor:
    first = block.img_mod(given["temb"]).chunk(2, dim=-1)[0]
    modulated: Tensor = block._modulate(block.img_norm1(given[VIDEO]), first, given["modulate_index"])[0]
    return modulated


def _embedding(_: Any, given: Given) -> Tensor:
    embedding: Tensor = given["temb"]
    return embedding


_BOTH, _TEXT_FIRST = (VIDEO, TEXT), (TEXT, VIDEO)

KINDS: Mapping[str, Kind] = {
    "WanTransformerBlock": Kind(
        (VIDEO,),
        {"self_attn": _wan_self_attn, "cross_attn": _wan_cross_attn, "mlp": _wan_mlp},
        {"modulated_input": _wan_modulated, "time_projection": _embedding},
    ),
    "HunyuanVideoTransformerBlock": Kind(
        _BOTH,
        {"self_attn": _hunyuan_self_attn, "mlp": _hunyuan_mlp},
        {"modulated_input": _joint_modulated, "time_embedding": _embedding, "time_projection": _joint_projection},
    ),
    "HunyuanVideoSingleTransformerBlock": Kind(_BOTH),
    "CogVideoXBlock": Kind(
        _BOTH,
        {"self_attn": _cogvideox_self_attn, "mlp": _cogvideox_mlp},
        {
            "modulated_input": _cogvideox_modulated,
            "time_embedding": _embedding,
            "time_projection": _joint_projection,
        },
    ),
    "LTXVideoTransformerBlock": Kind(
        (VIDEO,),
        {"self_attn": _ltx_self_attn, "cross_attn": _ltx_cross_attn, "mlp": _ltx_mlp},
        {"modulated_input": _ltx_modulated},
    ),
    "MochiTransformerBlock": Kind(
        _BOTH, {"self_attn": _mochi_self_attn, "mlp": _mochi_mlp}, {"modulated_input": _mochi_modulated}
    ),
    "FluxTransformerBlock": Kind(_TEXT_FIRST, signals={"modulated_input": _joint_modulated}),
    "FluxSingleTransformerBlock": Kind(_TEXT_FIRST),
    "QwenImageTransformerBlock": Kind(_TEXT_FIRST, signals={"modulated_input": _qwen_modulated}),
}

# Blocks of transformers that are shown their tokens packed, without the video's extent.
PACKED = ("LTXVideoTransformerBlock", "FluxTransformerBlock", "QwenImageTransformerBlock")
# Where a transformer's time embedding is made, if its blocks are not given it: the first of what that layer returns.
EMBEDDERS: Mapping[str, str] = {"WanTransformer3DModel": "condition_embedder"}
