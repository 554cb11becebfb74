"""What makes long inputs possible changes no number: sequences in pieces, losses in chunks, half precision in its place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import named, quick

from unimodal import UsageError, sharding

# Two tasks: windows and global tokens, causal and not; one with padding, one with packed documents.
SMALL: dict[str, Any] = dict(
    backbones__shared__depth=1,
    backbones__shared__kv_heads=2,
    backbones__shared__window=6,
    backbones__shared__global_tokens=1,
    tasks__gpt__packed=True,
)
CHUNKED = SMALL | dict(tasks__gpt__chunk=5, tasks__bert__chunk=4, backbones__shared__remat="full")


@functools.cache
def gradients(chunked: bool = False, **mesh: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The tasks' losses, and the gradients of their sum, of the same weights and batches on whatever mesh."""
    experiment = tiny.build(tiny.plain("gpt", "bert", **(CHUNKED if chunked else SMALL), mesh=mesh))
    model = quick(experiment.program.make_model)(jax.random.key(0))
    batches = {task.name: dict(next(experiment.train_batches(task))) for task in experiment.tasks}

    def total(model: Any, batches: Any) -> Any:
        key, step = jax.random.key(0), jnp.int32(0)
        losses = {t.name: t.loss(model, batches[t.name], key=key, step=step)[0] for t in experiment.tasks}
        return losses["gpt"] + losses["bert"], losses

    with jax.set_mesh(experiment.mesh):
        model = jax.device_put(model, sharding.shardings(model, experiment.mesh))
        batches = jax.device_put(batches, sharding.batch_sharding(experiment.mesh))
        found, losses = quick(jax.grad(total, has_aux=True))(model, batches)
    return jax.tree.map(float, losses), named(found)


@pytest.mark.parametrize("mesh", [dict(data=1, sequence=4), dict(data=2, sequence=2, tensor=2)], ids=str)
def test_sequences_in_pieces_and_losses_in_chunks_change_nothing(mesh: dict[str, int]) -> None:
    (losses, found), (true_losses, wanted) = gradients(chunked=True, **mesh), gradients(data=1)
    assert losses == pytest.approx(true_losses, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_predictions_in_chunks_are_the_same() -> None:
    scores = []
    for config in (SMALL, CHUNKED):
        experiment = tiny.build(tiny.plain("gpt", **{k: v for k, v in config.items() if "bert" not in k}))
        task = experiment.tasks[0]
        model = quick(experiment.program.make_model)(jax.random.key(0))
        batch = {k: jnp.asarray(v) for k, v in next(experiment.train_batches(task)).items()}
        scores.append(quick(task.predict)(model, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *scores)


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
    shapes = {k: jax.ShapeDtypeStruct((8, *a.shape), a.dtype) for k, a in task.spec(experiment.model).items()}
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
