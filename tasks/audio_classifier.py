"""Audio classification over patches of a log-mel spectrogram (AST, Gong 2021): phones, spoken words, sounds."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from unimodal.answers import SOUND, Answer, Asked, class_answer, embedding_answer, read_any
from unimodal.data.blocks import Inputs, Labels, Sounds, brought
from unimodal.data.blocks.spectrograms import Spectrograms
from unimodal.errors import UsageError
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.evaluation.show.sounds import classified_sounds
from unimodal.heads import Classifier
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, classification_loss


@dataclass(frozen=True)
class AudioClassifier:
    """One class for each stretch of sound.

    The tokenizer is of kind image: its image_size is (mel bins, frames of 10 ms) and its channels are 1. It says how
    much sound is seen; `sounds.seconds` is not used.
    """

    name: str = "audio_classifier"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:speech"  # a data source, see `data.sources`
    sounds: Sounds = Sounds(segments="phones", normalize=False)  # the recordings
    labels: Labels = Labels()  # the classes
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "spectrogram"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    mean: float = brought(-4.27)  # of the log-mel values, which become (x - mean) / (2·deviation)
    deviation: float = brought(4.57)  # standard deviation of the log-mel values
    shift: float = 0.0  # seconds by which training moves a stretch, at most
    blank: tuple[int, int] = (0, 0)  # bins and frames that training blanks, at most (Park 2019)
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    pooling: str = "mean"  # of the tokens: first, first_two (AST's), mean or last
    head_norm: float = 0.0  # epsilon of a norm between the pooling and the last layer; 0: none

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.labels.size(self.source, self.sounds.segments)

    def spectrograms(self, model: Model) -> Spectrograms:
        """The data, as the tokenizer sees it."""
        c = model.tokenizers[self.tokenizer].config
        if c.channels != 1:
            raise UsageError(f"tokenizers.{self.tokenizer}.channels must be 1 for a spectrogram, but is {c.channels}")
        scale = dict(mean=self.mean, deviation=self.deviation)
        changed = dict(shift=self.shift, blank=self.blank)
        return Spectrograms(self.source, self.sounds, self.labels, *c.image_size, **scale, **changed)

    def inputs(self, model: Model) -> Inputs:
        return self.spectrograms(model).inputs

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"classify": Classifier(width, self.classes, pooling=self.pooling, norm=self.head_norm, rngs=rngs)}

    def logits(self, model: Model, spectrogram: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,bins,frames,1] → [B,classes]."""
        hidden, _ = model.hidden(self.tokenizer, self.backbone, spectrogram, key=key)
        return model.heads[self.name]["classify"](hidden)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch["spectrogram"], key)
        return classification_loss(logits, batch["label"], label_smoothing=self.label_smoothing)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        made = self.spectrograms(model)
        row = lambda record: {"spectrogram": made.middle(read_any(self.sounds, record).read(record))}  # noqa: E731
        names = self.labels.classes or self.labels.names(self.source, self.sounds.segments)
        logits = lambda m, batch: self.logits(m, batch["spectrogram"])  # noqa: E731
        mean = lambda m, batch: m.hidden(self.tokenizer, self.backbone, batch["spectrogram"])[0].mean(axis=1)  # noqa: E731
        return [class_answer(SOUND, names, row, logits, top=asked.top), embedding_answer(SOUND, row, mean)]

    def evaluations(self) -> dict[str, Evaluation]:
        found = classification(
            self,
            lambda model, batch: self.logits(model, batch["spectrogram"]),
            show=classified_sounds(self.source, self.sounds, self.labels, lambda m: self.spectrograms(m).samples),
            segments=self.sounds.segments,
        )
        return {self.name: found}
