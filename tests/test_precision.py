"""Half-precision parameters under float32 moments, and parameters with bounds."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import named, quick

from unimodal.heads import LogitScale
from unimodal.sharding import make_mesh, shardings
from unimodal.training.optimizer import OptimizerConfig, apply_updates, make_optimizer
from unimodal.training.optimizers import OPTIMIZERS
from unimodal.training.rounding import rounded_by_chance
from unimodal.training.step import Program

SETTINGS: dict[str, Any] = dict(learning_rate=1e-4, warmup=0, final=1.0, b2=0.999, weight_decay=0.0, clip=0.0)
HALF = ["bfloat16", "float16"]


def kernel(dtype: str, value: float = 1.0, **metadata: Any) -> nnx.State:
    metadata = dict(axes=("embed", "mlp"), kind="matrix", contracted=1) | metadata
    return nnx.State({"kernel": nnx.Param(jnp.full((8, 8), value, dtype), **metadata)})


def runs(config: OptimizerConfig, tree: Any, gradients: Any, steps: int) -> tuple[Any, Any]:
    optimizer = make_optimizer(config, steps)

    def one(i: Any, carry: Any) -> Any:
        tree, state = carry
        updates, state = optimizer.update(gradients(i), state, tree)
        return apply_updates(tree, updates), state

    return quick(lambda tree: jax.lax.fori_loop(0, steps, one, (tree, optimizer.init(tree))))(tree)


@pytest.mark.parametrize("dtype", HALF)
def test_moments_do_not_stall(dtype: str) -> None:
    """1 - .999^271 = .2375. In bfloat16 the second moment stands still at .125."""
    tree = kernel(dtype)
    _, state = runs(OptimizerConfig(**SETTINGS), tree, lambda _: tree, 271)
    moments = state.inner["kernel"][0]
    assert moments.mu.get_value().dtype == moments.nu.get_value().dtype == jnp.float32
    np.testing.assert_allclose(moments.nu.get_value(), 1 - 0.999**271, rtol=1e-4)
    np.testing.assert_allclose(moments.mu.get_value(), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", HALF)
def test_every_optimizer_is_the_float32_one_rounded(name: str, dtype: str) -> None:
    """Gradients of 1e-6 and of zero: in float16 an epsilon of 1e-8, and their squares, are zero, and the step is NaN."""
    rng = np.random.default_rng(0)
    start, small = rng.normal(size=(8, 8)), 1e-6 * rng.normal(size=(8, 8))
    small[0] = 0.0
    changed = {}
    for kind in (dtype, "float32"):
        tree = jax.tree.map(lambda x, kind=kind: jnp.asarray(start, dtype).astype(kind), kernel(kind))
        gradients = jax.tree.map(lambda x, kind=kind: jnp.asarray(small, dtype).astype(kind), tree)
        optimizer = make_optimizer(OptimizerConfig(**{**SETTINGS, "learning_rate": 0.1}, name=name), 3)
        updates, state = quick(optimizer.update)(gradients, optimizer.init(tree), tree)
        assert updates["kernel"].get_value().dtype == jnp.float32
        assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(state))
        changed[kind] = named(apply_updates(tree, updates))["kernel"].astype(np.float32)
    assert np.isfinite(changed[dtype]).all()
    np.testing.assert_array_equal(changed[dtype], jnp.asarray(changed["float32"]).astype(dtype).astype(jnp.float32))


@pytest.mark.parametrize("dtype", HALF)
def test_master_weights_are_the_float32_run(dtype: str) -> None:
    def gradients(i: Any) -> Any:
        return jax.tree.map(lambda x: (1.5 + jnp.cos(i + x.astype(jnp.float32))).astype(dtype), kernel(dtype))

    plain = {**SETTINGS, "learning_rate": 1e-5}
    whole, _ = runs(OptimizerConfig(**plain), kernel("float32"), gradients, 300)
    half, state = runs(OptimizerConfig(**plain, master_weights=True), kernel(dtype), gradients, 300)
    np.testing.assert_array_equal(state.master["kernel"].get_value(), whole["kernel"].get_value())
    np.testing.assert_array_equal(half["kernel"].get_value(), whole["kernel"].get_value().astype(dtype))
    stalled, state = runs(OptimizerConfig(**plain), kernel(dtype), gradients, 300)
    assert not state.master
    np.testing.assert_array_equal(stalled["kernel"].get_value(), 1.0)  # each step is less than half of what is stored
    assert np.abs(whole["kernel"].get_value() - 1).max() > 1e-4


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_has_no_bias(dtype: str) -> None:
    gap = float(jnp.finfo(dtype).eps)  # between 1 and the next number above
    for value in (1 + 0.3 * gap, -1 - 0.3 * gap, 1.0, 0.0, 1e-30):
        x = jnp.full((40_000,), value, jnp.float32)
        drawn = np.asarray(quick(lambda x: rounded_by_chance(x, dtype, jax.random.key(0)))(x), np.float64)
        exact = np.float64(np.float32(value))
        assert np.abs(drawn - exact).max() < gap
        if abs(value) > 1:
            assert set(np.unique(np.abs(drawn))) == {1.0, 1 + gap}
            assert np.mean(np.abs(drawn) > 1) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 40_000))
        elif value in (0.0, 1.0):
            assert (drawn == value).all()


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_rounding_moves_what_would_stall(dtype: str) -> None:
    config = OptimizerConfig(**{**SETTINGS, "learning_rate": 2e-5}, stochastic_rounding=True)
    tree, _ = runs(config, kernel(dtype), lambda _: kernel(dtype), 500)
    values = named(tree)["kernel"].astype(np.float64)
    gap = float(jnp.finfo(dtype).eps) / 2  # below 1 numbers lie half as far apart
    # 64 walks of 500 steps of 2e-5 downwards: the mean of each step is exact, its variance at most 2e-5 times the gap.
    assert values.mean() == pytest.approx(1 - 500 * 2e-5, abs=5 * math.sqrt(500 * 2e-5 * gap / 64))
    assert len(np.unique(values)) > 1
    again, _ = runs(config, kernel(dtype), lambda _: kernel(dtype), 500)
    np.testing.assert_array_equal(values, named(again)["kernel"])


def test_a_step_of_the_program_in_half_precision() -> None:
    config = tiny.plain(
        "gpt", backbones__shared__param_dtype="float16", tokenizers__text__param_dtype="float16", steps=3
    )
    experiment = tiny.build(config, fake_data=True)
    program = experiment.program
    state, step = program.init(), program.step({"gpt": (experiment.tasks[0].loss, 1.0)})
    batch = {"ids": np.arange(8 * 16, dtype=np.int32).reshape(8, 16) % 250 + 3}
    with jax.set_mesh(program.mesh):
        for _ in range(3):
            state, metrics = step(state, {"gpt": batch})
            assert np.isfinite(metrics["gpt"]["loss"])
    for name, value in named(state.parameters).items():
        assert np.isfinite(value).all(), name
        assert value.dtype == np.float16 or not name.startswith(("backbones", "tokenizers.text")), name


def test_master_weights_are_those_that_a_run_starts_from() -> None:
    config = OptimizerConfig(master_weights=True)
    make = lambda key: nnx.Dict(kernel=kernel("bfloat16")["kernel"])  # noqa: E731
    start = lambda parameters: jax.tree.map(lambda x: 3 * x, parameters)  # noqa: E731
    state = Program(make, make_optimizer(config, 3), make_mesh(data=1), seed=0, start=start).init()
    assert float(state.parameters["kernel"].get_value()[0, 0]) == 3
    np.testing.assert_array_equal(state.optimizer.master["kernel"].get_value(), 3.0)


# --- bounds --------------------------------------------------------------------------------------------------------

CAP = math.log(100.0)


def temperature(value: float) -> nnx.State:
    model = LogitScale(most=100.0)
    return jax.tree.map(lambda _: jnp.float32(value), nnx.state(model, nnx.Param))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("lazy", [False, True])
def test_no_update_leads_beyond_the_bounds(name: str, lazy: bool) -> None:
    """Gradients push the scale up for ten steps, then down: it stops at the cap and returns."""
    settings: dict[str, Any] = dict(warmup=0, final=1.0, learning_rate=0.5, momentum=0.5, b1=0.5, b2=0.5)
    optimizer = make_optimizer(OptimizerConfig(name=name, **settings), 30, lazy=lazy)
    tree, update = temperature(CAP - 0.1), quick(optimizer.update)
    state, seen = optimizer.init(tree), []
    for step in range(20):
        gradient = jax.tree.map(lambda x, step=step: jnp.full_like(x, -1.0 if step < 10 else 1.0), tree)
        updates, state = update(gradient, state, tree)
        tree = apply_updates(tree, updates)
        seen.append(float(tree["log_scale"].get_value()))
    assert max(seen) == np.float32(CAP)
    assert seen[-1] < CAP - 0.2


def test_what_is_beyond_the_bounds_is_as_it_was_loaded_until_it_is_trained() -> None:
    """transformers takes exp(logit_scale), whatever it is."""
    tree = temperature(5.0)
    model = nnx.merge(nnx.split(LogitScale(most=100.0), graph=False)[0], tree)
    np.testing.assert_allclose(model.scale, math.exp(5.0), rtol=1e-6)
    frozen = OptimizerConfig(warmup=0, freeze=("log_scale",))
    waiting = OptimizerConfig(warmup=1)  # a first step of learning rate 0
    for config, stays in ((frozen, True), (waiting, True), (OptimizerConfig(warmup=0), False)):
        optimizer = make_optimizer(config, 9)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), optimizer.init(tree), tree)
        after = float(apply_updates(tree, updates)["log_scale"].get_value())
        assert after == (5.0 if stays else np.float32(CAP))


def test_the_temperature_has_a_gradient_above_the_cap() -> None:
    model = LogitScale(200.0, most=100.0)
    gradient = jax.grad(lambda m: m.scale)(model)
    np.testing.assert_allclose(gradient.log_scale.get_value(), 200.0, rtol=1e-5)


@pytest.mark.parametrize("master", [False, True])
def test_bounds_of_parameters_in_shards(master: bool) -> None:
    mesh = make_mesh(fsdp=2, tensor=2, data=2)
    tree = kernel("bfloat16" if master else "float32", 0.5, bounds=(0.25, 0.75))
    tree = jax.device_put(tree, shardings(tree, mesh))
    signs = jax.tree.map(lambda x: jnp.where(jnp.arange(64).reshape(8, 8) % 2 == 0, 1, -1).astype(x.dtype), tree)
    config = OptimizerConfig(**{**SETTINGS, "learning_rate": 0.2}, master_weights=master)
    after, state = runs(config, tree, lambda _: signs, 3)
    values = named(after)["kernel"].astype(np.float32)
    np.testing.assert_array_equal(values, np.where(np.arange(64).reshape(8, 8) % 2 == 0, 0.25, 0.75))
    if master:
        np.testing.assert_array_equal(state.master["kernel"].get_value(), values)
    back, _ = runs(config, after, lambda _: jax.tree.map(jnp.negative, signs), 1)
    np.testing.assert_allclose(named(back)["kernel"].astype(np.float32), np.where(values < 0.5, 0.45, 0.55), rtol=4e-3)
