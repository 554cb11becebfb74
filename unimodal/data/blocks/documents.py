"""Rows of ids from long texts: windows, whole documents packed together, and rows with hidden ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from unimodal.data.around import NO_ID
from unimodal.data.blocks.inputs import Inputs
from unimodal.data.blocks.texts import Texts
from unimodal.data.dataset import Dataset
from unimodal.data.encoders import Encoder, encoder_for
from unimodal.data.packing import packed_rows
from unimodal.data.pairs import next_sentence_rows
from unimodal.data.spec import ArraySpec
from unimodal.data.text import Encode, mask_tokens, text_windows


def document_rows(
    source: str, texts: Texts, vocabulary: int, *, packed: bool = False, fit: str = "first_fit"
) -> Inputs:
    """Rows of `texts.length` ids, and the `bytes` of text that each id stands for.

    The rows are windows of the documents, drawn at random in training. With `packed` they are whole documents between
    BOS and EOS, as many as fit into a row (fit: by which rule, see `data.filling`), and examples also have the `segment` and `position` of each id.
    """
    length = texts.length
    spec = {"ids": texts.spec(vocabulary), "bytes": ArraySpec((length,), np.int32, 0, 8)}
    if packed:
        spec["segment"] = ArraySpec((length,), np.int32, 1, 2)
        spec["position"] = ArraySpec((length,), np.int32, 0, length)

    def dataset(split: str) -> Dataset:
        encoder = encoder_for(texts.encoder, vocabulary)
        documents = texts.open(source, split)
        if packed:
            encode, count = encodings(encoder, packed)
            return packed_rows(documents, encode, length, pad_id=encoder.PAD, count=count, fit=fit)
        row: dict[str, Any] = dict(random=split == "train", pad_id=encoder.PAD, counted=encoder.counted)
        return text_windows(documents, encoder.encode, length, **row)

    return Inputs(spec, dataset)


def encodings(encoder: Encoder, packed: bool = False) -> tuple[Encode, Encode]:
    """Two functions of a text: its ids, and the bytes that each of them stands for.

    Packed documents stand between BOS and EOS, as far as the vocabulary has them, which stand for no bytes.
    """
    if not packed:
        return encoder.encode, encoder.byte_counts
    after = [i for i in (encoder.EOS,) if i != NO_ID]
    before = [i for i in (encoder.BOS,) if i != NO_ID and i not in after]

    def between(values: np.ndarray, first: list[int], last: list[int]) -> np.ndarray:
        # A text without any ids is no document.
        return np.concatenate([first, values, last]).astype(np.int32) if len(values) else values

    return (
        lambda text: between(encoder.encode(text), before, after),
        lambda text: between(encoder.byte_counts(text), [0] * len(before), [0] * len(after)),
    )


def masked_rows(
    source: str, texts: Texts, vocabulary: int, *, rate: float, whole_words: bool = False, next_sentence: bool = False
) -> Inputs:
    """Rows for masked language modelling: `inputs` with some ids hidden, `targets`, `weights` at the hidden places, and
    the `bytes` of each id (see `mask_tokens`).

    With `next_sentence` a row is two stretches of text, and examples also have sentence `types` and `next`: whether the
    second stretch follows the first.
    """
    length, ids = texts.length, texts.spec(vocabulary)
    spec = {"inputs": ids, "targets": ids, "weights": ArraySpec((length,), np.float32)}
    spec["bytes"] = ArraySpec((length,), np.int32, 0, 8)
    if next_sentence:
        spec["types"] = ArraySpec((length,), np.int32, 0, 2)
        spec["next"] = ArraySpec((), np.int32, 0, 2)

    def hide(example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        encoder, ids = encoder_for(texts.encoder, vocabulary, "MASK"), example.pop("ids")
        inputs, targets, weights = mask_tokens(
            ids,
            rng,
            rate=rate,
            vocab_size=encoder.vocab_size,
            mask_id=encoder.MASK,
            first_ordinary_id=encoder.first_ordinary_id,
            maskable=encoder.ordinary(ids),
            words=encoder.words(ids) if whole_words else None,
        )
        return {"inputs": inputs, "targets": targets, "weights": weights, **example}

    def dataset(split: str) -> Dataset:
        encoder = encoder_for(texts.encoder, vocabulary, "MASK")
        documents, random = texts.open(source, split), split == "train"
        if next_sentence:
            return next_sentence_rows(documents, encoder, length, random=random, count=True).map(hide)
        row: dict[str, Any] = dict(random=random, pad_id=encoder.PAD, counted=encoder.counted)
        return text_windows(documents, encoder.encode, length, **row).map(hide)

    return Inputs(spec, dataset)
