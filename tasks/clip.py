"""CLIP: match images with their words, or any two modalities with each other (Radford 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx

from unimodal.dual_encoder import DualEncoder
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation
from unimodal.heads import LogitScale
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, siglip, whole_batch


@dataclass(frozen=True)
class Clip(DualEncoder):
    """Pairs of two modalities over the global batch: InfoNCE, or a sigmoid for each pair (SigLIP, Zhai 2023). Equal
    captions are not each other's negatives."""

    name: str = "clip"  # logged under it; the heads are `model.heads[name]`
    weight: float = 1.0  # of the loss among the tasks'
    objective: str = "softmax"  # or sigmoid
    temperature: float = 0.07  # to start from; it is learned
    bias: float = -10.0  # of the sigmoid's logits, to start from; it is learned

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("softmax", "sigmoid"):
            raise UsageError(f"{self.name}.objective must be softmax or sigmoid, but is {self.objective!r}")

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        # Radford 2021, §2.5 keeps the scale from going beyond 100; each pair by itself needs no such bound.
        options = dict(most=100.0) if self.objective == "softmax" else dict(bias=self.bias)
        return {**self.encoders(model, rngs), "temperature": LogitScale(1 / self.temperature, **options)}

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        first, second = self.embed(model, batch, key)
        scale, judge = model.heads[self.name]["temperature"], clip if self.objective == "softmax" else siglip
        return whole_batch(judge, first, second, *scale.shared, ids_B=self.same(batch)), {"scale": scale.scale}

    def evaluations(self) -> dict[str, Evaluation]:
        return {self.name: self.retrieval(self.chances)}

    def chances(self, model: Model, similarity: jax.Array) -> jax.Array:
        """Similarities [...,N] of one thing with N others → probabilities [...,N]."""
        logits = model.heads[self.name]["temperature"](similarity)
        return jax.nn.softmax(logits) if self.objective == "softmax" else jax.nn.sigmoid(logits)
