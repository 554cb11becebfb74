"""The training loop. One flat function, meant to be read from top to bottom and forked in an afternoon."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from unimodal.data.pipeline import BatchIterator, TaskBatches
from unimodal.errors import ReplicasDifferError, UsageError
from unimodal.sharding import batch_parts, from_local_rows
from unimodal.task import Task
from unimodal.training.adapt import adapted
from unimodal.training.checkpoint import Checkpoints, named
from unimodal.training.example_losses import ExampleLosses
from unimodal.training.guard import BEHIND, Guard
from unimodal.training.keep import Keep
from unimodal.training.meters import Cost, ProfileConfig, Profiler, summary, write_summary
from unimodal.training.metrics import MetricsWriter
from unimodal.training.progress import Progress
from unimodal.training.replicas import differing
from unimodal.training.status import TRAINING, WAITING, Status
from unimodal.training.step import Program, TrainState
from unimodal.training.turns import name_sets, turns

SCHEDULES = ("sum", "alternate")
RECENT = "metrics.recent"  # beside the iterators' states in a checkpoint: what the next row of each task will hold


@dataclass(frozen=True)
class LoopConfig:
    """How long a run trains, and what it does now and then."""

    steps: int  # in all
    # "sum": every step takes a batch of every task; "alternate": one task per step, in turns by their weights
    schedule: str = "sum"
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: only at the end
    checkpoint_every: int = 0  # steps; 0: only at the end
    keep_checkpoints: int = 2  # how many of the latest stay
    stop_after: int | None = None  # stop after this step with a checkpoint, to be resumed; None: train to the end
    # end the run after so many steps in a row whose loss or gradient is not finite (such a step changes nothing)
    max_bad_steps: int = 10
    verify_checkpoints: bool = False  # read every checkpoint back once it is written, which training waits for
    keep_every: int = 0  # checkpoints whose step is a multiple of it stay, too
    keep_best: str | None = None  # the best checkpoint by this evaluation, scored every eval_every steps, stays, too
    # steps between comparisons of what devices hold copies of, which find a chip that computes wrong numbers; 0: never
    compare_replicas_every: int = 0
    example_losses_every: int = 0  # steps; write the loss of each example to WORKDIR/example_losses; 0: never
    profile: ProfileConfig = field(default_factory=ProfileConfig)  # steps to trace

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        least = dict(steps=1, log_every=1, eval_every=0, checkpoint_every=0, keep_checkpoints=1, max_bad_steps=1)
        least["keep_every"] = least["compare_replicas_every"] = least["example_losses_every"] = 0
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UsageError(f"{name} must be at least {limit}, but is {getattr(self, name)}")


class Together(Protocol):
    """Several processes that stop as one: a signal may reach only one of them, but all must run the same steps."""

    def ask_to_stop(self) -> None:
        """Called in a signal handler, by whoever got the signal."""
        ...

    def should_stop(self, step: int) -> bool:
        """Asked by every process before every step; all get the same answer for the same step."""
        ...


def compile_steps(
    program: Program, tasks: Mapping[str, Task], config: LoopConfig
) -> dict[tuple[str, ...], Callable[..., Any]]:
    """One step for each set of tasks that trains together. Where tasks take turns, turns stand for their weights."""
    weigh = config.schedule == "sum"
    return {
        names: program.step({name: (tasks[name].loss, tasks[name].weight if weigh else 1.0) for name in names})
        for names in name_sets(list(tasks.values()), config.schedule)
    }


def to_device(batch: Mapping[str, np.ndarray], program: Program) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays split over the mesh, [A, B/A, …] if gradients accumulate."""
    return from_local_rows(batch, program.mesh, program.accumulate)


def check_batches(tasks: Sequence[Task], program: Program) -> None:
    """Raises UsageError for a batch that the mesh, or accumulation, does not divide, or a weight that is none."""
    for task in tasks:
        if not 0 < task.weight < math.inf:
            raise UsageError(
                f"tasks.{task.name}.weight must be above 0 and finite, but is {task.weight}; leave out a task that "
                f"shall not train"
            )
        if task.batch_size < 1:
            raise UsageError(f"tasks.{task.name}.batch_size must be at least 1, but is {task.batch_size}")
        parts = batch_parts(program.mesh) * program.accumulate
        if task.batch_size % parts:
            raise UsageError(
                f"tasks.{task.name}.batch_size={task.batch_size} is not divisible by {parts} "
                f"(mesh data·fsdp={batch_parts(program.mesh)}, accumulate={program.accumulate})"
            )


