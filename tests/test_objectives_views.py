"""MoCo's and SwAV's objectives against torch, collapse meters, and memory that does not grow with the batch squared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.evaluation.spread import deviation, effective_rank
from unimodal.objectives import (
    clip,
    feature_deviation,
    info_nce,
    nt_xent,
    prototype_use,
    siglip,
    sinkhorn,
    swapped_prediction,
)
from unimodal.objectives.contrastive import unit

REFERENCE = {
    name: jnp.asarray(value)
    for name, value in np.load(Path(__file__).parent / "reference/objectives/views.npz", allow_pickle=False).items()
}


def in_batch(x: Any) -> jax.Array:
    return info_nce(x["query"], x["key"], 0.2, chunk=2)[0]


def queue(x: Any) -> jax.Array:
    # Rows that nothing was written to must not matter, whatever is in them.
    rows = jnp.concatenate([x["queue"], jnp.full((3, x["queue"].shape[1]), 7.0)])
    valid = jnp.arange(rows.shape[0]) < x["queue"].shape[0]
    return info_nce(x["query"], x["key"], 0.2, queue_ND=rows, valid_N=valid, chunk=3)[0]


def swapped(x: Any) -> jax.Array:
    table = unit(x["prototypes"].T).T
    scores, past = unit(x["embedded"]) @ table, x["past"] @ table
    empty = jnp.full((2, past.shape[2]), 9.0)
    valid = jnp.arange(len(scores) + len(past) + 2) < len(scores) + len(past)
    codes = [
        sinkhorn(jnp.concatenate([scores[:, i], past[:, i], empty]), 0.05, 3, valid_N=valid)[: len(scores)]
        for i in (0, 1)
    ]
    return swapped_prediction(codes, [scores[:, i] for i in range(3)], 0.1)[0]


@pytest.mark.parametrize(
    ("loss", "inputs"), [(in_batch, ["query"]), (queue, ["query"]), (swapped, ["embedded", "prototypes"])]
)
@pytest.mark.parametrize("devices", [1, 2])
def test_equals_torch_on_one_device_and_on_several(loss: Any, inputs: list[str], devices: int) -> None:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))

    def placed(name: str) -> jax.Array:
        by_row = name in ("query", "key", "embedded")
        return jax.device_put(REFERENCE[name], NamedSharding(mesh, PartitionSpec("data" if by_row else None)))

    arrays = {name: placed(name) for name in ("query", "key", "queue", "embedded", "past", "prototypes")}

    def total(chosen: Any, rest: Any) -> Any:
        each = loss({**rest, **chosen})
        return each.sum(), each

    given = {name: arrays.pop(name) for name in inputs}
    (_, each), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(given, arrays)
    np.testing.assert_allclose(each, REFERENCE[f"{loss.__name__}_loss"], rtol=2e-5)
    for name, grad in grads.items():
        wanted = REFERENCE[f"{loss.__name__}_grad_{name}"]
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=2e-5, err_msg=name)


def test_assignments_are_those_of_the_paper() -> None:
    table = unit(REFERENCE["prototypes"].T).T
    scores = jnp.concatenate([unit(REFERENCE["embedded"])[:, :2], REFERENCE["past"]]) @ table
    codes = jnp.stack([sinkhorn(scores[:, i])[:6] for i in (0, 1)], axis=1)
    np.testing.assert_allclose(codes, REFERENCE["codes"], rtol=1e-4, atol=1e-5)


def test_assignments_use_all_clusters_alike() -> None:
    scores = jax.random.normal(jax.random.key(0), (40, 8)) + 3.0 * jax.nn.one_hot(2, 8)[None]
    assert prototype_use(jax.nn.one_hot(scores.argmax(axis=1), 8)) < 0.5  # nearly all want the third
    codes = sinkhorn(scores, 0.5, 20)
    np.testing.assert_allclose(codes.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(axis=0), 5.0, rtol=1e-2)
    assert prototype_use(codes) > 0.999
    assert np.isfinite(sinkhorn(scores, 1e-4)).all()  # where exp(score / epsilon) is beyond float32


def test_collapse_meters() -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((512, 16)).astype(np.float32)
    same = np.tile(spread[:1], (512, 1)) * rng.uniform(0.5, 2, (512, 1)).astype(np.float32)
    line = np.outer(rng.standard_normal(512), spread[0]).astype(np.float32)
    for features, deviates, rank in ((spread, 1.0, 16.0), (same, 0.0, 1.0), (line, None, 1.0)):
        if deviates is not None:
            assert deviation(features) == pytest.approx(deviates, abs=0.03)
        assert float(feature_deviation(jnp.asarray(features))) == pytest.approx(deviation(features), abs=1e-4)
        assert effective_rank(features) == pytest.approx(rank, rel=0.02)
    # RankMe by its definition, with a spectrum that is known: singular values 3, 1 and 0.
    q, _ = np.linalg.qr(rng.standard_normal((20, 3)))
    p = np.array([0.75, 0.25, 0.0]) + 1e-7
    assert effective_rank(q * np.array([3.0, 1.0, 0.0])) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert np.isnan(effective_rank(np.full((4, 2), np.nan)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: nt_xent(a, b)[0].mean(),
        lambda a, b: clip(a, b, 10.0)[0].mean(),
        lambda a, b: siglip(a, b, 10.0, -10.0)[0].mean(),
        lambda a, b: info_nce(a, b)[0].mean(),
        lambda a, b: swapped_prediction([sinkhorn(a[:, :64])], [a[:, :64], b[:, :64]])[0].mean(),
    ],
    ids=["nt_xent", "clip", "siglip", "info_nce", "sinkhorn"],
)
def test_memory_does_not_grow_with_the_square_of_the_batch(loss: Any) -> None:
    def temporary(batch: int) -> int:
        x = jax.ShapeDtypeStruct((batch, 128), jnp.float32)
        memory: Any = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, x).compile().memory_analysis()
        return memory.temp_size_in_bytes

    small, large = temporary(4096), temporary(32768)
    assert 0 < large < 9 * small  # 8 times the examples
    assert large < 32768**2 * 4 / 3  # less than a third of one array of all pairs
