"""What makes long inputs possible changes no number: sequences in pieces, losses in chunks, half precision in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import named, quick

from unimodal import UsageError, sharding
from unimodal.objectives import as_scalars
from unimodal.tokenizers import audio, image, spectrogram

# Windows and global tokens; one task sees both ways and has padding, the other is causal with packed documents.
SMALL: dict[str, Any] = dict(
    backbones__shared__depth=1,
    backbones__shared__kv_heads=2,
    backbones__shared__window=6,
    backbones__shared__global_tokens=1,
)
PACKED = {"gpt": dict(tasks__gpt__packed=True), "bert": {}}
CASES = {"bert": dict(data=1, sequence=4), "gpt": dict(data=2, sequence=2, tensor=2)}


def gradients(kind: str, chunk: int = 0, remat: str = "none", **mesh: int) -> tuple[float, dict[str, np.ndarray]]:
    """A task's loss and gradients, of the same weights and batch on whatever mesh."""
    more = {f"tasks__{kind}__chunk": chunk, "backbones__shared__remat": remat}
    experiment = tiny.build(tiny.plain(kind, **SMALL | PACKED[kind] | more, mesh=mesh))
    task = experiment.tasks[0]
    model, batch = quick(experiment.program.make_model)(jax.random.key(0)), dict(next(experiment.train_batches(task)))
    batch.pop("id")  # strings, which stay on the host

    def loss(model: Any, batch: Any) -> jax.Array:
        return as_scalars(*task.loss(model, batch, key=jax.random.key(0), step=jnp.int32(0)))[0]

    with jax.set_mesh(experiment.mesh):
        model = jax.device_put(model, sharding.shardings(model, experiment.mesh))
        batch = jax.device_put(batch, sharding.batch_sharding(experiment.mesh))
        value, found = quick(jax.value_and_grad(loss))(model, batch)
    return float(value), named(found)


@pytest.mark.parametrize("kind", CASES)
def test_sequences_in_pieces_and_losses_in_chunks_change_nothing(kind: str) -> None:
    loss, found = gradients(kind, chunk=5, remat="full", **CASES[kind])
    true_loss, wanted = gradients(kind, data=1)
    assert loss == pytest.approx(true_loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


CONVOLUTIONS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "audio": (
        audio,
        audio.Config(channels=8, kernels=(4, 2), strides=(4, 2), position_kernel=4, position_groups=2),
        (2, 128),
    ),
    "spectrogram": (spectrogram, spectrogram.Config(bins=8, max_length=32), (2, 32, 8)),
    "image": (image, image.Config(image_size=(16, 16), patch=4, registers=0, stride=(4, 4)), (2, 16, 16, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_before_split_sequences_keep_their_gradients(kind: str) -> None:
    """XLA's partitioner counts a kernel's gradient twice where its input is split and another axis is idle."""
    module, config, shape = CONVOLUTIONS[kind]
    tokenizer = quick(lambda: module.Tokenizer(config, 16, rngs=nnx.Rngs(0)))()
    raw = jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))

    def loss(tokenizer: Any, raw: jax.Array) -> jax.Array:
        x = sharding.constrain(tokenizer(raw).x, "batch", "tokens", "hidden")
        return jnp.square(jnp.cumsum(x, axis=1)).mean()

    wanted = named(quick(jax.grad(loss))(tokenizer, raw))
    mesh = sharding.make_mesh(data=1, sequence=2, tensor=2)
    with jax.set_mesh(mesh):
        found = named(quick(jax.grad(loss))(jax.device_put(tokenizer, sharding.shardings(tokenizer, mesh)), raw))
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_predictions_in_chunks_are_the_same(kind: str) -> None:
    experiment = tiny.build(tiny.plain(kind, **SMALL))
    task, batch = experiment.tasks[0], dict(next(experiment.train_batches(experiment.tasks[0])))
    batch.pop("id")  # strings, which stay on the host
    model = quick(experiment.program.make_model)(jax.random.key(0))
    whole, chunked = (quick(t.predict)(model, batch) for t in (task, replace(task, chunk=5)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, chunked)
    rows, vocabulary = task.batch_size * task.texts.length, model.tokenizers[task.tokenizer].config.vocabulary
    for chunk, all_at_once in ((0, True), (5, False)):
        made = equations(jax.make_jaxpr(replace(task, chunk=chunk).predict)(model, batch).jaxpr)
        sizes = {v.aval.size for equation in made for v in equation.outvars}
        assert (rows * vocabulary in sizes) == all_at_once


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_negative_chunk_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f"tasks.{kind}.chunk must be 0"):
        tiny.build(tiny.plain(kind, **{f"tasks__{kind}__chunk": -1}))


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_bfloat16_leaves_softmax_norms_loss_and_optimizer_in_float32() -> None:
    experiment = tiny.build(
        tiny.plain("gpt", backbones__shared__dtype="bfloat16", backbones__shared__activation="relu")
    )
    task, program = experiment.tasks[0], experiment.program
    state = program.abstract_state()
    shapes = {k: jax.ShapeDtypeStruct((8, *a.shape), a.dtype) for k, a in task.inputs(experiment.model).spec.items()}
    traced = program.step({"gpt": (task.loss, 1.0)}).trace(state, {"gpt": shapes})
    found: dict[str, set[str]] = {}
    for equation in equations(traced.jaxpr.jaxpr):
        found.setdefault(equation.primitive.name, set()).update(str(v.aval.dtype) for v in equation.outvars)
    assert "bfloat16" in found["dot_general"]  # the option does something
    for name in ("exp", "log", "rsqrt", "sqrt", "div", "reduce_max"):
        assert found.get(name, {"float32"}) <= {"float32", "int32", "uint32"}, name
    assert {"exp", "log", "rsqrt", "sqrt"} <= found.keys()
    after, metrics = jax.eval_shape(program.step({"gpt": (task.loss, 1.0)}), state, {"gpt": shapes})
    floats = [x for x in jax.tree.leaves((after, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {"float32"} and len(floats) > 20
