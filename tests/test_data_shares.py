"""Weights that change by step: against a slow reading of their definition, exact counts, and from any place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimodal.data import TaskBatches, open_source, train_batches
from unimodal.data.dataset import Dataset
from unimodal.data.epochs import epochs_of
from unimodal.data.order import endless
from unimodal.data.shares import Changing, Constant, Weight, parse_weight, shares
from unimodal.errors import UsageError

BATCH = 4
CASES = {
    "a line": [Weight((0, 50), (3.0, 1.0)), 1.0],
    "three, one from nothing and one to nothing": [
        Weight((0, 20, 90), (0.0, 0.0, 5.0)),
        2.0,
        Weight((10, 60), (1.0, 0.0)),
    ],
    "equal, so that all are due together": [Weight((0, 7), (1.0, 1.0)), Weight((3,), (1.0,)), 1.0],
}


def slowly(weights: list[Any], examples: int) -> tuple[np.ndarray, list[int]]:
    """How many each source should have after every number of examples, by adding up its share in thin slices; and from
    which source each example comes: the one that has waited longest since it was due."""
    slices = 500
    steps = sorted({0, *(s for w in weights if isinstance(w, Weight) for s in w.steps)})
    at = lambda w, s: np.interp(s, w.steps, w.values) if isinstance(w, Weight) else w  # noqa: E731
    knots = np.array([[at(w, s) for w in weights] for s in steps], float)
    knots /= knots.sum(axis=1, keepdims=True)
    middle = (np.arange(examples * slices) + 0.5) / slices / BATCH
    share = np.stack([np.interp(middle, steps, knots[:, i]) for i in range(len(weights))], axis=1)
    running = np.cumsum(share, axis=0) / slices
    dues = []
    for i in range(len(weights)):
        for k in itertools.count():
            if k + 0.5 > running[-1, i]:
                break
            dues.append((np.searchsorted(running[:, i], k + 0.5 - 1e-9), i))
    ideal = np.concatenate([np.zeros((1, len(weights))), running[slices - 1 :: slices]])
    return ideal, [source for _, source in sorted(dues)]


@pytest.mark.parametrize("case", CASES)
def test_the_order_is_that_of_a_slow_reading(case: str) -> None:
    weights = CASES[case]
    found, examples = shares(weights, BATCH), 480
    assert isinstance(found, Changing)
    whole = found.stretch(0, examples)
    ideal, order = slowly(weights, examples)
    counts = np.zeros(len(weights), int)
    for n, (source, index) in enumerate(whole):
        assert index == counts[source]  # each source in its own order, none left out
        counts[source] += 1
        assert np.abs(counts - ideal[n + 1]).max() <= 1.0 + 1e-3
        assert found.counts(n + 1) == counts.tolist()
    differs = sum(a != b for (a, _), b in zip(whole, order, strict=False))
    assert differs <= 6  # where two are due within a slice
    for first in (0, 1, 77, 200, 401):  # from any place, without those before it
        assert found.stretch(first, 30) == whole[first : first + 30]
    late = 40_000_000
    assert found.stretch(late, 3) == found.stretch(late - 5, 8)[5:]


def test_constant_shares_are_counted_as_grain_divides_them() -> None:
    class Numbers:
        parts = ((3, 1.0), (5, 2.5), (2, 0.3))

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            return index

    stream, counts = endless(Numbers(), 0), np.zeros(3, int)
    constant = shares([1.0, 2.5, 0.3], 1)
    assert isinstance(constant, Constant)
    for n in range(300):
        value: Any = stream[n]
        counts[0 if value < 3 else 1 if value < 8 else 2] += 1
        assert constant.counts(n + 1) == counts.tolist()


def test_weights_are_read_and_refused() -> None:
    assert parse_weight("3", 10, "a") == 3 and parse_weight("size", 10, "a") == 10
    assert parse_weight("2*size", 10, "a") == 20 and parse_weight("size^0.5", 16, "a") == 4
    assert parse_weight("0:size,500:1", 7, "a") == Weight((0, 500), (7.0, 1.0))
    for text, said in {
        "0": "should be above 0",
        "0:0,5:0": "is never above 0",
        "-1": "should be a number, size",
        "nan": "should be a number, size",
        "5:1,3:2": "should ascend",
        "a:1": "whole steps",
        "1,2": "whole steps",
    }.items():
        with pytest.raises(UsageError, match=said):
            parse_weight(text, 10, "a")
    with pytest.raises(UsageError, match="all joined sources are 0 at step 5"):
        shares([Weight((0, 5), (1.0, 0.0)), Weight((5, 6), (0.0, 1.0)), Weight((0, 5), (1.0, 0.0))], 1)


def test_a_run_goes_on_anywhere_with_exact_epochs(tmp_path: Path) -> None:
    for name, count in (("a", 12), ("b", 40)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}{i}"}}\n' for i in range(count)))
    uri = f"jsonl:{tmp_path}/a.jsonl?weight=0:1,10:0;jsonl:{tmp_path}/b.jsonl?weight=0:0,10:size^0.5"
    source = open_source(uri, "train")
    data = Dataset(source, lambda record, rng: {"draw": rng.random(2, np.float32)})
    make = lambda seed: train_batches(data, batch_size=BATCH, seed=seed, prefetch=False)  # noqa: E731
    whole = TaskBatches(make, 0, "t", lambda count: epochs_of(data, BATCH * count, BATCH))
    batches, sizes = [next(whole) for _ in range(20)], [len(part) for part in source.sources]  # pyright: ignore
    seen: list[dict[str, int]] = [{}, {}]
    for number, batch in enumerate(batches, start=1):
        for name in batch["id"]:
            which = seen["/b.jsonl/" in name]
            which[name] = which.get(name, 0) + 1
        told = epochs_of(data, BATCH * number, BATCH)
        assert [told["epoch/0"], told["epoch/1"]] == [sum(s.values()) / n for s, n in zip(seen, sizes, strict=True)]
        assert all(max(s.values()) - min(s.values()) <= 1 for s in seen if len(s) == sizes[seen.index(s)])
    assert whole.epochs() == told
    assert {"/a.jsonl/" in name for name in batches[0]["id"]} == {True}
    assert all("/b.jsonl/" in name for batch in batches[11:] for name in batch["id"])
    again = TaskBatches(make, 0, "t")
    again.set_state({"next_index": 13, "order": "seed and task"})
    for one, other in zip([next(again) for _ in range(7)], batches[13:], strict=True):
        assert one["id"].tolist() == other["id"].tolist() and (one["draw"] == other["draw"]).all()
