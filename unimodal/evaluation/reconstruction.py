"""Reconstruction: how far from the truth are the patches that a model did not see?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.evaluation.evaluation import Batch, Measured, Predict, Reader
from unimodal.evaluation.samples import PictureRow
from unimodal.evaluation.summed import Summed
from unimodal.model import Model
from unimodal.objectives import masked_pixels, patch_statistics
from unimodal.tokenizers.image import patchify

EXAMPLES = 4096  # of training, at most, that the mean patch is made of; drawn from all of it
COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Summed):
    """Mean squared error of masked patches, against the better of two guesses that need no model: one colour, and the mean
    patch of training at each place. `predict` gives what `errors` takes; `inputs` have pictures under `image`."""

    patch: Callable[[Model], int]  # side of a patch in pixels
    normalise: bool  # errors are those of patches less their mean, over their standard deviation
    metric: str = "squared error of masked patches"
    higher_is_better: bool = False
    finish: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = lambda sums: score(sums)
    known: dict[str, Predict] = field(
        default_factory=dict, compare=False
    )  # what compares with the mean patch, once made

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        if not self.known:
            # Keep the function, by which the reader knows what it has compiled.
            self.known["errors"] = partial(self._errors, self._mean_patch(model, reader))
        return Summed.measure(replace(self, predict=self.known["errors"]), model, reader, limit=limit)

    def _errors(self, mean_TP: np.ndarray, model: Model, batch: Batch) -> Mapping[str, jax.Array]:
        return errors(**self.predict(model, batch), mean_patch=mean_TP, normalise=self.normalise)

    def _mean_patch(self, model: Model, reader: Reader) -> np.ndarray:
        """The mean target [T,P] float32 that training has at each place, in its own crops."""
        total, count = np.float64(0), 0
        examples, batches = reader.examples(self.inputs, model, "train"), -(-EXAMPLES // self.batch_size)
        for rows in reader.rows(self._targets, model, examples, self.batch_size, batches):
            total, count = total + rows["target"].sum(axis=0, dtype=np.float64), count + len(rows["target"])
        return np.asarray(total / count, np.float32)

    def _targets(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        patches = patchify(batch["image"], self.patch(model)).astype(jnp.float32)
        mean, deviation = patch_statistics(patches) if self.normalise else (jnp.float32(0), jnp.float32(1))
        return {"target": (patches - mean) / deviation}


def errors(
    pixels: jax.Array, predicted: jax.Array, masked: jax.Array, *, mean_patch: Any, normalise: bool
) -> dict[str, jax.Array]:
    """Rows [B] of an evaluation: the `error` of masked patches, and those of guessing the `mean_patch` of each place [T,P] or
    `one_colour` instead: the mean colour of the visible patches or, where patches are normalised, each patch's own mean,
    which is 0.

    pixels, predicted: [B,T,P], every patch; masked: [B,T].
    """
    colours = pixels.reshape(*pixels.shape[:2], -1, COLOURS).mean(axis=2)
    visible = (~masked)[:, :, None].astype(jnp.float32)
    colour = (colours * visible).sum(axis=1, keepdims=True) / visible.sum(axis=1, keepdims=True)
    flat = jnp.broadcast_to(jnp.tile(colour, pixels.shape[2] // COLOURS), pixels.shape)
    guesses = {
        "error": predicted,
        "one_colour": jnp.zeros_like(flat) if normalise else flat,
        "mean_patch": jnp.broadcast_to(jnp.asarray(mean_patch)[None], pixels.shape),
    }
    return {name: masked_pixels(x, pixels, masked, normalise=normalise)[0] for name, x in guesses.items()}


def score(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The score of sums of `errors`."""
    found = {name: float(sums[name] / sums["examples"]) for name in ("error", "one_colour", "mean_patch")}
    return {"value": found.pop("error"), **found}


def better_guess(untrained: Mapping[str, float], *, normalise: bool) -> tuple[float, str]:
    """The baseline: the better of the two guesses that need no model."""
    colour = "each patch's own mean colour" if normalise else "the mean colour of the visible patches"
    return min((untrained["mean_patch"], "the mean patch of training"), (untrained["one_colour"], colour))


def picture_rows(
    pixels: jax.Array,
    predicted: jax.Array,
    masked: jax.Array,
    *,
    grid: tuple[int, int],
    to_uint8: Callable[[np.ndarray], np.ndarray],
    normalise: bool,
) -> list[PictureRow]:
    """Show for each example [B,T,P] the picture, what the encoder saw of it, and the gaps as they were filled. Normalised patches
    get the true patch's mean and standard deviation back, which nothing predicts."""
    columns = {
        "original": pixels,
        "visible": jnp.where(masked[:, :, None], jnp.zeros((), pixels.dtype), pixels),
        "rebuilt": rebuilt(pixels, predicted, masked, normalise=normalise),
    }
    pictures = {what: to_uint8(unpatchify(np.asarray(x), grid)) for what, x in columns.items()}
    note = "with the true mean and contrast of each patch" if normalise else ""
    return [PictureRow(tuple((what, x[i]) for what, x in pictures.items()), note) for i in range(len(pixels))]


def rebuilt(pixels: jax.Array, predicted: jax.Array, masked: jax.Array, *, normalise: bool) -> jax.Array:
    """Patches [B,T,P], the masked ones as they are predicted; see `picture_rows`."""
    mean, deviation = patch_statistics(pixels) if normalise else (jnp.float32(0), jnp.float32(1))
    return jnp.where(masked[:, :, None], predicted.astype(jnp.float32) * deviation + mean, pixels.astype(jnp.float32))


def unpatchify(patches_BTP: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[B,T,patch·patch·3] → [B,H,W,3]: the inverse of `patchify`."""
    (rows, columns), (batch, _, values) = grid, patches_BTP.shape
    side = round((values / COLOURS) ** 0.5)
    x = patches_BTP.reshape(batch, rows, columns, side, side, COLOURS).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * side, columns * side, COLOURS)
