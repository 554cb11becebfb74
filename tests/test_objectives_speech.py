"""wav2vec 2.0 against Hugging Face's own forward pass; distractors, collapse, straight-through codes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimodal.objectives import (
    code_perplexity,
    diversity,
    gumbel_codes,
    ratio,
    sample_negatives,
    wav2vec2_contrastive,
)

REFERENCE = dict(np.load(Path(__file__).parent / "reference/objectives/speech.npz", allow_pickle=False))
MASK, NEGATIVES = jnp.asarray(REFERENCE["mask"]) > 0, jnp.asarray(REFERENCE["negatives"])
TEMPERATURE = float(REFERENCE["temperature"])
CONTRASTIVE, NEGATIVES_OF = jax.jit(wav2vec2_contrastive), jax.jit(sample_negatives, static_argnums=2)
PERPLEXITY, DIVERSITY = jax.jit(code_perplexity), jax.jit(diversity)
DIVERSITY_GRAD = jax.jit(jax.value_and_grad(lambda x, mask: diversity(jax.nn.softmax(x, axis=-1), mask)[0]))
rng = np.random.default_rng(0)
G, V = REFERENCE["probabilities"].shape[2:]


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", ["eval", "train"])
def test_contrastive_equals_hugging_face(name):
    context, quantised = (jnp.asarray(REFERENCE[f"{name}_{key}"]) for key in ("context", "quantised"))

    def loss(context, quantised):
        return wav2vec2_contrastive(context, quantised, MASK, NEGATIVES, TEMPERATURE)[1]["objective"]

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(context, quantised)
    np.testing.assert_allclose(value, REFERENCE[f"{name}_loss"], rtol=1e-5)
    for key, grad in zip(("context", "quantised"), grads, strict=True):
        np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_{key}"], rtol=1e-5, atol=1e-5, err_msg=key)


def test_the_reference_has_distractors_equal_to_their_target():
    """Or the comparison above would not show that they are left out."""
    quantised = REFERENCE["eval_quantised"]
    there = np.stack([row[places] for row, places in zip(quantised, REFERENCE["negatives"], strict=True)])
    equal = (there == quantised[:, :, None]).all(-1)[np.asarray(MASK)]
    assert 0.05 < equal.mean() < 0.95


def test_codes_and_bits_judge_sameness_alike():
    context, quantised = jnp.asarray(REFERENCE["eval_context"]), jnp.asarray(REFERENCE["eval_quantised"])
    codes = jnp.argmax(jnp.asarray(REFERENCE["eval_logits"]), axis=-1)
    by_bits = CONTRASTIVE(context, quantised, MASK, NEGATIVES)
    by_codes = CONTRASTIVE(context, quantised, MASK, NEGATIVES, codes_BTG=codes)
    np.testing.assert_array_equal(by_bits[0], by_codes[0])


def test_loss_and_accuracy_by_hand():
    """Frames 0..3 masked; 0 and 1 share a code. Contexts point at codes; frame 3 points at the wrong one."""
    code = jnp.eye(4)[jnp.array([0, 0, 1, 2, 3])][None]
    context = jnp.eye(4)[jnp.array([0, 0, 1, 1, 3])][None]
    mask = jnp.array([[True, True, True, True, False]])
    negatives = jnp.array([[[1, 2], [0, 1], [0, 4], [2, 0], [0, 1]]])  # frame 4 is off the mask
    loss, sums = CONTRASTIVE(context, code, mask, negatives, 1.0)
    e = np.e
    frames = [-np.log(e / (e + 1)), 0.0, -np.log(e / (e + 1)), -np.log(1 / (1 + e + 1))]
    np.testing.assert_allclose(loss[0], np.mean(frames), rtol=1e-6)
    assert [int(sums[name]) for name in ("frames", "contested", "correct")] == [4, 3, 2]


@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_other_masked_frames(seed):
    mask = np.random.default_rng(seed).random((4, 50)) < 0.3
    mask[3] = False
    mask[3, [8, 30]] = True
    drawn = np.asarray(NEGATIVES_OF(jax.random.key(seed + 9), mask, 25))
    assert drawn.shape == (4, 50, 25) and drawn.dtype == np.int32
    for b, t in np.ndindex(4, 50):
        if mask[b, t]:
            assert mask[b, drawn[b, t]].all() and (drawn[b, t] != t).all()
        else:
            assert (drawn[b, t] == -1).all()
    assert (drawn[3, 8] == 30).all() and (drawn[3, 30] == 8).all()


def test_negatives_of_one_or_no_masked_frame_are_none():
    mask = np.eye(2, 6, 2, dtype=bool)
    mask[1] = False
    assert (np.asarray(NEGATIVES_OF(jax.random.key(0), mask, 5)) == -1).all()
    assert NEGATIVES_OF(jax.random.key(0), np.ones((1, 1), bool), 5).tolist() == [[[-1] * 5]]


def test_negatives_are_uniform():
    mask = jnp.array([[True, False, True, True, False, True, True]])
    drawn = np.asarray(NEGATIVES_OF(jax.random.key(0), mask, 8000))[0]
    for t in (0, 2, 3, 5, 6):
        frames, counts = np.unique(drawn[t], return_counts=True)
        assert frames.tolist() == [f for f in (0, 2, 3, 5, 6) if f != t]
        assert np.abs(counts - 2000).max() < 200  # five standard deviations


@pytest.mark.parametrize(("name", "mask"), [("masked", MASK), ("whole", jnp.ones_like(MASK))])
def test_perplexity_equals_hugging_face(name, mask):
    ours = PERPLEXITY(jnp.asarray(REFERENCE["probabilities"]), mask)
    assert ours.shape == (G,)
    np.testing.assert_allclose(ours.sum(), REFERENCE[f"{name}_perplexity"], rtol=1e-5)


def test_diversity_equals_hugging_face():
    """Its loss is multiplied by the number of masked frames, to be added to a sum over them."""
    logits = jnp.asarray(REFERENCE["train_logits"])

    def loss(logits):
        return diversity(jax.nn.softmax(logits, axis=-1), MASK)[0] * MASK.sum(dtype=jnp.float32)

    value, grad = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, REFERENCE["diversity_loss"], rtol=1e-5)
    theirs = REFERENCE["diversity_grad_logits"].reshape(grad.shape)
    np.testing.assert_allclose(grad, theirs, rtol=1e-5, atol=1e-5)
    hard, _ = gumbel_codes(jnp.asarray(REFERENCE["eval_logits"]), None, 1.0)
    np.testing.assert_allclose(PERPLEXITY(hard, MASK).sum(), REFERENCE["eval_perplexity"], rtol=1e-5)


def test_a_collapsed_codebook_is_caught():
    """All frames on one code: perplexity at its floor, diversity at its ceiling, accuracy 0 though the loss is 0."""
    collapsed = np.zeros((2, 9, 2, 5), np.float32)
    collapsed[..., 3] = 1.0
    uniform = np.full((2, 9, 2, 5), 0.2, np.float32)
    mask = np.ones((2, 9), bool)
    np.testing.assert_allclose(PERPLEXITY(collapsed, mask), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(PERPLEXITY(uniform, mask), [5, 5], rtol=1e-6)
    worst, sums = DIVERSITY(collapsed, mask)
    np.testing.assert_allclose(worst, 4 / 5, rtol=1e-6)
    np.testing.assert_allclose(sums["code_perplexity"], 1, rtol=1e-6)
    np.testing.assert_allclose(DIVERSITY(uniform, mask)[0], 0, atol=1e-6)
    some = DIVERSITY(0.5 * collapsed + 0.5 * uniform, mask)[0]
    assert 0 < some < worst

    negatives = NEGATIVES_OF(jax.random.key(1), mask, 6)
    loss, sums = CONTRASTIVE(normal(2, 9, 4), np.ones((2, 9, 4), np.float32), mask, negatives)
    assert (np.asarray(loss) == 0).all() and sums["contested"] == 0
    assert ratio(sums["correct"], sums["frames"]) == 0


def test_diversity_pulls_a_collapsed_codebook_apart():
    logits = np.zeros((1, 4, 1, 3), np.float32)
    logits[..., 0] = 2.0
    mask = np.ones((1, 4), bool)
    _, grad = DIVERSITY_GRAD(logits, mask)
    assert (np.asarray(grad)[..., 0] > 0).all() and (np.asarray(grad)[..., 1:] < 0).all()


def test_diversity_counts_only_its_frames():
    logits = normal(2, 6, 2, 4)
    mask = np.zeros((2, 6), bool)
    mask[0, 1] = mask[1, 4] = True
    _, grad = DIVERSITY_GRAD(logits, mask)
    assert ((np.abs(np.asarray(grad)).sum(axis=(2, 3)) > 0) == np.asarray(mask)).all()
    none = DIVERSITY_GRAD(logits, np.zeros_like(mask))
    assert none[0] == 0 and (np.asarray(none[1]) == 0).all()


def test_gumbel_codes_are_one_hot_in_value_and_soft_in_gradient():
    logits, weight = 3.0 * normal(400, 2, 8), normal(400, 2, 8)
    key = jax.random.key(1)
    codes, probabilities = map(np.asarray, jax.jit(gumbel_codes)(logits, key, 0.7))
    assert set(np.unique(codes)) == {0.0, 1.0} and (codes.sum(axis=-1) == 1).all()
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits, axis=-1), rtol=1e-6)
    noise = jax.random.gumbel(key, logits.shape)
    ours = jax.jit(jax.grad(lambda x: (gumbel_codes(x, key, 0.7)[0] * weight).sum()))(logits)
    soft = jax.jit(jax.grad(lambda x: (jax.nn.softmax((x + noise) / 0.7, axis=-1) * weight).sum()))(logits)
    np.testing.assert_allclose(ours, soft, rtol=1e-5, atol=1e-6)


def test_gumbel_codes_are_drawn_by_their_probabilities():
    logits = np.tile(np.log(np.array([[0.6, 0.3, 0.1]], np.float32)), (20000, 1))
    codes, _ = jax.jit(gumbel_codes)(logits, jax.random.key(0), 2.0)
    np.testing.assert_allclose(np.asarray(codes).mean(axis=0), [0.6, 0.3, 0.1], atol=0.02)
    likeliest, _ = jax.jit(gumbel_codes)(logits, None, 2.0)
    assert (np.asarray(likeliest)[:, 0] == 1).all()
