"""CTC: transcribe speech (Graves 2006), from scratch or from a pre-trained encoder (Baevski 2020, §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data, packed
from unimodal.answers import what_was_said
from unimodal.data.blocks import Inputs, Sounds, Transcripts
from unimodal.data.blocks.packed_speech import PackedSpeech
from unimodal.data.blocks.speech import TranscribedSpeech, with_masks
from unimodal.data.filling import Packing
from unimodal.evaluation.error_rates import constant_answer
from unimodal.evaluation.evaluation import Batch, Evaluation, on_own_data
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
    # Several recordings in one row of sound, which training then has little padding in; row: its seconds, 0: one a row.
    pack: Packing = Packing()
    # Seconds. Batches of recordings of like length, each cut to the shortest of these that holds it, or left whole; (): none.
    buckets: tuple[float, ...] = ()
    beam: int = 0  # width of the prefix beam search that is scored too; 0: greedy only

    @property
    def letters(self) -> data.Alphabet:
        """The alphabet. Reads the training transcripts unless the config gives it."""
        return self.transcripts.letters(self.source, self.sounds.segments)

    __post_init__ = packed.check_speech
    answers = what_was_said

    def inputs(self, model: Model) -> Inputs:
        if not self.pack.row:
            return self.single(model)
        c, width = model.tokenizers[self.tokenizer].config, model.backbones[self.backbone].config.width
        masks: dict[str, Any] = dict(time=(self.mask, self.span), channel=(self.channel_mask, self.channel_span))
        return PackedSpeech(self._speech, self.pack, c.frames, c.hop, **masks, width=width).inputs

    @property
    def _speech(self) -> TranscribedSpeech:
        data = self.source, self.sounds, self.transcripts, self.letters
        return TranscribedSpeech(f"tasks.{self.name}", *data, self.labelled, self.buckets)

    def single(self, model: Model) -> Inputs:
        """One recording a row."""
        frames, width = model.tokenizers[self.tokenizer].config.frames, model.backbones[self.backbone].config.width
        masks = (self.mask, self.span), (self.channel_mask, self.channel_span)
        return with_masks(self._speech.inputs(frames), frames, *masks, width=width)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"characters": Linear((width,), (self.letters.classes,), ("embed", "classes"), rngs=rngs)}

    def logits(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,samples] → [B,T,classes]."""
        keys = split_key(key, 3)
        return model.heads[self.name]["characters"](dropout(self.hidden(model, batch, keys), self.dropout, keys[2]))

    def hidden(self, model: Model, batch: Batch, keys: Sequence[jax.Array | None] = (None, None)) -> jax.Array:
        """[B,samples] → [B,T,D]. Only training masks. With `pack` every recording is normalised by itself, one a row, too."""
        tokenizer, recordings = model.tokenizers[self.tokenizer], packed.recordings(self, batch)
        tokens = tokenizer.embed(
            tokenizer.features(batch["audio"], recordings),
            lengths=batch["length"] if recordings is None else None,
            recordings=recordings,
            masked=batch.get("masked") if self.mask else None,
            silenced=batch.get("silenced") if self.channel_mask else None,
            key=keys[0],
        )
        return model.backbones[self.backbone](tokens, key=keys[1])[0]

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        logits, frames, text = packed.each_recording(self, model, batch, key)
        known = (text > 0) & (text < self.letters.classes)
        # Characters that the alphabet lacks cannot be learned: the known ones close up over them.
        order = jnp.argsort(~known, axis=1, stable=True)
        labels = jnp.take_along_axis(text, order, axis=1)
        _, sums = ctc_loss(logits, labels, frames, known.sum(axis=1, dtype=jnp.int32))
        filled = batch["length"].sum().astype(jnp.float32) / batch["audio"].size
        there = (batch["length"] > 0).sum() if self.pack.row else len(batch["length"])
        return Mean(sums["objective"], sums["examples"]), {
            "nats_per_character": Mean(sums["nats"], sums["labels"]),
            "skipped": Sum(jnp.float32(there) - sums["examples"]),
            "unknown_characters": Sum(((text > 0) & ~known).astype(jnp.float32).sum()),
            **({"filled": filled} if self.pack.row or self.buckets else {}),  # the share that is no padding
        }

    def evaluations(self) -> dict[str, Evaluation]:
        transcription = Transcription(
            **{**on_own_data(self), "inputs": self.single},
            letters=lambda: self.letters,
            beam=self.beam,
            against=self._against,
            show=transcribed_sounds(self.sounds, lambda: self.letters, self.beam),
        )
        return {self.name: transcription}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        frames = model.tokenizers[self.tokenizer].config.frames(batch["length"])
        found = frame_labels(self.logits(model, batch), frames, whole=self.beam > 0)
        return {**found, "text": batch["text"]}

    def _against(self, _untrained: Mapping[str, float]) -> tuple[float, str]:
        train = self.transcripts.all(self.source, "train", self.sounds.segments)
        return constant_answer(train, self._speech.scored())[0], "the best constant answer"
