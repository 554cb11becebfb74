"""Every objective × every promise of the room: float32 out, padding silent, jit + vmap + grad, sharded batch."""

import ast
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import unimodal.objectives as room
from unimodal.objectives import (
    causal_lm,
    chunked_causal_lm,
    clip,
    cross_entropy,
    ctc_loss,
    diversity,
    gumbel_codes,
    info_nce,
    logit_laplace,
    masked_lm,
    masked_pixels,
    nt_xent,
    ratio,
    sample_negatives,
    siglip,
    sigmoid_classification,
    sinkhorn,
    softmax_classification,
    swapped_prediction,
    uniform_divergence,
    wav2vec2_contrastive,
)

B, T, D, V = 8, 10, 6, 7


@cache
def arrays(dtype: type = np.float32) -> dict[str, np.ndarray]:
    """One batch for all objectives; its last example is padding through and through."""
    rng = np.random.default_rng(0)
    real = np.arange(B)[:, None] < B - 1
    mask = (rng.random((B, T)) < 0.6) & real

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)

    return {
        "logits": normal(B, T, V),
        "hidden": normal(B, T, D),
        "other": normal(B, T, D),
        "codes": normal(B, T, 2, V),
        "ids": rng.integers(1, V, (B, T), np.int32),
        "segment": np.where(real, np.arange(T)[None, :] // 5 + 1, 0).astype(np.int32),
        "mask": mask,
        "negatives": np.asarray(sample_negatives(jax.random.key(0), jnp.asarray(mask), 4)),
        "frames": np.where(real[:, 0], T, 0).astype(np.int32),
        "lengths": np.where(real[:, 0], 3, 0).astype(np.int32),
    }


TABLE = np.random.default_rng(1).standard_normal((D, V), dtype=np.float32)
OBJECTIVES = {
    "causal": lambda x: causal_lm(x["logits"], x["ids"], x["segment"], z_loss=1e-3, label_smoothing=0.1),
    "chunked": lambda x: chunked_causal_lm(x["hidden"], jnp.asarray(TABLE), x["ids"], x["segment"], chunk=4),
    "masked": lambda x: masked_lm(x["logits"], x["ids"], x["mask"]),
    "pixels": lambda x: masked_pixels(x["hidden"], x["other"], x["mask"]),
    "cross_entropy": lambda x: cross_entropy(x["logits"], x["ids"], x["mask"]),
    "softmax": lambda x: softmax_classification(x["logits"][:, 0], x["ids"][:, 0], x["frames"] > 0),
    "soft_labels": lambda x: softmax_classification(
        x["logits"][:, 0], jax.lax.stop_gradient(jax.nn.softmax(x["logits"][:, 1], axis=-1)), x["frames"] > 0
    ),
    "sigmoid": lambda x: sigmoid_classification(x["hidden"][:, 0], x["ids"][:, :D] > 3, x["segment"][:, :D] > 0),
    "clip": lambda x: clip(x["hidden"][:, 0], x["other"][:, 0], 10.0, ids_B=x["ids"][:, 0], valid_B=x["frames"] > 0),
    "siglip": lambda x: siglip(x["hidden"][:, 0], x["other"][:, 0], 10.0, -10.0, valid_B=x["frames"] > 0),
    "clip_in_chunks": lambda x: clip(
        x["hidden"][:, 0], x["other"][:, 0], 10.0, ids_B=x["ids"][:, 0], valid_B=x["frames"] > 0, chunk=2
    ),
    "siglip_in_chunks": lambda x: siglip(
        x["hidden"][:, 0], x["other"][:, 0], 10.0, -10.0, valid_B=x["frames"] > 0, chunk=2
    ),
    "nt_xent": lambda x: nt_xent(x["hidden"][:, 0], x["other"][:, 0], 0.5, valid_B=x["frames"] > 0),
    "nt_xent_in_chunks": lambda x: nt_xent(
        x["hidden"][:, 0], x["other"][:, 0], 0.5, ids_B=x["ids"][:, 0], valid_B=x["frames"] > 0, chunk=2
    ),
    "wav2vec2": lambda x: wav2vec2_contrastive(x["hidden"], x["other"], x["mask"], x["negatives"]),
    "ctc": lambda x: ctc_loss(x["logits"], x["ids"][:, :4], x["frames"], x["lengths"]),
}
FLOATS = ("logits", "hidden", "other", "codes")
each = pytest.mark.parametrize("name", OBJECTIVES)


def value_and_grad(name):
    """(loss, sums, gradients by input) of one batch, to be jitted."""

    def total(floats, batch):
        loss, sums = OBJECTIVES[name]({**batch, **floats})
        return loss.sum(), (loss, sums)

    def step(batch):
        floats = {key: batch[key] for key in FLOATS}
        (_, (loss, sums)), grads = jax.value_and_grad(total, has_aux=True)(floats, batch)
        return loss, sums, grads

    return step


# There are many small programs here: compiling them is the whole cost, so they are not optimised.
OPTIONS = {"xla_backend_optimization_level": "0"}
STEPS = {name: jax.jit(value_and_grad(name), compiler_options=OPTIONS) for name in OBJECTIVES}


def run(name, batch):
    return jax.device_get(STEPS[name](batch))


@each
def test_bfloat16_in_float32_out(name):
    loss, sums, grads = run(name, arrays(jnp.bfloat16))
    assert loss.shape == (B,) and loss.dtype == np.float32
    assert all(value.shape == () and value.dtype == np.float32 for value in sums.values())
    assert all(grad.dtype == jnp.bfloat16 for grad in grads.values())
    np.testing.assert_allclose(loss, run(name, arrays())[0], rtol=0.1, atol=0.1)


@each
def test_padded_example_is_silent(name):
    loss, sums, grads = run(name, arrays())
    assert loss[-1] == 0 and (loss[:-1] > 0).all()
    assert any((grad != 0).any() for grad in grads.values())
    assert all(np.isfinite(grad).all() and (grad[-1] == 0).all() for grad in grads.values())
    # NaN in the padded example must not reach the others.
    batch = arrays()
    padded = np.arange(B) == B - 1
    sick = {k: np.where(padded.reshape(-1, *[1] * (batch[k].ndim - 1)), np.float32(np.nan), batch[k]) for k in FLOATS}
    sick_loss, sick_sums, sick_grads = run(name, {**batch, **sick})
    np.testing.assert_array_equal(sick_loss, loss)
    jax.tree.map(np.testing.assert_array_equal, sick_sums, sums)
    assert all(np.isfinite(grad).all() for grad in sick_grads.values())


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_nan_out_and_never_right(name, bad):
    batch = arrays()
    sick = {k: np.where(np.arange(B).reshape(-1, *[1] * (batch[k].ndim - 1)) < B - 1, bad, batch[k]) for k in FLOATS}
    loss, sums, _ = run(name, {**batch, **{k: v.astype(np.float32) for k, v in sick.items()}})
    assert not np.isfinite(loss[:-1]).any() and loss[-1] == 0
    right = {key: value for key, value in sums.items() if key.startswith(("correct", "true_"))}
    assert not any(value > 0 for value in right.values()), right


def test_one_nan_among_the_rivals_spoils_the_answer():
    for objective, more in ((clip, (10.0,)), (siglip, (10.0, -10.0)), (nt_xent, ())):
        a = np.eye(4, 5, dtype=np.float32)
        b = a.copy()
        assert objective(a, b, *more)[1]["correct_a_to_b"] == 4
        b[3] = np.nan
        assert objective(a, b, *more)[1]["correct_a_to_b"] == 0  # each had it as a rival


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_objectives_without_padding_praise_no_nan(bad):
    rng = np.random.default_rng(0)
    a, b, queue = (rng.standard_normal((n, 8), dtype=np.float32) for n in (4, 4, 9))
    good = {
        "info_nce": (lambda x: info_nce(x, b), 4),
        "queue": (lambda x: info_nce(x, b, queue_ND=queue), 4),
        "swapped": (lambda x: swapped_prediction([sinkhorn(b)], [b, x]), 4),
        "swapped codes": (lambda x: swapped_prediction([sinkhorn(x)], [x, b]), 4),
    }
    for name, (objective, most) in good.items():
        loss, sums = objective(b)
        right = {"correct", "agree"} & sums.keys()
        assert np.isfinite(loss).all() and all(0 < sums[key] <= most for key in right), name
        loss, sums = objective(np.full_like(a, bad))
        assert np.isnan(loss).all() and right and all(sums[key] == 0 for key in right), (name, sums)
    sick = jnp.full((2, 8), bad)
    assert np.isnan(uniform_divergence(sick)).all()
    assert not np.isfinite(logit_laplace(jnp.full((2, 8), 0.3), sick, jnp.zeros((2, 8)))).any()


def test_a_count_that_is_nan_gives_nan():
    assert np.isnan(ratio(jnp.float32(1), jnp.float32(np.nan)))
    assert ratio(jnp.float32(np.nan), jnp.float32(0)) == 0


@each
def test_zero_embeddings_are_finite(name):
    batch = arrays()
    loss, _, grads = run(name, {**batch, **{key: np.zeros_like(batch[key]) for key in FLOATS}})
    assert np.isfinite(loss).all() and all(np.isfinite(grad).all() for grad in grads.values())


@each
def test_jit_vmap_and_grad_compose(name):
    twice = jax.tree.map(lambda x: np.stack([x, np.flip(x, axis=0)]), arrays())
    both = jax.device_get(jax.jit(jax.vmap(value_and_grad(name)), compiler_options=OPTIONS)(twice))
    loss, _, grads = run(name, arrays())
    np.testing.assert_allclose(both[0], np.stack([loss, np.flip(loss)]), rtol=1e-5, atol=1e-6)
    for key, grad in grads.items():
        np.testing.assert_allclose(both[2][key][0], grad, rtol=1e-4, atol=1e-5, err_msg=key)


@each
def test_sharded_batch_gives_the_same(name):
    devices = jax.devices()
    if len(devices) < B:
        pytest.skip(f"needs {B} devices")
    sharding = NamedSharding(Mesh(np.array(devices[:B]), ("data",)), PartitionSpec("data"))
    spread = jax.device_put(arrays(), sharding)
    assert not spread["logits"].is_fully_replicated
    jax.tree.map(
        lambda ours, alone: np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=1e-5),
        run(name, spread),
        run(name, arrays()),
    )


def test_diversity_and_codes_compose_too():
    def loss(logits, key):
        codes, probabilities = gumbel_codes(logits, key, jnp.asarray(2.0, jnp.bfloat16))
        value, _ = diversity(probabilities, jnp.asarray(arrays()["mask"]))
        return value + (codes * codes).mean()

    stacked = np.stack([arrays(jnp.bfloat16)["codes"]] * 2)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked, jax.random.split(jax.random.key(0), 2))
    assert values.dtype == jnp.float32 and grads.dtype == jnp.bfloat16
    assert np.isfinite(grads.astype(jnp.float32)).all()


def test_the_room_imports_only_jax_and_optax():
    for path in Path(room.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                ours = name.startswith("unimodal.objectives.")
                assert ours or name.split(".")[0] in {"jax", "optax", *sys.stdlib_module_names}, (
                    f"{path.name} imports {name}"
                )
