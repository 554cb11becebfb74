"""Losses that train in one step: against the papers' formulas, in parts as in the whole, sharded as on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import make_mesh
from unimodal.training.balance import HEAD, Uncertainty, balanced, of_equal_length, without_conflict
from unimodal.training.loop import LoopConfig
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.step import Program
from unimodal.training.turns import turns

RNG = np.random.default_rng(0)


def pcgrad(gradients: np.ndarray, orders: list[np.ndarray]) -> np.ndarray:
    """Algorithm 1 of Yu 2020, as it is written."""
    changed = gradients.copy()
    for i, order in enumerate(orders):
        for j in order:
            inner = changed[i] @ gradients[j]
            if j != i and inner < 0:
                changed[i] -= inner / (gradients[j] @ gradients[j]) * gradients[j]
    return changed.sum(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_by_its_definition(seed: int) -> None:
    shared = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
    key, own = jax.random.key(seed), np.eye(4, dtype=np.float32)  # a head of each task's own
    orders = [np.asarray(jax.random.permutation(jax.random.fold_in(key, i), 4)) for i in range(4)]
    trees = [
        {"a": s[:2], "b": s[2:].reshape(2, 2), "heads": {str(i): own[k, i] for i in range(4)}}
        for k, s in enumerate(shared)
    ]
    found = jax.jit(without_conflict)([jax.tree.map(jnp.asarray, tree) for tree in trees], key)
    expected = pcgrad(shared.astype(np.float64), orders)
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"].reshape(-1)]), expected, rtol=1e-4, atol=1e-5)
    assert [float(found["heads"][str(i)]) for i in range(4)] == [1.0] * 4
    assert np.abs(expected - shared.sum(axis=0)).max() > 0.1  # they were in conflict


def test_gradients_that_agree_are_added_up() -> None:
    gradients = np.abs(RNG.standard_normal((3, 5))).astype(np.float32)
    found = without_conflict([{"x": jnp.asarray(g)} for g in gradients], jax.random.key(0))
    np.testing.assert_allclose(found["x"], gradients.sum(axis=0), rtol=1e-6)


def test_equal_lengths_by_hand() -> None:
    shared, weights = (
        RNG.standard_normal((3, 5)).astype(np.float32) * np.array([[1], [10], [100]], np.float32),
        [1.0, 2.0, 1.0],
    )
    own = np.eye(3, dtype=np.float32)
    trees = [
        {"x": jnp.asarray(w * s), "heads": {str(i): jnp.asarray(own[k, i]) for i in range(3)}}
        for k, (s, w) in enumerate(zip(shared, weights, strict=True))
    ]
    lengths = np.linalg.norm(shared, axis=1)
    expected = sum(w * s / n for w, s, n in zip(weights, shared, lengths, strict=True)) * lengths.mean()
    found = of_equal_length(trees, weights)
    np.testing.assert_allclose(found["x"], expected, rtol=1e-5)
    assert [float(found["heads"][str(i)]) for i in range(3)] == [1.0] * 3


def test_a_task_that_shares_nothing_does_not_shorten_the_others() -> None:
    shared = RNG.standard_normal((2, 5)).astype(np.float32)
    trees = [{"x": jnp.asarray(s), "own": jnp.float32(0)} for s in (*shared, np.zeros(5, np.float32))]
    trees[2]["own"] = jnp.float32(7)
    lengths = np.linalg.norm(shared, axis=1)
    found = of_equal_length(trees, [1.0] * 3)
    np.testing.assert_allclose(found["x"], (shared / lengths[:, None]).sum(axis=0) * lengths.mean(), rtol=1e-5)
    assert float(found["own"]) == 7.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_a_task_without_a_gradient_yet_spoils_no_other_s(dtype: Any) -> None:
    """Behind a head that begins at zero; with gradients that differ by more than float16 has room for."""
    shared = np.asarray([[3e-6, 4e-6], [0.0, 0.0], [800.0, 600.0]], np.float32)
    found = of_equal_length([{"x": jnp.asarray(s, dtype)} for s in shared], [1.0] * 3)
    assert found["x"].dtype == dtype
    np.testing.assert_allclose(found["x"], [500 * (0.6 + 0.8), 500 * (0.8 + 0.6)], rtol=2e-2)


def test_a_gradient_too_short_to_be_measured_is_not_made_long() -> None:
    shared = [[1.0, 0.0], [1e-20, 2e-20]]  # the square of the second is 0 in float32
    found = of_equal_length([{"x": jnp.asarray(s, jnp.float32)} for s in shared], [1.0] * 2)
    np.testing.assert_allclose(found["x"], [1.0, 0.0], atol=1e-6)


class Stacked(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.lower = Linear((3,), (4,), ("embed", "mlp"), rngs=rngs)
        self.upper = Linear((4,), (2,), ("mlp", "hidden"), rngs=rngs)


@pytest.mark.parametrize("balance", ["fixed", "equal", "pcgrad"])
def test_what_is_frozen_for_good_has_no_part_in_it(balance: str) -> None:
    def loss(sign: float, pull: float) -> Any:
        def of(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            low = model.lower(batch["x"])
            return jnp.square(model.upper(low) - sign).mean() + pull * jnp.square(low).mean(), {}

        return of

    losses = {"one": loss(1.0, 0.0), "two": loss(-1.0, 1000.0)}  # the second pulls hard, but at what is frozen
    settings: dict[str, Any] = dict(name="sgd", momentum=0.0, learning_rate=0.1, warmup=0, weight_decay=0.0, clip=0.0)
    optimizer = make_optimizer(OptimizerConfig(**settings, freeze=("lower",)), 10)
    program = Program(lambda key: Stacked(nnx.Rngs(key)), optimizer, make_mesh(data=1), seed=0, balance=balance)
    state, batch = program.init(), {"x": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32)}
    before = jax.device_get(state.parameters)
    with jax.set_mesh(program.mesh):
        alone = [program.gradient(name, one)(state, batch, jax.random.key(0))["upper"] for name, one in losses.items()]
        state, metrics = program.step({name: (one, 1.0) for name, one in losses.items()})(
            state, dict.fromkeys(losses, batch)
        )
    ways: dict[str, Any] = {
        "fixed": lambda g: jax.tree.map(jnp.add, *g),
        "equal": lambda g: of_equal_length(g, [1.0, 1.0]),
        "pcgrad": lambda g: without_conflict(g, jax.random.key(0)),  # of two, the order is all one
    }
    wanted, now = ways[balance](alone), jax.device_get(state.parameters)
    jax.tree.map(np.testing.assert_array_equal, now["lower"], before["lower"])
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(a - b, -0.1 * g, rtol=1e-4, atol=1e-6),
        now["upper"],
        before["upper"],
        wanted,
    )
    norm = np.sqrt(sum(float(np.square(g).sum()) for g in jax.tree.leaves(wanted)))
    np.testing.assert_allclose(metrics["one"]["gradient_norm"], norm, rtol=1e-5)


def test_uncertainty_by_its_formula_in_parts_as_in_the_whole() -> None:
    """Two parts of a batch, whose slopes have the loss's gradient but not its value."""

    def counted(s: jax.Array, w: jax.Array, parts: int) -> jax.Array:
        head = Uncertainty()
        head.log_variance.set_value(s)
        values = [3 * w, 2 * w][:parts] if parts > 1 else [5 * w]
        slopes = values if parts == 1 else [v + jax.lax.stop_gradient(9 - v) for v in values]
        return sum(
            (balanced({HEAD: head}, v, p, parts)[0] for v, p in zip(values, slopes, strict=True)), jnp.float32(0)
        )

    s, w = jnp.float32(0.7), jnp.float32(1.3)
    for parts in (1, 2):
        by_s, by_w = jax.grad(counted, argnums=(0, 1))(s, w, parts)
        np.testing.assert_allclose(by_s, -np.exp(-0.7) * 5 * 1.3 + 0.5, rtol=1e-5)
        np.testing.assert_allclose(by_w, np.exp(-0.7) * 5, rtol=1e-5)
    assert balanced({}, w, s) == (s, {})


