"""Connectionist temporal classification (Graves et al. 2006) by lengths, over `optax.ctc_loss`."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from unimodal.objectives.reduction import Metrics, ratio


def ctc_loss(
    logits_BTV: jax.Array,
    labels_BN: jax.Array,
    frame_lengths_B: jax.Array,
    label_lengths_B: jax.Array,
    *,
    blank: int = 0,
    divide_by: Literal["nothing", "labels", "frames"] = "labels",
) -> tuple[jax.Array, Metrics]:
    """Compute -log p(labels | frames), summed over all alignments.

    Args:
        logits_BTV: class logits per frame, blank among them.
        labels_BN: integer labels, right-padded with anything.
        frame_lengths_B: how many frames are real. 0 marks a padded example, whose loss is 0.
        label_lengths_B: how many labels are real.
        blank: class of the blank.
        divide_by: each example's loss by its number of labels (at least 1, like torch's "mean"), frames, or nothing.

    An example with more labels than its frames can spell (a repeated label needs a blank between) has no alignment. Its
    loss is 0 without a gradient, and `infeasible` counts it.

    Returns:
        loss `[B]` float32 in nats, and sums `objective` (of the loss), `nats` (undivided), `examples` (with an
        alignment), `labels`, `frames` (of these), `infeasible`.

    Raises:
        ValueError: `divide_by` is none of the three.
    """
    if divide_by not in ("nothing", "labels", "frames"):
        raise ValueError(f"divide_by must be 'nothing', 'labels' or 'frames', got {divide_by!r}")
    frame_there = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape[:2], 1) < frame_lengths_B[:, None]
    label_there = jax.lax.broadcasted_iota(jnp.int32, labels_BN.shape, 1) < label_lengths_B[:, None]
    repeats = ((labels_BN[:, 1:] == labels_BN[:, :-1]) & label_there[:, 1:]).sum(axis=1, dtype=jnp.int32)
    present = frame_lengths_B > 0
    feasible = frame_lengths_B >= label_lengths_B + repeats
    counted = present & feasible

    logits = jnp.where(frame_there[:, :, None], logits_BTV, 0.0).astype(jnp.float32)
    frame_gaps, label_gaps = (~frame_there).astype(jnp.float32), (~label_there).astype(jnp.float32)
    labels = jnp.where(label_there, labels_BN, blank)
    nats = jnp.where(counted, optax.ctc_loss(logits, frame_gaps, labels, label_gaps, blank_id=blank), 0.0)
    lengths = {
        "labels": jnp.where(counted, label_lengths_B, 0).astype(jnp.float32),
        "frames": jnp.where(counted, frame_lengths_B, 0).astype(jnp.float32),
    }
    loss = nats if divide_by == "nothing" else ratio(nats, jnp.maximum(lengths[divide_by], 1.0))
    return loss, {
        "objective": loss.sum(),
        "nats": nats.sum(),
        "examples": counted.astype(jnp.float32).sum(),
        "infeasible": (present & ~feasible).astype(jnp.float32).sum(),
        **{name: length.sum() for name, length in lengths.items()},
    }
