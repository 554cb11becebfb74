"""The journal of a run: a row of metrics for each step that is logged, its progress, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
from etils import epath

from unimodal.data.batches import BatchIterator, TaskBatches
from unimodal.training.guard import BEHIND, Guard
from unimodal.training.metrics import MetricsWriter
from unimodal.training.progress import Progress
from unimodal.training.step import Program
from unimodal.training.work import Work

RECENT = "metrics.recent"  # beside the iterators' states in a checkpoint: what the next row of each task will hold

Metrics = Mapping[str, Mapping[str, Any]]
"""Task → metric → number, on the device or the host."""


class Pace(Protocol):
    """The fields of a `LoopConfig` that the journal reads."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def max_bad_steps(self) -> int: ...


class _Row(NamedTuple):
    """A logged step whose numbers are still on the device, and what was done since the one before."""

    step: int  # its number
    metrics: Metrics  # by task
    waited: float  # seconds, for input
    done: Mapping[str, float]  # tokens, examples and FLOPs
    epochs: Mapping[str, Mapping[str, float]]  # by task: how often its sources have been gone through


class Journal:
    """Metrics and progress of a run, and its `guard`.

    Numbers are fetched one step late, so that the device has the next step to do meanwhile. `recent` are the metrics
    that the next row of each task will hold. A checkpoint keeps them (`kept`), and `go_on` gives them back.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        program: Program,
        pace: Pace,
        work: Work,
        *,
        start: int = 0,
        recent: Mapping[str, Any] = {},
    ) -> None:
        enabled, self._steps = jax.process_index() == 0, pace.steps
        self.progress = Progress(pace.steps, start, enabled=enabled, chips=program.mesh.size, peak=work.cost.peak)
        self.guard = Guard(pace.max_bad_steps, program.parameter_names(), self.progress.note, self._record_bad)
        self.recent = dict(recent)
        self._writer = MetricsWriter(workdir, enabled=enabled, resume_step=start)
        self._log_every, self._work = pace.log_every, work
        self._sizes = {task.name: task.batch_size for task in work.tasks}
        self._waited, self._done = 0.0, _nothing()
        self._losses: dict[str, float] = {}
        self._pending: _Row | None = None

    def dispatched(self, step: int, names: Sequence[str], metrics: Metrics, ids: Mapping[str, Any], waited: float):
        """Step number `step` has been dispatched, after `waited` seconds for its batches. Look at those before it."""
        self.recent = {**self.recent, **metrics}
        self.guard.watch(step, metrics, ids)
        self._waited += waited
        for name in names:
            self._done["examples"] += self._sizes[name]
            self._done["tokens"] += self._sizes[name] * self._work.tokens[name]
            self._done["flops"] += self._work.cost.flops.get(name, 0.0)
        self._log()
        if self._is_logged(step):
            epochs = {name: _epochs(self._work.batches[name]) for name in self.recent}
            self._pending = _Row(step, self.recent, self._waited, self._done, epochs)
            self.recent, self._waited, self._done = {}, 0.0, _nothing()
        self.guard.look(step - BEHIND)

    def settle(self, step: int) -> None:
        """Wait for the numbers of all steps up to `step`, and write what is due."""
        self._log()
        self.guard.look(step)
        self._writer.sync()

    def kept(self) -> dict[str, Any]:
        """Give what a checkpoint keeps beside arrays: the place in the data, and the metrics of steps that have no row yet."""
        places = {name: iterator.get_state() for name, iterator in self._work.batches.items()}
        return {**places, RECENT: _for_json(self.recent)} if self.recent else places

    def validation(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write the scores of evaluations amid training."""
        for name, values in scores.items():
            self._writer.write(step, name, {f"validation/{key}": value for key, value in values.items()})
            self.progress.note(f"validation of {name} after step {step:,}: {_listed(values)}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.close()
        self._writer.close()

    def _is_logged(self, step: int) -> bool:
        return step % self._log_every == 0 or step == self._steps

    def _record_bad(self, step: int, metrics: Metrics) -> None:
        if not self._is_logged(step):  # else its row is written anyway
            self._write(step, metrics, {}, {})

    def _write(
        self,
        step: int,
        device_metrics: Metrics,
        more: Mapping[str, float],
        epochs: Mapping[str, Mapping[str, float]],
    ) -> dict[str, Any]:
        rows = jax.device_get(dict(device_metrics))
        for name, values in rows.items():
            skipped = {"update_skipped": 1.0} if values["bad"] else {}
            self._writer.write(
                step,
                name,
                {**{k: v for k, v in values.items() if k != "bad"}, **more, **skipped, **epochs.get(name, {})},
            )
        return rows

    def _log(self) -> None:
        if self._pending is None:
            return
        row, self._pending, remarks = self._pending, None, {}
        self.guard.look(row.step)
        for name, values in self._write(row.step, row.metrics, {"input_wait_seconds": row.waited}, row.epochs).items():
            self._losses[name] = float(values["loss"])
            if values.get("skipped", 0) > 0:
                remarks[name] = f"{values['skipped']:.0f} of {self._sizes[name]} skipped"
        counts = int(row.done["tokens"]), int(row.done["examples"])
        self.progress.update(
            row.step, self._losses, *counts, flops=row.done["flops"], waited=row.waited, remarks=remarks
        )


def _epochs(batches: BatchIterator) -> Mapping[str, float]:
    """Count how often a task's sources have been gone through, where its batches know."""
    return batches.epochs() if isinstance(batches, TaskBatches) else {}


def _nothing() -> dict[str, float]:
    return {"tokens": 0.0, "examples": 0.0, "flops": 0.0}


def _for_json(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Metrics as JSON has them: no NaN, nor infinity (which comes back as NaN)."""
    found = jax.device_get(dict(metrics))
    finite = lambda value: float(value) if math.isfinite(value) else None  # noqa: E731
    return {task: {name: finite(value) for name, value in values.items()} for task, values in found.items()}


def go_on(batches: Mapping[str, BatchIterator], kept: Mapping[str, Any], anew: Collection[str] = ()) -> dict[str, Any]:
    """Take the data to where it was, from what a checkpoint kept, but for the tasks that begin `anew`.

    Returns the metrics of steps that had no row yet.
    """
    for name, place in kept.items():
        if name in batches and name not in anew:
            batches[name].set_state(place)
    return {
        task: {name: math.nan if value is None else value for name, value in values.items()}
        for task, values in kept.get(RECENT, {}).items()
    }


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
