"""Worker processes change nothing but the speed: the same ids in the same order, for any number of them and across restarts."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow.parquet as parquet
import pytest
import tiny
from PIL import Image

from unimodal.data import Dataset, TaskBatches, Where, cached, train_batches
from unimodal.data.blocks import Images, Labels, Pixels, columns, labels, pixels
from unimodal.data.epochs import epochs_of
from unimodal.data.handing import handed, taken
from unimodal.data.workers import WorkerBatches
from unimodal.errors import UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(44):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / "ab"[i % 2] / f"{i}.png")
    return f"folder:{root}"


def dataset(photos: str) -> Any:
    labels = Labels()
    return columns(photos, Images(crop=(0.5, 1.0), flip=0.5).part((16, 16)), labels.part(photos)).dataset("train")


def same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])


def test_workers_are_told_what_was_found_in_the_data(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them reads the column of classes, or fits a palette, once more."""
    parts = Labels().part(photos), Pixels(count=4).row(photos, (8, 8))
    made = columns(photos, *parts).dataset("train")
    expected, packed = made.stream(0)[0], cloudpickle.dumps(made)
    monkeypatch.setattr(labels, "_found", None)
    monkeypatch.setattr(pixels, "_fitted", None)
    same([cloudpickle.loads(packed).stream(0)[0]], [expected])


def test_the_order_is_that_of_one_process_across_restarts(photos: str) -> None:
    whole = train_batches(dataset(photos), batch_size=8, seed=3, prefetch=False)
    expected, found, state = [next(whole) for _ in range(12)], [], None
    for workers, count in ((2, 4), (4, 3), (0, 2), (1, 3)):  # 2 → 4 → none → 1
        batches = train_batches(dataset(photos), batch_size=8, seed=3, workers=workers)
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        found += [next(batches) for _ in range(count)]
        state = batches.get_state()
        assert state == {"next_index": len(found)}
        if isinstance(batches, WorkerBatches):
            batches.close()
    same(found, expected)
    ids = [name for batch in found for name in batch["id"]]
    assert len(set(ids[: len(dataset(photos))])) == len(dataset(photos))  # an epoch has everybody once


class Fragile:
    """Batches that end the process that makes number 3: once, or always."""

    def __init__(self, flag: str, always: bool) -> None:
        self.flag, self.always = flag, always

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 3 and (self.always or not os.path.exists(self.flag)):
            open(self.flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"few": np.array([index]), "many": np.full((1 << 10, 17), index, np.float64)}


def numbers(batches: WorkerBatches, count: int) -> list[int]:
    made = [next(batches) for _ in range(count)]
    assert all((batch["many"] == batch["few"]).all() for batch in made)
    return [int(batch["few"][0]) for batch in made]


def test_a_worker_that_dies_is_replaced_once(tmp_path: Path) -> None:
    batches = WorkerBatches(Fragile(str(tmp_path / "once"), False), 2)
    assert numbers(batches, 6) == list(range(6))
    batches.close()
    batches = WorkerBatches(Fragile(str(tmp_path / "always"), True), 1)
    with pytest.raises(UsageError, match=r"a worker died twice over batch \d: out of memory, or a record that ends"):
        numbers(batches, 6)
    batches.close()


def test_the_record_that_ends_workers_is_named_and_they_import_no_jax() -> None:
    def decode(record: dict[str, Any]) -> dict[str, Any]:
        if record["id"] == "no. 17":
            os.kill(os.getpid(), signal.SIGKILL)
        return {**record, "jax": np.bool_("jax" in sys.modules)}

    records = [{"id": f"no. {i}"} for i in range(64)]
    source = cached(records, decode, where=Where("folder:x", "train"))  # pyright: ignore[reportArgumentType]
    whole = Dataset(source, lambda record, rng: {"jax": record["jax"]})
    batches, made = train_batches(whole, batch_size=4, seed=0, workers=2), 0
    assert isinstance(batches, WorkerBatches)
    with pytest.raises(UsageError, match=r"a worker died twice over batch \d+, reading folder:x train no. 17: out"):
        for batch in batches:
            assert not batch["jax"].any()
            made += 1
    batches.close()
    assert made


