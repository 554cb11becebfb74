"""CTC: transcribe speech (Graves 2006), from scratch or from a pre-trained encoder (Baevski 2020, §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data
from unimodal.answers import Answer, Asked, sound_features, sound_row, transcript_answer
from unimodal.data.blocks import Inputs, Sounds, Transcripts
from unimodal.data.blocks.speech import TranscribedSpeech, with_masks
from unimodal.evaluation.error_rates import constant_answer
from unimodal.evaluation.evaluation import Evaluation, on_own_data
from unimodal.evaluation.show.sounds import transcribed_sounds
from unimodal.evaluation.transcription import Transcription, frame_labels
from unimodal.layers import Linear, dropout, split_key
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
    labelled: int = 0  # use so many training examples only, to see what few labels do; 0: all
    mask: float = 0.0  # share of frames that spans would cover if they never overlapped
    span: int = 10  # frames
    channel_mask: float = 0.0  # the same for channels of the backbone's width
    channel_span: int = 64  # channels
    batch_size: int = 8  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "audio"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    dropout: float = 0.0  # before the last layer
    beam: int = 0  # width of the prefix beam search that is scored too; 0: greedy only

    @property
    def letters(self) -> data.Alphabet:
        """The alphabet. Reads the training transcripts unless the config gives it."""
        return self.transcripts.letters(self.source, self.sounds.segments)

    def inputs(self, model: Model) -> Inputs:
        frames, width = model.tokenizers[self.tokenizer].config.frames, model.backbones[self.backbone].config.width
        where = f"tasks.{self.name}"
        speech = TranscribedSpeech(where, self.source, self.sounds, self.transcripts, self.letters, self.labelled)
        masks = (self.mask, self.span), (self.channel_mask, self.channel_span)
        return with_masks(speech.inputs(frames), frames, *masks, width=width)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"characters": Linear((width,), (self.letters.classes,), ("embed", "classes"), rngs=rngs)}

    def logits(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,samples] → [B,T,classes]."""
        keys = split_key(key, 3)
        return model.heads[self.name]["characters"](dropout(self.hidden(model, batch, keys), self.dropout, keys[2]))

    def hidden(
        self, model: Model, batch: Mapping[str, jax.Array], keys: Sequence[jax.Array | None] = (None, None)
    ) -> jax.Array:
        """[B,samples] → [B,T,D]. Only training masks."""
        tokenizer = model.tokenizers[self.tokenizer]
        tokens = tokenizer.embed(
            tokenizer.features(batch["audio"]),
            lengths=batch["length"],
            masked=batch.get("masked") if self.mask else None,
            silenced=batch.get("silenced") if self.channel_mask else None,
            key=keys[0],
        )
        return model.backbones[self.backbone](tokens, key=keys[1])[0]

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

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        row, frames_of = sound_row(self.sounds), model.tokenizers[self.tokenizer].config.frames
        frames = lambda _, batch: frames_of(batch["length"])  # noqa: E731
        said = transcript_answer(lambda: self.letters, row, self.logits, frames, beam=asked.beam or self.beam)
        return [said, sound_features(row, self.hidden, frames_of)]

    def evaluations(self) -> dict[str, Evaluation]:
        transcription = Transcription(
            **on_own_data(self),
            letters=lambda: self.letters,
            beam=self.beam,
            against=self._against,
            show=transcribed_sounds(self.sounds, lambda: self.letters, self.beam),
        )
        return {self.name: transcription}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        frames = model.tokenizers[self.tokenizer].config.frames(batch["length"])
        found = frame_labels(self.logits(model, batch), frames, whole=self.beam > 0)
        return {**found, "text": batch["text"]}

    def _against(self, _untrained: Mapping[str, float]) -> tuple[float, str]:
        splits = (self.transcripts.all(self.source, s, self.sounds.segments) for s in ("train", "validation"))
        return constant_answer(*splits)[0], "the best constant answer"
