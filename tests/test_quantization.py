"""Products in eight bits: value and gradients by hand, and what must not change them: meshes, remat, neighbours, a cache."""

from __future__ import annotations

import unittest.mock
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from quick import quick

from unimodal import Backbone, BackboneConfig
from unimodal.layers import Linear
from unimodal.lora import apply, lora
from unimodal.plan.count import eight_bit_flops, flops
from unimodal.plan.hlo import parse
from unimodal.quantization import FORMATS, product
from unimodal.sharding import make_mesh
from unimodal.tokens import tokens
from unimodal.training.checkpoint import Checkpoints
from unimodal.visibility import visible

KINDS = tuple(FORMATS)
RANDOM = np.random.default_rng(0)
SMALL: dict[str, Any] = dict(width=16, depth=2, heads=2, kv_heads=1, activation="swiglu", rope_theta=10.0)


def drawn(*shape: int) -> np.ndarray:
    """Normal numbers, of another size in each row."""
    return (RANDOM.standard_normal(shape) * np.exp(RANDOM.standard_normal((*shape[:-1], 1)))).astype(np.float32)


X, W, G = drawn(2, 5, 24), drawn(24, 32), drawn(2, 5, 32) * 1e-3


def pulled(x: Any, w: Any, g: Any, contracted: int, kind: str) -> tuple[np.ndarray, ...]:
    """y, dx and dW."""

    def run(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda x, w: product(x, w, contracted, kind), x, w)
        return y, *pull(g)

    return tuple(np.asarray(a) for a in quick(run)(x, w, g))


def rounded(row: np.ndarray, kind: str, *, gradient: bool = False) -> tuple[np.ndarray, np.float32]:
    """One slice in eight bits and its scale."""
    dtype = {"int8": None, "float8": ml_dtypes.float8_e5m2 if gradient else ml_dtypes.float8_e4m3fn}[kind]
    scale = np.abs(row).max() / np.float32(127 if dtype is None else 57344 if gradient else 448)
    return (np.rint(row / scale) if dtype is None else (row / scale).astype(dtype)).astype(np.float64), scale


