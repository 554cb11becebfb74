"""Reconstruction: how far from the truth are the patches that a model did not see?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data import in_order
from unimodal.evaluation.evaluation import Measured, Reader
from unimodal.evaluation.samples import PictureRow
from unimodal.evaluation.summed import Summed
from unimodal.model import Model
from unimodal.objectives import masked_pixels, patch_statistics
from unimodal.tokenizers.image import patchify

EXAMPLES = 4096  # of each split, at most, that the mean patch is made of and measured on
COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Summed):
    """Mean squared error of masked patches, against the better of two guesses that need no model: one colour, and the mean
    patch of training at each place. `predict` gives `errors`; `inputs` have pictures under `image`."""

    patch: Callable[[Model], int]  # side of a patch in pixels
    normalise: bool  # errors are those of patches less their mean, over their standard deviation
    metric: str = "squared error of masked patches"
    higher_is_better: bool = False
    finish: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = lambda sums: score(sums)
    known: dict[str, float] = field(default_factory=dict, compare=False)  # the error of the mean patch, once measured

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        found = super().measure(model, reader, limit=limit)
        if not self.known:
            self.known["mean_patch"] = self._mean_patch_error(model)
        return replace(found, score={**found.score, **self.known})

    def _mean_patch_error(self, model: Model) -> float:
        """The error, over all places of validation, of the mean target that training has at each of them."""
        targets = []
        for split in ("train", "validation"):
            pictures = [example["image"] for example in in_order(self.inputs(model).dataset(split), EXAMPLES)]
            patches = patchify(jnp.asarray(np.stack(pictures)), self.patch(model))
            mean, deviation = patch_statistics(patches) if self.normalise else (0.0, 1.0)
            targets.append((np.asarray(patches) - np.asarray(mean)) / np.asarray(deviation))
        train, valid = targets
        return float(np.square(valid - train.mean(axis=0)).mean())


def errors(pixels: jax.Array, predicted: jax.Array, masked: jax.Array, *, normalise: bool) -> dict[str, jax.Array]:
    """Rows [B] of an evaluation: the `error` of masked patches, and that of guessing `one_colour` instead: the mean colour of
    the visible patches or, where patches are normalised, each patch's own mean, which is 0.

    pixels, predicted: [B,T,P], every patch; masked: [B,T].
    """
    colours = pixels.reshape(*pixels.shape[:2], -1, COLOURS).mean(axis=2)
    visible = (~masked)[:, :, None].astype(jnp.float32)
    colour = (colours * visible).sum(axis=1, keepdims=True) / visible.sum(axis=1, keepdims=True)
    flat = jnp.broadcast_to(jnp.tile(colour, pixels.shape[2] // COLOURS), pixels.shape)
    guesses = {"error": predicted, "one_colour": jnp.zeros_like(flat) if normalise else flat}
    return {name: masked_pixels(x, pixels, masked, normalise=normalise)[0] for name, x in guesses.items()}


def score(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The score of sums of `errors`."""
    return {
        "value": float(sums["error"] / sums["examples"]),
        "one_colour": float(sums["one_colour"] / sums["examples"]),
    }


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
