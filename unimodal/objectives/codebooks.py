"""Discrete VAEs: the logit-Laplace likelihood, the divergence of codes from uniform, relaxed and nearest codes."""

import math

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Scalar, as_scalar


def logit_laplace(x: jax.Array, centre: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Compute -log f(x | μ, b) in nats, elementwise, float32 (Ramesh et al. 2021, appendix A.3).

    f(x | μ, b) = exp(-|logit(x) - μ| / b) / (2 b x (1 - x)) is the density on (0, 1) of the sigmoid of a Laplace variable.

    Args:
        x: values strictly between 0 and 1; the paper maps pixels to [0.1, 0.9].
        centre: μ, of the logit.
        log_scale: ln b.
    """
    x, centre, log_scale = (value.astype(jnp.float32) for value in (x, centre, log_scale))
    logit = jnp.log(x) - jnp.log1p(-x)
    return jnp.abs(logit - centre) * jnp.exp(-log_scale) + math.log(2) + log_scale + jnp.log(x) + jnp.log1p(-x)


def uniform_divergence(scores: jax.Array) -> jax.Array:
    """Compute KL(softmax(scores) ‖ uniform) in nats: `[..., V]` → `[...]` float32."""
    log_q = jax.nn.log_softmax(scores.astype(jnp.float32))
    return (jnp.exp(log_q) * (log_q + math.log(scores.shape[-1]))).sum(axis=-1)


def relaxed_codes(scores: jax.Array, key: jax.Array, temperature: Scalar) -> jax.Array:
    """Draw from the Gumbel-softmax distribution (Jang et al. 2017, eq. 2): `[..., V]` → weights `[..., V]` of sum 1."""
    scores = scores.astype(jnp.float32)
    return jax.nn.softmax((scores + jax.random.gumbel(key, scores.shape, jnp.float32)) / as_scalar(temperature))


def cosine_between(first: float, last: float, step: jax.Array, steps: int) -> jax.Array:
    """Go from `first` to `last` along half a cosine over `steps` steps, and stay there."""
    share = jnp.minimum(step.astype(jnp.float32) / max(1, steps), 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
