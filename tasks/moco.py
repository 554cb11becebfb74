"""MoCo: find a view's key, made by a slow copy of the encoder, among many (He 2020; Chen 2020b, v2; Chen 2021, v3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import joint_embedding
from unimodal.data.blocks import Views
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch
from unimodal.joint_embedding import Mlp, Projector, check_pair
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, WholeBatch, feature_deviation, info_nce, ratio, unit
from unimodal.state import Momentum, Queue, TaskState


@dataclasses.dataclass(frozen=True)
class Moco:
    """InfoNCE between queries and keys. With a queue (v1, v2) the negatives are keys of earlier batches. Without one (v3)
    they are the other keys of the batch, a predictor follows the queries' projector, and both views are queries."""

    name: str = "moco"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    views: Views = Views()  # two of each picture
    batch_size: int = 128  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: first, mean or last
    queue: int = 0  # keys of earlier batches that are kept; v2: 65,536 and a projector without batch norm; v3: 0
    projector: Projector = Projector(layers=3, last_norm=True)  # of queries and of keys
    predictor: int = 256  # width inside the MLP from a query's projection to its key's, without a queue; v3: 4096
    temperature: float = 0.2  # what cosines are divided by; v2 and v3: 0.2
    momentum: float = 0.99  # of the slow copy; v2: 0.999, v3: 0.99
    final_momentum: float | None = 1.0  # what it rises to along half a cosine; v3: 1; None, in v2: it stays

    def __post_init__(self) -> None:
        check_pair(self.name, self.views)
        if self.queue and "batch" in (self.projector.norm, "batch" if self.projector.last_norm else ""):
            needs = "keys that do not depend on their batch: set projector.norm=none or layer, and last_norm=False"
            raise UsageError(f"{self.name}.queue needs {needs}")

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        c, heads = self.projector, {}
        if not self.queue:
            heads["predictor"] = Mlp(c.size, dataclasses.replace(c, layers=2, hidden=self.predictor), rngs=rngs)
        return {"projector": Mlp(model.backbones[self.backbone].config.width, c, rngs=rngs), **heads}

    def state(self, model: Model) -> dict[str, TaskState]:
        parts = (f"tokenizers.{self.tokenizer}", f"backbones.{self.backbone}", f"heads.{self.name}.projector")
        slow: dict[str, TaskState] = {"encoder": Momentum(model, parts, self.momentum, self.final_momentum)}
        return {**slow, "queue": Queue(self.queue, self.projector.size)} if self.queue else slow

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        heads, kept = model.heads[self.name], model.state[self.name]
        slow, temperature = kept["encoder"].of(model), jnp.float32(self.temperature)
        projectors = (heads["projector"], slow.heads[self.name]["projector"])
        if not self.queue:
            rows = (self.features(model, batch, key), self.features(slow, batch, key))
            return WholeBatch(both_ways, rows=rows, shared=(*projectors, heads["predictor"], temperature)), {}
        first, second = ({"views": batch["views"][:, i : i + 1]} for i in (0, 1))
        keys = unit(projectors[1](self.features(slow, second, jax.random.fold_in(key, 2))[:, 0]))
        kept["queue"].push(keys)
        shared = (projectors[0], kept["queue"].rows.get_value(), kept["queue"].valid(), temperature)
        return WholeBatch(against_queue, rows=(self.features(model, first, key)[:, 0], keys), shared=shared), {}

    # What all tasks do that compare views.
    inputs = joint_embedding.inputs
    features = joint_embedding.features
    evaluations = joint_embedding.evaluations


def against_queue(_: Any, rows: Any, shared: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MoCo v2's loss of the whole batch (He 2020, algorithm 1), from features [B,D] and keys [B,size]."""
    (features, keys), (projector, past, written, temperature) = rows, shared
    losses, sums = info_nce(projector(features), keys, temperature, queue_ND=past, valid_N=written)
    deviation = feature_deviation(features)
    return losses.mean(), {"accuracy": ratio(sums["correct"], sums["examples"]), "feature_deviation": deviation}


def both_ways(_: Any, rows: Any, shared: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MoCo v3's loss of the whole batch (Chen 2021, algorithm 1), from features of two views by both encoders, [B,2,D]."""
    (fast, slow), (projector, slow_projector, predictor, temperature) = rows, shared
    found = [info_nce(predictor(projector(fast[:, i])), slow_projector(slow[:, 1 - i]), temperature) for i in (0, 1)]
    return 2 * temperature * (found[0][0] + found[1][0]).mean(), {
        "accuracy": ratio(*(found[0][1][name] + found[1][1][name] for name in ("correct", "examples"))),
        "feature_deviation": feature_deviation(fast[:, 0]),
    }
