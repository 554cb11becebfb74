"""Codes of pictures after captions: how many bits each costs, and what pictures are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from unimodal import data
from unimodal.data.blocks import Inputs
from unimodal.evaluation.evaluation import Batch, Measured, Reader, Shown, untrained_value
from unimodal.evaluation.samples import PictureRow, Sample
from unimodal.evaluation.summed import Summed
from unimodal.model import Model
from unimodal.objectives import example_sum, position_cross_entropy

CAPTIONS = 6
"""Captions that the report draws pictures for."""


@dataclass(frozen=True, kw_only=True)
class CodeLikelihood:
    """Bits per code of validation's pictures after their captions, against how common each code is at each place in training.

    Details: bits after another example's caption, which say how much captions are used.
    """

    # has `image_tokenizer` (a codebook), `texts`, `source`, `images`, `logits(model, ids, codes)` and `draw(model,
    # ids, key)`
    task: Any
    inputs: Callable[[Model], Inputs]  # where the examples come from
    batch_size: int  # examples at a time
    shown: int = 4  # pictures drawn for each caption
    metric: str = "bits per code"  # the lower the better
    higher_is_better: bool = False  # direction
    # How common codes are is of the codebook that the value is of, which need not be the untrained model's.
    rivals: ClassVar[Mapping[str, str]] = {"common_codes": "how common codes are at each place"}
    known: dict[Any, np.ndarray] = field(
        default_factory=dict, compare=False
    )  # what `_common` found of the last codebook

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        common = self._common(model, reader, limit)
        found = Summed(
            metric=self.metric,
            higher_is_better=False,
            inputs=self.inputs,
            predict=self.predict,
            finish=partial(finish, common=common),
            ratio=("nats", "places"),
            unit=1 / math.log(2),
            batch_size=self.batch_size,
            against=self.baseline,
        )
        return found.measure(model, reader, limit=limit)

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        """The value by the sums of `nats` and `places`, which are the columns of each example."""
        return float(sums["nats"] / sums["places"]) / math.log(2)

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        codes = model.tokenizers[self.task.image_tokenizer].codes(batch["image"])
        vocabulary = model.tokenizers[self.task.image_tokenizer].config.vocabulary
        found = {}
        for name, ids in (("", batch["ids"]), ("other_", jnp.roll(batch["ids"], 1, axis=0))):
            _, logits = self.task.logits(model, ids, codes)
            place = position_cross_entropy(logits, codes)
            ones = jnp.ones(codes.shape, jnp.float32)
            found |= {f"{name}nats": example_sum(place.nats, ones), f"{name}correct": example_sum(place.correct, ones)}
        use = jax.nn.one_hot(codes, vocabulary)  # [B,P,V]
        return {**found, "use": use, "places": ones.sum(axis=1)}

    def _common(self, model: Model, reader: Reader, limit: int | None) -> np.ndarray:
        """Count how common each code is at each place in training, as shares [P,V]. Every code is counted once more than seen."""
        tokenizer = model.tokenizers[self.task.image_tokenizer]
        # Read training again only if the codebook is another one.
        seen = limit, *(float(x) for x in jax.device_get(_sums((tokenizer.encoder, tokenizer.vectors))))
        if seen in self.known:
            return self.known[seen]
        counts = np.full((tokenizer.config.tokens, tokenizer.config.vocabulary), 1 / tokenizer.config.vocabulary)
        examples = reader.examples(self.inputs, model, "train")
        for rows in reader.rows(self.coded, model, examples, self.batch_size, limit):
            for place in range(counts.shape[0]):
                counts[place] += np.bincount(rows["codes"][:, place], minlength=counts.shape[1])
        self.known.clear()
        self.known[seen] = counts / counts.sum(axis=1, keepdims=True)
        return self.known[seen]

    def coded(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        return {"codes": model.tokenizers[self.task.image_tokenizer].codes(batch["image"])}

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        return untrained_value(untrained)  # beside which `rivals` are asked first

    def samples(self, model: Model, shown: Shown) -> Sequence[Sample]:
        """Drawn pictures of some captions beside the true one, which is first; and pictures completed from their upper half."""
        task, images = self.task, self.task.images
        ids, true = (jnp.asarray(shown.batch[name][:CAPTIONS]) for name in ("ids", "image"))
        many = jnp.repeat(ids, self.shown, axis=0)
        drawn = np.asarray(jax.jit(task.draw)(model, many, jax.random.key(0)))
        half = jax.jit(lambda m, x: m.tokenizers[task.image_tokenizer].codes(x))(model, true)
        given = jnp.repeat(half[:, : half.shape[1] // 2], self.shown, axis=0)
        completed = np.asarray(jax.jit(task.draw)(model, many, jax.random.key(1), given))
        source = data.open_source(task.source, "validation")
        found: list[Sample] = []
        for i, place in enumerate(shown.index[: len(ids)]):
            caption = task.texts.text(source[int(place)])
            for pictures, what, note in (
                (drawn, "drawn", "drawn from the caption"),
                (completed, "completed", "completed from the upper half"),
            ):
                mine = [(what, images.to_uint8(p)) for p in pictures[i * self.shown : (i + 1) * self.shown]]
                row = (("true", images.to_uint8(np.asarray(true[i]))), *mine)
                found.append(PictureRow(row, note=f"{caption}: {note}"))
        return found


@jax.jit
def _sums(parts: Any) -> list[jax.Array]:
    """Two numbers of each array, which training does not leave both as they were."""
    arrays = [x.astype(jnp.float32) for x in jax.tree.leaves(parts)]
    return [number for x in arrays for number in (x.sum(), jnp.square(x).sum())]


def finish(sums: Mapping[str, np.ndarray], common: np.ndarray) -> dict[str, float]:
    """The score of sums over examples."""
    bits = 1 / (float(sums["places"]) * math.log(2))
    return {
        "value": float(sums["nats"]) * bits,
        "after_another_caption": float(sums["other_nats"]) * bits,
        "code_accuracy": float(sums["correct"] / sums["places"]),
        "common_codes": float(-(sums["use"] * np.log(common)).sum()) * bits,
    }
