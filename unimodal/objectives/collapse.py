"""Does a representation still tell examples apart? Meters that need no labels."""

import jax
import jax.numpy as jnp


def feature_deviation(features_BD: jax.Array) -> jax.Array:
    """Standard deviation over the batch of features of unit length, times √D, averaged over D (Chen 2021a, §4.1).

    About 1 where the features are spread evenly over the sphere, 0 where all are the same.
    """
    x = features_BD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=1, keepdims=True), 1e-12))
    variance = jnp.square(x - x.mean(axis=0, keepdims=True)).mean(axis=0)
    return jnp.sqrt(variance).mean() * jnp.sqrt(jnp.float32(x.shape[1]))
