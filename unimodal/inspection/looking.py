"""Look at a task's data before training on it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data import LEDGER, open_source, train_batches
from unimodal.data.dataset import Dataset
from unimodal.data.skipped import Where
from unimodal.data.spec import STAND_IN, ArraySpec
from unimodal.errors import UsageError
from unimodal.inspection.twins import alike, content, nearly, records_of, shared
from unimodal.inspection.views import View, views_of
from unimodal.task import Task

SHOWN = 12  # examples on the page
_SECONDS = 3.0  # of measuring how fast examples are made


@dataclasses.dataclass(frozen=True)
class SplitLook:
    """One split, as far as it was looked at."""

    name: str  # train or validation
    examples: int  # how many there are
    looked: int  # how many were looked at
    lengths: Mapping[str, np.ndarray]  # of arrays with padding, by name
    labels: Mapping[str, Mapping[str, int]]  # array of classes → class → how many
    filled: float | None  # share of their rows that is no padding; None: rows have none
    skipped: tuple[tuple[str, str], ...]  # record and reason, of those that cannot be used


@dataclasses.dataclass(frozen=True)
class Looked:
    """A task's data."""

    task: str  # its name
    kind: str  # its class
    source: str  # of the data
    spec: Mapping[str, ArraySpec]  # arrays of an example
    splits: tuple[SplitLook, ...]  # train first
    twins: tuple[tuple[str, ...], ...]  # records that two splits have in common, exactly
    near: tuple[tuple[str, ...], ...]  # records that two splits have in common, nearly
    per_second: float  # examples that were made in a second
    shown: tuple[tuple[str, tuple[View, ...]], ...]  # id and views of a few examples

    def lines(self) -> list[str]:
        """The lines that the command prints."""
        shapes = ", ".join(f"{n} {np.dtype(s.dtype)}{list(s.shape)}" for n, s in self.spec.items())
        out = [f"{self.task} ({self.kind}) of {self.source}", f"  example      {shapes}"]
        for split in self.splits:
            out.append(f"  {split.name:<12} {split.examples:,} examples, {split.looked:,} looked at")
            out += [f"    {n:<17} {_range(values)}" for n, values in split.lengths.items()]
            if split.filled is not None:
                out.append(f"    filled            {split.filled:.1%} of each row, the rest is padding")
            out += [f"    {n:<17} {_balance(counts)}" for n, counts in split.labels.items()]
            out += [f"    cannot be used: {reason}" for _, reason in split.skipped[:5]]
            if len(split.skipped) > 5:
                out.append(f"    … and {len(split.skipped) - 5} more")
            allowed = Where(self.source, split.name).allowed if split.skipped else 1
            if len(split.skipped) > allowed * split.examples:
                out.append(
                    f"    too many: {len(split.skipped)}, where ?bad={allowed:g} is the share that training goes on with"
                )
        for what, found in (("in two splits", self.twins), ("nearly so", self.near)):
            some = f": {' = '.join(found[0])}" if found else ""
            out.append(f"  {what:<12} {len(found)} records{some}")
        return [*out, f"  speed        {self.per_second:,.0f} examples/s in training, on this machine"]


def look(task: Task, model: Any, *, split: str = "train", limit: int = 1000, seed: int = 0) -> Looked:
    """Look at up to `limit` examples of each split of a task, spread evenly, and at some as training sees them.

    split: the one whose examples are shown, and measured. Raises UsageError as training would.
    """
    inputs = task.inputs(model)
    datasets = {name: inputs.dataset(name) for name in ("train", "validation")}
    if split not in datasets:
        raise UsageError(f"no split {split!r} to look at: there are {', '.join(datasets)}")
    source = str(getattr(task, "source", ""))
    twins, near = _twins(source, tuple(datasets), limit) if source else ([], [])
    splits = tuple(_split(task, name, dataset, limit) for name, dataset in datasets.items())
    chosen: Any = datasets[split]
    stream = chosen.stream(seed, task.batch_size) if split == "train" else chosen.ordered()
    count = min(SHOWN, len(chosen))
    examples = [dict(stream[i]) for i in range(count)]
    shown = tuple((str(e.pop("id", i)), views_of(task, inputs.spec, e)) for i, e in enumerate(examples))
    speed = _speed(datasets["train"], seed)
    kind = type(task).__name__
    return Looked(task.name, kind, source, inputs.spec, splits, tuple(twins), tuple(near), speed, shown)


