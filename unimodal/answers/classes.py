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


def class_answer(
    reads: str,
    names: Sequence[str],
    row: Callable[..., Row],
    logits: Logits,
    *,
    chances: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
    top: int = 5,
) -> Answer:
    """The likeliest of `names`, from logits [B,classes].

    chances: logits → probabilities; `jax.nn.sigmoid` where every class is judged by itself.
    """

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"probability": chances(logits(model, batch).astype(jnp.float32))}

    return Answer("class", reads, row, predict, lambda found: ranked(names, found["probability"], top))


def value_answer(reads: str, names: Sequence[str], row: Callable[..., Row], values: Logits) -> Answer:
    """What a regressor says, [B,names], as it is: its value, or of several names the value of each."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"values": values(model, batch).astype(jnp.float32)}

    def say(found: Row) -> dict[str, Any]:
        if not np.isfinite(found["values"]).all():
            raise UsageError("the model gave no number for it (NaN)")
        told = [round(float(value), 6) for value in found["values"]]
        return {"value": told[0]} if len(told) == 1 else {"values": dict(zip(names, told, strict=False))}

    return Answer("value", reads, row, predict, say)


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
    found: dict[str, float] = {}
    for i in best:  # published label sets have a name twice (ImageNet's "crane"): the likelier of the two is told
        found.setdefault(names[int(i)], round(float(probability[i]), 6))
    first = next(iter(found))
    return {"class": first, "probability": found[first], "classes": found}
