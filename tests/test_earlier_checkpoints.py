"""Checkpoints from before every parameter had an optimizer state of its own are restored, and train on alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from quick import named, quick

from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import make_mesh
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.step import Program, TrainState
from unimodal.training.workdir import claim_workdir

SETTINGS: dict[str, Any] = dict(learning_rate=0.1, warmup=0, weight_decay=0.3, b2=0.95)


class Toy(nnx.Module):
    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs):
        make = lambda key: Linear((width,), (4,), ("embed", "mlp"), dtype=jnp.dtype(dtype), rngs=nnx.Rngs(key))  # noqa: E731
        self.layers = jax.vmap(make)(jax.random.split(rngs.params(), 3))
        self.head = Linear((4,), (width,), ("mlp", "embed"), bias=False, rngs=rngs)


def program(width: int = 8, dtype: str = "float32", **settings: Any) -> Program:
    config = OptimizerConfig(**{**SETTINGS, **settings})
    make = lambda key: Toy(width, dtype, rngs=nnx.Rngs(key))  # noqa: E731
    return Program(make, make_optimizer(config, 20), make_mesh(fsdp=2, tensor=2, data=1), seed=0)


def earlier_optimizer(clip: float, frozen: bool) -> optax.GradientTransformation:
    """The chain as it was, one count for all: clipping, Adam, decay, the schedule; and what froze counted for itself."""
    matrices = lambda tree: jax.tree.map(  # noqa: E731
        lambda v: len(v.get_metadata()["axes"]) >= 2, tree, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    parts += [optax.scale_by_adam(0.9, 0.95, 1e-8), optax.add_decayed_weights(0.3, mask=matrices)]
    chain = optax.chain(*parts, optax.scale_by_learning_rate(OptimizerConfig(**SETTINGS).schedule(20)))
    if not frozen:
        return chain

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, inner = chain.update(updates, state[1], params)
        return updates, (state[0] + 1, inner)

    return optax.GradientTransformation(lambda p: (jnp.zeros((), jnp.int32), chain.init(p)), update)


def earlier_run(workdir: Path, clip: float = 1.0, frozen: bool = False, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Write an earlier checkpoint after 7 steps; parameters, gradients and the updates of the step that comes next."""
    parameters = program(dtype=dtype).init().parameters
    optimizer = earlier_optimizer(clip, frozen)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)).astype(p.dtype), parameters)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, update = optimizer.init(parameters), quick(optimizer.update)
        for _ in range(7):
            _, state = update(gradients, state, parameters)
        checkpoints = Checkpoints(workdir)
        checkpoints.save(TrainState(jnp.int32(7), parameters, nnx.State({}), state), {})
        checkpoints.close()
        return parameters, gradients, update(gradients, state, parameters)[0]


def restored(workdir: Path, program: Program) -> TrainState:
    checkpoints = Checkpoints(workdir, create=False)
    try:
        return checkpoints.restore(program.abstract_state())[0]
    finally:
        checkpoints.close()


@pytest.mark.parametrize(("clip", "frozen"), [(1.0, False), (0.0, False), (1.0, True)])
def test_an_earlier_checkpoint_trains_on(clip: float, frozen: bool, tmp_path: Path) -> None:
    parameters, gradients, expected = earlier_run(tmp_path, clip, frozen)
    now = program(clip=clip)
    state = restored(tmp_path, now)
    assert int(state.step) == int(state.optimizer.step) == 7
    assert state.optimizer.inner["layers.kernel"][0].count.shape == (3,)
    for name, value in named(state.parameters).items():
        np.testing.assert_array_equal(value, named(parameters)[name])
    updates, _ = quick(now.optimizer.update)(gradients, state.optimizer, state.parameters)
    for name, value in named(expected).items():
        np.testing.assert_allclose(named(updates)[name], value, rtol=1e-5, atol=1e-8, err_msg=name)
    where = state.optimizer.inner["layers.kernel"][0].mu.get_value().sharding
    assert where.is_equivalent_to(state.parameters["layers"]["kernel"].get_value().sharding, 3)
    quick(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)  # no two of its arrays are one


def test_frozen_parts_lose_their_moments_and_half_moments_widen(tmp_path: Path) -> None:
    earlier_run(tmp_path, dtype="bfloat16")
    state = restored(tmp_path, program(dtype="bfloat16", freeze=("head",)))
    assert set(state.optimizer.inner) == {"layers.kernel", "layers.bias"}
    assert state.optimizer.inner["layers.kernel"][0].mu.get_value().dtype == jnp.float32
    assert state.parameters["layers"]["kernel"].get_value().dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (dict(name="lion"), r"checkpoint 7 does not fit the model: optimizer.inner.*count and .* in the model but not"),
        (dict(width=4), r"checkpoint 7 does not fit the model: parameters.head.kernel is float32\[4, 4\] in the model"),
        (
            dict(dtype="bfloat16", master_weights=True),
            r"checkpoint 7 does not fit the model: optimizer.master.layers.bias",
        ),
    ],
)
def test_another_optimizer_or_model_is_one_line(now: dict[str, Any], message: str, tmp_path: Path) -> None:
    earlier_run(tmp_path)
    with pytest.raises(UsageError, match=message):
        restored(tmp_path, program(**now))


def test_a_workdir_from_before_a_field_is_claimed_with_its_default(tmp_path: Path) -> None:
    meaning = lambda plain: {"optimizer": {"name": "adamw", "learning_rate": 0.1, **plain["optimizer"]}}  # noqa: E731
    claim_workdir(tmp_path, {"optimizer": {"learning_rate": 0.5}})
    claim_workdir(tmp_path, {"optimizer": {"learning_rate": 0.5, "name": "adamw"}}, meaning=meaning)
    with pytest.raises(UsageError, match="optimizer.name: 'adamw' there, 'lion' now"):
        claim_workdir(tmp_path, {"optimizer": {"learning_rate": 0.5, "name": "lion"}}, meaning=meaning)
    with pytest.raises(UsageError, match="optimizer.learning_rate: 0.5 there, 0.1 now"):
        claim_workdir(tmp_path, {"optimizer": {"learning_rate": 0.1, "name": "adamw"}}, meaning=meaning)
