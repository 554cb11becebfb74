"""CTC: transcribe speech (Graves 2006), from scratch or from a pre-trained encoder (Baevski 2020, §3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Inputs, Sounds, Transcripts
from unimodal.data.blocks.used import headers, warn_of_unused
from unimodal.errors import UsageError
from unimodal.evaluation.error_rates import constant_answer
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.evaluation.transcription import Transcription, frame_labels, heard
from unimodal.layers import Linear, dropout
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Sum, TaskMetrics, ctc_loss


@dataclass(frozen=True)
class Ctc:
    """Characters from speech.

    Training leaves out what has no alignment, and counts it in `skipped`: no frame, more than `sounds.seconds` or
    `transcripts.characters`, or more characters than frames. Fine-tuning masks frames and channels as pre-training does.
    """

    name: str = "ctc"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:speech"  # a data source, see `data.sources`
    sounds: Sounds = Sounds(seconds=10.0)  # the recordings
    transcripts: Transcripts = Transcripts()  # what is said in them
    batch_size: int = 8  # examples of one global batch
    labelled: int = 0  # use so many training examples only, to see what few labels do; 0: all
    mask: float = 0.0  # share of frames that spans would cover if they never overlapped
    span: int = 10  # frames
    channel_mask: float = 0.0  # the same for channels of the backbone's width
    channel_span: int = 64  # channels
    dropout: float = 0.0  # before the last layer
    beam: int = 0  # width of the prefix beam search that is scored too; 0: greedy only
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "audio"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name

    @property
    def letters(self) -> data.Alphabet:
        """The alphabet. Reads the training transcripts unless the config gives it."""
        return self.transcripts.letters(self.source, self.sounds.segments)

    def inputs(self, model: Model) -> Inputs:
        config, width = model.tokenizers[self.tokenizer].config, model.backbones[self.backbone].config.width
        frames, letters = config.frames(self.sounds.samples), self.letters
        spec = {
            **self.sounds.spec,
            "text": self.transcripts.spec(letters.classes),
            "masked": data.ArraySpec((frames,), np.bool_),
            "silenced": data.ArraySpec((width,), np.bool_),
        }

        def dataset(split: str) -> data.Dataset:
            def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
                audio, length = data.crop_or_pad(record["audio"], self.sounds.samples)
                text, whole = self.transcripts.ids(letters, self.transcripts.spell(record["text"]))
                if not whole and split != "train":
                    raise UsageError(
                        f"{record['id']}: a transcript of {len(record['text'])} characters, where "
                        f"tasks.{self.name}.transcripts.characters={self.transcripts.characters}"
                    )
                if not whole or len(record["audio"]) > self.sounds.samples:
                    length = 0  # the whole text is not in what is left of the sound
                masked, silenced = np.zeros(frames, np.bool_), np.zeros(width, np.bool_)
                if split == "train":
                    masked = data.span_mask(frames, rng, self.mask, self.span, valid=int(config.frames(length)))
                    silenced = data.span_mask(width, rng, self.channel_mask, min(width, self.channel_span))
                return {
                    "audio": audio,
                    "length": np.int32(length),
                    "text": text,
                    "masked": masked,
                    "silenced": silenced,
                }

            source = self._recordings(split)
            if split == "train":
                source = data.first(source, self.labelled) if self.labelled else source
                self._check(config.frames)
            return data.Dataset(source, example)

        return Inputs(spec, dataset)

    def _check(self, frames: Callable[[int], int]) -> None:
        """Warn before the first step of what cannot be learned, or will be scored as nothing heard, and why.

        Raises UsageError where that is so of most of a split, and for transcripts of validation that have no room.
        """
        where = f"tasks.{self.name}, {self.source}"
        held_out = self.transcripts.all(self.source, "validation", self.sounds.segments)
        if (longest := max(map(len, held_out), default=0)) > self.transcripts.characters:
            room = f"tasks.{self.name}.transcripts.characters={self.transcripts.characters}"
            raise UsageError(f"{where} validation: a transcript of {longest} characters, where {room}")

        def why(samples: int, text: str) -> str:
            if samples > self.sounds.samples:
                return f"longer than sounds.seconds={self.sounds.seconds:g}"
            if len(text) > self.transcripts.characters:
                return f"with more than transcripts.characters={self.transcripts.characters}"
            repeats = sum(a == b for a, b in zip(text, text[1:], strict=False))
            return "too short for their transcript" if frames(samples) < max(1, len(text) + repeats) else ""

        for split, what in (("train", "will be skipped"), ("validation", "will be left out of the score")):
            found = list(self._lengths(split))
            reasons = [why(*pair) for pair in found]
            if split == "validation":  # what is short is scored
                reasons = [reason if reason.startswith("longer") else "" for reason in reasons]
            seconds = [samples / self.sounds.rate for samples, _ in found]
            most, nearly = (math.ceil(np.percentile(seconds, q, method="higher")) for q in (100, 95))
            advice = f"sounds.seconds={most} has room for all" if most > self.sounds.seconds else ""
            if self.sounds.seconds < nearly < most:
                advice += f", {nearly} for 95 in 100"
            warn_of_unused(f"{where} {split}", reasons, what, advice)

    def _lengths(self, split: str) -> Iterable[tuple[int, str]]:
        """Samples and spelt transcript of the recordings, or of the first thousand as they are spread over the split."""
        opened, marked = data.open_source(self.source, split), self.sounds.segments
        if marked:
            found = (mark for marks in data.marks(opened, marked) for mark in marks)
            return (((end - start) * self.sounds.rate // 1000, self.transcripts.spell(t)) for start, end, t in found)
        return ((samples, self.transcripts.of(record)) for record, samples in headers(self.sounds, opened))

    def _recordings(self, split: str) -> data.Source:
        """Records of id, decoded audio and text."""
        opened = self.sounds.open(self.source, split)
        if self.sounds.segments:
            return opened

        def decode(record: Any) -> dict[str, Any]:
            return {"id": record["id"], "audio": self.sounds.read(record), "text": self.transcripts.of(record)}

        return data.cached(opened, decode, where=data.Where(self.source, split))

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

    def evaluations(self) -> dict[str, Evaluation]:
        transcription = Transcription(
            inputs=self.inputs,
            predict=self.predict,
            letters=lambda: self.letters,
            beam=self.beam,
            batch_size=self.batch_size,
            against=self._against,
            show=self.samples,
        )
        return {self.name: transcription}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        frames = model.tokenizers[self.tokenizer].config.frames(batch["length"])
        found = frame_labels(self.logits(model, batch), frames, whole=self.beam > 0)
        return {**found, "text": batch["text"]}

    def _against(self, _untrained: Mapping[str, float]) -> tuple[float, str]:
        splits = (self.transcripts.all(self.source, s, self.sounds.segments) for s in ("train", "validation"))
        return constant_answer(*splits)[0], "the best constant answer"

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        letters, found = self.letters, []
        for i in range(min(3, len(shown.index))):
            wave = shown.batch["audio"][i][: int(shown.batch["length"][i])]
            wave = (wave / max(1e-6, float(np.abs(wave).max(initial=0.0)))).astype(np.float32)
            truth = letters.decode(shown.rows["text"][i])
            output = heard(letters, shown.rows, i, self.beam)
            found.append(AudioSample(wave, self.sounds.rate, output=output, truth=truth))
        return found
