"""What a run writes of its steps: a row of metrics for those that are logged, its progress, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import jax
from etils import epath

from unimodal.data.pipeline import BatchIterator, TaskBatches
from unimodal.training.guard import BEHIND, Guard
from unimodal.training.meters import Cost
from unimodal.training.metrics import MetricsWriter
from unimodal.training.progress import Progress
from unimodal.training.step import Program

RECENT = "metrics.recent"  # beside the iterators' states in a checkpoint: what the next row of each task will hold

Metrics = Mapping[str, Mapping[str, Any]]
"""Task → metric → number, on the device or the host."""


class _Row(NamedTuple):
    """A logged step whose numbers are still on the device, and what was done since the one before."""

    step: int
    metrics: Metrics
    waited: float  # seconds, for input
    done: Mapping[str, float]  # tokens, examples and FLOPs
    epochs: Mapping[str, Mapping[str, float]]  # by task: how often its sources have been gone through


class Journal:
    """Metrics and progress of a run, and its `guard`.

    Numbers are fetched one step late, so that the device has the next step to do meanwhile. `recent` are the metrics
    that the next row of each task will hold; a checkpoint keeps them. sizes: examples of a batch, by task. tokens: of one
    example, by task.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        program: Program,
        *,
        steps: int,
        start: int,
        log_every: int,
        max_bad_steps: int,
        sizes: Mapping[str, int],
        tokens: Mapping[str, int],
        cost: Cost,
        recent: dict[str, Any],
        batches: Mapping[str, BatchIterator],
        news: Sequence[str] = (),
    ) -> None:
        enabled = jax.process_index() == 0
        self.progress = Progress(steps, start, enabled=enabled, chips=program.mesh.size, peak=cost.peak)
        self.guard = Guard(max_bad_steps, program.parameter_names(), self.progress.note, self._record_bad)
        self.recent = recent
        for line in news:
            self.progress.note(line)
        self._writer = MetricsWriter(workdir, enabled=enabled, resume_step=start)
        self._steps, self._log_every = steps, log_every
        self._sizes, self._tokens, self._cost, self._batches = sizes, tokens, cost, batches
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
            self._done["tokens"] += self._sizes[name] * self._tokens[name]
            self._done["flops"] += self._cost.flops.get(name, 0.0)
        self._log()
        if self._is_logged(step):
            epochs = {name: _epochs(self._batches[name]) for name in self.recent}
            self._pending = _Row(step, self.recent, self._waited, self._done, epochs)
            self.recent, self._waited, self._done = {}, 0.0, _nothing()
        self.guard.look(step - BEHIND)

    def settle(self, step: int) -> None:
        """Wait for the numbers of all steps up to `step`, and write what is due."""
        self._log()
        self.guard.look(step)
        self._writer.sync()

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the states of iterators, under RECENT; nothing where a row has just been written."""
        return {RECENT: _for_json(self.recent)} if self.recent else {}

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
    """How often a task's sources have been gone through, where its batches know."""
    return batches.epochs() if isinstance(batches, TaskBatches) else {}


def _nothing() -> dict[str, float]:
    return {"tokens": 0.0, "examples": 0.0, "flops": 0.0}


def _for_json(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Metrics as JSON has them: no NaN, nor infinity (which comes back as NaN)."""
    found = jax.device_get(dict(metrics))
    finite = lambda value: float(value) if math.isfinite(value) else None  # noqa: E731
    return {task: {name: finite(value) for name, value in values.items()} for task, values in found.items()}


def from_json(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        task: {name: math.nan if value is None else value for name, value in values.items()}
        for task, values in metrics.items()
    }


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
