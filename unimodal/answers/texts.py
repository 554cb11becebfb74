"""Text as an answer: what comes after a prompt, and what stands behind each `[MASK]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.answers.answer import IMAGE, TEXT, Answer, Asked, Record, Row, spoken
from unimodal.data.around import NO_ID
from unimodal.data.blocks import Texts
from unimodal.data.encoders import encoder_for
from unimodal.data.pairs import pair_row
from unimodal.errors import UsageError
from unimodal.generate import Sampling, generate

HOLE = "[MASK]"
"""How a user writes a token that is to be guessed."""

Write = Callable[..., jax.Array]
Decode = Callable[[Any], str]


def continuation_answer(task: Any, model: Any, asked: Asked, *, packed: bool = False) -> Answer:
    """Write after a prompt, by a task with `texts`, a tokenizer, a backbone and a head `language`.

    packed: it has learned whole documents, which begin and end with the vocabulary's own tokens. A prompt and what follows
    may be twice as long as the task's rows, where the position table is.
    """
    config = model.tokenizers[task.tokenizer].config
    encoder = encoder_for(task.texts.encoder, config.vocabulary)
    begin = [encoder.BOS] if packed and encoder.BOS not in (NO_ID, encoder.EOS) else []
    stop = (encoder.EOS,) if packed and encoder.EOS != NO_ID else ()

    def write(m: Any, prompt: Any, lengths: Any, keys: Any, steps: int, sampling: Sampling) -> jax.Array:
        parts: Any = (m.backbones[task.backbone], m.tokenizers[task.tokenizer], m.heads[task.name]["language"])
        run: Any = generate
        return run(*parts, prompt, lengths, keys, steps=steps, sampling=sampling, stop=stop, fill=encoder.PAD)

    read = lambda record, most: [*begin, *encoder.encode(spoken(task.texts, record))]  # noqa: E731
    room = min(config.max_length or 2 * task.texts.length, 2 * task.texts.length)
    return written_after(read, encoder.decode, room, write, asked, pad=encoder.PAD)


def written_after(
    read: Callable[[Record, int], Any],
    decode: Decode,
    room: int,
    write: Write,
    asked: Asked,
    *,
    pad: int = 0,
) -> Answer:
    """Write after a prompt.

    Args:
        read: (record, how many ids can be read) → the ids of the prompt, in order. Of more, the last are taken.
        decode: ids → text.
        room: how many ids a prompt and its continuation may have together.
        write: (model, prompt [B,T], lengths [B], keys [B], steps, sampling) → ids [B,steps].
        pad: the id that fills up prompts.
    """
    steps = min(asked.steps, max(1, room - 1))
    sampling = Sampling(temperature=asked.temperature, top_p=None if asked.top_p == 1 else asked.top_p)

    def row(record: Record) -> Row:
        ids = np.asarray(read(record, room - steps), np.int32)[-(room - steps) :]
        # Powers of two, so that few shapes are compiled.
        prompt = np.full(min(max(16, 1 << (len(ids) - 1).bit_length()), room - steps), pad, np.int32)
        prompt[: len(ids)] = ids
        return {"prompt": prompt, "length": np.int32(len(ids))}

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        prompt, lengths = batch["prompt"], batch["length"]
        return {"ids": write(model, prompt, lengths, asked.keys(prompt, lengths), steps, sampling)}

    return Answer("continuation", TEXT, row, predict, lambda found: {"continuation": decode(found["ids"])})


def caption_answer(
    texts: Texts, vocabulary: int, row: Callable[[Record], Row], write: Callable[..., tuple[jax.Array, jax.Array]]
) -> Answer:
    """Write the caption of a picture. write(model, image [B,H,W,C]) → captions' ids [B,beams,T], best first, and what
    they score."""
    encoder = encoder_for(texts.encoder, vocabulary)

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"ids": write(model, batch["image"])[0][:, 0]}

    return Answer("caption", IMAGE, row, predict, lambda found: {"caption": encoder.decode(found["ids"]).strip()})


def masked_answer(
    texts: Texts, vocabulary: int, logits: Callable[..., jax.Array], asked: Asked, *, specials: bool = False
) -> Answer:
    """The likeliest ids behind each `[MASK]` of a text, from a task's logits [B,T,V] of batch["inputs"].

    specials: whether the vocabulary's own tokens stand around a text, as in training. For the rest see `guessed`.
    """
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

    return guessed(row, "inputs", encoder.MASK, logits, asked, decode=encoder.decode, surface=encoder.surface)


def guessed(
    row: Callable[[Record], Row],
    name: str,
    hole: int,
    logits: Callable[..., jax.Array],
    asked: Asked,
    *,
    decode: Decode,
    surface: Callable[[int], str],
) -> Answer:
    """The likeliest ids in the place of each id `hole`.

    Args:
        row: a record → the arrays of one row. Among them are ids [T] under `name`, and maybe their mask under NAME_mask.
        logits: (model, batch) → [B,T,V].
        decode: ids → text.
        surface: one id → something to look at.
    """

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        chance = jax.nn.softmax(logits(model, batch).astype(jnp.float32))
        best, ids = jax.lax.top_k(chance, min(asked.top, chance.shape[-1]))
        real = batch.get(f"{name}_mask", jnp.ones_like(batch[name]))
        return {"ids": batch[name], "real": real, "chance": best, "best": ids.astype(jnp.int32)}

    def say(found: Row) -> dict[str, Any]:
        ids, places = found["ids"].copy(), np.flatnonzero(found["ids"] == hole)
        if not np.isfinite(found["chance"][places]).all():
            raise UsageError("the model gave no number for it (NaN)")
        ids[places] = found["best"][places, 0]
        guesses: list[dict[str, float]] = [{} for _ in places]
        for k, guess in zip(places, guesses, strict=True):
            for i, p in zip(found["best"][k], found["chance"][k], strict=True):  # the likeliest first, which stays
                guess.setdefault(surface(int(i)), round(float(p), 6))
        return {"text": decode(ids[found["real"] != 0]), "masked": guesses}

    return Answer("masked words", TEXT, row, predict, say)
