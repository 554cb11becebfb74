"""Likelihood of pictures that are rows of colours, its baseline, and pictures that a model has completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data import eval_batches
from unimodal.data.blocks import Inputs
from unimodal.data.dataset import Examples
from unimodal.evaluation.samples import PictureRow

EXAMPLES = 4096  # of training, at most, that colours are counted in; drawn from all of it
TOGETHER = 64  # pictures that are read at a time
GIVEN = (0.5, 0.5, 0.0)  # the share of each picture that is given, of those that are made


def nats_per_pixel(sums: Mapping[str, np.ndarray], *, pixels: int) -> dict[str, float]:
    """The score of sums of `nats` and `correct` over pictures of so many pixels."""
    nats = float(sums["nats"] / sums["examples"]) / pixels
    accuracy = float(sums["correct"] / sums["examples"]) / pixels
    return {"value": nats, "bits_per_pixel": nats / math.log(2), "accuracy": accuracy}


def unigram(inputs: Inputs, count: int) -> Callable[[Mapping[str, float]], tuple[float, str]]:
    """The baseline of knowing how common each colour is in training, in nats per pixel of all of validation."""

    def against(_untrained: Mapping[str, float]) -> tuple[float, str]:
        seen = _counted(inputs.dataset("train"), count, EXAMPLES) + 1
        true = _counted(inputs.dataset("validation"), count)
        return float(-(true * np.log(seen / seen.sum())).sum() / true.sum()), "how common each colour is"

    return against


def _counted(examples: Examples, count: int, limit: int | None = None) -> np.ndarray:
    """How often each colour is in the `ids` of examples, int64 [count]."""
    found = np.zeros(count, np.int64)
    for batch in eval_batches(examples, batch_size=TOGETHER, limit=limit):
        real = batch["example_weight"] > 0
        found += np.bincount(batch["ids"][real].reshape(-1), minlength=count)
    return found


def completed(
    write: Callable[..., jax.Array], ids_BT: np.ndarray, start: int, as_picture: Callable[[np.ndarray], np.ndarray]
) -> list[PictureRow]:
    """Pictures with their lower half as the model writes it, twice, and one that it writes from nothing.

    write: `generate` with its backbone, tokenizer and head. start: the id that begins a picture.
    """
    (rows, length), made = ids_BT.shape, []
    prompts = np.concatenate([np.full((rows, 1), start, np.int32), ids_BT], axis=1)
    for number, share in enumerate(GIVEN):
        given = int(length * share)
        prompt, lengths = jnp.asarray(prompts[:, : given + 1]), jnp.full((rows,), given + 1, jnp.int32)
        run = jax.jit(lambda prompt, lengths, key, steps: write(prompt, lengths, key, steps=steps), static_argnums=3)
        new = np.asarray(run(prompt, lengths, jax.random.key(number), length - given))
        made.append(np.concatenate([ids_BT[:, :given], new], axis=1))
    names = ("original", "completed", "completed", "from nothing")
    columns = (ids_BT, *made)
    return [PictureRow(tuple((n, as_picture(c[i])) for n, c in zip(names, columns, strict=True))) for i in range(rows)]
