"""One task after the other: who trains when, what is held, what is remembered, and what forgetting comes to."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import launch
from unimodal.command.going_on import check_order
from unimodal.continual import ContinualConfig
from unimodal.continual.anchor import NAME, Anchor
from unimodal.continual.matrix import matrix_of, metrics
from unimodal.continual.memory import (
    Memory,
    Remembering,
    check_memory,
    chosen,
    evenly_of_classes,
    size_of,
    with_memory,
)
from unimodal.continual.strategies import ewc, l2
from unimodal.continual.strategy import OWNER, Plan, Run
from unimodal.data.batches import train_batches
from unimodal.data.bucketing import Buckets
from unimodal.data.dataset import Dataset, as_is
from unimodal.data.order import order_seed
from unimodal.data.shares import Weight
from unimodal.errors import UsageError
from unimodal.objectives.terms import as_scalars
from unimodal.report.views.forgetting import forgetting_view
from unimodal.training.importance import of_one_example, squared_gradients
from unimodal.training.sequence import InSequence, in_sequence

SMALL: dict[str, Any] = dict(
    tokenizers=dict(image=dict(image_size=(8, 8), patch=4)),
    backbones=dict(shared=dict(width=16, depth=1, heads=2)),
    tasks={name: dict(kind="vit", batch_size=8, images=dict(flip=flip)) for name, flip in (("one", 0.0), ("two", 1.0))},
    schedule="sequence",
    steps=6,
    log_every=1,
    optimizer=dict(name="sgd", learning_rate=0.1),
)


def config(**changes: Any) -> dict[str, Any]:
    return {**tiny.plain("vit"), **SMALL, **changes}


# --- the schedule -------------------------------------------------------------------------------------------------------


def test_tasks_train_one_after_the_other() -> None:
    schedule = in_sequence(["a", "b", "c"], 7, [])
    assert schedule.steps == (3, 2, 2)
    assert in_sequence(["a", "b", "c"], 9, ["c", "a=1", "b"]) == InSequence(("c", "a", "b"), (4, 1, 4))
    assert [schedule.who(step)[0] for step in range(7)] == ["a", "a", "a", "b", "b", "c", "c"]
    assert {step: schedule.ended(step) for step in range(8)} == {
        **dict.fromkeys(range(8)),
        3: "a",
        5: "b",
        7: "c",
    }
    assert schedule.weights() == {("a",): {"a": 1.0}, ("b",): {"b": 1.0}, ("c",): {"c": 1.0}}
    replaying = InSequence(("a", "b", "c"), (3, 2, 2), replay=0.5)
    assert [replaying.who(step) for step in (0, 3, 6)] == [("a",), ("b", "a"), ("c", "a", "b")]
    assert replaying.weights()["c", "a", "b"] == {"c": 1.0, "a": 0.25, "b": 0.25}
    assert set(replaying.weights()) == {replaying.who(step) for step in range(7)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tasks=dict(vit=dict(batch_size=8))), "needs at least two tasks, but there is only vit"),
        (dict(sequence=["one", "too"]), "sequence names 'too', which is none of the tasks; did you mean two?"),
        (dict(sequence=["one"]), "sequence should name each task once, of one, two, but is one"),
        (dict(sequence=["one=1", "two=2"]), "sequence=one=1, two=2 does not come to the 6 steps that steps says"),
        (dict(sequence=["one=6", "two"]), "does not come to the 6 steps"),
        (dict(sequence=["one=0", "two"]), "sequence has one=0, which should be a number of steps of at least 1"),
        (
            dict(continual=dict(strategy="ewk")),
            "continual strategy='ewk' is not one of agem, der, ewc, fine_tuning, l2, lwf",
        ),
        (dict(continual=dict(memory=0)), "continual memory must be at least 1"),
        (dict(continual=dict(strenth=1)), "unknown config field continual.strenth; did you mean strength?"),
        (dict(schedule="sum", continual=dict(strategy="ewc")), "continual is for schedule='sequence'"),
    ],
)
def test_slips_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.build(config(**changes))


def test_a_memory_larger_than_the_set_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"continual.memory=1000000 is more than the \d+ training examples of tasks.one"
    ):
        tiny.build(config(continual=dict(strategy="replay", memory=1_000_000))).plan()
    check_memory(5, 5, "x")


# --- the penalty, against a quadratic worked by hand ------------------------------------------------------------------


class Quadratic(nnx.Module):
    """L_t(θ) = ½ Σ aₜ (θ − cₜ)²: a task whose importance, minimum and penalty are known."""

    def __init__(self) -> None:
        self.theta = nnx.Param(jnp.zeros(3, jnp.float32))


def loss(theta: jax.Array, a: Any, c: Any) -> jax.Array:
    return 0.5 * (a * jnp.square(theta - c)).sum()


@pytest.mark.parametrize("strategy", ["ewc", "l2"])
def test_the_penalty_of_quadratics_is_that_worked_by_hand(strategy: str) -> None:
    a1, c1 = np.array([1.0, 4.0, 0.0], np.float32), np.array([1.0, -2.0, 5.0], np.float32)
    a2, c2 = np.array([2.0, 0.5, 3.0], np.float32), np.array([-1.0, 3.0, 7.0], np.float32)
    chosen = ContinualConfig(strategy=strategy, strength=0.7, decay=0.5)
    model = Quadratic()
    anchor = Anchor(model)
    assert anchor.penalty(model) == 0  # until a task has ended nothing is held
    model.theta.set_value(jnp.asarray(c1))  # the first task ends at its minimum, with squared gradients
    squares = {"theta": jnp.asarray(a1**2)}
    rule = dict(ewc=ewc, l2=l2)[strategy].Strategy(chosen, ()).rule
    anchor.consolidate(model, squares, rule)
    omega = a1**2 if strategy == "ewc" else np.array([1.0, 1.0, 0.0])

    def total(theta: jax.Array) -> jax.Array:
        there = Quadratic()
        there.theta.set_value(theta)
        return loss(theta, a2, c2) + chosen.strength * anchor.penalty(there)

    step = lambda _, theta: theta - jnp.float32(0.05) * jax.grad(total)(theta)  # noqa: E731
    theta = jax.jit(lambda theta: jax.lax.fori_loop(0, 2000, step, theta))(jnp.asarray(c1))
    # Where a₂(θ − c₂) + λΩ(θ − c₁) = 0.
    wanted = (a2 * c2 + 0.7 * omega * c1) / (a2 + 0.7 * omega)
    np.testing.assert_allclose(theta, wanted, rtol=1e-4)
    np.testing.assert_allclose(
        total(theta), loss(wanted, a2, c2) + 0.35 * (omega * (wanted - c1) ** 2).sum(), rtol=1e-5
    )

    # A second task: ewc's importance is decayed and added to, l2's is what any task has used.
    model.theta.set_value(theta)
    anchor.consolidate(model, {"theta": jnp.asarray([0.0, 1.0, 9.0], jnp.float32)}, rule)
    both = 0.5 * omega + np.array([0.0, 1.0, 9.0]) if strategy == "ewc" else np.ones(3)
    np.testing.assert_allclose(anchor.importance["theta"].get_value(), both, rtol=1e-6)
    assert anchor.penalty(model) == 0


def test_squared_gradients_are_those_of_the_loss() -> None:
    experiment = tiny.build(config())
    program, task, state = experiment.program, experiment.tasks[0], experiment.program.init()
    found = squared_gradients(program, [task], state, {"one": experiment.train_batches(task)}, 2)
    batches, gradients = experiment.train_batches(task), []
    model = program.model(state)
    for number in range(2):
        batch = {name: jnp.asarray(rows) for name, rows in next(batches).items() if name != "id"}
        key = jax.random.fold_in(jax.random.key(program.seed + 1), number)
        key = jax.random.fold_in(key, zlib.crc32(b"one"))
        structure, parameters, rest = nnx.split(model, nnx.Param, ..., graph=False)

        def value(p: Any, batch: Any = batch, key: Any = key, structure: Any = structure, rest: Any = rest) -> Any:
            made = nnx.merge(structure, p, rest)
            return as_scalars(*task.loss(made, batch, key=key, step=jnp.int32(0)))[0]

        gradients.append(jax.tree.leaves(jax.grad(value)(parameters)))
    for a, one, two in zip(jax.tree.leaves(found), *gradients, strict=True):
        # Of two batches of 8: the variance of a batch is half the square of their distance.
        wanted = (8 - 1 / 2) * np.square(one - two) / 2 + np.square((one + two) / 2)
        np.testing.assert_allclose(a, wanted, rtol=2e-3, atol=1e-9)


def test_gradients_of_batches_tell_the_mean_square_of_one_example_s() -> None:
    rng, size, count = np.random.default_rng(0), 16, 4000
    for mean in (0.0, 0.5, 3.0):  # far from rest, the square of a batch's gradient is mostly its mean
        each = (mean + rng.normal(size=(count, size)) * [[0.7]]).astype(np.float32)
        batches = each.mean(axis=1)
        found = of_one_example(jnp.sum(batches), jnp.sum(batches**2), size, count)
        np.testing.assert_allclose(found, np.mean(each**2), rtol=0.05)
    np.testing.assert_allclose(of_one_example(jnp.float32(0.5), jnp.float32(0.25), 8, 1), 2.0)
    # Unbiased of as few as two batches.
    pairs = 0.5 + rng.normal(size=(20_000, 2, size)).mean(axis=2)
    found = of_one_example(jnp.asarray(pairs.sum(1)), jnp.asarray((pairs**2).sum(1)), size, 2)
    np.testing.assert_allclose(np.mean(found), 0.5**2 + 1, rtol=0.03)


# --- the memory ---------------------------------------------------------------------------------------------------------


class Counting:
    """Batches whose numbers count up."""

    def __init__(self) -> None:
        self.n = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.n += 1
        return {"x": np.arange(4 * (self.n - 1), 4 * self.n)}

    def get_state(self) -> dict[str, Any]:
        return {"n": self.n}

    def set_state(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


def remembering(**options: Any) -> Remembering:
    return Remembering(
        Counting(),
        Memory(lambda place: {"x": np.int64(place)}, seen=20, size=6, seed=3),
        steps=5,
        batch_size=4,
        sizes=lambda number: 4 if number < 3 else 2,
        rows=range,
        **options,
    )


def test_what_is_remembered_has_been_seen_and_comes_again_alike() -> None:
    batches = remembering()
    own = np.concatenate([next(batches)["x"] for _ in range(5)])
    np.testing.assert_array_equal(own, np.arange(20))
    kept = {int(example["x"]) for example in batches.kept()}
    assert len(kept) == 6 and kept <= set(range(20)) and size_of(batches.kept()) == 6 * 8
    replayed = [next(batches)["x"] for _ in range(6)]
    assert [len(batch) for batch in replayed] == [4, 4, 4, 2, 2, 2]
    assert {int(x) for batch in replayed for x in batch} <= kept
    again = remembering()
    again.set_state(json.loads(json.dumps(dict(own={"n": 5}, count=7))))
    np.testing.assert_array_equal(next(again)["x"], replayed[2])


def test_every_example_is_as_likely_to_be_remembered() -> None:
    counts = np.zeros(30)
    for seed in range(3000):
        counts[chosen(30, 10, seed)] += 1
    # Each is kept in a third of 3,000 draws: 1,000 ± 4 standard deviations of 25.8.
    assert np.abs(counts - 1000).max() < 104
    assert list(chosen(3, 10, 0)) == [0, 1, 2]


def test_a_batch_says_where_its_rows_are_kept_and_come_from() -> None:
    batches = remembering(slots=True)
    met = {}
    for _ in range(5):
        batch = next(batches)
        met |= {int(s): int(x) for x, s in zip(batch["x"], batch["memory_slot"], strict=True) if s >= 0}
    assert met == {slot: int(example["x"]) for slot, example in enumerate(batches.kept())}
    again = next(batches)
    assert [met[int(slot)] for slot in again["memory_stored"]] == list(again["x"])


def test_a_balanced_memory_has_as_many_of_each_class_as_there_are() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 40, 5, 54])
    found = evenly_of_classes(labels, 24, seed=1)
    assert len(set(found.tolist())) == 24
    # 1 and 5 are all there are of two classes; the others share the 18 that are left.
    assert np.bincount(labels[found]).tolist() == [1, 9, 5, 9]
    assert evenly_of_classes(labels, 200, seed=1).tolist() == list(range(100))
    counts = np.zeros(100)
    for seed in range(2000):
        counts[evenly_of_classes(labels, 24, seed)] += 1
    # Of a class of 40 each is kept in 9 of 40 draws: 450 ± 4.5 standard deviations of 18.7.
    assert np.abs(counts[labels == 1] - 450).max() < 84 and (counts[labels == 2] == 2000).all()
    memory = Memory(lambda place: {"label": np.int32(place % 10 == 0)}, seen=1000, size=20, seed=2, balanced=True)
    places = memory.places()
    assert sorted(places) == list(places) and np.bincount(places % 10 == 0).tolist() == [10, 10]


@dataclass(frozen=True)
class Joined:
    """Two sources whose shares change with the step."""

    parts: tuple[tuple[int, Any], ...] = ((40, Weight((0, 3), (5.0, 0.0))), (60, 1.0))

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": str(index), "x": np.int64(index)}


def test_what_is_remembered_of_shares_that_change_has_been_trained_on() -> None:
    experiment = tiny.build(config(continual=dict(strategy="replay", memory=24)))
    dataset = Dataset(Joined(), as_is)
    make = partial(train_batches, dataset, batch_size=8, prefetch=False)
    batches = {name: make(seed=order_seed(experiment.seed, name)) for name in ("one", "two")}
    plan = Plan(experiment.sequence, experiment.tasks, batches)
    run = Run(experiment.program, experiment.train_batches, lambda task: dataset)
    remembering: Any = with_memory(experiment.continual, plan, run).batches["one"]
    own = np.concatenate([next(remembering)["x"] for _ in range(3)])
    # Of three batches of eight all 24 are remembered, in their order.
    np.testing.assert_array_equal([example["x"] for example in remembering.kept()], own)
    cut = replace(dataset, buckets=Buckets(np.ones(100), (1, 2), lambda batch, edge: dict(batch)))
    with pytest.raises(UsageError, match=r"by their place, which tasks.one.buckets changes; leave buckets empty"):
        with_memory(experiment.continual, plan, replace(run, dataset=lambda task: cut))


# --- R ------------------------------------------------------------------------------------------------------------------


def test_numbers_of_the_matrix_are_those_of_the_papers() -> None:
    matrix = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.85, 0.6]])
    found = metrics(matrix, [0.1, 0.1, 0.2], [True] * 3)
    assert found["average"] == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert found["backward_transfer"] == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    assert found["forward_transfer"] == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    # Of an error rate the signs are the other way round.
    error = metrics(1 - matrix, [0.9, 0.9, 0.8], [False] * 3)
    assert error["average"] == pytest.approx(1 - found["average"])
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        assert error[name] == pytest.approx(found[name])


def test_the_matrix_of_a_run_is_what_was_logged() -> None:
    row = dict(metric="accuracy", higher_is_better=True, details=dict(untrained=0.1))
    results = {"a": dict(row, value=0.5), "b": dict(row, value=0.6)}
    scored = {"a": [(2, 0.9), (3, 0.8)], "b": [(3, 0.2)]}
    found = matrix_of(InSequence(("a", "b"), (3, 2)), scored, results)
    assert found is not None and found["matrix"] == [[0.8, 0.2], [0.5, 0.6]]
    assert matrix_of(InSequence(("a", "b"), (2, 2)), scored, results) is None
    view = forgetting_view(found)
    assert [cell["text"] for cell in view["rows"][1]["cells"]] == ["0.8", "0.2"]
    assert view["numbers"]["forgetting"] == "0.3"


# --- runs -----------------------------------------------------------------------------------------------------------------

RECIPE = """
from ml_collections import ConfigDict
from configs import common


