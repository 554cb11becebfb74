"""Text as an answer: what comes after a prompt, and what stands behind each `[MASK]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.answers.answer import IMAGE, TEXT, Answer, Asked, Record, Row, spoken
from unimodal.data.blocks import Texts
from unimodal.data.encoders import Encoder, encoder_for
from unimodal.data.pairs import pair_row
from unimodal.errors import UsageError
from unimodal.generate import Sampling

HOLE = "[MASK]"
"""How a user writes a token that is to be guessed."""

Write = Callable[..., jax.Array]


def continuation_answer(
    texts: Texts, vocabulary: int, room: int, write: Write, asked: Asked, *, begins: Callable[[Encoder], list[int]]
) -> Answer:
    """What the model writes after a prompt. room: ids of prompt and continuation together.

    write(model, prompt [B,T], lengths [B], key, steps, sampling) → ids [B,steps]. begins: ids before every text. A prompt
    that is too long loses its beginning.
    """
    steps = min(asked.steps, max(1, room - 1))
    width = room - steps
    sampling = Sampling(temperature=asked.temperature, top_p=None if asked.top_p == 1 else asked.top_p)
    encoder = encoder_for(texts.encoder, vocabulary)

    def row(record: Record) -> Row:
        ids = [*begins(encoder), *encoder.encode(spoken(texts, record))][-width:]
        prompt = np.full(width, encoder.PAD, np.int32)
        prompt[: len(ids)] = ids
        return {"prompt": prompt, "length": np.int32(len(ids))}

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"ids": write(model, batch["prompt"], batch["length"], jax.random.key(asked.seed), steps, sampling)}

    return Answer("continuation", TEXT, row, predict, lambda found: {"continuation": encoder.decode(found["ids"])})


def caption_answer(
    texts: Texts, vocabulary: int, row: Callable[[Record], Row], write: Callable[..., tuple[jax.Array, jax.Array]]
) -> Answer:
    """What a model writes of a picture. write(model, image [B,H,W,C]) → captions' ids [B,beams,T], best first, and what
    they score."""
    encoder = encoder_for(texts.encoder, vocabulary)

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"ids": write(model, batch["image"])[0][:, 0]}

    return Answer("caption", IMAGE, row, predict, lambda found: {"caption": encoder.decode(found["ids"]).strip()})


def masked_answer(
    texts: Texts, vocabulary: int, logits: Callable[..., jax.Array], asked: Asked, *, specials: bool = False
) -> Answer:
    """The likeliest ids behind each `[MASK]` of a text, from logits [B,T,V] of batch["inputs"]. specials: whether the
    vocabulary's own tokens stand around a text, as in training."""
    encoder = encoder_for(texts.encoder, vocabulary, "MASK")

    def row(record: Record) -> Row:
        pieces = spoken(texts, record).split(HOLE)
        if len(pieces) == 1:
            raise UsageError(f"nothing to guess: write {HOLE} in the place of each token")
        ids = [*encoder.encode(pieces[0])]
        for piece in pieces[1:]:
            ids += [encoder.MASK, *(encoder.encode(piece) if piece else ())]
        whole = np.asarray(ids, np.int32)
        if specials:
            made = pair_row(encoder, texts.length, whole)[0]
        else:
            made = np.full(texts.length, encoder.PAD, np.int32)
            made[: len(whole)] = whole[: texts.length]
        if not (made == encoder.MASK).any():
            raise UsageError(f"every {HOLE} is beyond the first {texts.length} ids, which are read")
        return {"inputs": made}

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        chance = jax.nn.softmax(logits(model, batch).astype(jnp.float32))
        best, ids = jax.lax.top_k(chance, min(asked.top, vocabulary))
        return {"inputs": batch["inputs"], "chance": best, "best": ids.astype(jnp.int32)}

    def say(found: Row) -> dict[str, Any]:
        ids, places = found["inputs"].copy(), np.flatnonzero(found["inputs"] == encoder.MASK)
        if not np.isfinite(found["chance"][places]).all():
            raise UsageError("the model gave no number for it (NaN)")
        ids[places] = found["best"][places, 0]
        guesses = [
            {
                encoder.surface(int(i)): round(float(p), 6)
                for i, p in zip(found["best"][k], found["chance"][k], strict=True)
            }
            for k in places
        ]
        return {"text": encoder.decode(ids), "masked": guesses}

    return Answer("masked words", TEXT, row, predict, say)
