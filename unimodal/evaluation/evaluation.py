"""The protocol of an evaluation: one question, asked of a model on one dataset."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from unimodal.data.blocks import Inputs
from unimodal.data.dataset import Dataset, Examples
from unimodal.evaluation.bootstrap import Columns, ValueOf, drawn_values, interval
from unimodal.evaluation.samples import Sample
from unimodal.model import Model

Batch = Mapping[str, jax.Array]
Rows = Mapping[str, np.ndarray]
"""Arrays with one row per example, gathered on every host. `index` is the example's place in its split."""

Predict = Callable[[Model, Batch], Mapping[str, jax.Array]]
Made = tuple[np.ndarray, ...]

SHOWN = 8
"""Examples that samples are made of, spread evenly over the split."""


class Tally(Protocol):
    """Gathers rows, batch by batch, into a score. It keeps sums where sums are enough."""

    def add(self, rows: Rows) -> None: ...

    def score(self) -> dict[str, float]:
        """The numbers; "value" is the one that the metric names. NaN where the model gave NaN."""
        ...


class Reader(Protocol):
    """Runs a function of (model, batch) over a dataset on the mesh; compiled once, streamed."""

    def examples(self, inputs: Callable[[Model], Inputs], model: Model, split: str) -> Dataset:
        """The examples of a split. They are opened once for all evaluations of a run: what is decoded stays in memory, as far
        as that goes, and texts are encoded once."""
        ...

    def rows(
        self, predict: Predict, model: Model, examples: Examples, batch_size: int, limit: int | None = None
    ) -> Iterator[Rows]:
        """The rows of each batch, without those that only fill up the last one. limit: batches, spread over the split."""
        ...

    def once(self, asked: Any, model: Model, make: Callable[[], Made]) -> Made:
        """The arrays of `make`, which are made once for all that ask the same of the same weights, one after another."""
        ...


@dataclass(frozen=True)
class Shown:
    """A few examples of the evaluated split, for samples."""

    index: np.ndarray  # [N], their places in the split
    batch: Rows  # their arrays, as the model read them
    rows: Rows  # what was predicted for them
    tally: Any  # of the whole split


