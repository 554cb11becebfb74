"""Several pictures, or several recordings, in one row of tokens: what tasks with a field `pack` do with them.

A function takes the task, which has the fields that the data block of its rows reads (`data.blocks.patches`,
`data.blocks.packed_speech`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unimodal.data.blocks.patches import PatchRows
from unimodal.errors import UsageError
from unimodal.heads import pool_segments
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Sum, TaskMetrics, softmax_classification
from unimodal.tokenizers.audio import Recordings

Batch = Any  # arrays by name


def check_pictures(task: Any) -> None:
    """Raises UsageError for what a row of several pictures cannot have."""
    if not task.pack.row:
        return
    wrong = dict(mixup=task.mixup, cutmix=task.cutmix, patch_dropout=task.patch_dropout, size=task.size)
    wrong |= {"images.resize": task.images.resize, "pooling=attention": task.pooling == "attention"}
    if found := next((name for name, value in wrong.items() if value), None):
        raise UsageError(f"tasks.{task.name}.pack goes without {found}: leave one of them out")


def picture_rows(task: Any, model: Model) -> PatchRows:
    """Rows of several pictures."""
    c = model.tokenizers[task.tokenizer].config
    registers = c.registers + c.plain_registers
    shape: dict[str, Any] = dict(patch=c.patch, channels=c.channels, grid=c.grid, registers=registers)
    return PatchRows(task.source, task.images, task.labels, task.pack, **shape, open_split=task.open_split)


def picture_logits(task: Any, model: Model, batch: Batch, key: jax.Array | None = None, count: int = 1) -> jax.Array:
    """Rows of `PatchRows` → [B,count,classes], for a task with a head `classify`."""
    inner = None if key is None else jax.random.fold_in(key, 1)
    row = {name: batch[name] for name in ("segment", "position", "register", "place")}
    tokens = model.tokenizers[task.tokenizer].packed(batch["patches"], **row, key=inner)
    hidden, _ = model.backbones[task.backbone](tokens, key=key)
    pooled = pool_segments(hidden, batch["segment"], count, task.pooling)
    return model.heads[task.head or task.name]["classify"].linear(pooled)


def picture_loss(task: Any, model: Model, batch: Batch, key: jax.Array) -> tuple[Loss, TaskMetrics]:
    """Cross-entropy over the pictures of all rows, each of which counts the same."""
    label = batch["label"].reshape(-1)
    logits = picture_logits(task, model, batch, key, count=task.pack.most).reshape(len(label), -1)
    # A row with fewer pictures than `pack.most` has labels of -1 in the place of the others.
    there = (label >= 0).astype(jnp.float32)
    smoothing = task.label_smoothing
    _, sums = softmax_classification(logits, jnp.maximum(label, 0), there, label_smoothing=smoothing)
    return Mean(sums["objective"], sums["examples"]), {
        "accuracy": Mean(sums["correct"], sums["examples"]),
        "pictures": Sum(there.sum()),
        "filled": (batch["segment"] != 0).astype(jnp.float32).mean(),  # the share that is no padding
    }


def check_speech(task: Any) -> None:
    """Raises UsageError for two ways to have little padding at once, and for lengths that are none."""
    if task.pack.row and task.buckets:
        raise UsageError(f"tasks.{task.name}: pack and buckets are two ways to the same end; leave one of them out")
    if min(task.buckets, default=1) <= 0:
        raise UsageError(f"tasks.{task.name}.buckets are seconds above 0, but are {task.buckets}")


def recordings(task: Any, batch: Batch) -> Recordings | None:
    """The places of recordings in their rows; None where a row is one recording, and its padding."""
    if not task.pack.row:
        return None
    length = batch["length"].reshape(len(batch["audio"]), -1)
    return Recordings(batch["start"] if "start" in batch else jnp.zeros_like(length), length)


def each_recording(
    task: Any, model: Model, batch: Batch, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [B,T,classes], frames [B] and text [B,characters] of each recording.

    Of packed rows B counts the recordings of all of them, with no frames where there is none.
    """
    c, logits = model.tokenizers[task.tokenizer].config, task.logits(model, batch, key)
    if "start" not in batch:
        return logits, c.frames(batch["length"]), batch["text"]
    longest, count = c.frames(task.sounds.samples), batch["start"].shape[1]
    place = (batch["start"] // c.hop)[:, :, None] + jnp.arange(longest, dtype=jnp.int32)[None, None]
    place = jnp.minimum(place, logits.shape[1] - 1).reshape(len(logits), -1, 1)
    apart = jnp.take_along_axis(logits, place, axis=1).reshape(-1, longest, logits.shape[2])
    text = batch["text"].reshape(len(logits) * count, -1)
    return apart, c.frames(batch["length"]).reshape(-1), text
