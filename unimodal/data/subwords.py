"""The two kinds of vocabulary that most others are, as objects of the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimodal.errors import UsageError


def import_tokenizers() -> Any:
    """The `tokenizers` library. Raises UsageError where it is not installed."""
    try:
        import tokenizers  # pyright: ignore[reportMissingImports]  # optional: bytes, pictures and sounds do without
    except ImportError as error:
        raise UsageError("vocabularies other than bytes need the package tokenizers: pip install tokenizers") from error
    return tokenizers


def read_pieces(path: Path) -> dict[str, int]:
    """The ids of the pieces in vocab.txt, which has one a line."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {piece: i for i, piece in enumerate(lines)}


def word_piece(
    model: Any, *, lowercase: bool = True, strip_accents: bool | None = None, handle_chinese_chars: bool = True
) -> Any:
    """BERT's tokenizer (Devlin 2019; Wu 2016) around a WordPiece model. strip_accents: None does as `lowercase` says."""
    library = import_tokenizers()
    made = library.Tokenizer(model)
    made.normalizer = library.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=handle_chinese_chars
    )
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    return made


def byte_level(model: Any, *, add_prefix_space: bool = False) -> Any:
    """GPT-2's byte-level BPE (Radford 2019, §2.2) around a BPE model."""
    library = import_tokenizers()
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = library.decoders.ByteLevel()
    return made