def by_hand(rows: np.ndarray, columns: np.ndarray, kind: str, *, gradient: bool = False) -> np.ndarray:
    """rows [N,I] · columnsᵀ [I,O], number by number."""
    result = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            (left, by_row), (right, by_column) = rounded(row, kind, gradient=gradient), rounded(column, kind)
            result[i, j] = (left * right).sum() * by_row * by_column
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [((24,), (32,)), ((24,), (4, 8)), ((4, 6), (32,))], ids=["matrix", "heads out", "heads in"]
)
def test_value_and_gradients_by_hand(kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    found = pulled(X.reshape(2, 5, *inputs), W.reshape(*inputs, *outputs), G.reshape(2, 5, *outputs), len(inputs), kind)
    x, g = X.reshape(10, 24), G.reshape(10, 32)
    wanted = by_hand(x, W.T, kind), by_hand(g, W, kind, gradient=True), x.T.astype(np.float64) @ g
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
    exact = x @ W, g @ W.T  # what is rounded is near what is not, and is not the same
    for a, b, most in zip(found, exact, (0.02, 0.02) if kind == "int8" else (0.05, 0.09), strict=False):
        error = np.linalg.norm(a.reshape(b.shape) - b) / np.linalg.norm(b)
        assert most / 10 < error < most


def test_off_is_the_plain_product() -> None:
    make = dict(inputs=(24,), outputs=(4, 8), axes=("embed", "heads", "head_size"), bias=False, rngs=nnx.Rngs(0))
    plain = Linear(**make)

    def read(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w, (((2,), (0,)), ((), ())))

    given = jnp.asarray(X), plain.kernel.get_value()
    assert str(jax.make_jaxpr(lambda x, _: plain(x))(*given).jaxpr.eqns[-1].primitive) == "dot_general"
    assert (plain(given[0]) == read(*given)).all()
    model = jax.eval_shape(lambda: Backbone(BackboneConfig(**SMALL), rngs=nnx.Rngs(0)))
    program = str(jax.make_jaxpr(lambda m, x: m(tokens(x))[0])(model, jnp.zeros((1, 4, 16))))
    assert "i8[" not in program and "f8_" not in program


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(kind: str, bad: float) -> None:
    def spoilt(a: np.ndarray, *place: int) -> np.ndarray:
        a = a.copy()
        a[place] = bad
        return a

    y = pulled(spoilt(X, 1, 2, 3), W, G, 1, kind)[0]
    assert np.isnan(y[1, 2]).all() and np.isfinite(np.delete(y.reshape(10, -1), 7, axis=0)).all()
    y, dx, _ = pulled(X, spoilt(W, 3, 4), G, 1, kind)
    assert np.isnan(y[..., 4]).all() and np.isnan(dx[..., 3]).all()
    assert np.isfinite(np.delete(y, 4, axis=-1)).all() and np.isfinite(np.delete(dx, 3, axis=-1)).all()
    _, dx, dw = pulled(X, W, spoilt(G, 0, 1, 5), 1, kind)
    assert np.isnan(dx[0, 1]).all() and not np.isfinite(dw[:, 5]).any()
    assert np.isfinite(dx[1]).all() and np.isfinite(np.delete(dw, 5, axis=1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_zeros_is_zero(kind: str) -> None:
    for found in pulled(np.zeros_like(X), np.zeros_like(W), np.zeros_like(G), 1, kind):
        assert (found == 0).all()
    y = pulled(np.concatenate([X, np.zeros_like(X)], axis=1), W, np.concatenate([G, G], axis=1), 1, kind)[0]
    assert (y[:, 5:] == 0).all() and (y[:, :5] == pulled(X, W, G, 1, kind)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_do_not_matter(kind: str) -> None:
    louder = np.concatenate([X, 1e4 * X], axis=1)
    found = pulled(louder, W, np.concatenate([G, 1e4 * G], axis=1), 1, kind)
    alone = pulled(X, W, G, 1, kind)
    assert (found[0][:, :5] == alone[0]).all() and (found[1][:, :5] == alone[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("of_x", "of_w"),
    [
        (("data",), (None, "data")),
        (("data", None, None), (None, "tensor")),
        (("data", None, "tensor"), ("tensor", None)),
        ((None,), ("fsdp", "tensor")),
    ],
    ids=["data", "outputs", "inputs", "fsdp"],
)
def test_in_pieces_as_whole(kind: str, of_x: Any, of_w: Any) -> None:
    """Sums of int8 are exact, so they are equal to the bit."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    x, w = (jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec))) for a, spec in ((X, of_x), (W, of_w)))
    found, whole = pulled(x, w, G, 1, kind), pulled(X, W, G, 1, kind)
    for a, b, exact in zip(found, whole, (kind == "int8", kind == "int8", False), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6 * np.abs(b).max())


def of(x: jax.Array, **options: Any) -> tuple[Any, Any]:
    """Value and gradient of a small backbone as a function of its parameters, and the parameters."""
    structure, parameters = nnx.split(Backbone(BackboneConfig(**SMALL | options), rngs=nnx.Rngs(0)))
    loss = lambda p: jnp.sin(nnx.merge(structure, p)(tokens(x, causal=True))[0]).sum()  # noqa: E731
    return jax.value_and_grad(loss), parameters


ROWS = jnp.asarray(drawn(2, 12, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_remat_and_scan_give_the_same(kind: str) -> None:
    found = []
    for remat in ("none", "light"):
        function, parameters = of(ROWS, quantization=kind, remat=remat)
        found.append(jax.tree.leaves(quick(function)(parameters)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(a).max())))
    model = Backbone(BackboneConfig(**SMALL, quantization=kind), rngs=nnx.Rngs(0))
    run = quick(lambda model: model(tokens(ROWS, causal=True))[0])
    np.testing.assert_allclose(run(model), run(model.unstacked()), rtol=1e-6, atol=1e-6)


def test_a_cache_gives_what_a_plain_pass_gives() -> None:
    model = Backbone(BackboneConfig(**SMALL, quantization="int8"), rngs=nnx.Rngs(0))
    whole = quick(lambda m: m(tokens(ROWS, causal=True))[0])(model)

    def step_by_step(m: Backbone) -> jax.Array:
        rows = tokens(ROWS, causal=True)
        _, cache = m.prefill(tokens(ROWS[:, :8], causal=True))
        cache = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, 4), (0, 0), (0, 0))), cache)
        mask, out = visible(rows.layout, rows.segment), []
        assert mask is not None
        mask = jnp.broadcast_to(mask, (2, 12, 12))
        for i in range(8, 12):
            at = rows.position[:, i : i + 1]
            hidden, cache = m.extend(ROWS[:, i : i + 1], at, mask[:, i : i + 1], cache, jnp.int32(i))
            out.append(hidden)
        return jnp.concatenate(out, axis=1)

    np.testing.assert_allclose(quick(step_by_step)(model), whole[:, 8:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "light"])
def test_every_product_of_a_layer_is_in_eight_bits(remat: str) -> None:
    """Those with weights, forward and for the gradient that is passed on; light computes none of them again but the last
    of the attention, as without eight bits."""
    weights = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 64)  # of two layers: query, key, value, output, MLP

    def count(kind: str) -> tuple[float, float]:
        function, parameters = of(ROWS, quantization=kind, remat=remat)
        program = parse(jax.jit(function).lower(parameters).compile().as_text())
        return eight_bit_flops(program)["int8"], flops(program)[0]

    again = 2 * 16 * 16 if remat == "light" else 0
    assert count("int8")[0] == 2 * 24 * (2 * weights + again) and count("none")[0] == 0
    assert count("int8")[1] == count("none")[1]


def test_adapters_beside_a_base_in_eight_bits() -> None:
    """Gradients of frozen kernels are not computed: the products are as many as without eight bits."""
    counts, values = {}, {}
    for kind in ("none", "int8"):
        model = Backbone(BackboneConfig(**SMALL, quantization=kind), rngs=nnx.Rngs(0))
        adapters = lora(model, rank=2)
        loss = lambda a, m: jnp.sin(apply(m, a)(tokens(ROWS, causal=True))[0]).sum()  # noqa: E731
        compiled = jax.jit(jax.value_and_grad(loss)).lower(adapters, model).compile()
        counts[kind] = flops(parse(compiled.as_text()))[0]
        values[kind], gradients = compiled(adapters, model)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)) > 0
    assert counts["int8"] == counts["none"] and values["int8"] != values["none"]


def test_training_on_a_mesh(tmp_path: Path) -> None:
    """The whole step, in shards, is that of one device."""
    losses = []
    for name, mesh in dict(one=dict(data=1), many=dict(data=2, fsdp=2, tensor=2)).items():
        with unittest.mock.patch.object(Checkpoints, "save", return_value=""):
            config = tiny.plain("gpt", steps=3, mesh=mesh, backbones__shared__quantization="int8")
            losses.append(list(tiny.train(config, tmp_path / name).losses("gpt").values()))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][0] > losses[0][2]
