"""Strings → ids and masks, as a checkpoint's tokenizer and its settings have them.

A special token that is spelt out in a text becomes its id here, as it does in the published tool. The encoders of
training (`unimodal.data.open_encoder`) take it as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from unimodal.data.byte_counts import as_unicode
from unimodal.data.tokenizer_files import read_tokenizer
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields

Strings = str | Sequence[str | Sequence[str]]

_LEFT = ("Llama", "CodeLlama", "Gemma")  # whose tokenizers pad at the left unless told otherwise
_UNMASKED = ("siglip", "siglip_text_model")  # trained on texts padded to the full length, which no mask hides

_ONE_LENGTH = Lock()  # a tokenizer keeps the length that it cuts to for all threads


@dataclass(frozen=True)
class TextEncoder:
    """Strings to ids, as the checkpoint's tokenizer does it."""

    tokenizer: Any  # a tokenizers.Tokenizer
    pad_id: int  # fills up shorter rows
    left: bool = False  # rows are filled up on the left
    cut_left: bool = False  # texts that are too long lose their beginning
    types: bool = False  # sentence types are given out
    length: int | None = None  # every row is padded to it, and there is no mask; None: to the longest

    def __call__(self, text: Strings, max_length: int | None = None) -> dict[str, np.ndarray]:
        """One string, or a list of strings and pairs of strings → text, text_mask and text_types, int32 [B,T]."""
        rows = self._encode(_as_list(text), max_length)
        width = max(*(len(row) for row in rows), self.length or 0, 1)
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if self.left else slice(0, len(row))
            ids[i, place], types[i, place], mask[i, place] = row.ids, row.type_ids, 1
        found = {"text": ids, "text_mask": mask, "text_types": types}
        if self.length is not None:
            del found["text_mask"]
        if not self.types:
            del found["text_types"]
        return found

    def decode(self, ids: Any) -> str | list[str]:
        """Ids [T] → a string, [B,T] → a list of strings; special tokens are skipped."""
        rows = np.asarray(ids)
        if rows.ndim == 1:
            return self.tokenizer.decode(rows.tolist())
        return [self.tokenizer.decode(row.tolist()) for row in rows]

    def _encode(self, texts: list[Any], max_length: int | None) -> list[Any]:
        special = self.tokenizer.num_special_tokens_to_add(any(isinstance(text, tuple) for text in texts))
        if max_length is not None and max_length <= special:
            raise UsageError(f"max_length={max_length} leaves no room for text beside {special} special tokens")
        with _ONE_LENGTH:
            if max_length is None:
                self.tokenizer.no_truncation()
            else:
                self.tokenizer.enable_truncation(max_length, direction="left" if self.cut_left else "right")
            try:
                return self.tokenizer.encode_batch(texts)
            except Exception as error:  # the library raises bare Exceptions
                why = " ".join(str(error).split())
                raise UsageError(f"the tokenizer cannot encode {texts[0]!r:.60}: {why:.120}") from error


def _as_list(text: Strings) -> list[Any]:
    """Strings, and pairs as tuples. Raises UsageError for anything else, and for nothing."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise UsageError("text is an empty list; give at least one string")
    for i, item in enumerate(texts):
        pair = isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
        if not pair and not isinstance(item, str):
            raise UsageError(f"text {i} should be a string or a pair of strings, but is {item!r:.60}")
    return [as_unicode(item) if isinstance(item, str) else tuple(map(as_unicode, item)) for item in texts]


def load_text(directory: Path, model: Fields) -> TextEncoder:
    """The encoder of a checkpoint directory; `model` is its config.json.

    Raises NoTokenizer if there is none or `tokenizers` is not installed, UsageError if its files are damaged.
    """
    files = read_tokenizer(directory)
    tokenizer, roles, name = files.tokenizer, files.roles, files.name
    settings = Fields(files.settings, str(directory / "tokenizer_config.json"))
    padding = tokenizer.padding or {}  # a call may need other rows than those that were padded when it was saved
    tokenizer.no_padding()
    side = settings.get("padding_side", padding.get("direction", "left" if name in _LEFT else "right"))
    return TextEncoder(
        tokenizer,
        _pad_id(tokenizer, roles, padding, model),
        left=side == "left",
        cut_left=settings.get("truncation_side", "right") == "left",
        types=_gives_types(settings, model, name),
        length=_full_length(settings, model),
    )


def _pad_id(tokenizer: Any, roles: Mapping[str, str], padding: Mapping[str, Any], model: Fields) -> int:
    """Without a padding token the end of text serves: the mask hides it."""
    found = [tokenizer.token_to_id(roles["pad"]) if "pad" in roles else None, padding.get("pad_id")]
    found += [model.raw("pad_token_id"), tokenizer.token_to_id(roles["eos"]) if "eos" in roles else None]
    return next((i for i in found if isinstance(i, int) and i >= 0), 0)


def _gives_types(settings: Fields, model: Fields, name: str) -> bool:
    """True if the model has sentence types."""
    inputs = settings.raw("model_input_names")
    if inputs is not None:
        return "token_type_ids" in inputs
    return model.get("type_vocab_size", 0) > 1 if model.values else name == "Bert"


def _words(model: Fields) -> Fields:
    """The part of config.json about the text model, which may be all of it."""
    return model.part("text_config") if model.raw("text_config") is not None else model


def _full_length(settings: Fields, model: Fields) -> int | None:
    """The length that every text is padded to, of a model that takes no mask."""
    inputs = settings.raw("model_input_names")
    if ("attention_mask" in inputs) if inputs is not None else (model.raw("model_type") not in _UNMASKED):
        return None
    longest = settings.raw("model_max_length") or _words(model).get("max_position_embeddings", 64)
    return int(longest) if longest < 1e6 else None
