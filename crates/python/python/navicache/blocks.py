"""The blocks of a transformer of diffusers: as units that a report counts, and one by one for methods that look inside.

A block that is not computed hands its inputs on; the first one of a reused span hands on the approximated features.
Methods that ask about parts of blocks (`pab`, `fastercache`) have them run part by part: see `kinds`.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from navicache import _core
from navicache.forward import Forward
from navicache.kinds import EMBEDDERS, KINDS, PACKED, Given, Kind
from navicache.measure import Value, wiener
from navicache.run import PROBLEMS, Unfit

# Where diffusers' transformers keep their blocks, in the order they run.
_LISTS = (
    "blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "layers",
    "temporal_transformer_blocks",
    "visual_transformer_blocks",
)
# How much of what a block adds its parts may miss: rounding, and no layer.
_SAME_BLOCK = 0.01


def class_of(transformer: nn.Module) -> str:
    """The name of its class, whatever is compiled around it."""
    return type(getattr(transformer, "_orig_mod", transformer)).__name__


def modules_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks, in the order they run."""
    lists = [getattr(transformer, name, None) for name in _LISTS]
    return [block for found in lists if isinstance(found, nn.ModuleList) for block in found]


def embedder_of(transformer: nn.Module) -> nn.Module | None:
    """The layer that makes the time embedding, where blocks are not given it."""
    layer = getattr(transformer, EMBEDDERS.get(class_of(transformer), ""), None)
    return layer if isinstance(layer, nn.Module) else None


def blocks_of(transformer: nn.Module) -> list[list[str]]:
    """The parts of every block, by name. A transformer without known lists of blocks is one block."""
    parts = [KINDS[name].names if name in KINDS else ["whole"] for name in _names(transformer)]
    return parts or [["whole"]]


def refusal(transformer: nn.Module, needs: list[str]) -> str | None:
    """Why a method that needs blocks cannot look into a transformer; `None` where it can."""
    names = _names(transformer)
    unknown = sorted({name for name in names if name not in KINDS})
    if unknown or not names:
        found = ", ".join(unknown) or "this transformer has none that are known"
        known = ", ".join(sorted({name.split("Transformer")[0].removesuffix("Block") for name in KINDS}))
        return f"it needs blocks one by one; those of {known} are known, not {found}"
    signals = set(KINDS[names[0]].signals) | ({"time_embedding"} if embedder_of(transformer) is not None else set())
    for signal in ("time_embedding", "time_projection", "modulated_input"):
        if signal in needs and signal not in signals:
            return f"it needs {signal.replace('_', ' ')}, which is not known of {names[0]}"
    if "filtered_input" in needs and names[0] in PACKED:
        return f"it needs to know where tokens lie in the video, and {names[0]} is shown them packed"
    return None


def obstacle(transformer: nn.Module, needs: list[str]) -> str | None:
    """What is in the way of looking into a transformer as it stands now; `None` where nothing is."""
    if getattr(transformer, "_compiled_call_impl", None) is not None or hasattr(transformer, "_orig_mod"):
        return "the whole transformer is compiled: transformer.compile_repeated_blocks() leaves blocks apart"
    if getattr(transformer, "_parallel_config", None) is not None:
        return "it needs blocks one by one, and these are split over several processes"
    for block in modules_of(transformer) if "parts" in needs else []:
        if getattr(block, "_compiled_call_impl", None) is not None:
            return "it runs parts of blocks by themselves, and the blocks are compiled as wholes"
        # What diffusers' own caches leave behind when they are disabled is the class's own.
        placed = block.__dict__.get("forward")
        if placed is not None and getattr(placed, "__func__", None) is not type(block).forward:
            return "it runs parts of blocks by themselves, and something is hooked into the blocks (offloading?)"
    return None


def _names(transformer: nn.Module) -> list[str]:
    # A class that was replaced has the name of the old one.
    return [type(block).__name__ for block in modules_of(transformer)]