def train(
    program: Program,
    tasks: Sequence[Task],
    batches: Mapping[str, BatchIterator],
    config: LoopConfig,
    workdir: epath.PathLike,
    *,
    tokens: Mapping[str, int],
    evaluate: Callable[[Any, int], Mapping[str, Mapping[str, float]]] | None = None,
    together: Together | None = None,
    cost: Cost = Cost(),
    from_step: int | None = None,
    adapt: Collection[str] | None = None,
    higher_is_better: Mapping[str, bool] = {},
) -> tuple[TrainState, str, bool]:
    """Train to the end, resuming from the workdir's latest checkpoint if it has one, or from that of `from_step`.

    `tokens` of one example, per task, and `cost` are for the meters. `evaluate(model, step)` gives metrics per task.
    `adapt`: take what fits of the checkpoint of another config (`training.adapt`), with the data of these tasks begun anew.
    `together`: how several processes agree on the step after which they stop (None: there is one). Returns the state,
    its fingerprint, and whether all steps are done (not so after a signal or `stop_after`).
    """
    by_name = {task.name: task for task in tasks}
    who = turns(tasks, config.schedule)
    compiled = compile_steps(program, by_name, config)

    # --- start, or go on --------------------------------------------------------------------------------------------
    best = None if config.keep_best is None else higher_is_better[config.keep_best]
    checkpoints = Checkpoints(workdir, keep=Keep(config.keep_checkpoints, config.keep_every, best), writes=True)
    start = from_step or checkpoints.latest_step() or 0
    fingerprint, recent = "", {}
    if start and adapt is not None:
        state, iterators = adapted(program, workdir, start)
        aside = checkpoints.set_aside(start)
        for name, saved in iterators.items():
            if name in batches and name not in adapt:
                batches[name].set_state(saved)
    elif start:
        state, iterators, fingerprint = checkpoints.restore(program.abstract_state(), start)
        aside = checkpoints.set_aside(start)
        recent: dict[str, Any] = _from_json(iterators.pop(RECENT, {}))
        for name, saved in iterators.items():
            batches[name].set_state(saved)
    else:
        state = program.init()
    main = jax.process_index() == 0
    metrics_writer = MetricsWriter(workdir, enabled=main, resume_step=start)
    progress = Progress(config.steps, start, enabled=main, chips=program.mesh.size, peak=cost.peak)
    profiler = Profiler(config.profile, epath.Path(workdir) / "profile")
    if start:
        progress.note(f"resuming {workdir} after step {start}")
        for path in aside:
            progress.note(f"a later checkpoint is now {path}")
    example_losses = ExampleLosses(program, by_name, workdir, config.example_losses_every, progress.note)
    stop = _StopSignal(together)
    status = Status(workdir, config.steps, process=jax.process_index())
    differ: ReplicasDifferError | None = None

    def save() -> str:
        states = {name: iterator.get_state() for name, iterator in batches.items()}
        score = scored[1] if scored[0] == last else None
        saved = checkpoints.save(state, {**states, RECENT: _for_json(recent)} if recent else states, score)
        if config.verify_checkpoints:
            checkpoints.verify(state)
        return saved

    def write(step: int, device_metrics: Mapping[str, Any], more: Mapping[str, float]) -> dict[str, Any]:
        rows = jax.device_get(dict(device_metrics))
        for name, values in rows.items():
            skipped = {"update_skipped": 1.0} if values["bad"] else {}
            beside = {**more, **skipped, **epochs.pop((step, name), {})}
            metrics_writer.write(step, name, {**{k: v for k, v in values.items() if k != "bad"}, **beside})
        return rows

    epochs: dict[tuple[int, str], Mapping[str, float]] = {}  # of logged steps, which are written later

    def is_logged(step: int) -> bool:
        return step % config.log_every == 0 or step == config.steps

    guard = Guard(
        config.max_bad_steps,
        program.parameter_names(),
        progress.note,
        lambda step, metrics: None if is_logged(step) else write(step, metrics, {}),
    )

    # --- the loop: dispatch step k+1 before looking at the numbers of step k ----------------------------------------
    def log(pending: tuple[int, dict[str, Any], float, dict[str, float]] | None) -> None:
        if pending is None:
            return
        step, device_metrics, waited, done = pending
        guard.look(step)
        skipped = {}
        for name, values in write(step, device_metrics, {"input_wait_seconds": waited}).items():
            losses_seen[name] = float(values["loss"])
            if values.get("skipped", 0) > 0:
                skipped[name] = f"{values['skipped']:.0f} of {by_name[name].batch_size} skipped"
        counts = int(done["tokens"]), int(done["examples"])
        progress.update(step, losses_seen, *counts, flops=done["flops"], waited=waited, remarks=skipped)

    nothing = {"tokens": 0.0, "examples": 0.0, "flops": 0.0}
    losses_seen: dict[str, float] = {}
    seen = dict(nothing)
    pending: tuple[int, dict[str, Any], float, dict[str, float]] | None = None
    last, saved_at, waited, scored = start, start, 0.0, (-1, 0.0)
    with jax.set_mesh(program.mesh), metrics_writer, progress, stop, status, checkpoints:
        for step in itertools.count(start):
            if step >= config.steps or stop.now(step) or (config.stop_after is not None and step >= config.stop_after):
                break
            names = who(step)
            status.now(step + 1, WAITING, names)
            began = time.perf_counter()
            host = {name: dict(next(batches[name])) for name in names}
            ids = {name: batch.pop("id") for name, batch in host.items() if "id" in batch}
            batch = {name: to_device(arrays, program) for name, arrays in host.items()}
            waited += time.perf_counter() - began
            status.now(step + 1, TRAINING, names, ids)
            example_losses.look(step + 1, state, batch, ids)
            profiler.before(step, state)
            state, metrics = compiled[names](state, batch)
            profiler.after(step, state)
            last, recent = step + 1, {**recent, **metrics}
            guard.watch(last, metrics, ids)
            for name in names:
                seen["examples"] += by_name[name].batch_size
                seen["tokens"] += by_name[name].batch_size * tokens[name]
                seen["flops"] += cost.flops.get(name, 0.0)
            log(pending)
            pending = None
            if is_logged(last):
                for name in recent:
                    epochs[last, name] = _epochs(batches[name])
                pending, recent, waited, seen = (last, recent, waited, seen), {}, 0.0, dict(nothing)
            guard.look(last - BEHIND)
            if guard.diverged is not None:
                break
            if config.compare_replicas_every and last % config.compare_replicas_every == 0:
                status.now(last, "comparing replicas")
                if (where := differing(named(state), program.mesh)) is not None:
                    differ = ReplicasDifferError(where, last)
                    break
            if evaluate is not None and config.eval_every and last % config.eval_every == 0 and last < config.steps:
                progress.note(f"evaluating after step {last:,} …")
                status.now(last, "evaluating")
                scores = evaluate(program.model(state), last)
                if config.keep_best is not None and config.keep_best in scores:
                    scored = last, float(scores[config.keep_best]["value"])
                for name, values in scores.items():
                    metrics_writer.write(last, name, {f"validation/{key}": value for key, value in values.items()})
                    progress.note(f"validation of {name} after step {last:,}: {_listed(values)}")
            if config.checkpoint_every and last % config.checkpoint_every == 0:
                log(pending)  # a run that resumes from the checkpoint has the numbers of every step before it
                pending = None
                guard.look(last)
                if guard.in_a_row == 0:  # a checkpoint from amid bad steps would push out one from before them
                    metrics_writer.sync()
                    status.now(last, "saving")
                    fingerprint, saved_at = save(), last
        log(pending)
        guard.look(last)
        profiler.close(state)
        metrics_writer.sync()
        if last > saved_at and guard.diverged is None and differ is None:
            status.now(last, "saving")
            fingerprint = save()
        checkpoints.close()  # before signals have their old meaning again: a second SIGTERM must not tear it
    if (failed := differ or guard.diverged) is not None:
        raise failed
    if main and last > start:
        write_summary(workdir, summary(progress.mean_rates(), program.mesh.size, cost))
    return state, fingerprint, last >= config.steps


