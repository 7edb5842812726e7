"""The blocks of a transformer of diffusers: as units that a report counts, and one by one for methods that look inside.

A block that is not computed hands its inputs on; the first one of a reused span hands on the approximated features.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from navicache import _core
from navicache.forward import Forward
from navicache.measure import Value, wiener

# Where diffusers' transformers keep their blocks, in the order they run.
_LISTS = (
    "blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "layers",
    "temporal_transformer_blocks",
    "visual_transformer_blocks",
)


@dataclass(frozen=True)
class Kind:
    """What is known of a class of blocks. The engine has the same parts."""

    # Parts that can be told apart, in the order they run.
    parts: tuple[str, ...]
    # Whether it returns the text's features behind the video's.
    returns_text: bool
    # The input of its first part, normalised and modulated, from the block and its arguments.
    modulated: Callable[[Any, tuple[Any, ...]], Tensor]
    # The projection of the time embedding, where the block is given it.
    time: Callable[[tuple[Any, ...]], Tensor | None]


def _modulated_wan(block: Any, args: tuple[Any, ...]) -> Tensor:
    hidden, _, time, *_ = args
    table: Tensor = block.scale_shift_table
    if time.ndim == 4:  # a time of every token
        rows = (table.unsqueeze(0) + time.float()).unbind(2)
    else:
        rows = tuple(row.unsqueeze(1) for row in (table + time.float()).unbind(1))
    modulated: Tensor = block.norm1(hidden.float()) * (1 + rows[1]) + rows[0]
    return modulated


def _modulated_hunyuan(block: Any, args: tuple[Any, ...]) -> Tensor:
    modulated: Tensor = block.norm1(args[0], emb=args[2])[0]
    return modulated


_WAN = Kind(("self_attn", "cross_attn", "mlp"), False, _modulated_wan, lambda args: args[2])
_HUNYUAN = Kind(("self_attn", "mlp"), True, _modulated_hunyuan, lambda _: None)
_KINDS = {
    "WanTransformerBlock": _WAN,
    "HunyuanVideoTransformerBlock": _HUNYUAN,
    "HunyuanVideoSingleTransformerBlock": Kind(("whole",), True, _modulated_hunyuan, lambda _: None),
}
# What policies may ask for, where blocks of a kind come first.
SIGNALS = {"WanTransformerBlock": ("time_projection", "modulated_input"), "HunyuanVideoTransformerBlock": ("modulated_input",)}


def modules_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks, in the order they run."""
    lists = [getattr(transformer, name, None) for name in _LISTS]
    return [block for found in lists if isinstance(found, nn.ModuleList) for block in found]


def blocks_of(transformer: nn.Module) -> list[list[str]]:
    """The parts of every block, by name. A transformer without known lists of blocks is one block."""
    parts = [list(_KINDS[name].parts) if name in _KINDS else ["whole"] for name in _names(transformer)]
    return parts or [["whole"]]


def refusal(transformer: nn.Module, needs: list[str]) -> str | None:
    """Why a method that needs blocks cannot look into a transformer; `None` where it can."""
    names = _names(transformer)
    unknown = sorted({name for name in names if name not in _KINDS})
    if unknown or not names:
        found = ", ".join(unknown) or "this transformer has none that are known"
        return f"it needs blocks one by one; those of Wan and HunyuanVideo are known, not {found}"
    if "parts" in needs:
        return "it asks about parts of blocks, which cannot be told apart from outside"
    signals = SIGNALS.get(names[0], ())
    for signal in ("time_embedding", "time_projection", "modulated_input"):
        if signal in needs and signal not in signals:
            return f"it needs {signal.replace('_', ' ')}, which is not known of {names[0]}"
    return None


def _names(transformer: nn.Module) -> list[str]:
    # A class that was replaced has the name of the old one.
    return [type(block).__name__ for block in modules_of(transformer)]


