"""Masked language modelling (BERT): recover the tokens that were hidden."""

import jax

from unimodal.objectives.reduction import Metrics
from unimodal.objectives.softmax import cross_entropy


def masked_lm(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute cross-entropy at the predicted positions (Devlin et al. 2019, section 3.1).

    Args:
        logits_BTV: logits over the vocabulary at every position.
        targets_BT: the original tokens, integers; any value (such as -100) where the weight is 0.
        weights_BT: non-zero at predicted positions. Padding and unchosen tokens have 0.

    Returns:
        loss `[B]` float32 in nats per predicted token, and sums `objective`, `nats`, `correct`, `tokens`.
    """
    return cross_entropy(logits_BTV, targets_BT, weights_BT, z_loss=z_loss, label_smoothing=label_smoothing)