@cache
def _signature(of: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(of)


def named(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """A block's arguments by their names."""
    bound = _signature(type(block).forward).bind(block, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class Spans:
    """The blocks of one run's transformers under a method that asks about spans of them."""

    def __init__(
        self, session: _core.Session, forward: Forward, grid: tuple[int, int, int] | None, needs: list[str]
    ) -> None:
        self.session, self.forward, self.grid = session, forward, grid
        self.by_parts, self.wants_outputs = "parts" in needs, "block_outputs" in needs
        self.cut = session.spans()
        # Units that residuals begin at, and the last span whose residual does: features are large, and held no longer.
        self.last_since = {since: index for index, (_, _, since) in enumerate(self.cut)}
        self.is_open = False
        # What went wrong inside of a forward. It goes on by itself, and is given up when it is through.
        self.problem: str | None = None
        # Of the transformer that runs: each block's first unit, and the one behind its last.
        self.units: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
        self.transformer: weakref.ref[nn.Module] | None = None
        # Kinds of blocks whose parts were seen to make up the whole.
        self.trusted: set[str] = set()
        # Of the forward under way
        self.now: Value = ()
        self.embedding: Tensor | None = None
        self.block: weakref.ref[nn.Module] | None = None
        self.given: Given = {}
        self.start: Value = ()
        self.starts: dict[int, Value] = {}
        self.unit = 0  # the first of the block
        self.outputs: dict[int, Tensor] = {}  # behind every block that was computed, by its first unit
        self.since = self.replaced_until = 0

    def open(self, transformer: nn.Module) -> None:
        """A forward begins that is asked about span by span."""
        if self.transformer is None or transformer is not self.transformer():
            self.transformer, unit = weakref.ref(transformer), 0
            self.units.clear()
            for block in modules_of(transformer):
                parts = len(KINDS[type(block).__name__].names)
                self.units[block] = (unit, unit + parts)
                unit += parts
        self.is_open, self.starts, self.outputs, self.replaced_until = True, {}, {}, 0

    def close(self) -> None:
        """It is through: nothing of it stays.

        Raises `Unfit` where something went wrong on the way.
        """
        self.is_open, self.now, self.block, self.given, self.start = False, (), None, {}, ()
        self.starts, self.outputs, self.embedding = {}, {}, None
        if self.problem is not None:
            raise Unfit(self.problem)

    def call(self, block: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: computed, or part of a span that is not. Or the layer that makes the time embedding."""
        if not self.is_open:
            return forward(*args, **kwargs)
        if block not in self.units:
            output = forward(*args, **kwargs)
            self.embedding = output[0] if isinstance(output, tuple) else output
            return output
        kind = KINDS[type(block).__name__]
        self.given, (self.unit, end) = named(block, args, kwargs), self.units[block]
        self.now, self.block = kind.value(self.given), weakref.ref(block)
        if not self.by_parts or not kind.parts or self.problem is not None:
            self._piece(self.unit, end, lambda _: kind.taken(forward(*args, **kwargs)))
        elif type(block).__name__ in self.trusted:
            self._parts(block, kind)
        else:  # the first of its kind runs both ways
            self._distrusted(block, kind, kind.taken(forward(*args, **kwargs)))
        return kind.returned(self.now)

    def _parts(self, block: nn.Module, kind: Kind) -> None:
        for unit, part in enumerate(kind.parts.values(), start=self.unit):
            self._piece(unit, unit + 1, partial(part, block, given=self.given))

    def _distrusted(self, block: nn.Module, kind: Kind, whole: Value) -> None:
        """Runs a block's parts where it is not certain that they make up the whole."""
        name, before = type(block).__name__, self.now
        try:
            self._parts(block, kind)
            if not all(map(_are_close, self.now, whole, before)):
                raise Unfit("their sum is another one")
            self.trusted.add(name)
        except (AttributeError, KeyError, TypeError, *PROBLEMS) as problem:
            self.problem = f"{name} is not made of the parts that are known of it ({problem})"
            self.now = whole

    def _piece(self, first: int, end: int, run: Callable[[Value], Value]) -> None:
        """A block, or a part of one, between the questions before and behind it."""
        if first < self.replaced_until:
            return
        if first in self.last_since:
            self.starts[first] = self.now
        for index, (start, stop, _) in enumerate(self.cut):
            if start == first and self._enter(index) and start == stop:
                self._leave(index)
            if first < self.replaced_until:
                return
        self.now = run(self.now)
        if self.wants_outputs:
            self.outputs[self.unit] = self.now[0]
        for index, (start, stop, _) in enumerate(self.cut):
            if stop == end and start < stop:
                self._leave(index)

    def _enter(self, index: int) -> bool:
        """Asks about a span: whether it is computed."""
        since = self.cut[index][2]
        if self.problem is None:
            try:
                return self.session.enter_span(index, self.forward)
            except PROBLEMS as problem:
                self.problem = str(problem)
            finally:
                if self.last_since[since] == index:
                    self.starts.pop(since, None)
        return True

    def _leave(self, index: int) -> None:
        """A span was computed."""
        if self.problem is None:
            try:
                self.session.leave_span(index, self.forward)
            except PROBLEMS as problem:
                self.problem = str(problem)

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
        """A subject's value at the span that was entered, as policies see it."""
        value = self._subject(name, sigma)
        return None if value is None else tuple(self.forward.observed(t.float()) for t in value)

    def _subject(self, name: str, sigma: float) -> Value | None:
        if name == "span_residual":
            return (self.now[0].float() - self.start[0].float(),)
        if name == "span_output":
            return (self.now[0],)
        if name == "block_outputs":
            return tuple(output for unit, output in self.outputs.items() if unit >= self.since)
        block = None if self.block is None else self.block()
        if block is None:
            return None
        if name == "time_embedding" and self.embedding is not None:
            return (self.embedding,)
        signal = KINDS[type(block).__name__].signals.get("modulated_input" if name == "filtered_input" else name)
        if signal is None:
            return None
        value = signal(block, self.given)
        if name != "filtered_input":
            return (value,)
        if self.grid is None:
            raise Unfit("where tokens lie in the video is not known of this transformer")
        return (wiener(value.float(), self.grid, sigma),)


@dataclass(frozen=True)
class Layout:
    """What a transformer makes of latents."""

    # The shape of what it predicts.
    predicted: torch.Size
    # Tokens of the video along time, height and width. None: they come packed, and where they lie is not known.
    grid: tuple[int, int, int] | None
    # Bytes of the features of all tokens, as 32-bit numbers.
    features: int


def layout_of(transformer: nn.Module, shown: Tensor) -> Layout | None:
    """From its configuration and the latents that it is shown; `None` where the configuration does not say."""
    config: Any = transformer.config
    channels = config.get("out_channels") or config.get("in_channels")
    width = (config.get("num_attention_heads") or 0) * (config.get("attention_head_dim") or 0)
    patch = config.get("patch_size")
    if channels is None or patch is None or shown.ndim not in (3, 5):
        return None
    if shown.ndim == 3:  # QwenImage counts channels of latents, others those of tokens
        channels *= patch**2 if class_of(transformer).startswith("QwenImage") else 1
        return Layout(torch.Size((*shown.shape[:2], channels)), None, 4 * shown.shape[0] * shown.shape[1] * width)
    axis = 2 if class_of(transformer).startswith("CogVideoX") else 1  # of the channels
    predicted = [*shown.shape[:axis], channels, *shown.shape[axis + 1 :]]
    patches = (config.get("patch_size_t") or 1, patch, patch) if isinstance(patch, int) else patch
    extent = [size for place, size in enumerate(shown.shape) if place not in (0, axis)]
    frames, height, wide = (-(-size // of) for size, of in zip(extent, patches, strict=True))
    features = 4 * shown.shape[0] * frames * height * wide * width
    return Layout(torch.Size(predicted), (frames, height, wide), features)


def _are_close(made: Tensor, whole: Tensor, before: Tensor) -> bool:
    """Whether what was added is the same, but for rounding."""
    missed, added = (made.float() - whole.float()).abs().mean(), (whole.float() - before.float()).abs().mean()
    return bool(missed <= _SAME_BLOCK * added)
