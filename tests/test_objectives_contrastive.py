"""CLIP, SigLIP and NT-Xent against Hugging Face and the papers' formulas; duplicates, padding and collapse."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimodal.objectives import clip, nt_xent, siglip

REFERENCE = dict(np.load(Path(__file__).parent / "reference/objectives/contrastive.npz", allow_pickle=False))
A, B, SCALE, BIAS = (jnp.asarray(REFERENCE[name]) for name in ("a", "b", "scale", "bias"))
INPUTS = {"clip": ("a", "b", "scale"), "siglip": ("a", "b", "scale", "bias"), "nt_xent": ("a", "b")}
LOSS = {
    "clip": jax.jit(clip),
    "siglip": jax.jit(siglip),
    "nt_xent": jax.jit(lambda a, b, **options: nt_xent(a, b, 0.2, **options)),
}
ARGUMENTS = {name: [jnp.asarray(REFERENCE[key]) for key in keys] for name, keys in INPUTS.items()}
each = pytest.mark.parametrize("name", LOSS)
# A loss is the difference of two numbers of about the largest logit, which is the scale: float32 rounds each of them, and
# the logit itself, by half a unit in the last place.
ROUNDING = 2 * np.finfo(np.float32).eps * max(float(SCALE), 1 / 0.2)


@each
def test_equals_the_reference(name):
    step = jax.value_and_grad(lambda *xs: LOSS[name](*xs)[0].mean(), argnums=range(len(INPUTS[name])))
    loss, grads = jax.jit(step)(*ARGUMENTS[name])
    np.testing.assert_allclose(loss, REFERENCE[f"{name}_loss"], rtol=1e-5)
    for key, grad in zip(INPUTS[name], grads, strict=True):
        np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_{key}"], rtol=1e-5, atol=1e-5, err_msg=key)


@each
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_equals_the_reference_in_chunks(name, chunk):
    objective, more = {"clip": (clip, ()), "siglip": (siglip, ()), "nt_xent": (nt_xent, (0.2,))}[name]
    step = jax.value_and_grad(
        lambda *xs: objective(*xs, *more, chunk=chunk)[0].mean(), argnums=range(len(INPUTS[name]))
    )
    loss, grads = jax.jit(step)(*ARGUMENTS[name])
    np.testing.assert_allclose(loss, REFERENCE[f"{name}_loss"], rtol=1e-5)
    for key, grad in zip(INPUTS[name], grads, strict=True):
        np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_{key}"], rtol=1e-5, atol=1e-5, err_msg=key)


@each
def test_accuracy_both_ways(name):
    _, sums = LOSS[name](*ARGUMENTS[name])
    a, b = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B))
    cosine = a @ b.T
    if name != "nt_xent":  # which has more to choose from
        assert int(sums["correct_a_to_b"]) == (cosine.argmax(1) == np.arange(6)).sum()
        assert int(sums["correct_b_to_a"]) == (cosine.argmax(0) == np.arange(6)).sum()
    far = jnp.eye(6, 10)
    _, sums = LOSS[name](far, far + 0.1, *ARGUMENTS[name][2:])
    assert sums["correct_a_to_b"] == sums["correct_b_to_a"] == sums["examples"] == 6


@each
def test_collapsed_embeddings_score_nothing(name):
    same = jnp.ones((6, 10))
    loss, sums = LOSS[name](same, same, *ARGUMENTS[name][2:])
    assert sums["correct_a_to_b"] == sums["correct_b_to_a"] == 0
    if name == "clip":
        np.testing.assert_allclose(loss, np.log(6), rtol=0, atol=ROUNDING)


@each
def test_duplicates_are_not_negatives(name):
    """Row 5 is row 0 again: with ids, pushing it has no effect on row 0's loss, and without ids it has."""
    again = np.array([0, 1, 2, 3, 4, 0])
    a, b = np.asarray(A)[again], np.asarray(B)[again]
    rest = ARGUMENTS[name][2:]
    first = jax.jit(jax.value_and_grad(lambda b, ids: LOSS[name](a, b, *rest, ids_B=ids)[0][0]))
    loss, grad = first(b, jnp.asarray(again))
    assert (np.asarray(grad)[5] == 0).all()
    assert (np.asarray(first(b, None)[1])[5] != 0).any()
    # Logits near 10 are taken from one another: float32 leaves 1e-6 of that.
    np.testing.assert_allclose(loss, LOSS[name](a[:5], b[:5], *rest)[0][0], rtol=1e-6, atol=1e-6)
    far = np.eye(6, 10, dtype=np.float32)[again]
    _, sums = LOSS[name](far, far, *rest, ids_B=jnp.asarray(again))
    assert sums["correct_a_to_b"] == sums["correct_b_to_a"] == 6


@each
def test_padding_is_nobodys_negative(name):
    rest = ARGUMENTS[name][2:]
    valid = np.array([True, True, False, True, True, False])
    a, b = (np.where(valid[:, None], x, np.float32(np.nan)) for x in (A, B))

    def total(a, b):
        loss, sums = LOSS[name](a, b, *rest, valid_B=jnp.asarray(valid))
        return loss.sum(), (loss, sums)

    (_, (loss, sums)), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(a, b)
    shorter, shorter_sums = LOSS[name](np.asarray(A)[valid], np.asarray(B)[valid], *rest)
    loss = np.asarray(loss)
    np.testing.assert_allclose(loss[valid], shorter, rtol=1e-5)
    assert (loss[~valid] == 0).all()
    for key, value in shorter_sums.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, err_msg=key)
    for grad in map(np.asarray, grads):
        assert np.isfinite(grad).all() and (grad[~valid] == 0).all() and (grad[valid] != 0).any()


@each
def test_length_of_the_embedding_does_not_matter(name):
    rest = ARGUMENTS[name][2:]
    np.testing.assert_allclose(LOSS[name](3.0 * A, 0.2 * B, *rest)[0], LOSS[name](A, B, *rest)[0], rtol=1e-5)


@each
def test_one_example_alone(name):
    step = jax.jit(jax.value_and_grad(lambda a: LOSS[name](a, B[:1], *ARGUMENTS[name][2:])[0].sum()))
    loss, grad = step(np.asarray(A)[:1])
    assert np.isfinite(loss) and np.isfinite(grad).all()
    if name != "siglip":
        assert abs(loss) <= ROUNDING
