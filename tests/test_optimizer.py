"""The optimizer is optax's AdamW with clipping, warm-up and decay; what joint training adds leaves the idle alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from quick import named

from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import make_mesh
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.parameters import described
from unimodal.training.step import Program

STEPS = 6
CONFIG = OptimizerConfig(learning_rate=0.1, warmup=2, final=0.1, b1=0.9, b2=0.95, weight_decay=0.3, clip=1.0)
SHAPES = {  # name → shape and logical axes
    "kernel": ((3, 4), ("embed", "mlp")),
    "bias": ((4,), ("mlp",)),
    "stacked_kernel": ((2, 3, 4), ("embed", "mlp")),
    "stacked_bias": ((2, 4), ("mlp",)),
    "scalar": ((), ()),
}
DECAYED = {"kernel", "stacked_kernel"}


def state(seed: int) -> nnx.State:
    rng = np.random.default_rng(seed)
    params = {
        name: nnx.Param(jnp.asarray(rng.normal(size=shape), jnp.float32), axes=axes)
        for name, (shape, axes) in SHAPES.items()
    }
    return nnx.State(params)


def arrays(tree: Any) -> dict[str, jax.Array]:
    """A State as a dictionary of plain arrays."""
    return {name: jnp.asarray(value) for name, value in named(tree).items()}


def advance(optimizer: optax.GradientTransformation, gradients: Any, moments: Any, parameters: Any) -> tuple[Any, Any]:
    updates, moments = optimizer.update(gradients, moments, parameters)
    return optax.apply_updates(parameters, updates), moments


def test_only_matrices_are_decayed() -> None:
    assert {p.name for p in described(state(0)) if p.decays} == DECAYED


def test_chain_is_adamw_with_clipping() -> None:
    ours, parameters = make_optimizer(CONFIG, STEPS), state(0)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, STEPS, 0.01)
    mask = {name: name in DECAYED for name in SHAPES}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.95, 1e-8, weight_decay=0.3, mask=mask)
    )
    plain = arrays(parameters)
    moments, reference = ours.init(parameters), theirs.init(plain)
    for step in range(STEPS):
        gradients = state(step + 1)
        size = 0.01 if step % 2 else 1.0  # below and above the norm that is clipped to
        gradients = jax.tree.map(lambda g, size=size: g * size, gradients)
        parameters, moments = advance(ours, gradients, moments, parameters)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            plain, reference = advance(theirs, arrays(gradients), reference, plain)
        for name, value in arrays(parameters).items():
            np.testing.assert_allclose(value, plain[name], rtol=1e-6, atol=1e-7, err_msg=f"{name} at step {step}")


def test_lazy_leaves_the_idle_alone() -> None:
    idle = {"kernel", "bias"}
    lazy, eager = make_optimizer(CONFIG, STEPS, lazy=True), make_optimizer(CONFIG, STEPS)
    first = (state(0), lazy.init(state(0)))
    first = advance(lazy, state(1), first[1], first[0])  # now moments are not zero
    first = advance(lazy, state(2), first[1], first[0])
    gradients = state(3)
    for name in idle:
        gradients[name] = gradients[name].replace(jnp.zeros(SHAPES[name][0], jnp.float32))
    parameters, moments = advance(lazy, gradients, first[1], first[0])
    before, after = arrays(first[0]), arrays(parameters)
    other = arrays(advance(eager, gradients, first[1], first[0])[0])
    for name in SHAPES:
        if name in idle:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
            assert np.any(other[name] != before[name]), name  # momentum and decay would have moved it
        else:
            np.testing.assert_array_equal(after[name], other[name], err_msg=name)
            assert np.any(after[name] != before[name]), name
    was, now = arrays(first[1]), arrays(moments)
    assert len([place for place in now if place.startswith("inner.")]) == 3 * len(SHAPES)  # count, mu, nu
    for place in now:
        if place.startswith("inner."):
            assert np.array_equal(now[place], was[place]) == (place.split(".")[1] in idle), place


def test_a_single_nonzero_element_counts_as_touched() -> None:
    lazy, parameters = make_optimizer(CONFIG, STEPS, lazy=True), state(0)
    moments = lazy.init(parameters)
    gradients = jax.tree.map(jnp.zeros_like, parameters)
    gradients["kernel"] = gradients["kernel"].replace(jnp.zeros((3, 4), jnp.float32).at[2, 3].set(1e-3))
    for _ in range(2):  # the first step has a learning rate of zero
        after, moments = advance(lazy, gradients, moments, parameters)
    moved = {name for name, value in arrays(after).items() if np.any(value != arrays(parameters)[name])}
    assert moved == {"kernel"}


def test_schedule() -> None:
    rate = OptimizerConfig(learning_rate=0.5, warmup=10, final=0.1).schedule(100)
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100, 200)]
    np.testing.assert_allclose(values, [0.0, 0.25, 0.5, 0.275, 0.05, 0.05], rtol=1e-6)
    constant = OptimizerConfig(learning_rate=0.5, warmup=0, final=1.0).schedule(10)
    np.testing.assert_allclose([float(constant(step)) for step in range(11)], 0.5, rtol=1e-6)
    short = OptimizerConfig(learning_rate=0.5, warmup=100).schedule(10)  # a run shorter than its warm-up
    np.testing.assert_allclose([float(short(step)) for step in (0, 5, 10)], [0.0, 0.25, 0.5], rtol=1e-6)


def test_linear_decay_after_a_plateau() -> None:
    rate = OptimizerConfig(learning_rate=0.5, warmup=10, hold=40, final=0.05, decay="linear").schedule(100)
    values = [float(rate(step)) for step in (0, 5, 10, 50, 75, 100, 200)]
    np.testing.assert_allclose(values, [0.0, 0.25, 0.5, 0.5, 0.2625, 0.025, 0.025], rtol=1e-6)
    held = OptimizerConfig(learning_rate=0.5, warmup=0, hold=10, final=0.0).schedule(20)
    np.testing.assert_allclose([float(held(step)) for step in (0, 10, 15, 20)], [0.5, 0.5, 0.25, 0.0], atol=1e-7)
    with pytest.raises(UsageError, match="optimizer.decay must be cosine or linear, but is 'square'"):
        OptimizerConfig(decay="square")


def test_clip_zero_does_not_clip() -> None:
    gradients = jax.tree.map(lambda g: 100 * g, state(1))
    config = OptimizerConfig(clip=0.0, warmup=0)
    chain = make_optimizer(config, STEPS)
    _, moments = chain.update(gradients, chain.init(state(0)), state(0))
    mean = next(value for name, value in arrays(moments).items() if name == "inner.kernel.0.mu")
    np.testing.assert_allclose(mean, 0.1 * arrays(gradients)["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"), [("accumulate", 0), ("learning_rate", 0.0), ("learning_rate", -1.0), ("accumulate", -2)]
)
def test_bad_values(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"optimizer.{field} must be .*, but is {value}"):
        OptimizerConfig(**{field: value})


def test_accumulated_micro_batches_are_one_batch() -> None:
    def loss(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        value = jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
        return value, {"largest": jnp.max(jnp.abs(batch["x"]))}

    def trained(accumulate: int) -> tuple[dict[str, jax.Array], list[dict[str, float]]]:
        make = lambda key: Linear((3,), (4,), ("embed", "mlp"), rngs=nnx.Rngs(key))  # noqa: E731
        program = Program(make, make_optimizer(CONFIG, STEPS), make_mesh(data=1), seed=0, accumulate=accumulate)
        step, current, logged = program.step({"toy": (loss, 2.0)}), program.init(), []
        rng = np.random.default_rng(0)
        for _ in range(3):
            batch = {name: rng.normal(size=(8, size)).astype(np.float32) for name, size in (("x", 3), ("y", 4))}
            if accumulate > 1:
                batch = {name: value.reshape(accumulate, -1, value.shape[1]) for name, value in batch.items()}
            with jax.set_mesh(program.mesh):
                current, metrics = step(current, {"toy": batch})
            logged.append({name: float(value) for name, value in metrics["toy"].items()})
        assert int(current.step) == 3
        return arrays(current.parameters), logged

    (whole, logged), (parts, other) = trained(1), trained(2)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for mine, theirs in zip(logged, other, strict=True):
        np.testing.assert_allclose(theirs["loss"], mine["loss"], rtol=1e-5)
        np.testing.assert_allclose(theirs["gradient_norm"], mine["gradient_norm"], rtol=1e-5)
