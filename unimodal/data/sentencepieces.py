"""SentencePiece's own files (Kudo 2018), read by the package `sentencepiece` where it is installed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from unimodal.errors import UsageError

# sentencepiece_model.proto: field 1 of a model is a piece, whose field 3 is its type.
_PIECE, _TYPE, _CONTROL, _USER_DEFINED = 1, 3, 3, 4


def open_sentencepiece(path: Path, specials: Collection[str]) -> Any:
    """A SentencePieceProcessor that finds none of `specials` in a text. Raises UsageError where the package is missing."""
    try:
        import sentencepiece  # pyright: ignore[reportMissingImports]  # optional, and not for every platform
    except ImportError as error:
        raise UsageError(f"{path} needs the package sentencepiece: pip install sentencepiece") from error
    return sentencepiece.SentencePieceProcessor(model_proto=as_controls(path.read_bytes(), specials))


def spans(model: Any, text: str) -> tuple[Sequence[int], Sequence[int]]:
    """The ids of a text, and the character at which each ends."""
    if hasattr(model, "encode_as_offset_mapping"):
        found = model.encode_as_offset_mapping(text)
        ids, places = found["ids"], found["offsets"]
    else:  # before 0.2.1
        pieces = model.encode(text, out_type="immutable_proto").pieces
        ids, places = [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]
    ends = [end for _, end in places]
    # Of the bytes of one character only the last has an extent.
    for i in range(len(ids) - 2, -1, -1):
        if model.is_byte(ids[i]) and places[i][0] == places[i][1]:
            ends[i] = ends[i + 1]
    return ids, ends


def as_controls(model: bytes, specials: Collection[str]) -> bytes:
    """A model whose user-defined pieces among `specials` are control pieces, which no text is ever read as."""
    if bytes([_TYPE << 3, _USER_DEFINED]) not in model:
        return model  # most have none, and some have very many pieces
    names = {special.encode() for special in specials}
    changed = bytearray(model)
    for number, start, stop in _fields(model, 0, len(model)):
        if number == _PIECE:
            parts = {inner: (begin, end) for inner, begin, end in _fields(model, start, stop)}
            begin, end = parts.get(1, (0, 0))
            place = parts.get(_TYPE, (0, 0))[0]
            if model[begin:end] in names and model[place] == _USER_DEFINED:
                changed[place] = _CONTROL
    return bytes(changed)


def _fields(data: bytes, at: int, stop: int) -> list[tuple[int, int, int]]:
    """Number, start and end of the fields of a message of protocol buffers."""
    found = []
    while at < stop:
        key, at = _varint(data, at)
        start, kind = at, key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(data, at)
            at = start + size
        else:
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        if at > stop:
            raise ValueError("the file ends in the midst of a field")
        found.append((key >> 3, start, at))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"no number at byte {at}")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
