"""Features of a dataset: what a backbone makes of each example, with its class."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.blocks import Images, Inputs, Labels, Part, Pixels, Sounds, Texts, columns
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import majority_accuracy
from unimodal.evaluation.classification import share_right
from unimodal.evaluation.evaluation import Batch, Each, Made, Measured, Predict, Reader
from unimodal.heads import pool
from unimodal.model import Model
from unimodal.objectives import shifted_right
from unimodal.tokenizers import audio, image, text
from unimodal.tokens import Tokens, lengths_of

POOLINGS = ("mean", "first", "last")
# Methods that make features: an evaluation with one of its own shares them with no other.
DECIDE = ("inputs", "embed", "hidden", "pooled", "_part", "_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled:
    """The hidden states that an evaluation reads, and how they become one vector for each example."""

    name: str = "features"  # given by the config
    source: str  # a data source, see `data.sources`
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    layer: int = -1  # hidden states after so many layers; -1: what the backbone gives
    pooling: str = "mean"  # of the tokens: mean, first or last
    causal: bool = False  # texts are read from left to right, as a causal language model was trained to
    batch_size: int = 32  # examples at a time
    every: int = 0  # steps between evaluations during training; 0: only at its end

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UsageError(
                f"evaluations.{self.name}.pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}"
            )

    def hidden(self, model: Model, tokens: Tokens) -> jax.Array:
        """Hidden states [B,T,D] after `layer` layers."""
        backbone = model.backbones[self.backbone]
        if not -1 <= self.layer <= backbone.config.depth or self.layer == 0:
            raise UsageError(
                f"evaluations.{self.name}.layer must be -1 or 1 … {backbone.config.depth}, but is {self.layer}"
            )
        # Capture only if a layer is asked for: captured states of all layers take depth times the memory.
        hidden, captured = backbone(tokens, capture=() if self.layer == -1 else ("hidden",))
        return hidden if self.layer == -1 else captured["hidden"][self.layer - 1]

    def pooled(self, model: Model, tokens: Tokens) -> jax.Array:
        """Features float32 [B,D]."""
        return pool(self.hidden(model, tokens), self.pooling, tokens.segment).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Pooled):
    """Pooled hidden states of labelled examples. Of the blocks, the one that suits the tokenizer is read."""

    images: Images = Images()  # for a tokenizer of kind image
    texts: Texts = Texts()  # for one of kind text
    sounds: Sounds = Sounds()  # for one of kind audio
    pixels: Pixels = Pixels()  # for one of kind text that reads pictures as rows of colours
    size: tuple[int, ...] = ()  # of those pictures, height and width; (): it reads texts
    labels: Labels = Labels()  # the classes
    raw: bool = False  # pictures' own pixels are scored in the same way, once, and are a baseline too

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (0, 2):
            raise UsageError(f"evaluations.{self.name}.size must be height and width, but is {self.size}")

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def higher_is_better(self) -> bool:
        return True

    def check(self) -> None:
        """Raises UsageError for classes that tell nothing, such as a single one. Runs before training."""
        self.labels.check(self.source)

    def inputs(self, model: Model) -> Inputs:
        """The modality's arrays, and `label`."""
        return columns(self.source, self._part(model.tokenizers[self.tokenizer].config), self.labels.part(self.source))

    def _part(self, config: Any) -> Part:
        if isinstance(config, image.Config) and config.channels == 3:
            return self.images.part(config.image_size)
        if isinstance(config, text.Config) and len(self.size) == 2:
            return self.pixels.row(self.source, (self.size[0], self.size[1]))
        if isinstance(config, text.Config):
            return self.texts.part(config.vocabulary)
        if isinstance(config, audio.Config):
            return self.sounds.part()
        raise UsageError(
            f"evaluations.{self.name}: features need a tokenizer of text, of pictures with 3 channels, or of waveforms; "
            f"tokenizers.{self.tokenizer} is none of these"
        )

    def embed(self, model: Model, batch: Any) -> dict[str, jax.Array]:
        """`features` float32 [B,D] and `label` [B]."""
        return {"features": self.pooled(model, self._tokens(model, batch)), "label": batch["label"]}

    def _tokens(self, model: Model, batch: Any) -> Tokens:
        tokenizer = model.tokenizers[self.tokenizer]
        if "image" in batch:
            return tokenizer(batch["image"])
        if "audio" in batch:
            return tokenizer(batch["audio"], lengths=batch["length"])
        if self.size:
            return tokenizer(shifted_right(batch["ids"], self.pixels.count), causal=self.causal)
        return tokenizer(batch["ids"], causal=self.causal, lengths=lengths_of(batch["ids"], self.texts.pad))

    def measure(self, model: Model, reader: Reader, *, limit: int | None = None) -> Measured:
        found, index = self._scored(self.embed, model, reader, limit)
        correct = found.pop("correct", None)
        if self.raw:
            # Score pixels once for a run: training does not change them.
            seen = model.tokenizers[self.tokenizer].config, limit
            if seen not in self._raw:
                self._raw[seen] = self._scored(pixels, model, reader, limit)[0]["value"]
            found["raw_pixels"] = self._raw[seen]
        if correct is None:
            return Measured(found)
        examples = reader.examples(self.inputs, model, "validation")
        return Measured(found, each=Each(examples, index, {"correct": correct}, share_right))

    @functools.cached_property
    def _raw(self) -> dict[tuple[Any, int | None], float]:
        return {}

    def score(self, train: np.ndarray, labels: np.ndarray, valid: np.ndarray, truth: np.ndarray) -> Mapping[str, Any]:
        """Score how well `train` [N,D] and its `labels` [N] tell the classes `truth` [M] of features `valid` [M,D].

        Returns "value" and further numbers. Where the value is the share of examples that are right, "correct" [M] says
        which are: the value then has an interval, and two models are compared example by example.
        """
        raise NotImplementedError

    def _scored(
        self, embed: Predict, model: Model, reader: Reader, limit: int | None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """What `score` says, and the places [M] of the scored examples in their split."""
        train, labels, _ = self._gather(embed, model, reader, "train", limit)
        valid, truth, index = self._gather(embed, model, reader, "validation", limit)
        return dict(self.score(train, labels, valid, truth)), index

    def _gather(self, embed: Predict, model: Model, reader: Reader, split: str, limit: int | None) -> Made:
        """Features float32 [N,D], classes [N] and places [N] of a split (or of `limit` batches of it)."""

        def make() -> Made:
            examples = reader.examples(self.inputs, model, split)
            rows = list(reader.rows(embed, model, examples, self.batch_size, limit))
            return tuple(np.concatenate([row[name] for row in rows]) for name in ("features", "label", "index"))

        own = any(getattr(type(self), name) is not getattr(Features, name) for name in DECIDE)
        if own or embed == pixels:  # pixels are larger than features, and made once for a run
            return make()
        # A probe and neighbours that ask for the same features share them.
        fields = tuple(
            getattr(self, f.name) for f in dataclasses.fields(Features) if f.name not in ("name", "every", "raw")
        )
        return reader.once((fields, split, limit), model, make)

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """The commonest class, the features of the model before training, or raw pixels: whichever is hardest to beat."""
        numbers = [self.labels.known(self.source, split) for split in ("train", "validation")]
        found = [(majority_accuracy(*numbers), "majority class"), (untrained["value"], "the untrained model")]
        if self.raw:
            found.append((untrained["raw_pixels"], "raw pixels"))
        # Take the hardest to beat: a probe that beats chance alone may have learned nothing.
        return max(found)

    def samples(self, model: Model, shown: Any) -> list[Any]:
        """None: a table says it all."""
        return []


def pixels(_model: Model, batch: Batch) -> dict[str, jax.Array]:
    """`features` float32 [B,H·W·C]: the pixels themselves, and `label` [B]. Raises UsageError for what has no pixels."""
    if "image" not in batch:
        raise UsageError("raw=True scores the pixels of pictures, but these examples have none: leave it out")
    return {"features": batch["image"].reshape(batch["image"].shape[0], -1), "label": batch["label"]}


def told(guesses: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The score of guessed classes [M] beside the true ones [M]."""
    correct = (guesses == truth).astype(np.float64)
    return {"value": float(correct.mean()), "correct": correct}


def unknown(truth: np.ndarray) -> dict[str, Any]:
    """The score of features that are not finite, from which nothing can be told."""
    return {"value": math.nan, "correct": np.full(len(truth), math.nan)}