def _for_json(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Metrics as JSON has them: no NaN, nor infinity (which comes back as NaN)."""
    found = jax.device_get(dict(metrics))
    finite = lambda value: float(value) if math.isfinite(value) else None  # noqa: E731
    return {task: {name: finite(value) for name, value in values.items()} for task, values in found.items()}


def _from_json(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        task: {name: math.nan if value is None else value for name, value in values.items()}
        for task, values in metrics.items()
    }


def _epochs(batches: BatchIterator) -> Mapping[str, float]:
    """How often a task's sources have been gone through, where its batches know."""
    return batches.epochs() if isinstance(batches, TaskBatches) else {}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


class _StopSignal:
    """SIGTERM and SIGINT end the loop after the step at hand, with a checkpoint; a second SIGINT ends it at once.

    Each is answered in the moment it comes, as the step at hand may take long.
    """

    def __init__(self, together: Together | None) -> None:
        self.wanted = False
        self._together = together

    def now(self, step: int) -> bool:
        """Whether to stop before `step`: at once where one process runs, where all agreed to where there are several."""
        return self.wanted if self._together is None else self._together.should_stop(step)

    def __enter__(self) -> _StopSignal:
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: leave signals to whoever is
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.wanted:
            advice = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Not by print: the main thread may be in the midst of one.
            os.write(2, f"stopping after this step, with a checkpoint{advice}\n".encode())
        self.wanted = True
        if self._together is not None:
            self._together.ask_to_stop()