def _split(task: Task, name: str, dataset: Dataset, limit: int) -> SplitLook:
    count = min(len(dataset), limit)
    ordered: Any = dataset.ordered()
    seen = [ordered[i * len(dataset) // count] for i in range(count)]
    # Count nothing twice: what stands in for a bad record is looked at in its own place.
    examples = [example for example in seen if STAND_IN not in example] or seen[:1]
    lengths, labels = {}, {}
    for key in examples[0]:
        first = np.asarray(examples[0][key])
        values = [np.asarray(example[key]) for example in examples]
        if key == "length":
            every = np.concatenate([value.reshape(-1) for value in values])
            lengths[key] = every if first.ndim == 0 else every[every > 0]  # of a row of several, without empty places
        elif key == "segment":
            lengths["how many in a row"] = np.array([int(value.max()) for value in values])
            sizes = [np.bincount(value)[1:] for value in values]
            lengths["tokens of each"] = np.concatenate([size[size > 0] for size in sizes])
        elif first.dtype.kind == "i" and first.ndim == 1 and key in ("ids", "inputs", "text"):
            lengths[key] = np.array([int((value != _pad(task)).sum()) for value in values])
        elif first.dtype.kind == "i" and (first.ndim == 0 or (key == "label" and first.ndim == 1)):
            every = np.concatenate([value.reshape(-1) for value in values])
            found, counts = np.unique(every[every >= 0] if first.ndim else every, return_counts=True)
            names = label_names(task) if key == "label" else ()
            labels[key] = {
                names[int(v)] if 0 <= v < len(names) else str(v): int(n) for v, n in zip(found, counts, strict=True)
            }
    skipped = tuple((k[2], reason) for k, reason in LEDGER.found.items() if k[1] == name)
    return SplitLook(name, len(dataset), count, lengths, labels, _filled(task, examples), skipped)


def _filled(task: Task, examples: list[Any]) -> float | None:
    """The share of rows that is no padding."""
    if "segment" in examples[0]:
        return float(np.mean([np.mean(example["segment"] != 0) for example in examples]))
    if "length" in examples[0] and "audio" in examples[0]:
        return float(np.mean([np.sum(example["length"]) / len(example["audio"]) for example in examples]))
    name = next((key for key in ("ids", "inputs") if key in examples[0]), None)
    if name is None or not hasattr(task, "texts"):
        return None
    return float(np.mean([np.mean(np.asarray(example[name]) != _pad(task)) for example in examples]))


def label_names(task: Any) -> tuple[str, ...]:
    """The names of a task's classes, () where it has none."""
    labels = getattr(task, "labels", None)
    if labels is None or not hasattr(labels, "names"):
        return ()
    return tuple(labels.names(task.source, getattr(getattr(task, "sounds", None), "segments", "")))


def _pad(task: Any) -> int:
    texts = getattr(task, "texts", None)
    return int(getattr(texts, "pad", 0))


def _twins(source: str, splits: tuple[str, ...], limit: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    exact: dict[str, list[tuple[str, str]]] = {}
    close: dict[str, list[tuple[str, np.ndarray | str | None]]] = {}
    for split in splits:
        exact[split], close[split] = [], []
        for record in records_of(open_source(source, split), limit):
            exact[split].append((str(record["id"]), content(record)))
            close[split].append((str(record["id"]), nearly(record)))
    common = [{key for _, key in pairs} for pairs in exact.values()]
    both = {key for i, keys in enumerate(common) for others in common[:i] for key in keys & others}
    other = {
        split: [pair for pair, (_, key) in zip(close[split], exact[split], strict=True) if key not in both]
        for split in splits
    }
    return shared(exact), alike(other)


def _speed(dataset: Dataset, seed: int) -> float:
    """Examples a second, batches of 16 on two threads, after the first, which opens things."""
    batches = train_batches(dataset, batch_size=16, seed=seed)
    next(batches)
    began, count = time.perf_counter(), 0
    for _ in itertools.islice(batches, 200):
        count += 16
        if time.perf_counter() - began > _SECONDS:
            break
    return count / (time.perf_counter() - began)


def _range(values: np.ndarray) -> str:
    few, middle, most = (int(np.percentile(values, q)) for q in (0, 50, 100))
    return f"{few:,} … {most:,}, median {middle:,}"


def _balance(counts: Mapping[str, int]) -> str:
    total, ordered = sum(counts.values()), sorted(counts.items(), key=lambda pair: -pair[1])
    some = ", ".join(f"{name} {count / total:.0%}" for name, count in ordered[:6])
    return f"{len(counts)} values: {some}{', …' if len(ordered) > 6 else ''}"