class Spans:
    """The blocks of one run's transformers under a method that asks about spans of them."""

    def __init__(self, session: _core.Session, forward: Forward, patch: tuple[int, int, int]) -> None:
        self.session, self.forward, self.patch = session, forward, patch
        self.cut = session.spans()
        self.is_open = False
        # Of the transformer that runs: each block's first unit, and the one behind its last.
        self.units: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
        self.transformer: weakref.ref[nn.Module] | None = None
        # Of the forward under way
        self.now: Value = ()
        self.block: weakref.ref[nn.Module] | None = None
        self.args: tuple[Any, ...] = ()
        self.start: Value = ()
        self.starts: dict[int, Value] = {}
        self.outputs: list[tuple[int, Tensor]] = []
        self.since = self.replaced_until = 0

    def open(self, transformer: nn.Module) -> None:
        """A forward begins that is asked about span by span."""
        if self.transformer is None or transformer is not self.transformer():
            self.transformer, unit = weakref.ref(transformer), 0
            self.units.clear()
            for block in modules_of(transformer):
                parts = len(_KINDS[type(block).__name__].parts)
                self.units[block] = (unit, unit + parts)
                unit += parts
        self.is_open, self.starts, self.outputs, self.replaced_until = True, {}, [], 0

    def close(self) -> None:
        """It is through: nothing of it stays."""
        self.is_open, self.now, self.block, self.args, self.start = False, (), None, (), ()
        self.starts, self.outputs = {}, []

    def call(self, block: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: computed, or part of a span that is not."""
        if not self.is_open or block not in self.units:
            return forward(*args, **kwargs)
        kind = _KINDS[type(block).__name__]
        first, end = self.units[block]
        self.now = tuple(args[:2]) if kind.returns_text else (args[0],)
        if first < self.replaced_until:
            return self.returned(kind)
        self.block, self.args = weakref.ref(block), args
        self.starts[first] = self.now
        for index, (start, stop, _) in enumerate(self.cut):
            if start == first and not self.session.enter_span(index, self.forward):
                return self.returned(kind)
            if start == stop == first:
                self.session.leave_span(index, self.forward)
        output = forward(*args, **kwargs)
        self.now = tuple(output[:2]) if kind.returns_text else (output,)
        self.outputs.append((first, self.now[0]))
        for index, (start, stop, _) in enumerate(self.cut):
            if stop == end and start < stop:
                self.session.leave_span(index, self.forward)
        return output

    def returned(self, kind: Kind) -> Any:
        return self.now if kind.returns_text else self.now[0]

    # What the session asks, through `Forward`

    def enter(self, start: int, end: int, since: int) -> None:
        """The units before a span have run; its residual begins at `since`."""
        self.since = since
        self.start = self.starts.get(since, self.now)

    def replace(self, end: int, is_output: bool, value: Value) -> None:
        """An approximated value takes the place of a span's."""
        if not is_output:
            value = tuple(before.float() + added for before, added in zip(self.start, value, strict=True))
        self.now = tuple(new.to(old.dtype) for new, old in zip(value, self.now, strict=True))
        self.replaced_until = end

    def kept(self, what: str) -> Value:
        """What a span added, or the features behind it."""
        if what == "span_output":
            return self.now
        return tuple(after - before for after, before in zip(self.now, self.start, strict=True))

    def subject(self, name: str, sigma: float) -> Value | None:
        """A subject's value at the span that was entered."""
        if name == "span_residual":
            return (self.now[0].float() - self.start[0].float(),)
        if name == "span_output":
            return (self.now[0].float(),)
        if name == "block_outputs":
            return tuple(output.float() for unit, output in self.outputs if unit >= self.since)
        block = None if self.block is None else self.block()
        if block is None:
            return None
        kind = _KINDS[type(block).__name__]
        if name == "time_projection":
            time = kind.time(self.args)
            return None if time is None else (time.float(),)
        if name in ("modulated_input", "filtered_input"):
            modulated = kind.modulated(block, self.args).float()
            return (modulated if name == "modulated_input" else wiener(modulated, self.grid(), sigma),)
        return None

    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        shown = self.forward.shown
        assert shown is not None
        frames, height, width = (-(-size // patch) for size, patch in zip(shown.shape[-3:], self.patch, strict=True))
        return frames, height, width


def patch_of(transformer: nn.Module) -> tuple[int, int, int]:
    """Latents along time, height and width that are one token."""
    config: Any = transformer.config
    patch = config.patch_size
    if isinstance(patch, int):
        return (getattr(config, "patch_size_t", None) or 1, patch, patch)
    frames, height, width = patch
    return frames, height, width


def predicted_shape(transformer: nn.Module, shown: Tensor) -> torch.Size:
    """The shape of what a transformer of 5-d latents predicts."""
    config: Any = transformer.config
    batch, _, *rest = shown.shape
    return torch.Size((batch, config.out_channels or config.in_channels, *rest))
