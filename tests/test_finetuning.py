"""Fine-tuning: parts that stay frozen, gradients that are turned down, and starting from another run's weights."""

from __future__ import annotations

from dataclasses import replace
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
from unimodal.tokenizers import audio
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.optimizer import OptimizerConfig, averaged, make_optimizer
from unimodal.training.step import Program
from unimodal.training.workdir_start import start_from_workdir

SETTINGS: dict[str, Any] = dict(learning_rate=0.1, warmup=0, weight_decay=0.3, clip=1.0)


class Toy(nnx.Module):
    def __init__(self, head: str = "head", width: int = 4, *, rngs: nnx.Rngs):
        self.encoder = nnx.Dict({name: Linear((4,), (4,), ("embed", "mlp"), rngs=rngs) for name in ("low", "lowest")})
        self.heads = nnx.Dict({head: Linear((width,), (2,), ("embed", "classes"), rngs=rngs)})


def toy(head: str = "head", width: int = 4, seed: int = 0) -> Any:
    return nnx.state(Toy(head, width, rngs=nnx.Rngs(seed)), nnx.Param)


def moved(freeze: tuple[str, ...], steps: int, *, lazy: bool = False, clip: float = 1.0) -> list[dict[str, np.ndarray]]:
    """Parameters before and after each step on gradients that grow with the step."""
    optimizer = make_optimizer(OptimizerConfig(**{**SETTINGS, "clip": clip}, freeze=freeze), steps, lazy=lazy)
    parameters = toy()
    state, seen = optimizer.init(parameters), [named(parameters)]
    for step in range(steps):
        gradients = jax.tree.map(lambda p, step=step: (step + 1) * jnp.ones_like(p), parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        seen.append(named(parameters))
    return seen


@pytest.mark.parametrize("lazy", [False, True])
def test_frozen_for_good_and_for_a_while(lazy: bool) -> None:
    seen = moved(("encoder.low", "encoder.lowest=2"), 4, lazy=lazy)
    free = moved((), 4, lazy=lazy)
    for name, first in seen[0].items():
        for step in range(1, 5):
            still = np.array_equal(seen[step][name], seen[step - 1][name])
            frozen = name.startswith("encoder.low.") or (name.startswith("encoder.lowest.") and step <= 2)
            assert still == frozen, (name, step)
            assert not np.array_equal(free[step][name], first)


def test_what_thaws_does_not_jump_and_what_is_frozen_is_not_clipped_with() -> None:
    # Adam's first step is as long as the learning rate; begun anew at the thaw with b2 = 0.98 it would be 0.7 of it,
    # and with the count that has gone on and 0.999 three times as long.
    settings = {**SETTINGS, "b2": 0.999, "weight_decay": 0.0, "final": 1.0}
    optimizer = make_optimizer(OptimizerConfig(**settings, freeze=("encoder=50",)), 60)
    parameters = toy()
    state, gradients = optimizer.init(parameters), jax.tree.map(jnp.ones_like, parameters)
    update = jax.jit(optimizer.update)
    for _ in range(51):
        updates, state = update(gradients, state, parameters)
    for name, value in named(updates).items():
        np.testing.assert_allclose(value, -0.1, rtol=1e-3, err_msg=name)
    # Adam does not see the gradients' scale, unless clipping made it change from step to step: with the whole encoder
    # frozen, the head moves as it does alone.
    both = moved(("encoder",), 3)
    alone = make_optimizer(OptimizerConfig(**SETTINGS), 3)
    head = nnx.State({"heads": toy()["heads"]})
    state = alone.init(head)
    for step in range(3):
        updates, state = alone.update(jax.tree.map(lambda p, s=step: (s + 1) * jnp.ones_like(p), head), state, head)
        head = optax.apply_updates(head, updates)
    for name, value in named(head).items():
        np.testing.assert_allclose(both[-1][name], value, rtol=1e-6)


def test_a_frozen_part_must_be_there() -> None:
    optimizer = make_optimizer(OptimizerConfig(freeze=("encoder.lo",)), 3)
    with pytest.raises(UsageError, match=r"'encoder.lo' is no part of the model; there is encoder.low, encoder.lowest"):
        optimizer.init(toy())


@pytest.mark.parametrize("entry", ["", "a=", "a=x", "a=0", "=3", "a=-1", "a=1.5"])
def test_bad_entries(entry: str) -> None:
    with pytest.raises(UsageError, match="optimizer.freeze="):
        OptimizerConfig(freeze=(entry,))


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_feature_gradient_is_scaled_and_the_value_is_not(factor: float) -> None:
    rng = np.random.default_rng(0)
    wave = jnp.asarray(rng.standard_normal((2, 60), dtype=np.float32))
    # The tokens' squares would sum to the same whatever the weights: they leave a norm.
    mix = jnp.asarray(rng.standard_normal((1, 14, 4), dtype=np.float32))

    def made(scale: float) -> tuple[Any, dict[str, np.ndarray]]:
        sizes: dict[str, Any] = dict(channels=4, kernels=(4, 3), strides=(2, 2), position_kernel=2, position_groups=2)
        config = audio.Config(**sizes, feature_gradient=scale)
        tokenizer = quick(lambda: audio.Tokenizer(config, 4, rngs=nnx.Rngs(0)))()
        run = quick(jax.value_and_grad(lambda t: (mix * t(wave).x).sum() + jnp.square(t.convolved(wave)).sum()))
        value, gradient = run(tokenizer)
        return value, named(gradient)

    (value, gradient), (whole, unscaled) = made(factor), made(1.0)
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    for name, g in gradient.items():
        expected = unscaled[name] * (factor if name.startswith("convolutions.") else 1.0)
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.any(unscaled[name]) or name == "mask_embedding", name


def saved_run(workdir: Path, head: str = "head", **changes: Any) -> Any:
    """A workdir with a checkpoint of a Toy, and the parameters that it is evaluated by."""
    program = Program(
        lambda key: Toy(head, rngs=nnx.Rngs(key)), make_optimizer(OptimizerConfig(**changes), 3), make_mesh(data=1), 7
    )
    state = program.init()
    state = replace(state, optimizer=jax.tree.map(lambda x: x + jnp.ones_like(x), state.optimizer))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, {})
    checkpoints.close()
    (workdir / "config.json").write_text("{}")
    return averaged(state.optimizer, state.parameters)


