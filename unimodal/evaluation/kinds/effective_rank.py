"""Effective rank: how many directions do features use? It needs no label, and falls to 1 in a collapse (Garrido 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from unimodal.data.blocks import Inputs, columns
from unimodal.evaluation.evaluation import Measured, Reader, untrained_value
from unimodal.evaluation.features import Features
from unimodal.evaluation.spread import deviation, effective_rank
from unimodal.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectiveRank(Features):
    """RankMe of the features of the validation split, and their standard deviation. `labels` and `raw` are not read."""

    @property
    def metric(self) -> str:
        return "effective rank"

    def check(self) -> None:
        """Nothing, as no class is read."""

    def inputs(self, model: Model) -> Inputs:
        """The modality's arrays."""
        return columns(self.source, self._part(model.tokenizers[self.tokenizer].config))

    def features(self, model: Model, batch: Any) -> dict[str, jax.Array]:
        """`features` float32 [B,D]."""
        return {"features": self.embed(model, {**batch, "label": None})["features"]}

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        examples = reader.examples(self.inputs, model, "validation")
        rows = reader.rows(self.features, model, examples, self.batch_size, limit)
        found = np.concatenate([row["features"] for row in rows])
        return Measured({"value": effective_rank(found), "feature_deviation": deviation(found)})

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """The model before training."""
        return untrained_value(untrained)