@dataclass(frozen=True)
class Each:
    """The numbers of every example that a value is made of."""

    examples: Examples  # that were read
    index: np.ndarray  # [N], their places in the split
    columns: Columns  # [N] each, by name
    value_of: ValueOf  # the sums of the columns, and the count "examples" → the value

    def ids(self) -> tuple[str, ...]:
        """The ids of records; of examples that are made of several records, or share an id, their places."""
        source = getattr(self.examples, "source", None)
        with contextlib.suppress(KeyError, TypeError):
            if source is not None and len(source) == len(self.examples):
                found = tuple(str(source[int(place)]["id"]) for place in self.index)
                if len(set(found)) == len(found):
                    return found
        return tuple(str(int(place)) for place in self.index)

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the value; NaN of fewer than two examples."""
        if len(self.index) < 2:
            return math.nan, math.nan
        return interval(drawn_values([self.columns], self.value_of)[:, 0])


@dataclass(frozen=True)
class Measured:
    """The outcome of an evaluation before it is compared with anything."""

    score: Mapping[str, float]  # "value" and further numbers
    shown: Shown | None = None  # examples for samples, where there are some
    each: Each | None = None  # where the value is made of sums over examples


class Evaluation(Protocol):
    """A metric with its direction, its data and its baseline. It knows no mesh, checkpoint or logger."""

    @property
    def metric(self) -> str:
        """Name and unit of what the score calls "value"."""
        ...

    @property
    def higher_is_better(self) -> bool: ...

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        """The score of a model. limit: batches to look at, spread over the split (None: all)."""
        ...

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """A number to beat, and what it is. `untrained` is the score of the model before the first step."""
        ...

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        """A few examples for the report."""
        ...


@dataclass(frozen=True)
class Result:
    """The value of a metric, the baseline it is to beat, and further numbers."""

    metric: str  # name and unit of the value
    value: float  # of the trained model
    baseline: float  # the number to beat
    baseline_is: str  # what the baseline is, in words
    higher_is_better: bool  # direction of the metric
    details: Mapping[str, float] = field(default_factory=dict)  # further numbers, among them the untrained value
    low: float = math.nan  # of the value's 95 % interval, by the bootstrap over examples; NaN where there is none
    high: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def result(evaluation: Evaluation, measured: Measured, untrained: Mapping[str, float]) -> Result:
    """The score of an evaluation beside its baseline, with its interval.

    An evaluation may have `rivals`: numbers of its score that other ways of asking the same model come to, with what each
    is. Then the best of them is the baseline.
    """
    score, rivals = measured.score, getattr(evaluation, "rivals", {})
    if rivals:
        best = (max if evaluation.higher_is_better else min)(rivals, key=lambda name: score[name])
        baseline, what = score[best], rivals[best]
    else:
        baseline, what = evaluation.baseline(untrained)
    details = {name: float(value) for name, value in score.items() if name != "value"}
    details["untrained"] = float(untrained["value"])
    made = evaluation.metric, float(score["value"]), float(baseline), what, evaluation.higher_is_better, details
    return Result(*made, *((math.nan, math.nan) if measured.each is None else measured.each.interval()))


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """An evaluation of one pass over the validation split: predict rows on the device, tally them as they come."""

    inputs: Callable[[Model], Inputs]  # where the examples come from
    predict: Predict  # (model, batch) → one row per example
    batch_size: int  # examples at a time
    against: Callable[[Mapping[str, float]], tuple[float, str]]  # untrained score → baseline, and what it is
    show: Callable[[Model, Shown], Sequence[Sample]] | None = None  # samples for the report

    def tally(self) -> Tally:
        raise NotImplementedError

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        examples = reader.examples(self.inputs, model, "validation")
        places = np.unique(np.linspace(0, len(examples) - 1, SHOWN).astype(int))
        tally, kept, parts = self.tally(), [], []
        for rows in reader.rows(self.predict, model, examples, self.batch_size, limit):
            tally.add(rows)
            parts.append((rows["index"], self.columns(rows)))
            if limit is None:
                chosen = np.isin(rows["index"], places)
            else:  # any will do: those places may not be among the few that are looked at
                chosen = np.arange(len(rows["index"])) < (0 if kept else SHOWN)
            kept.append({name: value[chosen] for name, value in rows.items()})
        joined = {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}
        shown = Shown(joined["index"], _examples(examples, joined["index"]), joined, tally)
        columns = _joined([part for _, part in parts]) or self.columns_of(tally)
        if columns is None:
            return Measured(tally.score(), shown)
        index = np.concatenate([index for index, _ in parts])
        return Measured(tally.score(), shown, Each(examples, index, columns, self.value_of))

    def columns(self, _rows: Rows) -> dict[str, np.ndarray] | None:
        """Numbers of each example of a batch [B] whose sums `value_of` makes the value of; None where sums do not make it.

        So two models can be compared example by example.
        """
        return None

    def columns_of(self, _tally: Any) -> dict[str, np.ndarray] | None:
        """The same [N], for an evaluation that has to see the whole split for it."""
        return None

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        """The value by the sums of `columns`, and by the count "examples"."""
        raise NotImplementedError

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        return self.against(untrained)

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        return [] if self.show is None else self.show(model, shown)


class Predicting(Protocol):
    """A task that predicts one row for each of its own examples, as most do."""

    @property
    def batch_size(self) -> int: ...

    def inputs(self, model: Model) -> Inputs: ...

    def predict(self, model: Model, batch: Batch) -> Mapping[str, jax.Array]: ...


def on_own_data(task: Predicting) -> dict[str, Any]:
    """The fields of a `Streamed` evaluation that a task answers itself: `inputs`, `predict` and `batch_size`."""
    return dict(inputs=task.inputs, predict=task.predict, batch_size=task.batch_size)


def _joined(parts: Sequence[Columns | None]) -> dict[str, np.ndarray] | None:
    """Columns of batches as those of the whole; None where some batch has none."""
    there = [part for part in parts if part is not None]
    if not there or len(there) < len(parts):
        return None
    return {name: np.concatenate([part[name] for part in there]) for name in there[0]}


def _examples(examples: Examples, index: np.ndarray) -> Rows:
    found: list[Any] = [examples.ordered()[int(i)] for i in index]
    return {name: np.stack([example[name] for example in found]) for name in (found[0] if found else ())}


def untrained_value(untrained: Mapping[str, float]) -> tuple[float, str]:
    """The baseline where there is none but the model before the first step."""
    return untrained["value"], "the untrained model"