def test_batches_that_wait_are_made_again_where_their_workers_died(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    batches = WorkerBatches(Fragile(str(tmp_path / "there"), False), 2)
    assert numbers(batches, 2) == [0, 1]
    concurrent.futures.wait(batches._waiting)
    for worker in list(batches._pool._processes):  # type: ignore[union-attr]
        os.kill(worker, signal.SIGKILL)
    assert numbers(batches, 4) == [2, 3, 4, 5]
    batches.close()


class Small:
    """Batches that are sent as they are: what a worker made is there after its death."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"few": np.array([index])}


def test_workers_that_died_between_two_batches_are_replaced() -> None:
    batches = WorkerBatches(Small(), 2)
    assert next(batches)["few"] == 0
    concurrent.futures.wait(batches._waiting)
    pool: Any = batches._pool
    for worker in list(pool._processes):
        os.kill(worker, signal.SIGKILL)
    for _ in range(500):  # until the pool knows of it, and takes nothing more
        if pool._broken:
            break
        time.sleep(0.01)
    assert pool._broken and [int(next(batches)["few"][0]) for _ in range(8)] == [*range(1, 9)]
    batches.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="sent as they are on this system")
def test_large_arrays_are_mapped_until_nobody_has_them() -> None:
    mapped = lambda: Path("/proc/self/maps").read_text().count("memfd:batch")  # noqa: E731
    rng = np.random.default_rng(0)
    batch = {"id": np.array(["a", "b"]), "odd": rng.integers(0, 255, 70_001, np.uint8), "x": rng.random((90, 7, 200))}
    batch["x"] = batch["x"].T  # not in C's order
    sent, before = ForkingPickler.dumps(handed(batch)), mapped()
    assert len(sent) < 2000
    found = taken(pickle.loads(sent))
    assert list(found) == list(batch) and mapped() == before + 1
    for name in batch:
        np.testing.assert_array_equal(found[name], batch[name], strict=True)
    assert found["x"].flags.writeable and found["x"].ctypes.data % 64 == 0
    last = found.pop("odd")
    del found
    assert mapped() == before + 1 and last[5] == batch["odd"][5]
    del last
    assert mapped() == before


def test_epochs_of_each_source_are_counted(photos: str) -> None:
    class Parts:
        parts = ((10, 1.0), (90, 3.0))

    class Data:
        source = Parts()

    assert epochs_of(Data(), 400) == {"epoch/0": 10.0, "epoch/1": 400 * 0.75 / 90}
    whole, size = dataset(photos), len(dataset(photos))
    make = lambda seed: train_batches(whole, batch_size=8, seed=seed, prefetch=False)  # noqa: E731
    batches = TaskBatches(make, 0, "vit", lambda count: epochs_of(whole, 8 * count))
    next(batches), next(batches)
    assert batches.epochs() == {"epoch": 16 / size}


def test_a_run_with_workers_is_a_run_and_logs_the_loss_of_each_example(photos: str, tmp_path: Path) -> None:
    config = tiny.plain("vit", "clip", steps=4, tasks__vit__source=photos, optimizer__accumulate=2)
    plain = tiny.train(config, tmp_path / "plain")
    run = tiny.train({**config, "workers": 1, "example_losses_every": 2}, tmp_path / "workers")
    assert run.fingerprint == plain.fingerprint and run.losses("vit") == plain.losses("vit")
    size = len(dataset(photos))
    assert [row["epoch"] for row in run.metrics["vit"].values()] == [8 * step / size for step in (1, 2, 3, 4)]
    found = sorted((tmp_path / "workers" / "example_losses").iterdir())
    assert [path.name for path in found] == ["vit-00000002.parquet", "vit-00000004.parquet"]  # CLIP's loss is of no one
    for path, step in zip(found, (2, 4), strict=True):
        table = parquet.read_table(path).to_pydict()
        assert table["step"] == [step] * 8 and len(set(table["id"])) == 8
        # No dropout here, so the mean over examples is what the step itself logged.
        np.testing.assert_allclose(np.mean(table["loss"]), run.losses("vit")[step], rtol=1e-5)
    assert np.std(table["loss"]) > 0  # of step 4; the head begins at zero, so that the first losses are all one


WORKER = """
import pickle, sys
from pathlib import Path
from unimodal.worker import begin
begin("builtins:print", "begun")
for path in sys.argv[1:]:
    pickle.loads(Path(path).read_bytes())[0]
    assert "jax" not in sys.modules, path
"""


def test_workers_make_batches_of_any_task_without_jax(tmp_path: Path) -> None:
    experiment, paths = tiny.build(tiny.plain("gpt", "bert", "vit", "clip", "wav2vec2", "ctc")), []
    for task in experiment.tasks:
        batches = task.inputs(experiment.model).dataset("train").batches(0, 2, (0, 1))
        paths.append(tmp_path / task.name)
        paths[-1].write_bytes(cloudpickle.dumps(batches))
    line = [sys.executable, "-c", WORKER, *map(str, paths)]
    done = subprocess.run(line, env=tiny.environment(1), cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begun\n" and "jax" not in done.stderr


SCRIPT = """
import sys
open(sys.argv[1], "a").write("run\\n")
import jax, numpy as np
from unimodal.data import Dataset, train_batches
ten, source = np.int32(10), [{"id": str(i)} for i in range(8)]
made = Dataset(source, lambda record, rng: {"n": ten + int(record["id"])})
batches = train_batches(made, batch_size=8, seed=0, workers=3)
print("main", [sorted(next(batches)["n"]) == list(range(10, 18)) for _ in range(9)] == 9 * [True], flush=True)
batches.close()
"""


def test_workers_do_not_run_the_main_script_again(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    line = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "runs")]
    done = subprocess.run(line, env=tiny.environment(1, PYTHONPATH=str(tiny.ROOT)), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "main True\n", done.stdout + done.stderr
    assert (tmp_path / "runs").read_text() == "run\n"  # by the main process alone, however many workers there are
