"""wav2vec 2.0: learn from speech alone (Baevski 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.answers import Answer, Asked, sound_features
from unimodal.data.blocks import Inputs, Sounds, columns
from unimodal.data.blocks.speech import with_masks
from unimodal.data.blocks.used import warn_of_short
from unimodal.errors import UsageError
from unimodal.evaluation.distractors import picked, picking_score
from unimodal.evaluation.evaluation import Batch, Evaluation, on_own_data, untrained_value
from unimodal.evaluation.show.sounds import masked_sounds
from unimodal.evaluation.summed import Summed
from unimodal.heads import Quantiser
from unimodal.layers import Linear, dropout, split_key
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Sum, TaskMetrics
from unimodal.objectives.speech import diversity_term, gumbel_codes, sample_negatives, wav2vec2_contrastive


@dataclass(frozen=True)
class Wav2vec2:
    """Mask spans of the convolutional frames and pick each masked frame's quantised self among distractors."""

    name: str = "wav2vec2"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:speech"  # a data source, see `data.sources`
    sounds: Sounds = Sounds()  # the recordings
    mask: float = 0.65  # share of frames that spans would cover if they never overlapped (the paper's p is mask/span)
    span: int = 10  # frames
    batch_size: int = 8  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "audio"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    groups: int = 2  # codebooks
    codes: int = 320  # in each codebook
    code_size: int = 256  # of all groups' codes together
    size: int = 256  # of the projections that are compared
    negatives: int = 100  # distractors per frame, from the same utterance
    temperature: float = 0.1  # divides the similarities
    diversity: float = 0.1  # weight of the codebook-use loss
    gumbel_start: float = 2.0  # temperature of the choice of codes, annealed by a factor of gumbel_decay each step
    gumbel_end: float = 0.5  # the lowest it falls to
    gumbel_decay: float = 0.999995  # per step
    feature_penalty: float = 0.0  # weight of the mean square of the last convolution's output
    code_dropout: float = 0.0  # on the frames that the quantiser sees
    perplexity_floor: float = 4.0  # a codebook that uses fewer codes has collapsed, and the score says so

    def inputs(self, model: Model) -> Inputs:
        frames, why = model.tokenizers[self.tokenizer].config.frames, f"of less than span={self.span} frames"
        # Without room for one span there is nothing to learn.
        enough: Callable[[int], bool] = lambda samples: frames(samples) >= self.span  # noqa: E731
        check = partial(warn_of_short, f"tasks.{self.name}", self.source, self.sounds, enough, why)
        # Crops are drawn in validation, too: a recording's beginning is often silence.
        sounds = columns(self.source, self.sounds.part(random=True, check=check))
        return with_masks(sounds, frames, (self.mask, self.span), least=1, validation=True)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        if self.groups < 1 or self.code_size % self.groups:
            raise UsageError(f"tasks.{self.name}.code_size={self.code_size} is not divisible by groups={self.groups}")
        width = model.backbones[self.backbone].config.width
        channels = model.tokenizers[self.tokenizer].config.channels
        return {
            "quantiser": Quantiser(channels, self.groups, self.codes, self.code_size // self.groups, rngs=rngs),
            "target": Linear((self.code_size,), (self.size,), ("hidden", "classes"), rngs=rngs),
            "context": Linear((width,), (self.size,), ("embed", "classes"), rngs=rngs),
        }

    def forward(
        self,
        model: Model,
        batch: Batch,
        negatives_key: jax.Array,
        *,
        key: jax.Array | None = None,
        temperature: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """convolved [B,T,C], context and target [B,T,size], codes and their probabilities [B,T,groups,codes], negatives
        [B,T,N]."""
        tokenizer, heads = model.tokenizers[self.tokenizer], model.heads[self.name]
        keys = split_key(key, 4)
        convolved = tokenizer.convolved(batch["audio"])
        features = tokenizer.feature_norm(convolved)
        scores = heads["quantiser"].scores(dropout(features, self.code_dropout, keys[2]))
        codes, probabilities = gumbel_codes(scores, keys[0], temperature)
        tokens = tokenizer.embed(features, lengths=batch["length"], masked=batch["masked"], key=keys[3])
        hidden, _ = model.backbones[self.backbone](tokens, key=keys[1])
        return {
            "convolved": convolved,
            "context": heads["context"](hidden),
            "target": heads["target"](heads["quantiser"].look_up(codes)),
            "codes": codes,
            "probabilities": probabilities,
            "negatives": sample_negatives(negatives_key, batch["masked"], self.negatives),
        }

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        negatives_key, key = jax.random.split(key)
        decayed = self.gumbel_start * jnp.float32(self.gumbel_decay) ** step.astype(jnp.float32)
        temperature = jnp.maximum(decayed, jnp.float32(self.gumbel_end))
        made, masked = self.forward(model, batch, negatives_key, key=key, temperature=temperature), batch["masked"]
        compared = made["context"], made["target"], masked, made["negatives"]
        _, sums = wav2vec2_contrastive(*compared, self.temperature, codes_BTG=made["codes"].argmax(axis=-1))
        loss = Mean(sums["objective"], sums["frames"]), diversity_term(made["probabilities"], masked, self.diversity)
        if self.feature_penalty:
            loss += (self.feature_penalty * jnp.square(made["convolved"].astype(jnp.float32)).mean(),)
        return loss, {
            "accuracy": Mean(sums["correct"], sums["frames"]),
            "mask_coverage": masked.astype(jnp.float32).mean(),
            "skipped": Sum((~masked.any(axis=1)).astype(jnp.float32).sum()),  # too short for a span
        }

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        return [sound_features(self)]

    def evaluations(self) -> dict[str, Evaluation]:
        picking = Summed(
            metric="accuracy among distractors",
            higher_is_better=True,
            **on_own_data(self),
            finish=lambda sums: picking_score(sums, self.perplexity_floor),
            ratio=("correct", "frames"),
            against=untrained_value,
            show=masked_sounds(self.sounds),
        )
        return {self.name: picking}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        made = self.forward(model, batch, jax.random.key(0))
        compared = made["context"], made["target"], batch["masked"], made["negatives"], made["codes"]
        return picked(*compared, self.temperature)
