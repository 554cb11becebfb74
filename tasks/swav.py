"""SwAV: predict which prototype another view of the picture is assigned to (Caron 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import joint_embedding
from unimodal.data.blocks import Views
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch
from unimodal.joint_embedding import Mlp, Projector, Prototypes
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, WholeBatch, feature_deviation, ratio, unit
from unimodal.objectives.clusters import prototype_use, sinkhorn, swapped_prediction
from unimodal.state import Queue, TaskState


@dataclass(frozen=True)
class Swav:
    """Swapped prediction of assignments that use all prototypes alike, over the global batch and a queue."""

    name: str = "swav"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    views: Views = Views()  # large ones, which are assigned and predicted, and small ones, which only predict
    batch_size: int = 128  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name; for small views with resize=True
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: first, mean or last
    projector: Projector = Projector()  # from features to what is compared with prototypes
    prototypes: int = 64  # how many; the paper: 3,000
    queue: int = 0  # examples of earlier batches that are assigned, too, where a batch is small; the paper: 3,840
    queue_wait: int = 0  # steps before the queue is used, while features change fast; the authors: 15 epochs
    epsilon: float = 0.05  # how soft assignments are: 0 would be hard, and large uniform
    temperature: float = 0.1  # of the predictions

    def __post_init__(self) -> None:
        rows = self.batch_size + self.queue
        if self.prototypes > rows:
            raise UsageError(
                f"{self.name}.prototypes is {self.prototypes}, but batch_size + queue are {rows} examples, too few for each "
                "prototype to get one"
            )
        if self.views.count < 2:
            raise UsageError(f"{self.name}.views.count must be at least 2, but is {self.views.count}")

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {
            "projector": Mlp(model.backbones[self.backbone].config.width, self.projector, rngs=rngs),
            "prototypes": Prototypes(self.projector.size, self.prototypes, rngs=rngs),
        }

    def state(self, model: Model) -> dict[str, TaskState]:
        made = self.queue and Queue(self.queue, self.views.count, self.projector.size, wait=self.queue_wait)
        return {"queue": made} if made else {}

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        features, heads = self.features(model, batch, key), model.heads[self.name]
        past: Any = (jnp.zeros((0, self.views.count, self.projector.size)), jnp.zeros(0, bool))
        if self.queue:
            queue = model.state[self.name]["queue"]
            queue.push(unit(heads["projector"](features)[:, : self.views.count]))
            past = (queue.rows.get_value(), queue.valid())
        rows = (features[:, : self.views.count], features[:, self.views.count :])
        numbers = (jnp.float32(self.epsilon), jnp.float32(self.temperature))
        return WholeBatch(swapped, rows=rows, shared=(heads["projector"], heads["prototypes"], past, numbers)), {}

    # What all tasks do that compare views.
    inputs = joint_embedding.inputs
    features = joint_embedding.features
    evaluations = joint_embedding.evaluations


def swapped(_: Any, rows: Any, shared: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the whole batch, from features of large and of small views, [B,V,D] and [B,n,D]."""
    (large, small), (projector, prototypes, (earlier, written), (epsilon, temperature)) = rows, shared
    scores = prototypes(unit(projector(jnp.concatenate([large, small], axis=1))))  # [B,V+n,K]
    batch, views = large.shape[:2]
    both = jnp.concatenate([scores[:, :views], prototypes(earlier)])
    valid = jnp.concatenate([jnp.ones(batch, bool), written])
    codes = [sinkhorn(both[:, i], epsilon, valid_N=valid)[:batch] for i in range(views)]
    losses, sums = swapped_prediction(codes, [scores[:, i] for i in range(scores.shape[1])], temperature)
    return losses.mean(), {
        "agreement": ratio(sums["agree"], sums["examples"]),
        "prototype_use": prototype_use(jax.nn.softmax(scores[:, 0] / temperature)),
        "feature_deviation": feature_deviation(large[:, 0]),
    }
