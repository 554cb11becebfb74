"""Audio classification over patches of a log-mel spectrogram (AST, Gong 2021): phones, spoken words, sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import majority_accuracy
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.heads import Classifier
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, softmax_classification
from unimodal.task import Predictions

HOP, WINDOW = 0.010, 0.025  # seconds, as Kaldi's filter banks have them


@dataclass(frozen=True)
class AudioClassifier:
    """What is heard in a stretch of sound.

    The tokenizer is of kind image: its image_size is (mel bins, frames of 10 ms) and its channels are 1. `segments`: a
    record's list of [start, end, class] in milliseconds, around the middle of each of which a stretch is cut out; "":
    each record is one sound, whose class stands under `label`, by name or number. `classes`: their names ((): all of
    the training data). mean and deviation of the log-mel values, which become (x - mean) / (2·deviation). Training
    moves a stretch by up to `shift` seconds, crops a sound that is too long at random, and blanks up to `blank` (bins,
    frames) of it (Park 2019).
    """

    name: str = "audio_classifier"
    source: str = "embedded:speech"
    segments: str = "phones"
    label: str = "group"
    classes: tuple[str, ...] = ()
    batch_size: int = 32
    rate: int = 16_000
    mean: float = -4.27
    deviation: float = 4.57
    shift: float = 0.0
    blank: tuple[int, int] = (0, 0)
    label_smoothing: float = 0.0
    pooling: str = "mean"
    weight: float = 1.0
    tokenizer: str = "spectrogram"
    backbone: str = "shared"
    metric = "accuracy"
    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        """The classes. Reads the training data unless the config gives them."""
        return self.classes or tuple(sorted(set(map(str, _labels(self.source, "train", self.segments, self.label)))))

    def samples_seen(self, model: Model) -> int:
        """How many samples make the tokenizer's frames."""
        frames = model.tokenizers[self.tokenizer].config.image_size[1]
        return round(self.rate * HOP) * (frames - 1) + round(self.rate * WINDOW)

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        c = model.tokenizers[self.tokenizer].config
        if c.channels != 1:
            raise UsageError(f"tokenizers.{self.tokenizer}.channels must be 1 for a spectrogram, but is {c.channels}")
        return {
            "spectrogram": data.ArraySpec((*c.image_size, 1), np.float32, -1, 1),
            "label": data.ArraySpec((), np.int32, 0, len(self.names)),
        }

    def tokens(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.tokens

    def dataset(self, model: Model, split: str) -> data.Dataset:
        bins, _ = model.tokenizers[self.tokenizer].config.image_size
        seen, spare = self.samples_seen(model), round(self.shift * self.rate)
        names, training = self.names, split == "train"

        def decode(record: Any) -> dict[str, Any]:
            audio = data.decode_audio(record["audio"], self.rate, name=record["id"])
            return {"id": record["id"], "audio": audio, "text": record.get(self.label)}

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            if self.segments:
                start = int(rng.integers(0, 2 * spare + 1)) if training else spare
                audio = record["audio"][start : start + seen]
            else:
                audio, _ = data.crop_or_pad(record["audio"], seen, rng if training else None)
            values = (data.kaldi_log_mel(audio, self.rate, bins=bins) - self.mean) / (2 * self.deviation)
            if training:
                values = blanked(values, (self.blank[1], self.blank[0]), rng)
            label = _number(record["text"], names, record["id"], self.name)
            return {"spectrogram": np.ascontiguousarray(values.T)[:, :, None], "label": np.int32(label)}

        source = data.open_source(self.source, split)
        if self.segments:
            source = data.segments(source, decode, self.segments, self.rate, window=seen + 2 * spare)
        else:
            source = data.cached(source, decode)
        return data.Dataset(source, example)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"classify": Classifier(width, len(self.names), pooling=self.pooling, rngs=rngs)}

    def logits(self, model: Model, spectrogram: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,bins,frames,1] → [B,classes]."""
        hidden, _ = model.backbones[self.backbone](model.tokenizers[self.tokenizer](spectrogram), key=key)
        return model.heads[self.name]["classify"](hidden)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch["spectrogram"], key)
        losses, sums = softmax_classification(logits, batch["label"], label_smoothing=self.label_smoothing)
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        probabilities = jax.nn.softmax(self.logits(model, batch["spectrogram"]).astype(jnp.float32))
        return {"probabilities": probabilities, "label": batch["label"]}

    def score(self, predictions: Predictions) -> dict[str, float]:
        right = predictions["probabilities"].argmax(axis=1) == predictions["label"]
        by_class = [right[predictions["label"] == k].mean() for k in np.unique(predictions["label"])]
        return {"value": right.mean(), "mean_of_classes": float(np.mean(by_class))}

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        names = self.names
        train, valid = (
            np.array(
                [_number(x, names, split, self.name) for x in _labels(self.source, split, self.segments, self.label)]
            )
            for split in ("train", "validation")
        )
        return majority_accuracy(train, valid), "majority class"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        """The first recording with a guess for each of its first stretches, or the first few sounds."""
        names, source = self.names, data.open_source(self.source, "validation")
        guesses = predictions["probabilities"].argmax(axis=1)

        def heard(i: int, audio: np.ndarray, marks: tuple[tuple[float, float, str], ...] = ()) -> AudioSample:
            wave = (audio / max(1e-6, float(np.abs(audio).max(initial=0.0)))).astype(np.float32)
            truth = None if marks else names[int(predictions["label"][i])]
            return AudioSample(wave, self.rate, marks, output=None if marks else names[int(guesses[i])], truth=truth)

        def sound(i: int) -> np.ndarray:
            return data.decode_audio(source[i]["audio"], self.rate, name=source[i]["id"])

        if not self.segments:
            return [heard(i, sound(i)) for i in range(min(4, len(guesses)))]
        audio, shown = sound(0)[: 4 * self.rate], []
        for i, (start, end, truth) in enumerate(data.marks(data.first(source, 1), self.segments)[0]):
            guess = names[int(guesses[i])]
            verdict = "right" if guess == truth else f"not {truth}: wrong"
            if end / 1000 <= len(audio) / self.rate:
                shown.append((start / 1000, end / 1000, f"{guess} {verdict}"))
        return [heard(0, audio, tuple(shown))]


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


def _number(label: Any, names: tuple[str, ...], where: str, task: str) -> int:
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if label not in names:
        raise UsageError(f"{where}: class {label!r} is not among the {len(names)} classes of tasks.{task}")
    return names.index(label)


@cache
def _labels(uri: str, split: str, segments: str, field: str) -> tuple[Any, ...]:
    source = data.open_source(uri, split)
    if segments:
        return tuple(text for found in data.marks(source, segments) for _, _, text in found)
    return tuple(source[i].get(field) for i in range(len(source)))
