"""The training loop. One flat function, meant to be read from top to bottom and forked in an afternoon."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from unimodal.configuration import nearest
from unimodal.data.batches import BatchIterator
from unimodal.errors import ReplicasDifferError, UsageError
from unimodal.sharding import batch_parts, from_local_rows
from unimodal.task import Task
from unimodal.training.adapt import adapted
from unimodal.training.balance import APART, BALANCES
from unimodal.training.checkpoint import Checkpoints, named
from unimodal.training.diagnosis import diagnosis
from unimodal.training.example_losses import ExampleLosses
from unimodal.training.journal import Journal, go_on
from unimodal.training.keep import Keep
from unimodal.training.meters import ProfileConfig, Profiler, summary, write_summary
from unimodal.training.replicas import differing
from unimodal.training.sequence import InSequence, in_sequence
from unimodal.training.status import TRAINING, WAITING, Status
from unimodal.training.step import Program, TrainState
from unimodal.training.stopping import StopSignal, Together
from unimodal.training.turns import name_sets, turns
from unimodal.training.work import Resumption, Validation, Work

SCHEDULES = ("sum", "alternate", "sequence")


@dataclass(frozen=True)
class LoopConfig:
    """The length of a run, and what it does now and then."""

    steps: int  # in all
    # "sum": every step takes a batch of every task; "alternate": one task per step, in turns by their weights; "sequence": one
    # task after the other, each evaluated when one has ended
    schedule: str = "sum"
    # for schedule="sequence": the tasks in their order, as NAME or NAME=STEPS; (): as the config has them
    sequence: tuple[str, ...] = ()
    # of the losses in a sum: fixed (the tasks' weights), uncertainty, equal or pcgrad (see `training.balance`)
    balance: str = "fixed"
    # turns are shared by the tasks' weights to the power of 1 over this: above 1, tasks of small weight have more
    turn_temperature: float = 1.0
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: only at the end
    checkpoint_every: int = 0  # steps; 0: only at the end
    commit_every: int = 0  # steps between commits to the run's ledger; 0: only at the end
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
        if self.balance not in BALANCES:
            raise UsageError(f"balance={self.balance!r} is not known; {nearest(self.balance, BALANCES)}")
        if self.balance != "fixed" and self.schedule != "sum":
            raise UsageError(f"balance={self.balance} needs schedule=sum, where several tasks train in one step")
        if not 0 < self.turn_temperature < math.inf:
            raise UsageError(f"turn_temperature must be above 0 and finite, but is {self.turn_temperature}")
        least = dict(steps=1, log_every=1, eval_every=0, checkpoint_every=0, keep_checkpoints=1, max_bad_steps=1)
        least |= dict.fromkeys(("commit_every", "keep_every", "compare_replicas_every", "example_losses_every"), 0)
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UsageError(f"{name} must be at least {limit}, but is {getattr(self, name)}")

    def check_best(self) -> None:
        """Raises UsageError where `keep_best` would have no checkpoint to choose from."""
        # The last one has no score: what is evaluated then is evaluated after it. In a sequence the end of a task counts, too.
        both = math.lcm(self.eval_every, self.checkpoint_every)
        if self.keep_best is not None and self.schedule != "sequence" and not 0 < both < self.steps:
            raise UsageError(
                f"keep_best={self.keep_best!r} has no checkpoint to choose from: none of the {self.steps} steps but the last is "
                f"both evaluated (eval_every={self.eval_every}) and saved (checkpoint_every={self.checkpoint_every})"
            )

    def in_sequence(self, tasks: Sequence[str]) -> InSequence | None:
        """Tell which task trains when, if one comes after the other. Raises UsageError for steps that do not add up."""
        return in_sequence(tasks, self.steps, self.sequence) if self.schedule == "sequence" else None


def compile_steps(
    program: Program, tasks: Mapping[str, Task], config: LoopConfig, sequence: InSequence | None = None
) -> dict[tuple[str, ...], Callable[..., Any]]:
    """One step for each set of tasks that trains together. Where tasks take turns, turns stand for their weights."""
    if sequence is not None:
        sets = sequence.weights().items()
        return {names: program.step({n: (tasks[n].loss, w) for n, w in weights.items()}) for names, weights in sets}
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
    if program.balance in APART and program.accumulate > 1:
        raise UsageError(
            f"balance={program.balance} takes the gradients of whole batches: leave optimizer.accumulate at 1"
        )
    if program.guidance.combine is not None and program.accumulate > 1:
        raise UsageError("this strategy takes the gradients of whole batches: leave optimizer.accumulate at 1")


def train(
    program: Program,
    work: Work,
    config: LoopConfig,
    workdir: epath.PathLike,
    *,
    validation: Validation = Validation(),
    resumption: Resumption = Resumption(),
    together: Together | None = None,
    commit: Callable[[TrainState, Mapping[str, Any]], Any] | None = None,
) -> tuple[TrainState, str, bool]:
    """Train to the end, going on from a checkpoint of the workdir if it has one.

    `together` is how several processes agree when to stop; `commit(state, iterators)` puts the weights into a ledger. Returns
    the state, its fingerprint, and whether all steps are done.
    """
    tasks, batches, by_name, evaluate = work.tasks, work.batches, work.by_name, validation.scores
    sequence, compiled = work.sequence, compile_steps(program, by_name, config, work.sequence)
    who = turns(tasks, config.schedule, config.turn_temperature) if sequence is None else sequence.who

    # --- start, or go on --------------------------------------------------------------------------------------------
    best = None if config.keep_best is None else validation.higher_is_better[config.keep_best]
    checkpoints = Checkpoints(workdir, keep=Keep(config.keep_checkpoints, config.keep_every, best), writes=True)
    saved = checkpoints.latest_step() if resumption.step is None else resumption.step
    start = saved or 0
    if saved is not None:  # step 0 is one, too
        state, fingerprint, recent = _restore(checkpoints, program, batches, start, resumption.adapt)
        aside = [f"a later checkpoint is now {path}" for path in checkpoints.set_aside(start)]
        news = [f"resuming {workdir} after step {start}", *aside]
    else:
        state, fingerprint, recent, news = program.init(), "", {}, []
    journal = Journal(workdir, program, config, work, start=start, recent=recent)
    guard, note = journal.guard, journal.progress.note
    for line in news:
        note(line)
    example_losses = ExampleLosses(program, by_name, workdir, config.example_losses_every, note)
    profiler = Profiler(config.profile, epath.Path(workdir) / "profile")
    stop, status = StopSignal(together), Status(workdir, config.steps, process=jax.process_index())
    differ: ReplicasDifferError | None = None
    last, saved_at, committed_at, scored = start, start, start, (-1, 0.0)

    def save() -> str:
        status.now(last, "saving")
        saved = checkpoints.save(state, journal.kept(), scored[1] if scored[0] == last else None)
        if config.verify_checkpoints:
            checkpoints.verify(state)
        return saved

    # --- the loop: dispatch step k+1 before looking at the numbers of step k ----------------------------------------
    with jax.set_mesh(program.mesh), journal, stop, status, checkpoints:
        for step in itertools.count(start):
            if step >= config.steps or stop.now(step) or (config.stop_after is not None and step >= config.stop_after):
                break
            names = who(step)
            status.now(step + 1, WAITING, names)
            began = time.perf_counter()
            host = {name: dict(next(batches[name])) for name in names}
            ids = {name: batch.pop("id") for name, batch in host.items() if "id" in batch}
            batch = {name: to_device(arrays, program) for name, arrays in host.items()}
            waited = time.perf_counter() - began
            status.now(step + 1, TRAINING, names, ids)
            example_losses.look(step + 1, state, batch, ids)
            profiler.before(step, state)
            state, metrics = compiled[names](state, batch)
            profiler.after(step, state)
            last = step + 1
            journal.dispatched(last, names, metrics, ids, waited)
            if guard.diverged is not None:
                losses = {name: by_name[name].loss for name in names}
                guard.explain(diagnosis(program, state, losses, batch))
                break
            if config.compare_replicas_every and last % config.compare_replicas_every == 0:
                status.now(last, "comparing replicas")
                if (where := differing(named(state), program.mesh)) is not None:
                    differ = ReplicasDifferError(where, last)
                    break
            ended = sequence.ended(last) if sequence is not None and last < config.steps else None
            if ended is not None and sequence is not None and sequence.between is not None:
                status.now(last, "between tasks")
                state = sequence.between(ended, state)
            due = ended is not None or (config.eval_every and last % config.eval_every == 0)
            if evaluate is not None and due and last < config.steps:
                note(f"evaluating after step {last:,} …")
                status.now(last, "evaluating")
                scores = evaluate(program.model(state), last)
                if config.keep_best is not None and config.keep_best in scores:
                    scored = last, float(scores[config.keep_best]["value"])
                journal.validation(last, scores)
            if config.checkpoint_every and last % config.checkpoint_every == 0:
                journal.settle(last)  # a run that resumes from the checkpoint has the numbers of every step before it
                if guard.in_a_row == 0:  # a checkpoint from amid bad steps would push out one from before them
                    fingerprint, saved_at = save(), last
            if commit is not None and config.commit_every and last % config.commit_every == 0:
                journal.settle(last)
                if guard.in_a_row == 0:
                    status.now(last, "committing")
                    commit(state, work.positions())
                    committed_at = last
        journal.settle(last)
        profiler.close(state)
        if last > saved_at and guard.diverged is None and differ is None:
            fingerprint = save()
        if commit is not None and last > committed_at and guard.diverged is None and differ is None:
            commit(state, work.positions())
        checkpoints.close()  # before signals have their old meaning again: a second SIGTERM must not tear it
    if failed := differ or guard.diverged:
        raise failed
    if jax.process_index() == 0 and last > start:
        write_summary(workdir, summary(journal.progress.mean_rates(), program.mesh.size, work.cost))
    return state, fingerprint, last >= config.steps


def _restore(
    checkpoints: Checkpoints,
    program: Program,
    batches: Mapping[str, BatchIterator],
    step: int,
    adapt: Collection[str] | None,
) -> tuple[TrainState, str, dict[str, Any]]:
    """The state of a checkpoint, its fingerprint, and the journal's recent metrics. Batches go on from where they were,
    but for those of the tasks in `adapt`."""
    if adapt is not None:
        state, kept = adapted(program, checkpoints.workdir, step)
        go_on(batches, kept, adapt)
        return state, "", {}
    state, kept, fingerprint = checkpoints.restore(program.abstract_state(), step)
    return state, fingerprint, go_on(batches, kept)
