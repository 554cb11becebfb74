"""CTC: transcribe speech (Graves 2006), from scratch or from a pre-trained encoder (Baevski 2020, §3.3)."""

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
from unimodal.evaluation.decoding import collapse, prefix_beam
from unimodal.evaluation.error_rates import constant_answer, error_rates
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.layers import Linear, dropout
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Sum, TaskMetrics, ctc_loss
from unimodal.task import Predictions


@dataclass(frozen=True)
class Ctc:
    """Characters from speech.

    seconds of sound at `rate` Hz and `characters` of transcript at most; the record's field `transcript` holds it, or
    `segments` a list of [start, end, transcript] in milliseconds, each of which is then an example of its own.
    `alphabet`: the characters told apart ("": all of the training transcripts); `drop` and `keep`: signs, as
    `unimodal.data.spell` treats them (stress marks are dropped). `labelled`: use so many training examples only (0: all).
    Fine-tuning masks frames (`mask`, `span`) and channels (`channel_mask`, `channel_span`) as pre-training does;
    `dropout` before the last layer. `beam`: width of the prefix beam search that is scored too (0: greedy only).

    Training leaves out what has no alignment, and counts it in `skipped`: no frame, more than `seconds` or `characters`,
    or more characters than frames.
    """

    name: str = "ctc"
    source: str = "embedded:speech"
    transcript: str = "text"
    segments: str = ""
    batch_size: int = 8
    seconds: float = 10.0
    rate: int = 16_000
    characters: int = 240
    alphabet: str = ""
    drop: str = "+"
    keep: str = ""
    labelled: int = 0
    mask: float = 0.0
    span: int = 10
    channel_mask: float = 0.0
    channel_span: int = 64
    dropout: float = 0.0
    beam: int = 0
    weight: float = 1.0
    tokenizer: str = "audio"
    backbone: str = "shared"
    metric = "character error rate"
    higher_is_better = False

    @property
    def samples_at_most(self) -> int:
        return int(self.seconds * self.rate)

    @property
    def letters(self) -> data.Alphabet:
        """The alphabet. Reads the training transcripts unless the config gives it."""
        if self.alphabet:
            return data.Alphabet(self.alphabet)
        return data.collect_alphabet(self._spelt("train"))

    def _spelt(self, split: str) -> tuple[str, ...]:
        raw = _transcripts(self.source, split, self.transcript, self.segments)
        return tuple(data.spell(text, drop=self.drop, keep=self.keep) for text in raw)

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        width = model.backbones[self.backbone].config.width
        return {
            "audio": data.ArraySpec((self.samples_at_most,), np.float32, -1, 1),
            "length": data.ArraySpec((), np.int32, self.samples_at_most, self.samples_at_most + 1),
            "text": data.ArraySpec((self.characters,), np.int32, 0, self.letters.classes),
            "masked": data.ArraySpec((self.tokens(model),), np.bool_),
            "silenced": data.ArraySpec((width,), np.bool_),
        }

    def tokens(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.frames(self.samples_at_most)

    def dataset(self, model: Model, split: str) -> data.Dataset:
        config, width = model.tokenizers[self.tokenizer].config, model.backbones[self.backbone].config.width
        frames, letters, training = self.tokens(model), self.letters, split == "train"

        def decode(record: Any) -> dict[str, Any]:
            audio = data.normalize(data.decode_audio(record["audio"], self.rate, name=record["id"]))
            return {"id": record["id"], "audio": audio, "text": record.get(self.transcript)}

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            audio, length = data.crop_or_pad(record["audio"], self.samples_at_most)
            ids = letters.encode(data.spell(record["text"], drop=self.drop, keep=self.keep))
            text, too_long = np.zeros(self.characters, np.int32), len(ids) > self.characters
            if too_long and not training:
                raise UsageError(
                    f"{record['id']}: a transcript of {len(ids)} characters, where "
                    f"tasks.{self.name}.characters={self.characters}"
                )
            text[: len(ids)] = ids[: self.characters]
            if training and (too_long or len(record["audio"]) > self.samples_at_most):
                length = 0  # the whole text is not in what is left of the sound
            masked, silenced = np.zeros(frames, np.bool_), np.zeros(width, np.bool_)
            if training:
                masked = data.span_mask(frames, rng, self.mask, self.span, valid=int(config.frames(length)))
                silenced = data.span_mask(width, rng, self.channel_mask, min(width, self.channel_span))
            return {"audio": audio, "length": np.int32(length), "text": text, "masked": masked, "silenced": silenced}

        source = data.open_source(self.source, split)
        if self.segments:
            source = data.segments(source, decode, self.segments, self.rate)
        else:
            source = data.cached(source, decode)
        return data.Dataset(data.first(source, self.labelled) if training and self.labelled else source, example)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"characters": Linear((width,), (self.letters.classes,), ("embed", "classes"), rngs=rngs)}

    def logits(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,samples] → [B,T,classes]."""
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        tokenizer = model.tokenizers[self.tokenizer]
        tokens = tokenizer.embed(
            tokenizer.features(batch["audio"]),
            lengths=batch["length"],
            masked=batch["masked"] if self.mask else None,
            silenced=batch["silenced"] if self.channel_mask else None,
            key=keys[0],
        )
        hidden, _ = model.backbones[self.backbone](tokens, key=keys[1])
        return model.heads[self.name]["characters"](dropout(hidden, self.dropout, keys[2]))

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        known = (batch["text"] > 0) & (batch["text"] < self.letters.classes)
        # Characters that the alphabet lacks cannot be learned: the known ones close up over them.
        order = jnp.argsort(~known, axis=1, stable=True)
        labels = jnp.take_along_axis(batch["text"], order, axis=1)
        frames = model.tokenizers[self.tokenizer].config.frames(batch["length"])
        _, sums = ctc_loss(self.logits(model, batch, key), labels, frames, known.sum(axis=1, dtype=jnp.int32))
        return Mean(sums["objective"], sums["examples"]), {
            "nats_per_character": Mean(sums["nats"], sums["labels"]),
            "skipped": Sum(jnp.float32(len(batch["length"])) - sums["examples"]),
            "unknown_characters": Sum(((batch["text"] > 0) & ~known).astype(jnp.float32).sum()),
        }

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        log_probabilities = jax.nn.log_softmax(self.logits(model, batch).astype(jnp.float32))
        frames = model.tokenizers[self.tokenizer].config.frames(batch["length"])
        made = {
            "path": jnp.argmax(log_probabilities, axis=-1).astype(jnp.int32),
            "frames": frames,
            "text": batch["text"],
        }
        return {**made, "log_probabilities": log_probabilities} if self.beam else made

    def score(self, predictions: Predictions) -> dict[str, float]:
        letters = self.letters
        references = [letters.decode(ids) for ids in predictions["text"]]
        greedy = error_rates(references, _greedy(letters, predictions))
        scores = {"value": greedy["character_error_rate"], "word_error_rate": greedy["word_error_rate"]}
        if self.beam:
            found = error_rates(references, self._beam(letters, predictions))
            scores |= {f"beam_{name}": value for name, value in found.items()}
        unknown = int((predictions["text"] == letters.classes).sum())
        return {**scores, "unknown_characters": unknown} if unknown else scores

    def _beam(self, letters: data.Alphabet, predictions: Predictions) -> list[str]:
        rows = zip(predictions["log_probabilities"], predictions["frames"], strict=True)
        return [letters.decode(prefix_beam(table[:n], self.beam, labels_per_frame=8)[0][0]) for table, n in rows]

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        return constant_answer(self._spelt("train"), self._spelt("validation"))[0], "the best constant answer"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        letters, shown = self.letters, []
        heard = self._beam(letters, predictions) if self.beam else _greedy(letters, predictions)
        for i in range(min(3, len(batch["audio"]))):
            wave = batch["audio"][i][: int(batch["length"][i])]
            wave = (wave / max(1e-6, float(np.abs(wave).max(initial=0.0)))).astype(np.float32)
            truth = letters.decode(predictions["text"][i])
            shown.append(AudioSample(wave, self.rate, output=heard[i], truth=truth))
        return shown


def _greedy(letters: data.Alphabet, predictions: Predictions) -> list[str]:
    rows = zip(predictions["path"], predictions["frames"], strict=True)
    return [letters.decode(collapse(path[:frames])) for path, frames in rows]


@cache
def _transcripts(uri: str, split: str, field: str, segments: str) -> tuple[str, ...]:
    source = data.open_source(uri, split)
    if segments:
        return tuple(text for found in data.marks(source, segments) for _, _, text in found)
    texts = []
    for i in range(len(source)):
        record = source[i]
        if not isinstance(text := record.get(field), str):
            raise UsageError(
                f"{record['id']}: no transcript under {field!r}; the record has {', '.join(sorted(record))}"
            )
        texts.append(text)
    return tuple(texts)
