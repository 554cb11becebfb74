"""Texts with what the model makes of them: a class, what is hidden, what follows, and which other text is near."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.around import NO_ID
from unimodal.data.blocks import Labels, Texts
from unimodal.data.encoders import Encoder
from unimodal.data.pairs import Rows
from unimodal.evaluation.evaluation import Shown
from unimodal.evaluation.samples import FilledText, Sample, TextSample
from unimodal.generate import Sampling, generate, row_keys
from unimodal.model import Model

Show = Callable[[Model, Shown], list[Sample]]


def classified_texts(source: str, texts: Texts, labels: Labels) -> Show:
    """Show texts, `ids` of the batch, with their two likeliest classes. Rows: what `classification.guesses` gives."""

    def show(model: Model, shown: Shown) -> list[Sample]:
        encoder, names = texts.opened, labels.names(source)
        found: list[Sample] = []
        for ids, label, best, chance in zip(
            shown.batch["ids"], shown.rows["label"], shown.rows["best"], shown.rows["chance"], strict=True
        ):
            guess = ", ".join(f"{names[int(k)]} {p:.0%}" for k, p in zip(best[:2], chance[:2], strict=True))
            found.append(TextSample(encoder.decode(ids), guess, names[int(label)]))
        return found

    return show


def filled_gaps(texts: Texts) -> Show:
    """Show texts with their hidden ids guessed. Batch: `targets` and `weights`; rows: `guesses`."""

    def show(model: Model, shown: Shown) -> list[Sample]:
        batch, guesses, encoder = shown.batch, shown.rows["guesses"], texts.opened
        return [_filled(encoder, batch["targets"][i], batch["weights"][i], g) for i, g in enumerate(guesses[:3])]

    return show


def _filled(encoder: Encoder, targets: np.ndarray, weights: np.ndarray, guesses: np.ndarray) -> FilledText:
    real = int((targets != encoder.PAD).sum())
    pieces = [encoder.surface(int(i)) for i in targets[:real]]
    ends = np.cumsum([len(piece) for piece in pieces])
    spans = tuple(
        (int(ends[i]) - len(pieces[i]), int(ends[i]), encoder.surface(int(guesses[i])), pieces[i])
        for i in np.flatnonzero(weights[:real])
    )
    return FilledText("".join(pieces), spans)


def continued_texts(texts: Texts, parts: tuple[str, str, str], *, packed: bool = False) -> Show:
    """Show how the model goes on after half a row of text, or after half of a packed row's first document.

    Batch: `ids`, and `segment` if packed. parts: see `continue_text`.
    """

    def show(model: Model, shown: Shown) -> list[Sample]:
        encoder, batch, length = texts.opened, shown.batch, texts.length
        first = batch["segment"] == 1 if packed else batch["ids"] != encoder.PAD
        whole = first.sum(axis=1) >= (4 if packed else length)
        ids, sizes = batch["ids"][whole][:4], first[whole][:4].sum(axis=1)
        if not len(ids):
            return []
        half, stop = length // 2, (encoder.EOS,) if packed and encoder.EOS != NO_ID else ()
        chosen: dict[str, Any] = dict(temperature=0.7, top_p=0.95)
        options: dict[str, Any] = dict(sampling=Sampling(**chosen), stop=stop, fill=encoder.PAD)
        again = (("steps", half), *chosen.items())
        made = continue_text(model, parts, ids[:, :half], np.minimum(sizes // 2, half), steps=half, **options)
        return [
            TextSample(*(encoder.decode(part) for part in (row[: size // 2], new, row[size // 2 : size])), again=again)
            for row, size, new in zip(ids, sizes, made, strict=True)
        ]

    return show


def continue_text(
    model: Model, parts: tuple[str, str, str], prompt: np.ndarray, lengths: np.ndarray, **options: Any
) -> np.ndarray:
    """Ids [B,steps] that the model writes after prompts [B,T], of which `lengths` [B] are real.

    parts: the names of the backbone, of the tokenizer and of the task whose head writes. options: those of `generate`.
    """
    backbone, tokenizer, head = parts
    run = jax.jit(partial(generate, **options))
    made = model.backbones[backbone], model.tokenizers[tokenizer], model.heads[head]["language"]
    ids, sizes = jnp.asarray(prompt), jnp.asarray(lengths, jnp.int32)
    return np.asarray(run(*made, ids, sizes, row_keys(0, ids, sizes)))  # the keys of `predict`, which asks again


def near_texts(rows: Callable[[str], Rows]) -> Show:
    """Show texts with the three that lie nearest among the other halves of all pairs.

    rows: split → pairs of lists of phrases, `first` and `second`. Rows and tally: those of `Retrieval`.
    """

    def show(model: Model, shown: Shown) -> list[Sample]:
        pairs, places, second = rows("validation").records, shown.tally.all("index"), shown.tally.all("second")
        found: list[Sample] = []
        for i, embedding in zip(shown.index, shown.rows["first"], strict=True):
            near = [pairs[int(places[k])] for k in (second @ embedding).argsort()[::-1][:3]]
            asked, truth = (", ".join(pairs[int(i)][side]) for side in ("first", "second"))
            found.append(TextSample(asked, " | ".join(", ".join(row["second"]) for row in near), truth))
        return found

    return show
