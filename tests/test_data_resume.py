"""Whatever a run is made of, and however often it is killed: ids in the order of a run that nobody disturbed."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from unimodal.data import TaskBatches, packed_rows, train_batches
from unimodal.data.bucketing import Buckets
from unimodal.data.dataset import Dataset
from unimodal.data.filling import Together, filled
from unimodal.data.shares import Weight

BATCH, STEPS = 8, 40


@dataclasses.dataclass(frozen=True)
class Lengthy:
    """Records of several lengths, in two parts where they have weights."""

    count: int = 90
    parts: tuple[tuple[int, Any], ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": f"r{index}", "value": index, "text": "x" * int(self.lengths[index])}

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.random.default_rng(5).integers(1, 30, self.count)


def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
    row = np.zeros(32, np.int32)
    row[: len(record["text"])] = 1
    return {"row": row, "draw": rng.random(2, np.float32)}


def cut(batch: Mapping[str, np.ndarray], edge: int) -> dict[str, np.ndarray]:
    return {**batch, "row": batch["row"][:, :edge]}


def datasets() -> dict[str, Dataset]:
    plain, encode = Lengthy(), lambda text: np.full(len(text), 9, np.int32)
    rows = tuple(map(tuple, filled(plain.lengths.tolist(), 32)))
    return {
        "plain": Dataset(plain, example),
        "changing shares": Dataset(Lengthy(parts=((30, Weight((0, 25), (5.0, 0.0))), (60, 1.0))), example),
        "buckets": Dataset(plain, example, Buckets(plain.lengths, (8, 16, 32), cut)),
        "together": Dataset(Together(plain, rows), lambda record, rng: example(record["records"][0], rng)),
        "packed": packed_rows(plain, encode, 32, fit="best_fit"),
    }


def task_batches(dataset: Dataset, rows: Sequence[int]) -> TaskBatches:
    make = lambda seed: train_batches(dataset, batch_size=BATCH, seed=seed, rows=rows, prefetch=False)  # noqa: E731
    return TaskBatches(make, 3, "task")


def steps_of(dataset: Dataset, processes: int, state: Any, count: int) -> tuple[list[dict[str, np.ndarray]], Any]:
    """`count` global batches as so many processes read them from a state, and the state after them."""
    each = BATCH // processes
    parts = [task_batches(dataset, range(p * each, (p + 1) * each)) for p in range(processes)]
    for part in parts:
        if state is not None:
            part.set_state(json.loads(json.dumps(state)))
    found = []
    for _ in range(count):
        made = [next(part) for part in parts]
        found.append({name: np.concatenate([one[name] for one in made]) for name in made[0]})
    assert all(part.get_state() == parts[0].get_state() for part in parts)
    return found, parts[0].get_state()


@pytest.mark.parametrize("kind", datasets())
@pytest.mark.parametrize("processes", [(1, 1), (2, 2), (4, 4), (2, 4, 1)], ids=str)
def test_the_order_survives_kills_and_other_numbers_of_processes(kind: str, processes: tuple[int, ...]) -> None:
    dataset = datasets()[kind]
    whole, _ = steps_of(dataset, 1, None, STEPS)
    rng, state, found = random.Random(f"{kind} {processes}"), None, []
    for number, count in enumerate(processes):
        last = number == len(processes) - 1
        steps = STEPS - len(found) if last else rng.randrange(1, STEPS // 2)
        made, after = steps_of(dataset, count, state, steps)
        if not last:  # killed some steps after the checkpoint: those are done again
            kept = rng.randrange(steps + 1)
            state = {**after, "next_index": after["next_index"] - (steps - kept)}
            made = made[:kept]
        found += made
    for one, other in zip(found, whole, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


RUN = """
import json, sys, time
from pathlib import Path
import test_data_resume as t
name, processes, index, steps, folder = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
each = t.BATCH // processes
batches = t.task_batches(t.datasets()[name], range(index * each, (index + 1) * each))
saved = folder / "state.json"
if saved.exists():
    batches.set_state(json.loads(saved.read_text()))
begin = batches.get_state()["next_index"]
with (folder / f"{processes}-{index}.jsonl").open("a") as out:
    for step in range(begin, steps):
        out.write(json.dumps([step, next(batches)["id"].tolist()]) + "\\n")
        out.flush()
        time.sleep(0.005)
"""


@pytest.mark.parametrize("kind", ["buckets"])
def test_real_processes_that_are_killed(kind: str, tmp_path: Path) -> None:
    whole, _ = steps_of(datasets()[kind], 1, None, 200)
    seen: dict[int, list[str]] = {}
    for processes in (2, 1):
        environment = tiny.environment(PYTHONPATH=f"{Path(__file__).parent}:{Path(__file__).parent.parent}")
        command = [sys.executable, "-c", RUN, kind, str(processes)]
        begun = [subprocess.Popen([*command, str(i), "200", str(tmp_path)], env=environment) for i in range(processes)]
        files = [tmp_path / f"{processes}-{i}.jsonl" for i in range(processes)]
        if processes != 1:
            while not all(file.exists() and file.read_bytes().count(b"\n") > 5 for file in files):
                assert all(child.poll() is None for child in begun)
                time.sleep(0.02)
            time.sleep(random.Random(processes).random() * 0.2)
            for child in begun:
                child.kill()
        assert [child.wait(60) for child in begun] == [0 if processes == 1 else -9] * processes
        # A line that a kill cut short has no end.
        lines = [[json.loads(x) for x in file.read_bytes().split(b"\n")[:-1]] for file in files]
        for parts in zip(*lines, strict=False):
            assert len({step for step, _ in parts}) == 1
            seen[parts[0][0]] = [name for _, ids in parts for name in ids]
            assert seen[parts[0][0]] == whole[parts[0][0]]["id"].tolist()
        # The last checkpoint is from some steps before all were killed: those are done again.
        state = {"next_index": max(0, min(part[-1][0] for part in lines) - 2), "order": "seed and task"}
        (tmp_path / "state.json").write_text(json.dumps(state))
    assert sorted(seen) == list(range(200))
