"""Cache methods inside ComfyUI's sampling: where a sampling is, whose it is, and what its model is to compute.

ComfyUI's wrappers are used:

- OUTER_SAMPLE: one sampling is one run. It is begun here and let go of here; nothing outlives it.
- CALC_COND_BATCH: one evaluation of the model. Which step it is says its noise level, since some samplers evaluate more
  than once a step.
- DIFFUSION_MODEL: a batch of conditions, in any order and in as many calls as memory allows. Everything is told apart
  by the conditions' ids.
- PREDICT_NOISE: an evaluation after guidance, for methods that leave steps to the solver. The sampler is handed the
  prediction with which its own step lands where the solver in Rust says.

Decisions, and what is kept for them, are Rust's (`navicache._core.Session`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

import navicache
from navicache import _core, families
from navicache.forward import Forward, leading
from navicache.report import Report, of_session
from navicache.run import PROBLEMS, Unfit

KEY = "navicache"
_log = logging.getLogger(KEY)

# A branch's place among the conditions of a step: positive first, then negative.
_NAMES = {0: "cond", 1: "uncond"}
# How close two noise levels are that are one.
_SAME = 1e-4
# A forward is one piece here.
_BLOCKS = [["whole"]]
# A schedule to ask methods by what they need.
_SAMPLE = [(1000.0 - 20.0 * step, 1.0 - 0.02 * step) for step in range(50)]


class Runs:
    """What the samplings of a patched model left: the wire NAVICACHE_RUN."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.trace: navicache.Trace | None = None
        # Of the last sampling, whether it has a report or was given up before its first step.
        self.warnings: list[str] = []


def patched(model: Any, cache: str | None, runs: Runs) -> Any:
    """A clone of a model patcher whose samplings are cached; without a method they are recorded.

    Raises `ValueError` where the method is unknown or cannot run here.
    """
    family = family_of(model)
    method = _core.Method.recorder(family, 8) if cache is None else _core.Method(cache, family)
    # A recorder takes what there is; a schedule fits the one run that it has steps for, which shows when it begins.
    needs = [] if method.name in ("trace", "schedule") else method.needs(_SAMPLE, ["cond", "uncond"], _BLOCKS)
    names = {
        "spans": "the model's blocks one by one",
        "trial": "forwards of thinned-out latents",
        "from_cond": "to make one condition from the other",
    }
    for need, what in names.items():
        if need in needs:
            raise ValueError(
                f"{method.name} needs {what}, which is not supported in ComfyUI; navicache, easycache, trend, "
                "taylorseer, stride and schedule run here"
            )
    is_led = "solver" in needs or "velocity" in needs
    wrappers = {
        WrappersMP.OUTER_SAMPLE: lambda *a, **k: _outer_sample(method, is_led, runs, *a, **k),
        WrappersMP.PREDICT_NOISE: _predict_noise,
        WrappersMP.CALC_COND_BATCH: _calc_cond_batch,
        WrappersMP.DIFFUSION_MODEL: _diffusion_model,
    }
    model = model.clone()
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, KEY)  # of a node before this one: the last one counts
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def family_of(model: Any) -> str:
    """The family of models that presets are looked up by; ComfyUI's own name for what was not measured."""
    config = model.model.model_config.unet_config
    image_model, kind = config.get("image_model"), config.get("model_type")
    if image_model == "hunyuan_video":
        return families.HUNYUANVIDEO
    if image_model == "wan2.1" and kind in ("t2v", "i2v"):
        # Of Wan2.2's two transformers for text each is sampled alone, and looks as Wan2.1's does.
        channels = config.get("in_dim", 16), config.get("out_dim", 16)
        return families.wan(
            layers=config.get("num_layers", 0),
            channels=channels,
            sees_clip=kind == "i2v",
            experts=1,
            is_5b=channels == (48, 48),
            shift=None,
        )
    return image_model or type(model.model).__name__


def _outer_sample(method: _core.Method, is_led: bool, runs: Runs, executor: Any, *args: Any, **kwargs: Any) -> Any:
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    guider = executor.class_obj
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    model_sampling = guider.model_patcher.model.model_sampling
    run = Sampling(method, model_sampling, given["sigmas"], is_led)
    if is_led and (reason := _other_solver(model_sampling, given)) is not None:
        run.give_up(f"{method.name}: {reason}")
    guider.model_options["transformer_options"][KEY] = run
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = before
        run.finish()
        runs.report, runs.trace, runs.warnings = run.report, run.trace, run.warnings


