"""Masked image modelling (MAE): rebuild the pixels of patches that the encoder did not see."""

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Metrics, example_mean, example_sum

EPSILON = 1e-6  # added to a patch's variance, as the authors have it


def visible_first(noise_BT: jax.Array, visible: int) -> tuple[jax.Array, jax.Array]:
    """Choose which patches stay visible: those with the least noise (He et al. 2022, section 3, "Masking").

    Returns:
        places `[B,visible]` int32 of the visible patches, least noise first, and the rank `[B,T]` int32 of every patch.
        A patch is masked where its rank is at least `visible`.
    """
    order = jnp.argsort(noise_BT, axis=1, stable=True).astype(jnp.int32)
    return order[:, :visible], jnp.argsort(order, axis=1).astype(jnp.int32)


def restored(x_BKD: jax.Array, mask_D: jax.Array, rank_BT: jax.Array, first: int) -> jax.Array:
    """Put rows of visible patches, behind `first` others, back in the order of patches, with `mask` in all gaps.

    Returns:
        `[B,first+T,D]`; see `visible_first`.
    """
    gaps = rank_BT.shape[1] + first - x_BKD.shape[1]
    masks = jnp.broadcast_to(mask_D.astype(x_BKD.dtype)[None, None], (x_BKD.shape[0], gaps, x_BKD.shape[2]))
    patches = jnp.concatenate([x_BKD[:, first:], masks], axis=1)
    return jnp.concatenate([x_BKD[:, :first], jnp.take_along_axis(patches, rank_BT[:, :, None], axis=1)], axis=1)


def patch_statistics(pixels_BTP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `[B,T,1]` float32 of the pixels of each patch; the variance divides by P - 1."""
    pixels = pixels_BTP.astype(jnp.float32)
    variance = pixels.var(axis=-1, keepdims=True, ddof=1)
    return pixels.mean(axis=-1, keepdims=True), jnp.sqrt(variance + EPSILON)


def masked_pixels(
    predicted_BTP: jax.Array, pixels_BTP: jax.Array, weights_BT: jax.Array, *, normalise: bool = True
) -> tuple[jax.Array, Metrics]:
    """Compute the squared error of masked patches (He et al. 2022, section 3, "Reconstruction target").

    Args:
        predicted_BTP: what the decoder says of the P values of each patch.
        pixels_BTP: the true values.
        weights_BT: 1 at masked patches. What is visible has 0 and no part in the loss.
        normalise: the target is each patch less its mean, over its standard deviation.

    Returns:
        loss `[B]` float32, the mean over an example's masked patches of the mean over their values, and sums `objective`,
        `squared` (errors, each a patch's mean) and `patches`.
    """
    weights = weights_BT.astype(jnp.float32)
    counted = (weights > 0)[:, :, None]  # before the arithmetic, so that NaN at zero weight has no gradient
    predicted = jnp.where(counted, predicted_BTP, 0.0).astype(jnp.float32)
    target = jnp.where(counted, pixels_BTP, 0.0).astype(jnp.float32)
    if normalise:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    squared = jnp.square(predicted - target).mean(axis=-1)
    loss = example_mean(squared, weights)
    sums = {"objective": loss, "squared": example_sum(squared, weights), "patches": weights}
    return loss, {name: value.sum() for name, value in sums.items()}
