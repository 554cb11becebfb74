"""SimCLR: two views of a picture agree, and those of all others do not (Chen 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import joint_embedding
from unimodal.data.blocks import Views
from unimodal.evaluation.evaluation import Batch
from unimodal.joint_embedding import Mlp, Projector, check_pair
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, WholeBatch, feature_deviation, nt_xent, ratio


@dataclass(frozen=True)
class Simclr:
    """NT-Xent between projections of two views, over the global batch."""

    name: str = "simclr"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    views: Views = Views()  # two of each picture
    batch_size: int = 128  # examples of one global batch; each has 2·(batch_size - 1) negatives
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: first, mean or last
    projector: Projector = Projector()  # from features to what is compared
    temperature: float = 0.1  # what cosines are divided by; the paper: 0.1, or 0.5 on CIFAR-10

    def __post_init__(self) -> None:
        check_pair(self.name, self.views)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"projector": Mlp(model.backbones[self.backbone].config.width, self.projector, rngs=rngs)}

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        shared = (model.heads[self.name]["projector"], jnp.float32(self.temperature))
        return WholeBatch(agreement, rows=self.features(model, batch, key), shared=shared), {}

    # What all tasks do that compare views.
    inputs = joint_embedding.inputs
    features = joint_embedding.features
    evaluations = joint_embedding.evaluations


def agreement(_: Any, features: jax.Array, shared: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the whole batch, from features of two views [B,2,D], the projector and the temperature."""
    projector, temperature = shared
    projected = projector(features)
    losses, sums = nt_xent(projected[:, 0], projected[:, 1], temperature)
    right = 0.5 * (sums["correct_a_to_b"] + sums["correct_b_to_a"])
    deviation = feature_deviation(features[:, 0])
    return losses.mean(), {"accuracy": ratio(right, sums["examples"]), "feature_deviation": deviation}
