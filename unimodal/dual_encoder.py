"""Two modalities of each record, each made into one embedding: what contrastive tasks train and retrieval compares.

`inputs`, `part`, `block`, `embed`, `embed_one`, `predict`, `answers` and `evaluations` are methods of such a task, which
takes them by `embed = dual_encoder.embed`. Of its fields they read `source`, `pair`, `images`, `texts`, `sounds`,
`batch_size`, `size`, `causal` and `fill`, and for each modality of the pair its head, tokenizer and backbone. The task says
what a similarity means, by `chances(model, similarity)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import (
    IMAGE,
    SOUND,
    TEXT,
    Answer,
    Asked,
    embedding_answer,
    picture_row,
    sound_row,
    text_row,
    zero_shot_answer,
)
from unimodal.data.blocks import Images, Inputs, Part, Sounds, Texts, columns
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Shown, on_own_data
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.samples import Sample
from unimodal.evaluation.show.found import found_samples
from unimodal.heads import Projection
from unimodal.model import Model
from unimodal.objectives import row_codes
from unimodal.tokens import lengths_of

MODALITIES = ("image", "text", "audio")
READS = {"image": IMAGE, "text": TEXT, "audio": SOUND}


def check(task: Any) -> None:
    """Raises UsageError for a pair that is none, or a modality without a tokenizer or a backbone."""
    if len(set(task.pair)) < 2 or not set(task.pair) <= set(MODALITIES):
        raise UsageError(f"{task.name}.pair must be two of {', '.join(MODALITIES)}, but is {', '.join(task.pair)}")
    for what in ("tokenizer", "backbone"):
        for modality in task.pair:
            if not getattr(task, f"{modality}_{what}"):
                raise UsageError(f"{task.name} reads {' and '.join(task.pair)}: {modality}_{what} must name one")


def inputs(task: Any, model: Model) -> Inputs:
    """The two modalities of each record."""
    return columns(task.source, *(part(task, model, modality) for modality in task.pair))


def part(task: Any, model: Model, modality: str, column: str = "") -> Part:
    """The part of an example that a modality reads. column: another one than the task's own."""
    config, read = _tokenizer(task, model, modality).config, block(task, modality, column)
    if isinstance(read, Images):
        return read.part(config.image_size, config.channels)
    return read.part(config.vocabulary) if isinstance(read, Texts) else read.part()


def block(task: Any, modality: str, column: str = "") -> Images | Texts | Sounds:
    """The data block of a modality. column: another one than its own."""
    found = dict(image=task.images, text=task.texts, audio=task.sounds)[modality]
    return replace(found, column=column) if column else found


def encoders(task: Any, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """The heads that make embeddings of hidden states, by modality."""
    how = {modality: getattr(task, f"{modality}_head") for modality in task.pair}
    configs = {modality: _backbone(task, model, modality).config for modality in task.pair}
    sizes = {m: task.size if how[m].project else c.width for m, c in configs.items()}
    if len(set(sizes.values())) > 1:
        told = " and ".join(f"{m} embeddings have {size}" for m, size in sizes.items())
        raise UsageError(f"tasks.{task.name}: {told} numbers; without a projection they are as wide as the backbone")
    return {m: Projection(c.width, task.size, how[m], c, rngs=rngs) for m, c in configs.items()}


def embed(
    task: Any, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Unit embeddings [B,size] of the two modalities."""
    keys = (None, None) if key is None else tuple(jax.random.split(key))
    first, second = (embed_one(task, model, m, batch, k) for m, k in zip(task.pair, keys, strict=True))
    return first, second


def embed_one(
    task: Any, model: Model, modality: str, batch: Mapping[str, jax.Array], key: jax.Array | None = None
) -> jax.Array:
    """Unit embeddings [B,size] of what one modality reads of a batch."""
    inner = None if key is None else jax.random.fold_in(key, 1)
    tokenizer, ids = _tokenizer(task, model, modality), None
    if modality == "image":
        tokens = tokenizer(batch["image"], key=inner)
    elif modality == "audio":
        tokens = tokenizer(batch["audio"], lengths=batch["length"], key=inner)
    else:
        ids, pad = batch["ids"], task.texts.pad
        lengths = lengths_of(ids, pad) if task.fill is None else None
        ids = ids if task.fill is None else jnp.where(ids == pad, task.fill, ids)
        tokens = tokenizer(ids, causal=task.causal, lengths=lengths, key=inner)
    hidden, _ = _backbone(task, model, modality)(tokens, key=key)
    return model.heads[task.name][modality](hidden, tokens.segment, ids=ids)


def answers(task: Any, model: Model, asked: Asked) -> list[Answer]:
    """Embeddings of each modality; with names of classes, the likeliest of them, too."""
    rows = {modality: _row(task, model, modality) for modality in task.pair}
    by = {modality: partial(_embedded, task, modality) for modality in task.pair}
    found = [embedding_answer(READS[m], rows[m], by[m]) for m in task.pair]
    others = [modality for modality in task.pair if modality != "text"]
    if not asked.classes or len(others) != 1:
        return found
    named = [rows["text"]({"id": name, "text": asked.template.replace("{}", name)}) for name in asked.classes]
    zero_shot = zero_shot_answer(
        asked.classes,
        named,
        rows[others[0]],
        reads=READS[others[0]],
        embed_texts=by["text"],
        embed=by[others[0]],
        chances=task.chances,
        top=asked.top,
    )
    return [zero_shot, *found]


def _embedded(task: Any, modality: str, model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
    return embed_one(task, model, modality, batch)


def _row(task: Any, model: Model, modality: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    config, read = _tokenizer(task, model, modality).config, block(task, modality)
    if isinstance(read, Images):
        return picture_row(read, config)
    return text_row(read, config.vocabulary) if isinstance(read, Texts) else sound_row(read)


def _tokenizer(task: Any, model: Model, modality: str) -> Any:
    return model.tokenizers[getattr(task, f"{modality}_tokenizer")]


def _backbone(task: Any, model: Model, modality: str) -> Any:
    return model.backbones[getattr(task, f"{modality}_backbone")]


def evaluations(task: Any) -> dict[str, Evaluation]:
    """Finding the other half of each pair."""

    def show(model: Model, shown: Shown) -> list[Sample]:
        return found_samples(
            shown,
            data.open_source(task.source, "validation"),
            lambda similarity: np.asarray(task.chances(model, jnp.asarray(similarity))),
            draw={"image": task.images.read, "text": task.texts.text, "audio": task.sounds.read},
            pair=task.pair,
            rate=task.sounds.rate,
        )

    found = Retrieval(
        **on_own_data(task),
        against=lambda untrained: (untrained["chance"], "chance"),
        show=show,
    )
    return {task.name: found}


def same(task: Any, batch: Mapping[str, jax.Array]) -> jax.Array | None:
    """[B], equal where the texts are; None where no text is read."""
    return row_codes(batch["ids"]) if "text" in task.pair else None


def predict(task: Any, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The embeddings of each pair, and, where texts are read, which of them are the same."""
    first, second = embed(task, model, batch)
    equal = same(task, batch)
    return {"first": first, "second": second, **({} if equal is None else {"same": equal})}