@pytest.mark.parametrize("balance", ["uncertainty", "equal", "pcgrad"])
def test_sharded_as_on_one_device(balance: str, tmp_path: Path) -> None:
    def losses(mesh: dict[str, int]) -> Any:
        experiment = tiny.build(tiny.plain("vit", "mae", balance=balance, mesh=mesh, steps=2))
        step = experiment.program.step({task.name: (task.loss, 1.0) for task in experiment.tasks})
        state, found = experiment.program.init(), []
        from unimodal.sharding import from_local_rows

        iterators = {task.name: experiment.train_batches(task) for task in experiment.tasks}
        with jax.set_mesh(experiment.mesh):
            for _ in range(3):
                batch = {name: from_local_rows(next(each), experiment.mesh) for name, each in iterators.items()}
                state, metrics = step(state, batch)
                found.append(
                    jax.device_get(
                        {name: (m["loss"], m["gradient_norm"], m.get("weight", 1)) for name, m in metrics.items()}
                    )
                )
        return found

    one, eight = losses(dict(data=1)), losses(dict(data=4, fsdp=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), one, eight)
    if balance == "uncertainty":
        assert one[0]["vit"][2] == 1 and one[2]["vit"][2] != 1


def test_turns_by_temperature() -> None:
    tasks: Any = [type("T", (), dict(name=n, weight=w)) for n, w in (("a", 9.0), ("b", 1.0))]
    for temperature, share in ((1.0, 9), (2.0, 3), (1e9, 1)):
        who = turns(tasks, "alternate", temperature)
        seen = [who(step)[0] for step in range((share + 1) * 10)]
        assert seen.count("a") == share * seen.count("b")


@pytest.mark.parametrize("weights", [(9.0, 1.0), (0.1, 1.0), (1e-300, 1e300)])
def test_a_temperature_that_leaves_a_task_no_turn_is_one_line(weights: tuple[float, float]) -> None:
    tasks: Any = [type("T", (), dict(name=n, weight=w)) for n, w in zip("ab", weights, strict=True)]
    with pytest.raises(UsageError, match="turn_temperature=0.001 leaves tasks of small weight no turn"):
        turns(tasks, "alternate", 0.001)


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(balance="pcgard"), "balance='pcgard' is not known; did you mean pcgrad?"),
        (dict(balance="pcgrad", schedule="alternate"), "balance=pcgrad needs schedule=sum"),
        (dict(turn_temperature=0.0), "turn_temperature must be above 0"),
    ],
)
def test_slips(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        LoopConfig(steps=1, **fields)


def test_pcgrad_takes_whole_batches() -> None:
    with pytest.raises(UsageError, match="leave optimizer.accumulate at 1"):
        tiny.build(tiny.plain("vit", "mae", balance="pcgrad", optimizer__accumulate=2))
