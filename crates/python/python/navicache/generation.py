"""One generation of a diffusers pipeline under a cache method: from the first call of its transformer to the last.

The pipeline leads: it calls its transformer once a branch, and its scheduler once a step. Every call comes here first.
What is asked, kept and decided is the session's business (Rust); the tensors are `forward.Forward`'s.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from navicache import _core, run, solvers
from navicache.blocks import Spans, blocks_of, layout_of, obstacle, refusal
from navicache.forward import Forward, leading
from navicache.report import Report, of_session
from navicache.run import PROBLEMS, Unfit


class Moment:
    """A moment on the device's clock; nothing is waited for until it is read."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        self.seconds = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def until(self, later: Moment) -> float:
        """Seconds from here to a later moment."""
        if self.event is None or later.event is None:
            return later.seconds - self.seconds
        later.event.synchronize()
        return float(self.event.elapsed_time(later.event)) / 1000


class Generation:
    """A run of a pipeline's loop. It holds its scheduler's timesteps: another run has another tensor."""

    def __init__(self, pipe: Any, method: _core.Method, options: Any, warn: Callable[[str], None]) -> None:
        # No run keeps a pipeline alive.
        self._pipe = weakref.ref(pipe)
        self.method, self.options, self.warn = method, options, warn
        self.warnings: list[str] = []
        self.bill = self.features = 0
        self.timesteps: Tensor | None = pipe.scheduler.timesteps
        self.model = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
        self.scheduler, self.on = type(pipe.scheduler).__name__, str(getattr(pipe, "device", "cpu"))
        self.thread = threading.get_ident()
        self.forward = Forward(keep=options.keep)
        self.session: _core.Session | None = None
        self.steps: solvers.Steps | None = None
        self.spans: Spans | None = None
        self.ended = "interrupted"  # until it is done
        self.is_over = False
        self.reported: Report | None = None
        self.first = self.count = 0
        self.guided = False
        self.known: list[str] | None = None  # the run's branches, once its first step is over
        self.others: dict[str, str] = {}
        self.container: type[Any] = tuple  # what the transformer returns its prediction in
        self.size: tuple[int, ...] = ()
        # The step under way
        self.step = -1
        self.token: Any = None
        self.module: weakref.ref[nn.Module] | None = None
        self.done: list[str] = []
        self.is_open = self.is_skipped = False
        self.begun: Moment | None = None
        self.moments: list[tuple[Moment, Moment]] = []
        self.seconds: list[tuple[Moment, Moment, list[tuple[Moment, Moment]]]] = []

    @property
    def pipe(self) -> Any:
        """The pipeline, which calls us: it is there."""
        return self._pipe()

    # What the pipeline calls

    def call(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        context: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        """One call of the transformer: a branch of a step, computed or approximated."""
        try:
            branch, made = self.before(module, forward, args, kwargs, context)
        except PROBLEMS as problem:
            self.give_up(str(problem))
            return forward(*args, **kwargs)
        finally:
            self.forward.run_thinned = None
        if branch is None:
            return made if made is not None else forward(*args, **kwargs)
        begun = Moment(self.device(args, kwargs))
        output = forward(*args, **kwargs)
        try:
            self.after(branch, output, begun)
        except PROBLEMS as problem:
            self.give_up(str(problem))
        return output

    def before(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        context: Mapping[str, Any],
    ) -> tuple[str | None, Any]:  # fmt: skip
        """The branch that is to be computed; or what to return for it. Neither: the call is none of ours."""
        shown = hidden_states(args, kwargs)
        self.forward.run_thinned = self.thinned(forward, args, kwargs)
        token = run.token_of(self.pipe, context)
        if self.session is None:
            self.begin(module, shown, context)
        session = self.session
        assert session is not None
        if not self.is_open or not run.same_token(token, self.token):
            if self.is_open:
                self.end_step()
            if self.is_over or self.step + 1 >= self.count:
                return None, None
            self.begin_step(module, shown, token)
        branch = run.branch_of(context, len(self.done), self.others)
        if branch in self.done or (self.known is not None and branch not in self.known):
            return None, None  # it appears for the first time, or twice: nothing is kept of it
        if self.is_late:
            return branch, None  # always computed; only then is the shape of what comes out known
        if self.is_skipped:
            x = leading(shown, self.forward.shape) if self.forward.shape is not None else shown
            made = self.returned(x.to(self.forward.dtype))
            self.branch_done(branch, None)
            return None, made
        opened = session.open_branch(branch, self.forward)
        if opened == "spans" and self.spans is not None:
            self.spans.open(module)
        if opened != "approximated":
            return branch, None
        made = self.returned(self.forward.predicted[branch].to(self.forward.dtype))
        self.branch_done(branch, None)  # which may end the run
        return None, made

    def after(self, branch: str, output: Any, begun: Moment) -> None:
        """A branch was computed."""
        session = self.session
        assert session is not None
        if self.spans is not None:
            self.spans.close()
        tensor = prediction(output)
        self.container = type(output)
        is_first = self.forward.shape is None
        self.forward.take(branch, tensor)
        if is_first:
            self.keep_within(session, tensor.numel(), tensor.device)
        if self.is_late:
            if is_first:
                session.begin_step(0, self.forward)
            session.open_branch(branch, self.forward)
        session.close_branch(self.forward)
        self.branch_done(branch, (begun, Moment(tensor.device)))

    def scheduler_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step: ends a step of ours, where the solver has a part in it."""
        steps = self.steps
        assert steps is not None

        def plain() -> Any:
            return steps.plain(model_output, timestep, sample, *args, **kwargs)

        if self.session is None or self.is_over or not self.is_open:
            return plain()
        if steps.is_changed(sample):
            self.give_up("the latents were changed between steps (by a callback?): no more steps are skipped")
            return steps.own(model_output, timestep, sample, *args, **kwargs)
        # Where nothing was skipped yet the scheduler's own result counts.
        result = None if self.is_skipped or steps.leapt else plain()
        try:
            x, v = sample.detach().to(torch.float32, copy=True), model_output.detach().to(torch.float32)
            step = self.step
            following = self.session.advance(step, x, v, self.forward)
            if result is None:
                if following is None:
                    raise Unfit("nothing to go on from was computed yet")
                result = steps.leap(model_output, timestep, sample, following, kwargs.get("return_dict", True))
            self.step_ended()
        except PROBLEMS as problem:
            self.give_up(str(problem))
            if result is None:  # a scheduler counts its steps: none is made twice
                result = steps.own(model_output, timestep, sample, *args, **kwargs)
        return result

    @property
    def is_late(self) -> bool:
        """Whether this step is told of when it was computed: the first, where nothing looks inside of it."""
        return self.step == 0 and self.spans is None

    # Begin and end

    def begin(self, module: nn.Module, shown: Tensor, context: Mapping[str, Any]) -> None:
        """The run's first call."""
        steps = run.steps_of(self.pipe)
        self.first, self.count, self.size = steps.first, len(steps.pairs), tuple(shown.shape)
        self.warn_of(self.method.advice(self.count))
        self.guided = bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        # CogVideoX, LTX and Mochi call once a step, with the unconditional half first.
        self.forward.is_batched = context.get("name") == "cond_uncond" and self.guided and shown.shape[0] % 2 == 0
        guess = ["cond", "uncond"] if self.guided and not self.forward.is_batched else ["cond"]
        blocks = blocks_of(module)
        needs = self.method.needs(steps.pairs, guess, blocks)
        if (reason := self.obstacle(module, needs)) is not None:
            raise Unfit(f"{self.method.name}: {reason}")
        solver = None
        if "solver" in needs:
            solver, why_not = solvers.solver_of(self.pipe)
            if solver is None:
                raise Unfit(why_not)
        self.forward.samples = self.samples(shown)
        session = _core.Session(
            self.method, steps.pairs, guess, blocks, steps.segments, solver, self.forward.samples
        )
        layout = layout_of(module, shown)
        self.features = 0 if layout is None else layout.features
        self.keep_within(session, shown.numel() if layout is None else layout.predicted.numel(), shown.device)
        self.session = session
        self.forward.group = group_of(module, self.options.group)
        if "spans" in needs:
            if layout is None:
                raise Unfit(f"{self.method.name}: the configuration of {type(module).__name__} does not say what it predicts")
            self.forward.shape = layout.predicted
            self.spans = self.forward.spans = Spans(session, self.forward, layout.grid, needs)
        if "solver" in needs or "velocity" in needs:
            self.steps = solvers.Steps(self.pipe.scheduler, self.scheduler_step)

    def obstacle(self, module: nn.Module, needs: list[str]) -> str | None:
        """What is in the way of a method as the run begins; `None` where nothing is."""
        if "spans" in needs and (reason := refusal(module, needs) or obstacle(module, needs)) is not None:
            return reason
        if "from_cond" in needs and self.forward.is_batched:
            return "it makes one branch from the other, and here both come in one batch"
        return None

    def samples(self, shown: Tensor) -> int:
        """Samples of the batch that have a policy of their own."""
        count = shown.shape[0] // 2 if self.forward.is_batched else shown.shape[0]
        if count > 1 and self.options.batch == "any" and self.options.is_steered:
            self.warn_of(f"{count} samples under a target: one decision for all, by the mean over them")
            return 1
        return count if self.options.batch == "any" else 1

    def keep_within(self, session: _core.Session, latents: int, device: torch.device) -> None:
        """Reckons what is kept of predictions of so many numbers, and where."""
        self.bill = session.store_bytes(4 * latents, self.features)
        if self.bill > self.options.memory:
            bill, budget = self.bill / 1e6, self.options.memory / 1e6
            raise Unfit(f"{self.method.name} keeps {bill:.1f} MB, the budget is {budget:.1f} MB (memory=)")
        self.forward.keep_on = place_of(self.options.keep_on, self.bill, device)

    def begin_step(self, module: nn.Module, shown: Tensor, token: Any) -> None:
        assert self.session is not None
        self.step += 1
        self.token, self.done, self.is_open, self.is_skipped = token, [], True, False
        self.begun, self.moments = Moment(shown.device), []
        if self.step > 0 and tuple(shown.shape) != self.size:
            raise Unfit(f"the latents changed from {self.size} to {tuple(shown.shape)} within a run")
        self.forward.begin_step(shown)
        if self.step > 0 and self.module is not None and module is not self.module():
            self.session.begin_segment(self.step)
        if not self.is_late:
            self.is_skipped = not self.session.begin_step(self.step, self.forward)
        self.module = weakref.ref(module)

    def branch_done(self, branch: str, took: tuple[Moment, Moment] | None) -> None:
        now = Moment(torch.device("cpu")) if took is None else took[1]
        self.done.append(branch)
        self.moments.append(took or (now, now))
        if self.steps is None and self.known is not None and len(self.done) == len(self.known):
            self.end_step()

    def end_step(self) -> None:
        """The step's branches are through."""
        assert self.session is not None
        self.session.end_step(self.forward)
        self.step_ended()

    def step_ended(self) -> None:
        assert self.begun is not None and self.forward.shown is not None
        if self.known is None:
            self.known = list(self.done)
            if self.session is not None and self.forward.shape is not None:  # there may be more branches than it seemed
                self.keep_within(self.session, self.forward.shape.numel(), self.forward.shown.device)
        self.seconds.append((self.begun, Moment(self.forward.shown.device), self.moments))
        self.is_open = False
        self.forward.begin_step(self.forward.shown)
        if self.step + 1 == self.count:
            self.finish("done")

    def finish(self, ended: str) -> None:
        """The run is over: every tensor is let go of, before the latents are decoded."""
        if self.is_over:
            return
        if self.session is not None and self.is_open and self.done and self.steps is None and ended != "failed":
            # The last step of a run whose branches were not known, as of a single step.
            self.is_open = False
            if self.step + 1 == self.count:
                self.session.end_step(self.forward)
                now = Moment(self.forward.shown.device if self.forward.shown is not None else torch.device("cpu"))
                self.seconds.append((self.begun or now, now, self.moments))
                ended = "done"
        self.is_over, self.is_open, self.ended = True, False, ended
        if self.session is not None:
            self.session.release()
        if self.steps is not None:
            self.steps.give_back()
            self.steps = None
        self.forward = Forward()
        self.spans = None
        self.token = self.module = None

    def give_up(self, reason: str) -> None:
        """Something does not fit: the pipeline goes on by itself."""
        self.warn_of(f"{reason}; everything is computed from here")
        self.finish("failed")

    def warn_of(self, text: str | None) -> None:
        if text is not None:
            self.warnings.append(text)
            self.warn(text)

    # What is left of it

    def report(self) -> Report | None:
        """What the run did; read from the device when it is asked for. `None` where nothing of it was begun."""
        if self.reported is None and self.session is not None and self.is_over:
            seconds = [
                (begun.until(ended), [a.until(b) for a, b in branches]) for begun, ended, branches in self.seconds
            ]
            self.reported = of_session(
                self.session.finish(Forward(), seconds),
                store_bytes=self.bill,
                denoise=sum(step for step, _ in seconds),
                warnings=self.warnings,
                **self.about(),
            )
            self.seconds = []
            for warning in self.reported.warnings[len(self.warnings) :]:
                self.warn(warning)
        return self.reported

    def trace(self, prompt: str) -> _core.Trace:
        """The run's trace, under a recorder."""
        assert self.session is not None
        return self.session.trace(Forward(), self.model, prompt, 0)

    def about(self) -> dict[str, Any]:
        import diffusers

        return {
            "model": self.model,
            "request": {"steps": self.count, "latents": list(self.size), "solver": self.scheduler},
            "source": "diffusers",
            "ended": self.ended,
            "machine": {
                "device": self.on,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "navicache": _core.__version__,
            },
        }

    # Tensors in and out

    def returned(self, output: Tensor) -> Any:
        """A prediction in the container that the transformer returns its own in."""
        return (output,) if issubclass(self.container, tuple) else self.container(sample=output)

    def thinned(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Tensor], Tensor]:
        def run_thinned(latents: Tensor) -> Tensor:
            if args:
                return prediction(forward(latents, *args[1:], **kwargs))
            return prediction(forward(**{**kwargs, "hidden_states": latents}))

        return run_thinned

    @staticmethod
    def device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        return hidden_states(args, kwargs).device


