"""Mixed examples and mixed labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

import jax
import jax.numpy as jnp


def mixed(
    pixels_BHWC: jax.Array,
    labels_B: jax.Array,
    key: jax.Array,
    *,
    classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mix each picture with the one at the mirrored place of the batch: the first with the last, and so on.

    Args:
        mixup: α of Beta(α, α), from which each example's own share λ is drawn, of all pixels (Zhang, eq. 1 and 2). 0: off.
        cutmix: the same for a share of the area: the rest is a rectangle of the other picture (Yun, eq. 1 and 2). 0: off.
            With both, each example has either, at equal chances.

    Returns:
        pixels `[B,H,W,C]` and distributions over classes `[B,V]` float32: λ of the own class, the rest of the other's.
    """
    batch, height, width, _ = pixels_BHWC.shape
    chosen, blended, cut, down, across = jax.random.split(key, 5)
    blend = jnp.ones((batch,), jnp.float32)
    box = jnp.zeros((batch, height, width), bool)
    either = jax.random.bernoulli(chosen, 0.5, (batch,)) if mixup and cutmix else jnp.full((batch,), bool(cutmix))
    if mixup:
        blend = jnp.where(either, 1.0, jax.random.beta(blended, mixup, mixup, (batch,), jnp.float32))
    if cutmix:
        side = jnp.sqrt(1 - jax.random.beta(cut, cutmix, cutmix, (batch,), jnp.float32))
        inside = _inside(down, height, side)[:, :, None] & _inside(across, width, side)[:, None, :]
        box = inside & either[:, None, None]
    other = pixels_BHWC[::-1]
    share = blend.astype(pixels_BHWC.dtype)[:, None, None, None]
    made = jnp.where(box[..., None], other, share * pixels_BHWC + (1 - share) * other)
    own = (blend * (1 - box.mean(axis=(1, 2), dtype=jnp.float32)))[:, None]
    targets = jax.nn.one_hot(labels_B, classes, dtype=jnp.float32)
    return made, own * targets + (1 - own) * targets[::-1]


def _inside(key: jax.Array, length: int, share_B: jax.Array) -> jax.Array:
    """[B,length], whether a place is in a stretch of this share of the length around a random centre, cut off at the ends."""
    centre = jax.random.uniform(key, share_B.shape, jnp.float32)
    place = (jnp.arange(length, dtype=jnp.float32)[None] + 0.5) / length
    return jnp.abs(place - centre[:, None]) < share_B[:, None] / 2