def test_starting_from_another_run(tmp_path: Path) -> None:
    theirs = named(saved_run(tmp_path, head="pretext"))
    ours = toy(seed=3)
    before = named(ours)
    start = start_from_workdir(tmp_path, ours)
    assert set(start.loaded) == {n for n in before if n.startswith("encoder.")}
    assert set(start.fresh) == {"heads.head.kernel", "heads.head.bias"}
    assert set(start.unused) == {"heads.pretext.kernel", "heads.pretext.bias"}
    report = start.report()
    assert "4 parameters loaded, 2 fresh; 2 unused" in report
    assert "\n  loaded  encoder.low.kernel" in report and "\n  unused  heads.pretext.bias" in report

    filled = jax.device_put(ours, jax.NamedSharding(make_mesh(data=2, fsdp=2), jax.P()))
    filled = start.fill(filled)
    assert jax.tree.structure(filled) == jax.tree.structure(ours)
    for name, value in named(filled).items():
        np.testing.assert_array_equal(value, theirs[name] if name.startswith("encoder.") else before[name])
    assert all(leaf.sharding.mesh.shape["fsdp"] == 2 for leaf in jax.tree.leaves(filled))

    some = start_from_workdir(tmp_path, ours, skip=r"\.lowest\.")
    assert set(some.loaded) == {"encoder.low.kernel", "encoder.low.bias"}


def test_a_schedule_free_run_is_started_from_as_it_was_scored(tmp_path: Path) -> None:
    theirs = named(saved_run(tmp_path, name="schedule_free"))
    for ema in (False, True):  # there is no other average to ask for
        start = start_from_workdir(tmp_path, toy(seed=3), ema=ema)
        assert "6 parameters loaded (6 of them its average), 0 fresh" in start.report()
        filled = start.fill(jax.device_put(toy(seed=3), jax.NamedSharding(make_mesh(data=2, fsdp=2), jax.P())))
        for name, value in named(filled).items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-6)


def test_what_cannot_be_started_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a workdir"):
        start_from_workdir(tmp_path, toy())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="no checkpoint in"):
        start_from_workdir(tmp_path, toy())
    saved_run(tmp_path)
    with pytest.raises(UsageError, match=r"heads.head.kernel is float32\[3, 2\] in the model, float32\[4, 2\] in"):
        start_from_workdir(tmp_path, toy(width=3))
    assert set(start_from_workdir(tmp_path, toy(width=3), skip="^heads").fresh) == {
        "heads.head.kernel",
        "heads.head.bias",
    }
    with pytest.raises(UsageError, match="init_skip='nothing' is found in no parameter's name"):
        start_from_workdir(tmp_path, toy(), skip="nothing")
    with pytest.raises(UsageError, match="no parameter of"):
        start_from_workdir(tmp_path, nnx.State({"other": toy()["heads"]["head"]["bias"]}))
