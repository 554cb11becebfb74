"""Linear probe: how well do classes come apart by planes in the space of features? (Alain 2016; Radford 2021, §3.2)"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unimodal.errors import UsageError
from unimodal.evaluation.features import Features, told, unknown

ENOUGH = 1_000  # rows of a tenth that may choose a penalty by themselves


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Features):
    """Multinomial logistic regression on standardised features of the training split, scored on validation.

    The L2 penalty is the one of `penalties` that does best on a held-out tenth of the training rows or, where a tenth has
    fewer than `ENOUGH`, on all thirds in turn. Then all rows are fitted again.
    """

    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # λ in mean loss + λ/2 · |weights|²
    steps: int = 200  # of L-BFGS, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or not min(self.penalties) >= 0 or self.steps < 1:
            raise UsageError(
                f"evaluations.{self.name}: penalties must be one number or more, none below 0, and steps 1 or more, but "
                f"they are {self.penalties} and {self.steps}"
            )

    def score(self, train: np.ndarray, labels: np.ndarray, valid: np.ndarray, truth: np.ndarray) -> Mapping[str, Any]:
        if len(np.unique(labels)) < 2:
            raise UsageError(f"evaluations.{self.name}: a probe needs two classes or more in {self.source}")
        if not (np.isfinite(train).all() and np.isfinite(valid).all()):
            return unknown(truth)
        train, valid = narrowed(*standardised(train, valid))
        classes = self.labels.size(self.source)
        penalty = self._penalty(train, labels, classes)
        found = fit(train, labels, penalty, np.ones(len(train), bool), classes=classes, steps=self.steps)
        return {**told(guesses(found, valid), truth), "penalty": penalty}

    def _penalty(self, train: np.ndarray, labels: np.ndarray, classes: int) -> float:
        if len(self.penalties) == 1:
            return self.penalties[0]
        # Hold out training rows: the penalty must not be chosen by the score that is reported.
        order = np.random.default_rng(0).permutation(len(train))
        tenth = order[: len(order) // 10]
        right = np.zeros(len(self.penalties))
        for held in [tenth] if len(tenth) >= ENOUGH else np.array_split(order, min(3, len(order))):
            seen = np.ones(len(train), bool)
            seen[held] = False
            for i, penalty in enumerate(self.penalties):
                found = fit(train, labels, penalty, seen, classes=classes, steps=self.steps)
                right[i] += accuracy(found, train[held], labels[held]) * len(held)
        return self.penalties[int(np.argmax(right))]


def standardised(train: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features less the mean of training, over its standard deviation: or one penalty would mean another thing for each
    feature and each model. A feature that is constant in training tells no class and becomes 0, also where validation
    differs."""
    mean = train.mean(axis=0, dtype=np.float64)
    varies = train.max(axis=0) > train.min(axis=0)
    deviation = np.where(varies, train.std(axis=0, dtype=np.float64), np.inf)
    first, second = (((x - mean) / deviation).astype(np.float32) for x in (train, valid))
    return first, second


def narrowed(train: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same features [N,D] and [M,D], turned so that N numbers of each row say all, where N is below D.

    The best weights of a penalised regression are sums of training rows, and a turn changes neither logits nor the penalty.
    """
    if len(train) >= train.shape[1]:
        return train, valid
    basis, rows = np.linalg.qr(train.T)
    return rows.T, valid @ basis


@partial(jax.jit, static_argnames=("classes", "steps"))
def fit(x: Any, y: Any, penalty: Any, seen: Any, *, classes: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Weights [D,classes] and biases [classes] of the least mean cross-entropy + penalty/2 · |weights|², by L-BFGS.

    Args:
        x: features [N,D].
        y: classes [N].
        seen: bool [N], the rows that count.
    """

    def loss(parameters: Any) -> jax.Array:
        weights, biases = parameters
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ weights + biases[None], y)
        return jnp.mean(losses, where=seen) + 0.5 * penalty * jnp.square(weights).sum()

    # Near its least, float32 rounds the loss by more than a step lowers it. A line search that asks for lower losses then
    # finds none and stands still, so this one trusts slopes as soon as losses differ by less than a hundred thousandth.
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one", approx_dec_rtol=1e-5)
    solver, both = optax.lbfgs(linesearch=search), optax.value_and_grad_from_state(loss)
    start = (jnp.zeros((x.shape[1], classes), jnp.float32), jnp.zeros((classes,), jnp.float32))

    def advance(carry: Any) -> Any:
        parameters, state, count, _ = carry
        value, gradient = both(parameters, state=state)
        updates, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(parameters, updates), state, count + 1, optax.tree.norm(gradient)

    # Stop at a small gradient: most probes are done long before the last step.
    def unfinished(carry: Any) -> jax.Array:
        _, _, count, norm = carry
        return (count < steps) & (norm > 1e-6)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as optax expects
        first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
        return jax.lax.while_loop(unfinished, advance, first)[0]


def accuracy(parameters: tuple[jax.Array, jax.Array], x: np.ndarray, y: np.ndarray) -> float:
    """The share of rows whose likeliest class is the right one."""
    return float((guesses(parameters, x) == y).mean())


def guesses(parameters: tuple[jax.Array, jax.Array], x: np.ndarray) -> np.ndarray:
    """The likeliest class [N] of each row of `x` [N,D]."""
    weights, biases = (np.asarray(part) for part in parameters)
    return (x @ weights + biases).argmax(axis=1)
