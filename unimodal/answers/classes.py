"""A class with probabilities: of a classifier, or of names alone, for a model that compares pictures with words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.answers.answer import IMAGE, Answer, Row
from unimodal.errors import UsageError

Logits = Callable[[Any, Mapping[str, jax.Array]], jax.Array]


def class_answer(reads: str, names: Sequence[str], row: Callable[..., Row], logits: Logits, *, top: int = 5) -> Answer:
    """The likeliest of `names`, from logits [B,classes]."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"probability": jax.nn.softmax(logits(model, batch).astype(jnp.float32))}

    return Answer("class", reads, row, predict, lambda found: ranked(names, found["probability"], top))


def zero_shot_answer(
    names: Sequence[str],
    rows: Sequence[Row],
    row: Callable[..., Row],
    *,
    reads: str = IMAGE,
    embed_texts: Callable[..., jax.Array],
    embed: Callable[..., jax.Array],
    chances: Callable[[Any, jax.Array], jax.Array],
    top: int = 5,
) -> Answer:
    """The likeliest of names that the model has never been trained to tell apart (Radford 2021, §3.1).

    rows: one for each name, as `embed_texts` takes them. chances: model and similarities [B,names] → probabilities, which
    need not sum to one where every name is judged by itself (SigLIP).
    """
    if len(set(names)) < 2:
        raise UsageError(f"give at least two different classes, as --classes=cat,dog, not {', '.join(names) or 'none'}")

    def once(model: Any) -> Mapping[str, jax.Array]:
        batch = {name: jnp.stack([jnp.asarray(one[name]) for one in rows]) for name in rows[0]}
        return {"names": embed_texts(model, batch)}

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"probability": chances(model, embed(model, batch) @ batch["names"].T).astype(jnp.float32)}

    return Answer("class", reads, row, predict, lambda found: ranked(names, found["probability"], top), once)


def ranked(names: Sequence[str], probability: np.ndarray, top: int) -> dict[str, Any]:
    """The likeliest class, its probability, and those after it. Raises UsageError where the model gave no number."""
    if not np.isfinite(probability).all():
        raise UsageError("the model gave no number for it (NaN)")
    best = np.argsort(-probability, kind="stable")[:top]
    found = {names[int(i)]: round(float(probability[i]), 6) for i in best}
    first = next(iter(found))
    return {"class": first, "probability": found[first], "classes": found}
