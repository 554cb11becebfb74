"""State that is not a parameter: momentum copies, queues and the average of all parameters, against their formulas."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from flax.errors import TraceContextError
from quick import named

from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import from_local_rows, make_mesh
from unimodal.state import Momentum, Queue
from unimodal.training.checkpoint import Checkpoints, saved_steps
from unimodal.training.loop import LoopConfig, train
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.step import Program
from unimodal.training.work import Work
from unimodal.training.workdir_start import start_from_workdir

ROWS, SIZE, WIDTH, STEPS, DECAY = 8, 12, 4, 5, 0.8  # the queue of 12 wraps round in the middle of the second batch of 8
ONE, FOUR, EIGHT = dict(data=1), dict(data=2, fsdp=2), dict(data=2, fsdp=2, tensor=2)
Mesh = Mapping[str, Any]


class Toy(nnx.Module):
    """An encoder, and a task's copy of it and queue of what the copy makes."""

    def __init__(self, key: jax.Array):
        self.encoder = Linear((3,), (WIDTH,), ("embed", "mlp"), rngs=nnx.Rngs(key))
        self.other = Linear((3,), (WIDTH,), ("embed", "mlp"), rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        self.state = nnx.Dict({})
        for task in ("toy", "second"):
            copy = Momentum(self, ("encoder",), 0.9, final=1.0)
            self.state[task] = nnx.Dict({"copy": copy, "queue": Queue(SIZE, WIDTH)})


def toy_loss(task: str, model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    kept = model.state[task]
    queries, keys = model.encoder(batch["x"]) + model.other(batch["x"]), kept["copy"].of(model).encoder(batch["x"])
    kept["queue"].push(keys)
    away = jnp.where(kept["queue"].valid()[None], queries @ kept["queue"].rows.get_value().T, 0.0)
    return (jnp.square(queries - keys - 1) + away.mean(axis=1, keepdims=True)).mean(), {}


def program(accumulate: int = 1, mesh: Mesh = ONE, ema: float = DECAY, **more: Any) -> Any:
    place = make_mesh(**mesh)
    return Program(Toy, more.pop("optimizer", optax.sgd(0.1)), place, 0, accumulate, steps=STEPS, ema=ema, **more)


def batch_at(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(ROWS, 3)).astype(np.float32)


def compiled(
    made: Program, task: str = "toy", loss: Callable[..., Any] | None = None
) -> Callable[[Any, np.ndarray], Any]:
    step = made.step({task: (loss or partial(toy_loss, task), 1.0)})

    def run(state: Any, x: np.ndarray) -> Any:
        with jax.set_mesh(made.mesh):
            return step(state, {task: from_local_rows({"x": x}, made.mesh, made.accumulate)})[0]

    return run


def run(made: Program) -> list[Any]:
    """The state before the first step and after each, on the host."""
    state, step = made.init(), compiled(made)
    states = [jax.device_get(state)]
    for i in range(STEPS):
        state = step(state, batch_at(i))
        states.append(jax.device_get(state))
    return states


@pytest.mark.parametrize(("accumulate", "mesh"), [(1, ONE), (4, ONE), (1, EIGHT), (2, FOUR)])
def test_each_step_advances_once_by_the_formulas(accumulate: int, mesh: Mesh) -> None:
    states = run(program(accumulate, mesh))
    after = [named(state.parameters) for state in states]
    copy = {name: value for name, value in after[0].items() if name.startswith("encoder.")}
    assert set(copy) == {"encoder.kernel", "encoder.bias"}
    ring, place = np.zeros((SIZE, WIDTH), np.float32), 0
    for i in range(STEPS):
        for row in batch_at(i) @ copy["encoder.kernel"] + copy["encoder.bias"]:  # keys are of the copy before the step
            ring[place] = row
            place = (place + 1) % SIZE
        m = 1 - (1 - 0.9) * (np.cos(np.pi * i / STEPS) + 1) / 2  # BYOL, §3.2
        copy = {name: m * value + (1 - m) * after[i + 1][name] for name, value in copy.items()}
        kept = named(states[i + 1].kept)
        for name, value in copy.items():
            np.testing.assert_allclose(kept[f"state.toy.copy.weights.{name}"], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept["state.toy.queue.rows"], ring, rtol=1e-4, atol=1e-5)
        assert kept["state.toy.queue.place"] == place and kept["state.toy.queue.filled"] == min(8 * (i + 1), SIZE)
        # The other task did not train, so what it keeps is as it was.
        assert np.array_equal(kept["state.second.copy.weights.encoder.kernel"], after[0]["encoder.kernel"])
        assert not kept["state.second.queue.rows"].any() and kept["state.second.queue.filled"] == 0
        weights = DECAY ** np.arange(i, -1, -1.0)
        for name in after[0]:
            mean = sum(w * values[name] for w, values in zip(weights, after[1 : i + 2], strict=True)) / weights.sum()
            np.testing.assert_allclose(named(states[i + 1].ema.values)[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(copy["encoder.kernel"] - after[0]["encoder.kernel"]).max() > 1e-3  # or else nothing was shown


def test_arrays_are_born_in_shards() -> None:
    state = program(mesh=EIGHT).init()
    queue, copy = state.kept["state"]["toy"]["queue"], state.kept["state"]["toy"]["copy"]["weights"]["encoder.kernel"]
    assert queue["rows"].get_value().sharding.shard_shape((SIZE, WIDTH)) == (SIZE // 4, WIDTH)
    kernel, average = state.parameters["encoder"]["kernel"], state.ema.values["encoder.kernel"]
    for other in (copy, average):
        assert other.get_value().sharding == kernel.get_value().sharding
        assert other.get_value().sharding.shard_shape(kernel.shape) == (3, 2)


def test_a_bad_step_advances_nothing() -> None:
    made = program(accumulate=2)
    state, step = made.init(), compiled(made)
    state = step(state, batch_at(0))
    before = jax.device_get(state)
    poisoned = batch_at(1)
    poisoned[3, 1] = np.nan
    after = jax.device_get(step(state, poisoned))
    assert int(after.step) == 2
    for mine, theirs in zip(*(jax.tree.leaves((s.kept, s.ema)) for s in (before, after)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_schedule_of_the_momentum() -> None:
    model = Toy(jax.random.key(0))
    rising = Momentum(model, ("encoder",), 0.96, final=0.99)
    found = [float(rising.at(jnp.int32(step), 100)) for step in (0, 25, 50, 100)]
    wanted = [0.96, 0.99 - 0.03 * (np.sqrt(0.5) + 1) / 2, 0.975, 0.99]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert float(Momentum(model, ("encoder",), 0.96).at(jnp.int32(70), 100)) == np.float32(0.96)


@pytest.mark.parametrize("count", [3, 5, 8, 13])
def test_more_rows_than_a_queue_holds(count: int) -> None:
    queue, wanted, number = Queue(5, 2), np.zeros((5, 2), np.float32), 0
    for _ in range(3):
        rows = np.arange(number, number + count, dtype=np.float32)[:, None] + np.array([[0, 0.5]], np.float32)
        queue.advance(None, jnp.asarray(rows), jnp.int32(0), 1)
        for row in rows:
            wanted[number % 5] = row
            number += 1
        np.testing.assert_array_equal(queue.rows.get_value(), wanted)
        assert int(queue.place.get_value()) == number % 5
        assert queue.valid().sum() == min(5, number)


def test_a_queue_that_waits_is_as_one_that_was_not_pushed_before() -> None:
    waiting, fresh = Queue(5, 2, wait=3), Queue(5, 2)
    for step in range(6):
        rows = jnp.full((2, 2), step + 1.0)
        waiting.advance(None, rows, jnp.int32(step), 10)
        if step >= 3:
            fresh.advance(None, rows, jnp.int32(step), 10)
        for ours, theirs in zip(jax.tree.leaves(nnx.state(waiting)), jax.tree.leaves(nnx.state(fresh)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert waiting.valid().sum() == min(5, 2 * max(0, step - 2))


def test_a_queue_of_numbers() -> None:
    queue = Queue(4, dtype=jnp.int32)
    queue.advance(None, jnp.arange(6, dtype=jnp.int32), jnp.int32(0), 1)
    assert queue.rows.get_value().tolist() == [4, 5, 2, 3]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_views_are_pushed_one_whole_batch_after_the_other(accumulate: int) -> None:
    def both(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        rows = jnp.pad(batch["x"], ((0, 0), (0, WIDTH - 3)))
        model.state["toy"]["queue"].push(rows[::1])
        model.state["toy"]["queue"].push(-rows)
        return jnp.square(model.encoder(batch["x"])).mean(), {}

    made = program(accumulate)
    state = compiled(made, loss=both)(made.init(), batch_at(0))
    wanted = np.concatenate([batch_at(0), -batch_at(0)])  # 16 rows; the last 12 stay, from slot 4 on
    found = np.asarray(state.kept["state"]["toy"]["queue"]["rows"].get_value())[:, :3]
    np.testing.assert_array_equal(found, np.roll(wanted[4:], 4, axis=0))


def loaded(parameters: Any) -> Any:
    """What `init_from` does: other values in the place of those that were made, whose arrays are deleted."""
    found = jax.tree.map(lambda x: jax.device_put(np.asarray(x) + 7, x.sharding), parameters)
    jax.tree.map(lambda x: x.delete(), parameters)
    return found


@pytest.mark.parametrize("mesh", [ONE, EIGHT])
def test_it_begins_when_published_weights_are_in_place(mesh: Mesh) -> None:
    made = program(mesh=mesh, start=loaded)
    state, plain = made.init(), named(program(ema=0).init().parameters)
    weights, kept = named(state.parameters), named(state.kept)
    for name in weights:
        np.testing.assert_array_equal(weights[name], plain[name] + 7)
        np.testing.assert_array_equal(named(state.ema.values)[name], weights[name])
    for model in (kept, named(made.first_model())):
        np.testing.assert_array_equal(model["state.toy.copy.weights.encoder.kernel"], weights["encoder.kernel"])
    assert int(compiled(made)(state, batch_at(0)).step) == 1  # no two arrays of the state are one: they are donated


def test_a_loss_cannot_change_what_is_kept_by_itself() -> None:
    def meddling(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        model.state["toy"]["queue"].place.set_value(jnp.int32(3))
        return jnp.square(model.encoder(batch["x"])).mean(), {}

    for accumulate in (1, 2):
        made = program(accumulate)
        with pytest.raises(TraceContextError):
            compiled(made, loss=meddling)(made.init(), batch_at(0))


def save(workdir: Path, state: Any) -> str:
    checkpoints = Checkpoints(workdir)
    mark = checkpoints.save(state, {})
    checkpoints.close()
    return mark


def restore(workdir: Path, made: Program) -> tuple[Any, str]:
    checkpoints = Checkpoints(workdir, create=False)
    try:
        state, _, mark = checkpoints.restore(made.abstract_state())
        return state, mark
    finally:
        checkpoints.close()


def test_saved_and_restored_onto_other_meshes_bit_for_bit(tmp_path: Path) -> None:
    made = program(mesh=EIGHT)
    state, step = made.init(), compiled(made)
    for i in range(2):
        state = step(state, batch_at(i))
    mark, wanted = save(tmp_path, state), jax.device_get(state)
    for mesh in (ONE, FOUR, EIGHT):
        other = program(mesh=mesh)
        found, same = restore(tmp_path, other)
        assert same == mark
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for mine, theirs in zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        on = jax.device_get(compiled(other)(found, batch_at(2)))
        if mesh == ONE:
            alone = on
        for mine, theirs in zip(
            jax.tree.leaves((on.kept, on.ema)), jax.tree.leaves((alone.kept, alone.ema)), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    changed, _ = restore(tmp_path, other)
    rows = changed.kept["state"]["toy"]["queue"]["rows"]
    rows.set_value(rows.get_value().at[5, 1].add(1e-3))
    assert save(tmp_path / "other", changed) != mark


class Stream:
    """The batches of `batch_at`, one for each step."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        self.at += 1
        return {"x": batch_at(self.at - 1)}

    def get_state(self) -> dict[str, Any]:
        return {"at": self.at}

    def set_state(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def looped(workdir: Path, steps: int, mesh: Mesh, **more: Any) -> tuple[Any, str]:
    task: Any = SimpleNamespace(name="toy", batch_size=ROWS, weight=1.0, loss=partial(toy_loss, "toy"))
    config = LoopConfig(steps=steps, log_every=1000, **more)
    batches: Any = {"toy": Stream()}
    return train(program(mesh=mesh), Work([task], batches, {"toy": 1}), config, workdir)[:2]


def test_it_survives_a_kill_and_goes_on_on_another_mesh(tmp_path: Path) -> None:
    code = "import conftest, pathlib, sys, test_state as t; t.looped(pathlib.Path(sys.argv[1]), 10**6, t.EIGHT, checkpoint_every=3)"
    line = [sys.executable, "-c", code, str(tmp_path / "killed")]
    paths = os.pathsep.join([str(Path(__file__).parent), tiny.environment()["PYTHONPATH"]])
    child = subprocess.Popen(line, env=tiny.environment(PYTHONPATH=paths), stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 180
        while len(saved_steps(tmp_path / "killed")) < 2:
            assert child.poll() is None and time.monotonic() < until
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    step = max(saved_steps(tmp_path / "killed"))
    wanted, mark = looped(tmp_path / "whole", step, EIGHT)
    found, same = restore(tmp_path / "killed", program(mesh=FOUR))
    assert same == mark
    for name, value in named((wanted.kept, wanted.ema)).items():
        np.testing.assert_array_equal(named((found.kept, found.ema))[name], value, err_msg=name)
    on, _ = looped(tmp_path / "killed", step + 2, FOUR)
    whole, _ = looped(tmp_path / "whole", step + 2, EIGHT)
    for name, value in named((whole.kept, whole.ema)).items():
        np.testing.assert_allclose(named((on.kept, on.ema))[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_average_that_was_not_kept_is_one_line(tmp_path: Path) -> None:
    without, having = program(ema=0.0), program()
    save(tmp_path / "without", without.init())
    save(tmp_path / "having", having.init())
    with pytest.raises(UsageError, match="checkpoint 0 has no average of the parameters: its run kept none; leave ema"):
        restore(tmp_path / "without", having)
    with pytest.raises(UsageError, match="checkpoint 0 has an average of the parameters; give the ema of its run"):
        restore(tmp_path / "having", without)
    (tmp_path / "without" / "config.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"without kept no average of its parameters \(ema=0 there\); leave out init_ema"
    ):
        start_from_workdir(tmp_path / "without", without.init().parameters, ema=True)
    for changes, message in (
        (dict(evaluate_ema=True), "evaluate_ema=True, but this run keeps no average"),
        (dict(init_ema=True), "init_ema=True needs init_from"),
        (dict(ema=1.0), "ema must be at least 0 and below 1, but is 1.0"),
        (dict(ema=0.9, optimizer__name="schedule_free"), "schedule_free keeps an average of its own"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny.build(tiny.plain("vit", **changes))


def test_a_run_starts_from_the_average_of_another(tmp_path: Path) -> None:
    made = program(mesh=FOUR)
    state = made.init()
    for i in range(3):
        state = compiled(made)(state, batch_at(i))
    save(tmp_path, state)
    (tmp_path / "config.json").write_text("{}")
    last, average = named(state.parameters), named(state.ema.values)
    assert np.abs(last["encoder.kernel"] - average["encoder.kernel"]).max() > 1e-3
    for ema, wanted in ((False, last), (True, average)):
        start = start_from_workdir(tmp_path, made.init().parameters, ema=ema)
        assert ("4 of them its average" in start.report()) == ema
        begun = program(mesh=EIGHT, start=start.fill).init()
        for name, value in named(begun.parameters).items():
            np.testing.assert_array_equal(value, wanted[name])
        copy = begun.kept["state"]["toy"]["copy"]["weights"]["encoder.kernel"]
        np.testing.assert_array_equal(copy.get_value(), wanted["encoder.kernel"])


def test_the_average_is_evaluated_by_choice() -> None:
    made = program()
    state = made.init()
    for i in range(3):
        state = compiled(made)(state, batch_at(i))
    x = batch_at(9)
    for evaluate_ema, weights in ((True, state.ema.values), (False, named(state.parameters))):
        model = program(evaluate_ema=evaluate_ema).model(state)
        wanted = x @ np.asarray(named(weights)["encoder.kernel"]) + named(weights)["encoder.bias"]
        np.testing.assert_allclose(model.encoder(x), wanted, rtol=1e-5, atol=1e-6)


class Half(nnx.Module):
    def __init__(self, key: jax.Array):
        self.a = Linear((8,), (8,), ("embed", "mlp"), dtype=jnp.bfloat16, rngs=nnx.Rngs(key))
        self.b = Linear((8,), (8,), ("embed", "mlp"), dtype=jnp.bfloat16, rngs=nnx.Rngs(key))
        self.state = nnx.Dict({"toy": nnx.Dict({"copy": Momentum(self, ("a.kernel",), 0.999)})})


def test_half_precision_is_averaged_in_float32_and_what_is_frozen_is_not() -> None:
    """The master's updates of 1e-4 are lost between two bfloat16 numbers near 1, which are 2⁻⁷ apart."""

    def loss(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        return (model.a.kernel.get_value().astype(jnp.float32) * batch["x"].mean()).sum(), {}

    def ones(parameters: Any) -> Any:
        return jax.tree.map(lambda x: jnp.ones_like(x), parameters)

    config = OptimizerConfig(
        name="sgd", momentum=0.0, learning_rate=1e-4, warmup=0, final=1.0, clip=0.0, weight_decay=0.0,
        freeze=("b",), master_weights=True,
    )  # fmt: skip
    made: Any = Program(Half, make_optimizer(config, 10), make_mesh(data=1), 0, steps=10, ema=0.5, start=ones)
    state, step = made.init(), compiled(made, loss=loss)
    for _ in range(3):
        state = step(state, np.ones((8, 1), np.float32))
    assert set(state.ema.values) == {"a.kernel", "a.bias"}
    average = state.ema.values["a.kernel"].get_value()
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(1 - average, 1e-4 * (0.25 * 1 + 0.5 * 2 + 1 * 3) / 1.75, rtol=2e-3)
    assert state.kept["state"]["toy"]["copy"]["weights"]["a.kernel"].get_value().dtype == jnp.float32
    model = made.model(state)
    assert model.a.kernel.get_value().dtype == jnp.bfloat16
    np.testing.assert_array_equal(model.b.kernel.get_value(), 1)
    assert model.state["toy"]["copy"].of(model).a.kernel.get_value().dtype == jnp.bfloat16
