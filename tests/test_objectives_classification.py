"""Softmax and sigmoid classification against Hugging Face and torch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimodal.objectives import sigmoid_classification, softmax_classification

REFERENCE = dict(np.load(Path(__file__).parent / "reference/objectives/classification.npz", allow_pickle=False))
LOGITS, LABELS, MIXED, MANY = (jnp.asarray(REFERENCE[name]) for name in ("logits", "labels", "mixed", "many"))
SOFTMAX = jax.jit(softmax_classification, static_argnames="label_smoothing")
SIGMOID = jax.jit(sigmoid_classification, static_argnames="mean_over_classes")
CASES = {
    "single": lambda x: softmax_classification(x, LABELS)[0].mean(),
    "multi": lambda x: sigmoid_classification(x, MANY)[0].mean(),
    "smooth": lambda x: softmax_classification(x, LABELS, label_smoothing=0.1)[0].sum(),
    "mixup": lambda x: softmax_classification(x, MIXED)[0].sum(),
    "mixup_smooth": lambda x: softmax_classification(x, MIXED, label_smoothing=0.1)[0].sum(),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name):
    loss, grad = jax.jit(jax.value_and_grad(CASES[name]))(LOGITS)
    np.testing.assert_allclose(loss, REFERENCE[f"{name}_loss"].sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["hard", "soft"])
def test_accuracy_counts_the_likeliest_class(labels):
    logits = np.array(LOGITS)
    logits[0, LABELS[0]] = 50.0
    _, sums = SOFTMAX(logits, labels)
    assert int(sums["correct"]) == (logits.argmax(axis=1) == np.asarray(LABELS)).sum() >= 1
    assert sums["examples"] == 6


def test_hard_labels_are_one_hot_soft_ones():
    hard = SOFTMAX(LOGITS, LABELS, label_smoothing=0.2)[0]
    soft = SOFTMAX(LOGITS, jax.nn.one_hot(LABELS, 9), label_smoothing=0.2)[0]
    np.testing.assert_allclose(hard, soft, rtol=1e-6)


def test_left_out_examples_change_nothing():
    kept = np.array([True, True, False, True, False, True])
    garbage = np.array(LOGITS)
    garbage[2], garbage[4] = np.nan, np.inf
    loss, sums = SOFTMAX(garbage, LABELS, kept)
    rest, rest_sums = SOFTMAX(np.asarray(LOGITS)[kept], np.asarray(LABELS)[kept])
    np.testing.assert_allclose(np.asarray(loss)[kept], rest, rtol=1e-6)
    assert (np.asarray(loss)[~kept] == 0).all()
    for name, value in rest_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6)


def test_sigmoid_sums_give_precision_and_recall():
    logits = jnp.array([[2.0, -1.0, 3.0, 4.0], [-2.0, 5.0, 1.0, 9.0]])
    labels = jnp.array([[1, 1, 0, 1], [0, 1, 0, 1]])
    judged = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    loss, sums = SIGMOID(logits, labels, judged, mean_over_classes=False)
    names = ("examples", "decisions", "correct", "true_positives", "predicted_positives", "positives")
    assert [int(sums[name]) for name in names] == [2, 6, 3, 2, 4, 3]
    by_hand = np.log1p(np.exp([-2.0, 1.0, 3.0])).sum()
    np.testing.assert_allclose(loss[0], by_hand, rtol=1e-6)
    np.testing.assert_allclose(SIGMOID(logits, labels, judged)[0][0], by_hand / 3, rtol=1e-6)
