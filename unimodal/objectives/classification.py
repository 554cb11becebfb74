"""Classification: one class of V (softmax), or any number of V labels at once (sigmoid)."""

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Metrics, as_weights, example_sum
from unimodal.objectives.softmax import position_cross_entropy, silence_uncounted, sum_positions
from unimodal.objectives.terms import Mean, TaskMetrics


def softmax_classification(
    logits_BV: jax.Array,
    labels: jax.Array,
    weights_B: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute softmax cross-entropy for one label per example.

    Args:
        logits_BV: class logits.
        labels: `[B]` integer classes, or `[B,V]` float distributions such as mixup makes (Zhang et al. 2018, eq. 1).
        weights_B: 0 leaves an example out (padding of a last batch). Other weights scale the sums, not the loss.
        label_smoothing: share of the target spread evenly over all classes.

    Returns:
        loss `[B]` float32 in nats, and sums `objective`, `nats`, `correct` (against the likeliest label), `examples`.
    """
    weights = as_weights(weights_B, logits_BV.shape[:1])
    logits, labels = silence_uncounted(logits_BV, labels, weights)
    positions = position_cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return sum_positions(positions, weights, "examples")


def classification_loss(
    logits_BV: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, TaskMetrics]:
    """The mean of `softmax_classification` over a batch, and its accuracy, as a task returns them."""
    losses, sums = softmax_classification(logits_BV, labels, label_smoothing=label_smoothing)
    return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}


def sigmoid_classification(
    logits_BV: jax.Array,
    labels_BV: jax.Array,
    weights_BV: jax.Array | None = None,
    *,
    mean_over_classes: bool = True,
) -> tuple[jax.Array, Metrics]:
    """Compute binary cross-entropy for V independent labels per example.

    Args:
        logits_BV: one logit per label.
        labels_BV: 0 or 1, or a probability between; any dtype.
        weights_BV: 0 leaves out a label nobody judged, or a whole padded example.
        mean_over_classes: loss is the mean over an example's counted labels; otherwise their sum.

    Returns:
        loss `[B]` float32 in nats, and sums `objective` (of the loss), `examples` (with a counted label), `decisions`
        (counted labels), `correct` (decisions at threshold ½), and `true_positives`, `predicted_positives` and
        `positives`, from which precision, recall and F1 follow.
    """
    weights = as_weights(weights_BV, logits_BV.shape)
    logits = jnp.where(weights > 0, logits_BV, 0.0).astype(jnp.float32)
    labels = jnp.where(weights > 0, labels_BV.astype(jnp.float32), 0.0)
    # max(x, 0) - x·y + log(1 + e^-|x|), written as two softplus terms that never overflow.
    nats = labels * jax.nn.softplus(-logits) + (1.0 - labels) * jax.nn.softplus(logits)
    counted = weights.sum(axis=1)
    loss = example_sum(nats, weights)
    if mean_over_classes:
        loss = loss / jnp.where(counted > 0, counted, 1.0)
    predicted, positive, known = logits > 0, labels > 0.5, jnp.isfinite(logits)  # NaN > 0 is no answer

    def total(hits: jax.Array) -> jax.Array:
        return example_sum(hits, weights).sum()

    return loss, {
        "objective": loss.sum(),
        "examples": (counted > 0).astype(jnp.float32).sum(),
        "decisions": weights.sum(),
        "correct": total((predicted == positive) & known),
        "true_positives": total(predicted & positive & known),
        "predicted_positives": total(predicted),
        "positives": total(positive),
    }
