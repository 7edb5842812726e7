"""Cache methods on any pipeline of diffusers: `navicache.enable(pipe, "navicache:mid")`.

The class of the one object `pipe.transformer` is replaced by a subclass that looks at every call first; `disable` puts
the old one back. That is outside of everything else that stands around a forward: `torch.compile`, accelerate's hooks
and those that split latents over machines. Nothing needs to be kept in sync: whose run this is, which step and which
branch is read from the pipeline.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from navicache import _core, families, solvers
from navicache.blocks import Spans, blocks_of, class_of, embedder_of, layout_of, modules_of, refusal
from navicache.generation import Generation
from navicache.report import Report

_log = logging.getLogger("navicache")

OnProblem = Literal["warn", "error", "quiet"]
Batch = Literal["any", "joint"]
KeepOn = Literal["auto", "device", "cpu"]

# Transformers that a forward of thinned-out latents is known to work on.
_THINNABLE = ("WanTransformer3DModel", "HunyuanVideoTransformer3DModel")
# Transformers whose pipelines show both branches of guidance in one batch.
_BATCHED = ("CogVideoXTransformer3DModel", "LTXVideoTransformer3DModel", "MochiTransformer3DModel")
# Loops that are not one over the same latents.
_OTHER_LOOPS = ("DiffusionForcing", "Helios", "CausVid", "AnyFlow", "FramePack")


@dataclass(frozen=True)
class Options:
    """How a session keeps what it keeps, and what it does about problems."""

    memory: int
    keep: torch.dtype | None = None
    keep_on: KeepOn = "auto"
    on_problem: OnProblem = "warn"
    batch: Batch = "any"
    # Whether a target moves the threshold on the way.
    is_steered: bool = False
    # torch's group of the processes that compute one video together; None: as diffusers splits the transformer.
    group: Any = None


class Session:
    """Caching on one pipeline. Made by `enable`."""

    def __init__(self, pipe: Any, method: _core.Method, options: Options) -> None:
        self._pipe = weakref.ref(pipe)
        self.method, self.options = method, options
        self._run: Generation | None = None
        self._ended: deque[Generation] = deque(maxlen=16)
        self._warned: set[str] = set()
        self.contexts: list[dict[str, Any]] = []

    @property
    def report(self) -> Report | None:
        """Of the last run that ended, however it ended."""
        reports = self.reports
        return reports[-1] if reports else None

    @property
    def reports(self) -> list[Report]:
        """Of the last 16 runs."""
        self._close_if_done()
        found = (run.report() for run in self._ended)
        return [Report(report) for report in found if report is not None]

    def forget(self) -> None:
        """The model was changed (a LoRA's scale, say): the next step is computed, nothing from before is reused."""
        run = self._run
        if run is not None and run.session is not None and not run.is_over:
            run.session.begin_segment(run.step + 1)

    def release(self) -> None:
        """Ends the run that is open, and lets go of its tensors; the pipeline may be through with its transformers."""
        if self._run is not None:
            self._run.finish("interrupted")
            self._close_if_done()

    def trace(self, prompt: str) -> _core.Trace:
        """The trace that the run left, under a recorder."""
        run = self._run
        if run is None or run.ended != "done":
            raise ValueError("the run did not come to its end: nothing was recorded")
        return run.trace(prompt)

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of the transformer."""
        pipe = self._pipe()
        if pipe is None or not _is_of(module, pipe):
            return forward(*args, **kwargs)
        if torch.is_grad_enabled():
            self._warn_once("gradients are enabled: everything is computed")
            return forward(*args, **kwargs)
        run = self._run
        if run is None or run.timesteps is not pipe.scheduler.timesteps:
            run = self._begin(pipe, module)
        if run.is_over:
            return forward(*args, **kwargs)
        if run.thread != threading.get_ident():
            self._warn_once("two threads run one pipeline: the second one's forwards are computed")
            return forward(*args, **kwargs)
        return run.call(module, forward, args, kwargs, self.contexts[-1] if self.contexts else {})

    @property
    def spans(self) -> Spans | None:
        """The blocks of the run that is open, where its method asks about them."""
        return None if self._run is None else self._run.spans

    def _begin(self, pipe: Any, module: nn.Module) -> Generation:
        self.release()
        if self._run is not None:
            self._run.timesteps = None  # the last tensor of it on the device: it told runs apart while it was the last
        run = Generation(pipe, self.method, self.options, self._warn)
        self._run = run
        if getattr(module, "is_cache_enabled", False):
            run.give_up("diffusers' own cache is enabled on the transformer too")
        return run

    def _close_if_done(self) -> None:
        run = self._run
        if run is not None and run.is_over and (not self._ended or self._ended[-1] is not run):
            self._ended.append(run)
            if self.method.name != "trace":
                run.report()  # what was measured last is read now: the loop is over

    def _warn(self, text: str) -> None:
        if self.options.on_problem == "error" and self._run is not None and self._run.step < 0:
            self._run.finish("failed")
            raise ValueError(text)
        self._say(text)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._say(text)

    def _say(self, text: str) -> None:
        if self.options.on_problem != "quiet":
            _log.warning("%s", text)


_of_pipe: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()
_of_module: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()
_of_block: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()
_classes: dict[type, type] = {}


def enable(
    pipe: Any,
    cache: str,
    *,
    family: str | None = None,
    target: str | None = None,
    guards: str = "act",
    memory: int | str = "2GiB",
    keep: Literal["f32", "model"] = "f32",
    keep_on: KeepOn = "auto",
    batch: Batch = "any",
    group: Any = None,
    on_problem: OnProblem = "warn",
) -> Session:
    """Puts a pipeline under a cache method, from its next run on. Touches no weights.

    * `cache` - as on the command line: `navicache:mid`, `easycache,threshold=0.1`, `@preset.json`, `schedule,strip=...`
    * `family` - whose presets; by default the transformer's
    * `target` - `speedup=2`, `work=40%`, `steps=20`: the threshold follows
    * `guards` - what is done when a run goes wrong: `act`, `warn`, `off`
    * `memory` - what may be kept
    * `keep` - predictions are kept as 32-bit numbers, or in the model's own format in half the memory
    * `keep_on` - what predictions are made of stays on the `device`, or waits in the memory of the `cpu`; `auto`: on
      the device, if it is less than a tenth of what is free there
    * `batch` - of several prompts: `any` computes what one of them would compute alone; `joint` decides by the mean
    * `group` - of `torch.distributed`: processes that compute one video together, where diffusers does not know it
    * `on_problem` - `warn`; `error`: raise before the first forward; `quiet`

    Raises `ValueError` where the method is unknown, or cannot run on this pipeline, with the reason.
    """
    modules = _transformers(pipe)
    family = family or family_of(pipe)
    method = _core.Method(cache, family, target, guards)
    _check(pipe, modules, method)
    for option, value, known in [
        ("keep", keep, ("f32", "model")),
        ("keep_on", keep_on, get_args(KeepOn)),
        ("batch", batch, get_args(Batch)),
        ("on_problem", on_problem, get_args(OnProblem)),
    ]:
        if value not in known:
            raise ValueError(f"{option} {value!r}: expected one of {', '.join(known)}")
    dtype = None if keep == "f32" else next(modules[0].parameters()).dtype
    options = Options(_core.bytes_of(memory), dtype, keep_on, on_problem, batch, target is not None, group)
    return _enable(pipe, modules, Session(pipe, method, options))


def disable(pipe: Any) -> None:
    """Gives a pipeline back as it was. Its reports go with it."""
    session = _of_pipe.pop(pipe, None)
    if session is None:
        return
    session.release()
    for registry in (_of_module, _of_block):
        for module in [module for module, of in registry.items() if of is session]:
            del registry[module]
            if type(module) in _classes.values():
                module.__class__ = type(module).__mro__[1]


def report(pipe: Any) -> Report | None:
    """What the last run did, however it ended; `None` before the first."""
    session = _session(pipe)
    if not any(module in _of_module for module in _transformers(pipe)):
        session._warn_once("the transformer was replaced after enable(): call enable() again")
    return session.report


def reports(pipe: Any) -> list[Report]:
    """What the last 16 runs did."""
    return _session(pipe).reports


@contextmanager
def cached(pipe: Any, cache: str, **options: Any) -> Iterator[Session]:
    """`enable` and `disable` around what is done inside."""
    session = enable(pipe, cache, **options)
    try:
        yield session
    finally:
        disable(pipe)


def trace(pipe: Any, path: str | os.PathLike[str], *, lags: int = 8, **call: Any) -> Any:
    """Runs a pipeline once with everything computed, and writes what was measured of its steps and branches.

    `call` is what the pipeline is called with; what it returns is returned. `navicache.Trace.load` and the command
    line read the file. Methods that ask about blocks cannot be played against it. What was enabled is so again after.
    """
    modules, before = _transformers(pipe), _of_pipe.get(pipe)
    method = _core.Method.recorder(family_of(pipe), lags)
    session = _enable(pipe, modules, Session(pipe, method, Options(memory=2**62)))
    try:
        output = pipe(**call)
        recorded = session.trace(str(call.get("prompt") or ""))
    finally:
        disable(pipe)
        if before is not None:
            _enable(pipe, modules, before)
    recorded.save(path)
    return output


def family_of(pipe: Any) -> str:
    """The family of models that presets are looked up by; for what was not measured, the transformer's class."""
    modules = _transformers(pipe)
    name, config = class_of(modules[0]), modules[0].config
    if name == "HunyuanVideoTransformer3DModel":
        return families.HUNYUANVIDEO
    if name == "WanTransformer3DModel":
        return families.wan(
            layers=config.num_layers,
            channels=(config.in_channels, config.out_channels),
            sees_clip=config.image_dim is not None,
            experts=2 if getattr(pipe.config, "boundary_ratio", None) is not None else len(modules),
            is_5b=bool(getattr(pipe.config, "expand_timesteps", False)),
            shift=pipe.scheduler.config.get("flow_shift"),
        )
    if name == "CogVideoXTransformer3DModel":
        return families.cogvideox(
            channels=(config.in_channels, config.out_channels),
            is_second=config.patch_size_t is not None,
            is_rotary=config.use_rotary_positional_embeddings,
        )
    return name


def refused(pipe: Any, cache: str, family: str | None = None) -> str | None:
    """Why a method cannot run on a pipeline; `None` where it can."""
    try:
        _check(pipe, _transformers(pipe), _core.Method(cache, family or family_of(pipe)))
    except ValueError as error:
        return str(error)
    return None


def explain(
    pipe: Any, cache: str, *, steps: int = 50, latents: tuple[int, ...] | None = None, family: str | None = None
) -> str:
    """What a method would do on a pipeline, in words. Runs nothing.

    * `steps` - of a run
    * `latents` - the shape that the transformer is shown: what is kept is said in bytes then

    Raises `ValueError` where the method is unknown or its options make no sense.
    """
    modules = _transformers(pipe)
    family = family or family_of(pipe)
    method = _core.Method(cache, family)
    options = {name: value for name, value in json.loads(method.described()).items() if name != "method"}
    lines = [
        f"{method.name} on {type(pipe).__name__}, family {family}",
        "options: " + (", ".join(f"{name}={value}" for name, value in options.items()) or "none"),
    ]
    if (reason := refused(pipe, cache, family)) is not None:
        return "\n".join([*lines, f"it cannot run here: {reason}"])
    is_one = class_of(modules[0]) in (*_BATCHED, "HunyuanVideoTransformer3DModel")
    branches = ["cond"] if is_one else ["cond", "uncond"]
    schedule = [(1000.0 * (1 - step / steps), 1 - step / steps) for step in range(steps)]
    session = _core.Session(method, schedule, branches, blocks_of(modules[0]))
    outline = json.loads(session.outline())
    lines.append("decides about " + (", ".join(outline["scopes"]) or "nothing: everything is computed"))
    first, last, longest = outline["first_steps"], outline["last_steps"], outline["longest_run"]
    ends = f"of {steps} steps the first {first} and the last {last} are always computed"
    lines.append(ends if longest is None else f"{ends}; at most {longest} in a row are reused")
    counts = {"tensors of the latents' size": session.store_bytes(1, 0), "of a block's features": session.store_bytes(0, 1)}
    kept = " and ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"
    layout = None if latents is None else layout_of(modules[0], torch.empty(latents, device="meta"))
    size = ""
    if layout is not None:
        size = f": {session.store_bytes(4 * layout.predicted.numel(), layout.features) / 1e6:.1f} MB"
    lines.append(f"keeps {kept}, with {' and '.join(branches)}{size}")
    return "\n".join([*lines, *filter(None, [method.advice(steps)])])


def _enable(pipe: Any, modules: list[nn.Module], session: Session) -> Session:
    disable(pipe)
    _of_pipe[pipe] = session
    for module in modules:
        _of_module[module] = session
        _replace_class(module)
    if "spans" in _needs(modules[0], session.method):
        for module in modules:
            for block in filter(None, [embedder_of(module), *modules_of(module)]):
                _of_block[block] = session
                _replace_class(block)
    return session


def _replace_class(module: nn.Module) -> None:
    if type(module) not in _classes.values():
        module.__class__ = _watched(type(module))


def _watched(of: type) -> type:
    """A subclass that asks the session of the object before every call."""
    if of in _classes:
        return _classes[of]
    base: Any = of

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if torch.compiler.is_compiling():  # what is compiled around us is traced through
            return base.__call__(self, *args, **kwargs)
        forward = partial(base.__call__, self)
        session = _of_module.get(self)
        if session is not None:
            return session.call(self, forward, args, kwargs)
        session = _of_block.get(self)
        spans = None if session is None else session.spans
        return forward(*args, **kwargs) if spans is None else spans.call(self, forward, args, kwargs)

    def cache_context(self: Any, name: str, **known: Any) -> Any:
        return _context(_of_module.get(self), base.cache_context(self, name, **known), {"name": name, **known})

    def _reset_stateful_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        session = _of_module.get(self)
        if session is not None:
            session.release()
        return base._reset_stateful_cache(self, *args, **kwargs)

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:  # noqa: N807
        other = base.__new__(base)
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        raise TypeError("a transformer cannot be pickled while navicache is enabled: call navicache.disable(pipe) first")

    body: dict[str, Any] = {
        "__call__": __call__,
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": __reduce_ex__,
        "__module__": of.__module__,
        "__qualname__": of.__qualname__,
        "__doc__": of.__doc__,
    }
    if hasattr(of, "cache_context"):
        body["cache_context"] = cache_context
    if hasattr(of, "_reset_stateful_cache"):
        body["_reset_stateful_cache"] = _reset_stateful_cache
    _classes[of] = type(of)(of.__name__, (of,), body)
    return _classes[of]


@contextmanager
def _context(session: Session | None, inner: Any, known: dict[str, Any]) -> Iterator[None]:
    if session is not None:
        session.contexts.append(known)
    try:
        with inner:
            yield
    finally:
        if session is not None:
            session.contexts.pop()


def _check(pipe: Any, modules: list[nn.Module], method: _core.Method) -> None:
    """Refuses a method that cannot run on a pipeline."""
    name = type(pipe).__name__
    if any(loop in name for loop in _OTHER_LOOPS):
        raise ValueError(f"{name} does not denoise one video step by step: caching is not supported there")
    for module in modules:
        if getattr(module, "is_cache_enabled", False):
            found = type(getattr(module, "_cache_config", None)).__name__
            raise ValueError(f"diffusers' own cache ({found}) is enabled: transformer.disable_cache() first")
    needs = _needs(modules[0], method)
    if "spans" in needs and (reason := refusal(modules[0], needs)) is not None:
        raise ValueError(f"{method.name}: {reason}. navicache, easycache, trend and taylorseer run here")
    if "from_cond" in needs and class_of(modules[0]) in _BATCHED:
        raise ValueError(
            f"{method.name} makes one branch of guidance from the other; {type(pipe).__name__} shows both in one batch. "
            "navicache, easycache, trend and taylorseer run here"
        )
    if "trial" in needs and class_of(modules[0]) not in _THINNABLE:
        raise ValueError(
            f"{method.name} runs its model on thinned-out latents, which {class_of(modules[0])} is not known to take; "
            "navicache, easycache and trend run here"
        )
    if "solver" in needs:
        solver, reason = solvers.solver_of(pipe)
        if solver is None:
            raise ValueError(f"{method.name}: {reason}")


def _needs(transformer: nn.Module, method: _core.Method) -> list[str]:
    """What a method needs of whoever runs the transformer, as far as that can be said before a run."""
    steps, branches = 50, 2
    strip = json.loads(method.described()).get("strip")
    if strip is not None:  # it says which run it is for
        ran = strip.strip().strip("|").split("|")
        steps, branches = len(ran), len(ran[0])
    schedule = [(1000.0 * (1 - step / steps), 1 - step / steps) for step in range(steps)]
    return method.needs(schedule, ["cond", "uncond"][:branches], blocks_of(transformer))


def _transformers(pipe: Any) -> list[nn.Module]:
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    modules = [module for module in found if isinstance(module, nn.Module)]
    if not modules:
        raise ValueError(f"{type(pipe).__name__} has no transformer: expected a pipeline of diffusers that has one")
    return modules


def _is_of(module: nn.Module, pipe: Any) -> bool:
    return module is getattr(pipe, "transformer", None) or module is getattr(pipe, "transformer_2", None)


def _session(pipe: Any) -> Session:
    session = _of_pipe.get(pipe)
    if session is None:
        raise ValueError("navicache is not enabled on this pipeline: navicache.enable(pipe, ...) first")
    return session
