"""wav2vec 2.0: learn from speech alone (Baevski 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.heads import Quantiser
from unimodal.layers import Linear, dropout
from unimodal.model import Model
from unimodal.objectives import (
    Loss,
    Mean,
    Sum,
    TaskMetrics,
    diversity_term,
    gumbel_codes,
    sample_negatives,
    wav2vec2_contrastive,
)
from unimodal.task import Predictions


@dataclass(frozen=True)
class Wav2vec2:
    """Mask spans of the convolutional frames and pick each masked frame's quantised self among distractors.

    seconds of each crop at `rate` Hz; mask: expected share of frames that spans of `span` frames would cover if they
    never overlapped (the paper's p is mask/span); groups·codes: the product codebook; negatives: distractors per frame,
    from the same utterance; diversity: weight of the codebook-use loss; gumbel_start/end/decay: annealed temperature;
    feature_penalty: weight of the mean square of the last convolution's output; code_dropout: on the frames that the
    quantiser sees. A codebook that uses fewer than perplexity_floor of its codes has collapsed, and the score says so.
    """

    name: str = "wav2vec2"
    source: str = "embedded:speech"
    batch_size: int = 8
    seconds: float = 2.0
    rate: int = 16_000
    mask: float = 0.65
    span: int = 10
    groups: int = 2
    codes: int = 320
    code_size: int = 256
    size: int = 256
    negatives: int = 100
    temperature: float = 0.1
    diversity: float = 0.1
    gumbel_start: float = 2.0
    gumbel_end: float = 0.5
    gumbel_decay: float = 0.999995
    feature_penalty: float = 0.0
    code_dropout: float = 0.0
    perplexity_floor: float = 4.0
    weight: float = 1.0
    tokenizer: str = "audio"
    backbone: str = "shared"
    metric = "accuracy among distractors"
    higher_is_better = True

    @property
    def samples_per_crop(self) -> int:
        return int(self.seconds * self.rate)

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        frames = model.tokenizers[self.tokenizer].config.frames(self.samples_per_crop)
        return {
            "audio": data.ArraySpec((self.samples_per_crop,), np.float32, -1, 1),
            "length": data.ArraySpec((), np.int32, self.samples_per_crop, self.samples_per_crop + 1),
            "masked": data.ArraySpec((frames,), np.bool_),
        }

    def tokens(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.frames(self.samples_per_crop)

    def dataset(self, model: Model, split: str) -> data.Dataset:
        config = model.tokenizers[self.tokenizer].config
        frames = config.frames(self.samples_per_crop)

        def decode(record: Any) -> dict[str, Any]:
            audio = data.decode_audio(record["audio"], self.rate, name=record["id"])
            return {"id": record["id"], "audio": data.normalize(audio)}

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            audio, length = data.crop_or_pad(record["audio"], self.samples_per_crop, rng)
            valid = int(config.frames(length))
            masked = data.span_mask(frames, rng, self.mask, self.span, min_masks=1, valid=valid)
            return {"audio": audio, "length": np.int32(length), "masked": masked}

        return data.Dataset(data.cached(data.open_source(self.source, split), decode), example)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
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
        batch: Mapping[str, jax.Array],
        negatives_key: jax.Array,
        *,
        key: jax.Array | None = None,
        temperature: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """convolved [B,T,C], context and target [B,T,size], codes and their probabilities [B,T,groups,codes], negatives
        [B,T,N]."""
        tokenizer, heads = model.tokenizers[self.tokenizer], model.heads[self.name]
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
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

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        negatives_key, key = jax.random.split(key)
        decayed = self.gumbel_start * jnp.float32(self.gumbel_decay) ** step.astype(jnp.float32)
        made = self.forward(
            model, batch, negatives_key, key=key, temperature=jnp.maximum(decayed, jnp.float32(self.gumbel_end))
        )
        masked = batch["masked"]
        _, sums = wav2vec2_contrastive(
            made["context"],
            made["target"],
            masked,
            made["negatives"],
            self.temperature,
            codes_BTG=jnp.argmax(made["codes"], axis=-1),
        )
        loss = Mean(sums["objective"], sums["frames"]), diversity_term(made["probabilities"], masked, self.diversity)
        if self.feature_penalty:
            loss += (self.feature_penalty * jnp.square(made["convolved"].astype(jnp.float32)).mean(),)
        return loss, {
            "accuracy": Mean(sums["correct"], sums["frames"]),
            "mask_coverage": masked.astype(jnp.float32).mean(),
            "skipped": Sum((~masked.any(axis=1)).astype(jnp.float32).sum()),  # too short for a span
        }

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        made = self.forward(model, batch, jax.random.key(0))
        chosen = jnp.argmax(made["codes"], axis=-1).astype(jnp.int32)

        def count(context: jax.Array, target: jax.Array, masked: jax.Array, negatives: jax.Array, codes: jax.Array):
            _, sums = wav2vec2_contrastive(
                context[None], target[None], masked[None], negatives[None], self.temperature, codes_BTG=codes[None]
            )
            return sums["correct"], sums["frames"]

        correct, frames = jax.vmap(count)(made["context"], made["target"], batch["masked"], made["negatives"], chosen)
        used = (made["codes"] * batch["masked"][:, :, None, None].astype(jnp.float32)).sum(axis=1)
        return {"correct": correct, "frames": frames, "used": used, "chosen": chosen, "masked": batch["masked"]}

    def score(self, predictions: Predictions) -> dict[str, float]:
        use = predictions["used"].sum(axis=0)
        share = use / use.sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
        perplexity = np.exp(entropy)  # of each codebook
        return {
            "value": predictions["correct"].sum() / predictions["frames"].sum(),
            "code_perplexity": perplexity.mean(),
            "collapsed": float(perplexity.min() < self.perplexity_floor),
        }

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        return untrained["value"], "the untrained model"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        shown: list[Sample] = []
        frame = self.seconds / predictions["masked"].shape[1]
        for i in range(min(2, len(batch["audio"]))):
            wave = batch["audio"][i] / max(1e-6, float(np.abs(batch["audio"][i]).max()))
            edges = np.flatnonzero(np.diff(np.concatenate([[0], batch["masked"][i].astype(np.int8), [0]])))
            segments = tuple(
                (float(a * frame), float(b * frame), "masked") for a, b in zip(edges[::2], edges[1::2], strict=True)
            )
            codes = len({tuple(c) for c in predictions["chosen"][i]})
            right = predictions["correct"][i] / max(1.0, float(predictions["frames"][i]))
            note = f"{right:.0%} of the masked frames picked right; {codes} different codes in {len(batch['masked'][i])} frames"
            shown.append(AudioSample(wave.astype(np.float32), self.rate, segments, note))
        return shown
