"""Trains a vocabulary on a corpus and writes it as `tokenizer.json`, beside the checkpoints of the run that is to use it.

    python -m unimodal.data.train_encoder --source=embedded:book --kind=bpe --size=2048 --out=runs/gpt/tokenizer.json

Then `--config.tasks.gpt.encoder=runs/gpt/tokenizer.json --config.tokenizers.text.vocabulary=2048`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unimodal.data.dataset import Source
from unimodal.data.encoders import open_encoder
from unimodal.data.sources import open_source
from unimodal.data.subwords import byte_level, import_tokenizers, word_piece
from unimodal.data.text import all_ids, text_of
from unimodal.errors import UsageError

KINDS = ("bpe", "wordpiece")
SPECIALS = ("[PAD]", "[MASK]", "[BOS]", "[EOS]", "[SEP]", "[CLS]", "[UNK]")
"""The first ids of a trained vocabulary, in the order of `ByteEncoder`'s."""


def train_encoder(
    documents: Source,
    *,
    kind: str = "bpe",
    size: int = 2048,
    fields: Sequence[str] = ("text",),
    lowercase: bool = False,
) -> Any:
    """A `tokenizers.Tokenizer` of exactly `size` ids, or fewer where the corpus has no more pairs to merge.

    kind: "bpe" (byte-level, so that every string can be encoded) or "wordpiece" (unknown characters become [UNK]).
    Raises UsageError for another kind, a size that does not hold the alphabet, or a corpus without text.
    """
    if kind not in KINDS:
        raise UsageError(f"encoder kind {kind!r} is not one of {', '.join(KINDS)}")
    library = import_tokenizers()
    if kind == "bpe":
        least = len(SPECIALS) + 256
        made = byte_level(library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIALS),
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        least = len(SPECIALS) + 1
        made = word_piece(library.models.WordPiece(unk_token="[UNK]"), lowercase=lowercase)
        trainer = library.trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIALS), show_progress=False)
    if size < least:
        raise UsageError(f"a {kind} vocabulary needs at least {least} ids, found size={size}")
    if not any(text.strip() for text in _texts(documents, fields)):
        raise UsageError("no text to train on: every document is empty")
    made.train_from_iterator(_texts(documents, fields), trainer)
    if made.get_vocab_size() > size:
        raise UsageError(
            f"a {kind} vocabulary of {size} ids does not hold this corpus' {made.get_vocab_size()} characters and "
            "specials; give a larger size"
        )
    return made


def _texts(documents: Source, fields: Sequence[str]) -> Iterator[str]:
    for index in range(len(documents)):
        yield text_of(documents[index], fields)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="embedded:book", help="a data source, as in recipes (%(default)s)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--fields", default="text", help="fields of a record, with commas between (%(default)s)")
    parser.add_argument("--kind", default="bpe", help=" or ".join(KINDS))
    parser.add_argument("--size", type=int, default=2048, help="ids in the vocabulary (%(default)s)")
    parser.add_argument("--lowercase", action="store_true", help="wordpiece: lower case, and no accents")
    parser.add_argument("--out", type=Path, required=True, help="where tokenizer.json goes")
    given = parser.parse_args(arguments)
    try:
        documents, fields = open_source(given.source, given.split), given.fields.split(",")
        made = train_encoder(documents, kind=given.kind, size=given.size, fields=fields, lowercase=given.lowercase)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = given.out.with_name(given.out.name + ".tmp")
        fresh.write_text(made.to_str(pretty=True), encoding="utf-8")
        fresh.replace(given.out)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    encoder = open_encoder(str(given.out))
    sizes = all_ids(documents, encoder.byte_counts) if fields == ["text"] else None
    each = "" if sizes is None else f", {sizes.mean():.2f} bytes per id on what it was trained on"
    print(f"wrote {given.out}: {encoder.vocab_size} ids{each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
