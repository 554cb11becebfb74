"""Audio classification over patches of a log-mel spectrogram (AST, Gong 2021): phones, spoken words, sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import SOUND, Answer, Asked, class_answer, embedding_answer, read_any
from unimodal.data.blocks import Inputs, Labels, Sounds, brought
from unimodal.errors import UsageError
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.heads import Classifier
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, softmax_classification

HOP, WINDOW = 0.010, 0.025  # seconds, as Kaldi's filter banks have them


@dataclass(frozen=True)
class AudioClassifier:
    """What is heard in a stretch of sound.

    The tokenizer is of kind image: its image_size is (mel bins, frames of 10 ms) and its channels are 1. It says how
    much sound is seen; `sounds.seconds` is not used.
    """

    name: str = "audio_classifier"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:speech"  # a data source, see `data.sources`
    sounds: Sounds = Sounds(segments="phones", normalize=False)  # the recordings
    labels: Labels = Labels()  # the classes
    batch_size: int = 32  # examples of one global batch
    mean: float = brought(-4.27)  # of the log-mel values, which become (x - mean) / (2·deviation)
    deviation: float = brought(4.57)  # standard deviation of the log-mel values
    shift: float = 0.0  # seconds by which training moves a stretch, at most
    blank: tuple[int, int] = (0, 0)  # bins and frames that training blanks, at most (Park 2019)
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    pooling: str = "mean"  # of the tokens: first, mean or last
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "spectrogram"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.labels.size(self.source, self.sounds.segments)

    def samples_seen(self, model: Model) -> int:
        """How many samples make the tokenizer's frames."""
        frames = model.tokenizers[self.tokenizer].config.image_size[1]
        return round(self.sounds.rate * HOP) * (frames - 1) + round(self.sounds.rate * WINDOW)

    def inputs(self, model: Model) -> Inputs:
        c = model.tokenizers[self.tokenizer].config
        if c.channels != 1:
            raise UsageError(f"tokenizers.{self.tokenizer}.channels must be 1 for a spectrogram, but is {c.channels}")
        spec = {
            "spectrogram": data.ArraySpec((*c.image_size, 1), np.float32, -1, 1),
            "label": data.ArraySpec((), np.int32, 0, self.classes),
        }
        return Inputs(spec, partial(self._dataset, model))

    def _dataset(self, model: Model, split: str) -> data.Dataset:
        seen, spare = self.samples_seen(model), round(self.shift * self.sounds.rate)
        training, segments = split == "train", self.sounds.segments

        def decode(record: Any) -> dict[str, Any]:
            return {"id": record["id"], "audio": self.sounds.read(record), "label": self._number(record)}

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            if segments:
                start = int(rng.integers(0, 2 * spare + 1)) if training else spare
                audio = record["audio"][start : start + seen]
                label = self.labels.number_of(self.source, record["text"], record["id"], segments)
            else:
                audio, _ = data.crop_or_pad(record["audio"], seen, rng if training else None)
                label = record["label"]
            values = self.log_mel(model, audio)
            if training:
                values = blanked(values, (self.blank[1], self.blank[0]), rng)
            return {"spectrogram": np.ascontiguousarray(values.T)[:, :, None], "label": np.int32(label)}

        if training:
            self.labels.check(self.source, segments)
        source = self.sounds.open(self.source, split, window=seen + 2 * spare)
        return data.Dataset(source if segments else data.cached(source, decode), example)

    def log_mel(self, model: Model, audio: np.ndarray) -> np.ndarray:
        """Samples → normalised log-mel values [frames,bins]."""
        bins, _ = model.tokenizers[self.tokenizer].config.image_size
        return (data.kaldi_log_mel(audio, self.sounds.rate, bins=bins) - self.mean) / (2 * self.deviation)

    def _number(self, record: Mapping[str, Any]) -> int:
        return self.labels.number(self.source, record)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"classify": Classifier(width, self.classes, pooling=self.pooling, rngs=rngs)}

    def logits(self, model: Model, spectrogram: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,bins,frames,1] → [B,classes]."""
        return model.heads[self.name]["classify"](self.hidden(model, spectrogram, key))

    def hidden(self, model: Model, spectrogram: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,bins,frames,1] → [B,T,D]."""
        inner = None if key is None else jax.random.fold_in(key, 1)
        return model.backbones[self.backbone](model.tokenizers[self.tokenizer](spectrogram, key=inner), key=key)[0]

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch["spectrogram"], key)
        losses, sums = softmax_classification(logits, batch["label"], label_smoothing=self.label_smoothing)
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        def row(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
            """The middle of a recording, as long as the tokenizer's frames."""
            audio, seen = read_any(self.sounds, record).read(record), self.samples_seen(model)
            start = max(0, (len(audio) - seen) // 2)
            values = self.log_mel(model, data.crop_or_pad(audio[start:], seen)[0])
            return {"spectrogram": np.ascontiguousarray(values.T)[:, :, None]}

        names = self.labels.classes or self.labels.names(self.source, self.sounds.segments)
        logits = lambda m, batch: self.logits(m, batch["spectrogram"])  # noqa: E731
        embed = lambda m, batch: self.hidden(m, batch["spectrogram"]).mean(axis=1)  # noqa: E731
        return [class_answer(SOUND, names, row, logits, top=asked.top), embedding_answer(SOUND, row, embed)]

    def evaluations(self) -> dict[str, Evaluation]:
        found = classification(
            self.labels,
            self.source,
            lambda model, batch: self.logits(model, batch["spectrogram"]),
            inputs=self.inputs,
            batch_size=self.batch_size,
            show=self.samples,
            segments=self.sounds.segments,
        )
        return {self.name: found}

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        """A few stretches, or sounds, with what was guessed."""
        names = self.labels.names(self.source, self.sounds.segments)
        source = self.sounds.open(self.source, "validation", window=self.samples_seen(model))
        found: list[Sample] = []
        for i, place in enumerate(shown.index[:4]):
            record = source[int(place)]
            audio = record["audio"] if self.sounds.segments else self.sounds.read(record)
            wave = (audio / max(1e-6, float(np.abs(audio).max(initial=0.0)))).astype(np.float32)
            guess, truth = names[int(shown.rows["best"][i, 0])], names[int(shown.rows["label"][i])]
            found.append(AudioSample(wave, self.sounds.rate, note=str(record["id"]), output=guess, truth=truth))
        return found


def blanked(values: np.ndarray, most: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Values [frames,bins] with a stripe of up to most[0] frames and one of up to most[1] bins set to zero."""
    if not any(most):
        return values
    values = values.copy()
    for axis, size in enumerate(most):
        width = int(rng.integers(0, min(size, values.shape[axis]) + 1))
        start = int(rng.integers(0, values.shape[axis] - width + 1))
        values[(slice(None),) * axis + (slice(start, start + width),)] = 0.0
    return values
