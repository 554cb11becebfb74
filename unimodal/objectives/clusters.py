"""SwAV: predict the cluster of one view from another (Caron 2020)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Metrics, Scalar, as_scalar


def sinkhorn(
    scores_NK: jax.Array, epsilon: Scalar = 0.05, rounds: int = 3, *, valid_N: jax.Array | None = None
) -> jax.Array:
    """Assign N rows to K clusters so that all clusters get equal shares (Cuturi 2013; Caron 2020, eq. 3 to 5).

    Starting from exp(scores / epsilon), clusters and then rows are scaled to equal sums, `rounds` times. The first round is
    taken in logarithms, so that a small epsilon cannot overflow. After it each cluster has an entry of 1 / (N·K) or more,
    so the others need no logarithms, which cost several times as much. Sums run over all rows, wherever they lie.

    Returns:
        float32 `[N,K]`, each row with sum 1 (0 where not `valid_N`). It has no gradient.
    """
    logits = jax.lax.stop_gradient(scores_NK).astype(jnp.float32) / as_scalar(epsilon)
    if valid_N is not None:
        logits = jnp.where(valid_N[:, None], logits, -jnp.inf)
    logits = logits - jax.nn.logsumexp(logits, axis=0, keepdims=True)
    codes = _shares(logits)
    for _ in range(rounds - 1):
        codes = codes / codes.sum(axis=0, keepdims=True)
        total = codes.sum(axis=1, keepdims=True)
        codes = codes / jnp.where(total == 0, 1.0, total)
    return codes


def _shares(logits_NK: jax.Array) -> jax.Array:
    """Softmax of each row; 0 for a row without a number above -∞."""
    most = logits_NK.max(axis=1, keepdims=True)
    shares = jnp.exp(logits_NK - jnp.where(most == -jnp.inf, 0.0, most))
    total = shares.sum(axis=1, keepdims=True)
    return shares / jnp.where(total == 0, 1.0, total)


def swapped_prediction(
    codes: Sequence[jax.Array], scores: Sequence[jax.Array], temperature: Scalar = 0.1
) -> tuple[jax.Array, Metrics]:
    """Compute SwAV's loss (Caron 2020, eq. 2 and 6): the codes of each view, predicted from every other.

    Args:
        codes: for each large view, its assignment `[B,K]`, from `sinkhorn`.
        scores: for each view, large ones first, its cosines with the prototypes `[B,K]`.
        temperature: what the scores are divided by.

    Returns:
        loss `[B]` float32 in nats, the mean over pairs of views, and sums `objective`, `examples`, and `agree`: the
        examples whose other views have their largest score where the code is largest, averaged over pairs.
    """
    losses, agreed = [], []
    for i, code in enumerate(codes):
        target = jax.lax.stop_gradient(code)
        for j, score in enumerate(scores):
            if i != j:
                log_p = jax.nn.log_softmax(score.astype(jnp.float32) / as_scalar(temperature), axis=1)
                losses.append(-(target * log_p).sum(axis=1))
                # What is not finite has no largest, though argmax names one.
                number = (jnp.isfinite(score) & jnp.isfinite(target)).all(axis=1)
                agreed.append((number & (score.argmax(axis=1) == target.argmax(axis=1))).astype(jnp.float32))
    loss = jnp.stack(losses).mean(axis=0)
    agree = jnp.stack(agreed).mean(axis=0)
    return loss, {"objective": loss.sum(), "examples": jnp.float32(loss.shape[0]), "agree": agree.sum()}


def prototype_use(codes_NK: jax.Array) -> jax.Array:
    """The share of clusters that are in use: exp(entropy) of the mean assignment, over K. 1/K: one for all."""
    share = codes_NK.astype(jnp.float32).mean(axis=0)
    share = share / share.sum()
    entropy = -(share * jnp.log(jnp.maximum(share, 1e-12))).sum()
    return jnp.exp(entropy) / codes_NK.shape[1]
