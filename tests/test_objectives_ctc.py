"""CTC against torch, in value and gradient, for unequal lengths, repeats, empty transcripts and impossible ones."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimodal.objectives import ctc_loss

REFERENCE = dict(np.load(Path(__file__).parent / "reference/objectives/ctc.npz", allow_pickle=False))
NAMES = ("logits", "labels", "frame_lengths", "label_lengths")
LOGITS, LABELS, FRAMES, LENGTHS = (REFERENCE[name] for name in NAMES)
CTC = jax.jit(ctc_loss, static_argnames=("blank", "divide_by"))


@jax.jit
def value_and_grad(logits, labels, frames):
    """Losses, sums, and the gradient of the summed loss."""

    def total(logits):
        loss, sums = ctc_loss(logits, labels, frames, jnp.asarray(LENGTHS))
        return loss.sum(), (loss, sums)

    (_, (loss, sums)), grad = jax.value_and_grad(total, has_aux=True)(logits)
    return loss, sums, grad


def check(name, loss_of):
    loss, grad = jax.jit(jax.value_and_grad(lambda x: loss_of(x).sum()))(LOGITS)
    np.testing.assert_allclose(loss, REFERENCE[f"{name}_loss"].sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_logits"], rtol=1e-5, atol=1e-5)


def test_each_example_equals_torch():
    loss, _ = CTC(LOGITS, LABELS, FRAMES, LENGTHS, divide_by="nothing")
    np.testing.assert_allclose(loss, REFERENCE["nats_loss"], rtol=1e-5)
    check("nats", lambda x: ctc_loss(x, LABELS, FRAMES, LENGTHS, divide_by="nothing")[0])


def test_mean_over_labels_equals_torch():
    check("mean", lambda x: ctc_loss(x, LABELS, FRAMES, LENGTHS)[0].mean())


def test_any_class_may_be_blank():
    options = {"blank": 7, "divide_by": "nothing"}
    check("last_blank", lambda x: ctc_loss(x, LABELS - 1, FRAMES, LENGTHS, **options)[0])


def test_division_by_frames():
    loss, _ = CTC(LOGITS, LABELS, FRAMES, LENGTHS, divide_by="frames")
    np.testing.assert_allclose(loss, REFERENCE["nats_loss"] / REFERENCE["frame_lengths"], rtol=1e-5)
    with pytest.raises(ValueError, match="divide_by must be"):
        ctc_loss(LOGITS, LABELS, FRAMES, LENGTHS, divide_by="mean")  # pyright: ignore[reportArgumentType]


def test_impossible_transcripts_are_counted_and_have_no_gradient():
    frames = np.array([6, 9, 0, 6, 3], np.int32)  # row 0, "33552", needs 7 frames; row 2 is padding
    loss, sums, grad = map(jax.device_get, value_and_grad(LOGITS, LABELS, frames))
    assert (loss[[0, 2, 4]] == 0).all() and (loss[[1, 3]] > 0).all()
    assert [int(sums[k]) for k in ("infeasible", "examples", "labels", "frames")] == [2, 2, 4 + 2, 9 + 6]
    assert (grad[[0, 2, 4]] == 0).all() and (grad[[1, 3]] != 0).any()
    enough = np.array([7, 9, 0, 6, 3], np.int32)
    loss, sums, _ = value_and_grad(LOGITS, LABELS, enough)
    assert sums["infeasible"] == 1 and 0 < loss[0] < 100


def test_padding_does_not_matter():
    gaps = np.arange(14)[None, :] >= FRAMES[:, None]
    garbage = np.where(gaps[:, :, None], np.float32(np.nan), LOGITS)
    labels = np.where(np.arange(5)[None, :] >= LENGTHS[:, None], np.int32(-100), LABELS)
    loss, _, grad = map(jax.device_get, value_and_grad(garbage, labels, FRAMES))
    np.testing.assert_allclose(loss, value_and_grad(LOGITS, LABELS, FRAMES)[0], rtol=1e-6)
    assert (grad[gaps] == 0).all() and np.isfinite(grad).all()