def _other_solver(model_sampling: Any, given: dict[str, Any]) -> str | None:
    """Why steps of a sampling cannot be left to the solver that is known here, Euler's; `None` where they can."""
    sampler, last = given["sampler"], float(given["sigmas"][-1])
    function = getattr(sampler, "sampler_function", None)
    if function is not comfy.k_diffusion.sampling.sample_euler or sampler.extra_options.get("s_churn", 0.0) != 0.0:
        name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
        return f"steps can be left to the sampler euler without churn, this one is {name}"
    if not isinstance(model_sampling, comfy.model_sampling.CONST):
        return f"steps can be left to the sampler of a flow model, this one is {type(model_sampling).__name__}"
    if given.get("denoise_mask") is not None:
        return "latents are masked, and the solver does not know"
    return None if last == 0.0 else f"the sampling ends at noise level {last:.3g}, expected 0"


def _predict_noise(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("model_options") or (args[0] if args else {})
    run: Sampling | None = options.get("transformer_options", {}).get(KEY)
    if run is None or run.is_over or not run.is_led:
        return executor(x, timestep, *args, **kwargs)
    return run.predict(lambda: executor(x, timestep, *args, **kwargs), x, float(timestep.flatten()[0]))


def _calc_cond_batch(executor: Any, *args: Any, **kwargs: Any) -> Any:
    run: Sampling | None = args[4]["transformer_options"].get(KEY)
    if run is None:
        return executor(*args, **kwargs)
    run.begin_evaluation(float(args[3].flatten()[0]))
    made = executor(*args, **kwargs)
    run.end_evaluation()
    return made


def _diffusion_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("transformer_options")
    if options is None:
        options = next((arg for arg in reversed(args) if isinstance(arg, dict) and "uuids" in arg), {})
    run: Sampling | None = options.get(KEY)
    if run is None or run.is_over:
        return executor(*args, **kwargs)
    return run.call(lambda: executor(*args, **kwargs), args[0], options["uuids"], options["cond_or_uncond"])


class Sampling:
    """One sampling under a method. What does not fit ends it, with a warning; everything is computed from there."""

    def __init__(self, method: _core.Method, model_sampling: Any, sigmas: torch.Tensor, is_led: bool) -> None:
        # Whether steps are led from PREDICT_NOISE, since the solver has a part in them.
        self.method, self.is_led = method, is_led
        self.sigmas = [float(sigma) for sigma in sigmas[:-1]]
        levels = [sigma if self.sigmas[0] <= 1.0 + 1e-6 else sigma / (1 + sigma) for sigma in self.sigmas]
        timesteps = [float(model_sampling.timestep(sigma)) for sigma in sigmas[:-1]]
        self.steps = list(zip(timesteps, levels, strict=True))
        self.warnings = [text for text in [method.advice(len(self.steps))] if text]
        self.forward = Forward()
        self.session: _core.Session | None = None
        self.is_over = not self.steps
        self.bill = 0
        # The step under way, or the last one.
        self.step = -1
        self.is_open = self.is_reused = self.is_repeat = self.is_announced = False
        # Whether this step is left to the solver; whether one was, so that only Rust's knows its history.
        self.is_skipped = self.has_leapt = False
        self.begun = 0.0
        # Branches by the id of their condition, in the order in which they are told apart.
        self.branches: dict[Any, str] = {}
        # This step's predictions that were computed; what a reused one adds to its input.
        self.computed: dict[Any, torch.Tensor] = {}
        self.added: dict[Any, torch.Tensor] = {}
        self.shown: torch.Tensor | None = None
        self.seconds: list[tuple[float, list[float]]] = []
        self.report: Report | None = None
        self.trace: navicache.Trace | None = None

    # An evaluation

    def predict(self, evaluate: Callable[[], torch.Tensor], x: torch.Tensor, sigma: float) -> torch.Tensor:
        """An evaluation, where the solver has a part in the step: what the sampler is to take for the denoised latents.

        x: (batch, channels, frames, height, width)
        """
        self.begin_evaluation(sigma)
        if self.is_over or self.is_repeat:
            return evaluate()
        try:
            self.open(x)
            if self.is_skipped:
                self.has_leapt = True
                return self.landing(x, self.advance(x, x))
        except PROBLEMS as problem:
            self.give_up(str(problem))
        self.is_announced = True
        denoised = evaluate()
        self.is_announced = False
        if not self.is_over:
            try:
                following = self.advance(x, (x - denoised) / sigma)
                return self.landing(x, following) if self.has_leapt else denoised
            except PROBLEMS as problem:
                self.give_up(str(problem))
        return denoised

    def advance(self, x: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Ends a step: the latents that follow, by the solver in Rust."""
        if self.session is None:
            raise Unfit("the model was not called in the first step")
        after = self.session.advance(self.step, x.to(torch.float32, copy=True), velocity.to(torch.float32), self.forward)
        if after is None:
            raise Unfit("nothing to go on from was computed yet")
        self.step_ended()
        following: torch.Tensor = after
        return following

    def landing(self, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """The denoised latents with which a step of Euler's from `x` ends at `following`."""
        sigma, after = (self.sigmas + [0.0])[self.step : self.step + 2]
        return (x - (following - x) * (sigma / (after - sigma))).to(x.dtype)

    def begin_evaluation(self, sigma: float) -> None:
        """The model is to be evaluated at a noise level."""
        if self.is_announced:  # by the evaluation that this is the first part of
            self.is_announced = False
            return
        if self.is_over:
            return
        place = self.place(sigma)
        self.is_repeat = place <= self.step
        if place > self.step + 1:
            self.give_up(f"the sampler went from step {self.step} to {place}")
        elif not self.is_repeat:
            self.step, self.begun = place, time.perf_counter()
            self.is_open = self.is_reused = self.is_skipped = False
            self.computed, self.added, self.shown = {}, {}, None

    def place(self, sigma: float) -> int:
        """The step that a noise level belongs to: the last one that is not below it."""
        return max(sum(level >= sigma * (1 - _SAME) for level in self.sigmas) - 1, 0)

    def call(self, compute: Any, x: torch.Tensor, uuids: list[Any], kinds: list[int]) -> Any:
        """A call of the model on a batch of conditions: computed, or approximated."""
        parts = x.chunk(len(uuids))
        if self.is_repeat and not (self.is_reused and all(uuid in self.added for uuid in uuids)):
            return compute()
        try:
            if self.is_repeat:
                return torch.cat([self.leading(part) + self.added[uuid] for part, uuid in zip(parts, uuids, strict=True)])
            if not self.is_open:
                self.open(parts[0])
            if self.is_reused:
                return torch.cat([self.approximated(part, uuid) for part, uuid in zip(parts, uuids, strict=True)])
        except PROBLEMS as problem:
            self.give_up(str(problem))
            return compute()
        made = compute()
        try:
            if not isinstance(made, torch.Tensor):
                raise Unfit(f"the model returns {type(made).__name__}, expected one tensor: other streams are not supported")
            self.take(made.chunk(len(uuids)), uuids, kinds)
        except PROBLEMS as problem:
            self.give_up(str(problem))
        return made

    def open(self, shown: torch.Tensor) -> None:
        """A step begins with its first call: it is asked about, branch by branch until one is to be computed."""
        self.is_open, self.shown = True, shown
        self.forward.begin_step(shown)
        if self.step == 0:
            return  # always computed; its branches and shapes are only known then
        assert self.session is not None
        if not self.session.begin_step(self.step, self.forward):
            self.is_skipped = True
            return
        verdicts = []
        for branch in self.branches.values():
            verdicts.append(self.session.open_branch(branch, self.forward))
            if verdicts[-1] != "approximated":
                break
        self.is_reused = verdicts[-1] == "approximated"
        if not self.is_reused and len(verdicts) > 1:
            raise Unfit(f"{self.method.name} computes one of two conditions, which is not supported in ComfyUI")

    def approximated(self, x: torch.Tensor, uuid: Any) -> torch.Tensor:
        """A branch's prediction in a step that is reused."""
        if uuid not in self.branches:
            raise Unfit(f"step {self.step}: a condition appeared that nothing is kept of")
        entry = self.leading(x)
        output = self.forward.predicted[self.branches[uuid]].to(self.forward.dtype)
        self.added[uuid] = output - entry
        return output

    def take(self, parts: Any, uuids: list[Any], kinds: list[int]) -> None:
        """Conditions were computed."""
        for part, uuid, kind in zip(parts, uuids, kinds, strict=True):
            if self.step == 0:
                self.branches[uuid] = str(kind)  # named when all are there
            elif uuid not in self.branches:
                raise Unfit(f"step {self.step}: a condition appeared that the first step did not have")
            if self.computed and part.shape != next(iter(self.computed.values())).shape:
                raise Unfit("conditions of different areas are not supported")
            self.computed[uuid] = part

    def end_evaluation(self) -> None:
        """All conditions of an evaluation are through: the step is learnt from."""
        if self.is_over or self.is_repeat or not self.is_open:
            return
        try:
            if self.step == 0:
                self.first_step()
            elif not self.is_reused:
                self.learn()
            if not self.is_led:
                assert self.session is not None
                self.session.end_step(self.forward)
                self.step_ended()
        except PROBLEMS as problem:
            self.give_up(str(problem))

    def step_ended(self) -> None:
        """The session is through with a step: so are we."""
        took = time.perf_counter() - self.begun
        share = 0.0 if self.is_reused or self.is_skipped else took / len(self.branches)
        self.seconds.append((took, [share] * len(self.branches)))
        self.forward.begin_step(self.forward.shown)  # the step's predictions are not needed any more
        self.is_open = False
        if self.step + 1 == len(self.steps) and self.session is not None:
            self.session.release()

    def first_step(self) -> None:
        """The first step shows which branches there are: positive ones come first, whatever the order of the calls."""
        ordered = sorted(self.branches.items(), key=lambda item: item[1])
        self.branches, others = {}, 0
        for uuid, kind in ordered:
            name = _NAMES.get(int(kind))
            if name is None or name in self.branches.values():
                name, others = f"other{others}", others + 1
            self.branches[uuid] = name
        names = list(self.branches.values())
        self.session = _core.Session(self.method, self.steps, names, _BLOCKS, solver="euler" if self.is_led else None)
        first = next(iter(self.branches))
        self.bill = self.session.store_bytes(4 * self.computed[first].numel(), 0)
        self.forward.take(names[0], self.computed[first])
        self.session.begin_step(0, self.forward)
        self.session.open_branch(names[0], self.forward)
        self.learn()

    def learn(self) -> None:
        """Tells the session what was computed. The first branch is open already."""
        assert self.session is not None
        missing = [name for uuid, name in self.branches.items() if uuid not in self.computed]
        if missing:
            raise Unfit(f"step {self.step}: the condition {missing[0]} is gone")
        for place, (uuid, branch) in enumerate(self.branches.items()):
            if place > 0 and self.session.open_branch(branch, self.forward) == "approximated":
                raise Unfit(f"{self.method.name} computes one of two conditions, which is not supported in ComfyUI")
            self.forward.take(branch, self.computed[uuid])
            self.session.close_branch(self.forward)
        self.computed = {}

    def leading(self, x: torch.Tensor) -> torch.Tensor:
        """What goes in, of the shape of what comes out, in the model's own format."""
        return x if self.forward.shape is None else leading(x, self.forward.shape)

    # The end

    def give_up(self, reason: str) -> None:
        """Something does not fit: the sampling goes on by itself."""
        self.warn(f"{reason}; everything is computed from here")
        self.is_over = True
        if self.session is not None:
            self.session.release()

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        _log.warning("%s", text)

    def finish(self) -> None:
        """The sampling is over: what was measured last is read, and every tensor let go of.

        Raises nothing: what was sampled is there, and an error that the sampler raised is on its way.
        """
        session, self.is_over = self.session, True
        self.session, self.forward, self.shown = None, Forward(), None
        self.computed, self.added = {}, {}
        if session is None:
            return
        is_done = len(self.seconds) == len(self.steps)
        try:
            session.release()
            if self.method.name != "trace":
                self.report = self.reported(session, "done" if is_done else "interrupted")
            elif is_done:
                self.trace = navicache.Trace(session.trace(Forward(), "ComfyUI", "", 0))
        except PROBLEMS as problem:
            self.warn(f"{problem}; there is no report of this sampling")

    def reported(self, session: _core.Session, ended: str) -> Report:
        """What the sampling did, as docs/report.md says it."""
        return of_session(
            session.finish(Forward(), self.seconds),
            store_bytes=self.bill,
            denoise=sum(step for step, _ in self.seconds),
            warnings=self.warnings,
            model="ComfyUI",
            request={"steps": len(self.steps)},
            source="comfyui",
            ended=ended,
            machine={"torch": torch.__version__, "navicache": _core.__version__},
        )