def get_config():
    config = common.base()
    for name, fields in {small!r}.items():
        config[name] = ConfigDict(fields) if isinstance(fields, dict) else fields
    return config
"""


@pytest.mark.parametrize("strategy", ["ewc", "replay"])
def test_a_run_in_sequence_leaves_its_matrix_and_resumes(tmp_path: Path, strategy: str) -> None:
    recipe = tmp_path / "small.py"
    recipe.write_text(RECIPE.format(small={**SMALL, "continual": dict(strategy=strategy, memory=16, batches=2)}))
    common = [f"--config={recipe}", "--config.mesh.data=1", "--config.checkpoint_every=2"]
    workdir, other = tmp_path / "run", tmp_path / "other"
    assert launch.main(["launch.py", "train", f"--workdir={workdir}", *common]) == 0
    for more in (["--config.stop_after=4"], []):  # broken off amid the second task
        assert launch.main(["launch.py", "train", f"--workdir={other}", *common, *more]) == 0
    whole, parts = (json.loads((path / "results.json").read_text()) for path in (workdir, other))
    assert whole["fingerprint"] == parts["fingerprint"]
    found = whole["continual"]
    assert found == parts["continual"]
    assert found["tasks"] == ["one", "two"] and found["steps"] == [3, 3]
    assert found["matrix"][1] == [whole["tasks"][name]["value"] for name in ("one", "two")]
    assert "One task after the other" in (workdir / "report.html").read_text()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    steps = {name: [row["step"] for row in rows if row["task"] == name] for name in ("one", "two")}
    assert steps == {"one": [1, 2, 3, 4, 5, 6] if strategy == "replay" else [1, 2, 3], "two": [4, 5, 6]}
    if strategy == "ewc":
        first, *_, last = [row["penalty"] for row in rows if row["task"] == "two"]
        assert first == 0 and last > 0
        assert all(row["penalty"] == 0 for row in rows if row["task"] == "one")


@pytest.mark.parametrize(
    ("saved", "changes", "said"),
    [
        (
            4,
            dict(steps=12),
            "steps=12: until step 4 these tasks have ended: one at step 3; with other steps they would end",
        ),
        (3, dict(steps=12, sequence=("one", "two=3")), "these tasks have ended: one at step 3"),
        (4, dict(steps=12, sequence=("one=3", "two")), None),  # the last of them has more
        (2, dict(steps=12), None),  # none has ended yet
        (6, dict(steps=12, sequence=("one=3", "two")), None),
        (4, dict(steps=12, schedule="sum"), None),
    ],
)
def test_a_run_does_not_go_on_with_steps_that_move_the_end_of_a_task(
    tmp_path: Path, saved: int, changes: dict[str, Any], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if said is None:
        check_order(tiny.build(config(**changes)), saved, 6)
        return
    (tmp_path / "config.json").write_text(json.dumps(config(**{**changes, "steps": 6})))
    (tmp_path / "checkpoints" / str(saved)).mkdir(parents=True)
    assert launch.main(["launch.py", "train", f"--workdir={tmp_path}", f"--config.steps={changes['steps']}"]) == 2
    assert said in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


def test_the_anchor_lies_with_what_is_kept() -> None:
    experiment = tiny.build(config(continual=dict(strategy="ewc")))
    state = experiment.program.init()
    model = experiment.program.model(state)
    anchor = model.state[OWNER][NAME]
    assert set(anchor.importance) == {row for row in experiment.program.parameter_names()}
    plain = tiny.build(config()).program.init()
    assert len(jax.tree.leaves(plain.kept)) == 0 and len(jax.tree.leaves(state.kept)) == 2 * len(anchor.importance)
