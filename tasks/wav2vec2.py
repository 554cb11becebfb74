"""wav2vec 2.0: learn from speech alone (Baevski 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Inputs, Sounds, columns
from unimodal.data.blocks.used import headers, warn_of_unused
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Shown, untrained_value
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.evaluation.summed import Summed
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


@dataclass(frozen=True)
class Wav2vec2:
    """Mask spans of the convolutional frames and pick each masked frame's quantised self among distractors."""

    name: str = "wav2vec2"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:speech"  # a data source, see `data.sources`
    sounds: Sounds = Sounds()  # the recordings
    batch_size: int = 8  # examples of one global batch
    mask: float = 0.65  # share of frames that spans would cover if they never overlapped (the paper's p is mask/span)
    span: int = 10  # frames
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
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "audio"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name

    def inputs(self, model: Model) -> Inputs:
        config = model.tokenizers[self.tokenizer].config
        frames = config.frames(self.sounds.samples)

        def mask(example: Any, rng: np.random.Generator) -> dict[str, Any]:
            valid = int(config.frames(int(example["length"])))
            return {**example, "masked": data.span_mask(frames, rng, self.mask, self.span, min_masks=1, valid=valid)}

        # Crops are drawn in validation, too: a recording's beginning is often silence.
        made = columns(self.source, self.sounds.part(random=True))
        spec = {**made.spec, "masked": data.ArraySpec((frames,), np.bool_)}

        def dataset(split: str) -> data.Dataset:
            if split == "train":
                self._check(config.frames)
            return made.dataset(split).map(mask)

        return Inputs(spec, dataset)

    def _check(self, frames: Callable[[int], int]) -> None:
        """Warn before the first step of recordings without room for one span. Raises UsageError where most are so short."""
        short = f"of less than span={self.span} frames"
        for split, what in (("train", "will be skipped"), ("validation", "will be left out of the score")):
            found = headers(self.sounds, data.open_source(self.source, split))
            reasons = ["" if frames(samples) >= self.span else short for _, samples in found]
            warn_of_unused(f"tasks.{self.name}, {self.source} {split}", reasons, what)

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

    def evaluations(self) -> dict[str, Evaluation]:
        picking = Summed(
            metric="accuracy among distractors",
            higher_is_better=True,
            inputs=self.inputs,
            predict=self.predict,
            finish=self._score,
            batch_size=self.batch_size,
            against=untrained_value,
            show=self.samples,
        )
        return {self.name: picking}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        made = self.forward(model, batch, jax.random.key(0))
        chosen = jnp.argmax(made["codes"], axis=-1).astype(jnp.int32)

        def count(context: jax.Array, target: jax.Array, masked: jax.Array, negatives: jax.Array, codes: jax.Array):
            _, sums = wav2vec2_contrastive(
                context[None], target[None], masked[None], negatives[None], self.temperature, codes_BTG=codes[None]
            )
            return sums["correct"], sums["frames"]

        correct, frames = jax.vmap(count)(made["context"], made["target"], batch["masked"], made["negatives"], chosen)
        # No comparison with NaN is true, so that a sick model would seem never to be beaten.
        correct = jnp.where(jnp.isnan(made["context"]).any(axis=(1, 2)), jnp.nan, correct)
        used = (made["codes"] * batch["masked"][:, :, None, None].astype(jnp.float32)).sum(axis=1)
        return {"correct": correct, "frames": frames, "used": used, "chosen": chosen}

    def _score(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        share = sums["used"] / sums["used"].sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.where(share == 0, 1.0, share))).sum(axis=1)
        perplexity = np.exp(entropy)  # of each codebook
        return {
            "value": float(sums["correct"] / sums["frames"]),
            "code_perplexity": float(perplexity.mean()),
            "collapsed": float(not perplexity.min() >= self.perplexity_floor),  # NaN is a collapse, too
        }

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        found: list[Sample] = []
        masked, rows = shown.batch["masked"], shown.rows
        frame = self.sounds.seconds / masked.shape[1]
        for i in range(min(2, len(masked))):
            wave = shown.batch["audio"][i] / max(1e-6, float(np.abs(shown.batch["audio"][i]).max()))
            edges = np.flatnonzero(np.diff(np.concatenate([[0], masked[i].astype(np.int8), [0]])))
            segments = tuple(
                (float(a * frame), float(b * frame), "masked") for a, b in zip(edges[::2], edges[1::2], strict=True)
            )
            codes = len({tuple(c) for c in rows["chosen"][i]})
            right = rows["correct"][i] / max(1.0, float(rows["frames"][i]))
            note = f"{right:.0%} of the masked frames picked right; {codes} different codes in {len(masked[i])} frames"
            found.append(AudioSample(wave.astype(np.float32), self.sounds.rate, segments, note))
        return found