def group_of(module: nn.Module, given: Any) -> Any:
    """The processes that compute one video together: as given, or as diffusers splits the transformer over them."""
    config = getattr(module, "_parallel_config", None)
    if given is not None or config is None or not torch.distributed.is_initialized():
        return given
    mesh = getattr(getattr(config, "context_parallel_config", None), "_flattened_mesh", None)
    return torch.distributed.group.WORLD if mesh is None else mesh.get_group()


def place_of(keep_on: str, bill: int, device: torch.device) -> torch.device | None:
    """Where tensors are kept; `None` where they are made. What is small stays on a GPU, the rest waits in memory."""
    if device.type != "cuda" or keep_on == "device":
        return None
    is_small = keep_on == "auto" and bill < torch.cuda.mem_get_info(device)[0] / 10
    return None if is_small else torch.device("cpu")


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the transformer is shown."""
    shown = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(shown, Tensor):
        raise Unfit(f"the transformer is shown {type(shown).__name__}, expected hidden_states as one tensor")
    return shown


def prediction(output: Any) -> Tensor:
    """What the transformer predicts."""
    if isinstance(output, tuple):
        tensors = [part for part in output if isinstance(part, Tensor)]
        if len(tensors) != 1:
            raise Unfit(f"the transformer predicts {len(tensors)} tensors, expected one: other streams are not supported")
        return tensors[0]
    sample = getattr(output, "sample", None)
    if not isinstance(sample, Tensor):
        raise Unfit(f"the transformer returns {type(output).__name__}, expected a tuple or one with .sample")
    return sample
