"""The files of a tokenizer, read by the `tokenizers` library: tokenizer.json, or vocab.txt, or vocab.json + merges.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimodal.data.subwords import byte_level, import_tokenizers, read_pieces, word_piece
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields
from unimodal.interop.files import read_json


class NoTokenizer(UsageError):
    """There is none, or none that can be read here: no error until somebody gives text."""


@dataclass(frozen=True)
class Style:
    """What a vocabulary without tokenizer.json leaves unsaid. kind: "pieces" (WordPiece), "bytes" (byte-level BPE) or
    "words" (byte-level BPE within words that end in </w>); tokens: the special ones by role; around: the roles before a
    text, between two and after; second_type: the sentence type of the second."""

    kind: str
    tokens: Mapping[str, str]
    around: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())
    second_type: int = 0


_BERT = Style(
    "pieces",
    {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"},
    (("cls",), ("sep",), ("sep",)),
    second_type=1,
)
_ROBERTA = Style(
    "bytes",
    {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    (("cls",), ("sep", "sep"), ("sep",)),
)
_END = "<|endoftext|>"
_CLIP = Style(
    "words",
    {"bos": "<|startoftext|>", "eos": _END, "unk": _END, "pad": _END},
    (("bos",), ("eos", "eos"), ("eos",)),
)
STYLES: Mapping[str, Style] = {
    "bert": _BERT,
    "distilbert": _BERT,
    "roberta": _ROBERTA,
    "gpt2": Style("bytes", {"bos": _END, "eos": _END, "unk": _END}),
    "clip": _CLIP,
}
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Where CLIP cuts a text before its letters become bytes: its special tokens, English endings, words, digits, the rest.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# tokenizer_config.json's name of what tokenizer.json calls otherwise.
_BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def open_vocabulary(directory: Path, settings: Fields, style: Style | None) -> tuple[Any, dict[str, str]]:
    """A `tokenizers.Tokenizer` and its special tokens by role. settings: tokenizer_config.json; style: of its family.

    Raises NoTokenizer if the directory has none or `tokenizers` is not installed, UsageError if its files are damaged.
    """
    whole = directory / "tokenizer.json"
    if not whole.exists():
        style = _style_of_files(directory, style)
    library = _library(directory)
    roles = dict(style.tokens) if style else {}
    roles |= {role: _content(settings.raw(f"{role}_token")) for role in ROLES if settings.raw(f"{role}_token")}
    try:
        if whole.exists():
            tokenizer = library.Tokenizer.from_str(_with_settings(whole.read_text(encoding="utf-8"), settings))
            _add_special(library, tokenizer, directory, settings, roles)
        else:
            assert style is not None
            tokenizer = _build(library, directory, settings, style, roles)
            _add_special(library, tokenizer, directory, settings, roles, mask_eats_space=style.kind == "bytes")
            around, second_type = style.around, style.second_type
            if settings.raw("add_bos_token") is not None or settings.raw("add_eos_token") is not None:
                begin = ("bos",) if settings.get("add_bos_token", False) and "bos" in roles else ()
                end = ("eos",) if settings.get("add_eos_token", False) and "eos" in roles else ()
                around, second_type = (begin, (*end, *begin), end), 1
            _put_around(library, tokenizer, around, second_type, roles)
    except UsageError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise UsageError(f"{directory}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    return tokenizer, roles


def _style_of_files(directory: Path, style: Style | None) -> Style:
    """The style of a directory without tokenizer.json. Raises NoTokenizer if what is there does not make a tokenizer."""
    if (directory / "vocab.txt").exists():
        return style if style is not None and style.kind == "pieces" else _BERT
    make = "make its tokenizer.json: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    vocabulary, merges = (directory / "vocab.json").exists(), (directory / "merges.txt").exists()
    if vocabulary and merges:
        if style is not None and style.kind != "pieces":
            return style
        raise NoTokenizer(f"{directory}: vocab.json and merges.txt do not say how a text is cut into words; {make}")
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (directory / name).exists():
            raise NoTokenizer(f"{directory} has a tokenizer only as {name}; {make}")
    if vocabulary:
        raise NoTokenizer(f"{directory} has no tokenizer: its vocab.json without merges.txt names outputs, not inputs")
    raise NoTokenizer(f"{directory} has no tokenizer: no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def _library(directory: Path) -> Any:
    try:
        return import_tokenizers()
    except UsageError:
        raise NoTokenizer(f"{directory}: to encode text, pip install 'unimodal[interop]'") from None


def _with_settings(text: str, settings: Fields) -> str:
    """tokenizer.json with what tokenizer_config.json says otherwise of lower case, accents and Chinese characters."""
    changes = {
        ours: settings.raw(theirs) for theirs, ours in _BERT_NORMALIZER.items() if settings.raw(theirs) is not None
    }
    if not changes or '"BertNormalizer"' not in text:
        return text
    whole = json.loads(text)
    if whole["normalizer"]["type"] == "BertNormalizer":
        whole["normalizer"] |= changes
    return json.dumps(whole)


def _build(library: Any, directory: Path, settings: Fields, style: Style, roles: Mapping[str, str]) -> Any:
    """From vocab.txt, or from vocab.json and merges.txt."""
    models, normalizers, splits = library.models, library.normalizers, library.pre_tokenizers
    if style.kind == "pieces":
        return word_piece(
            models.WordPiece(read_pieces(directory / "vocab.txt"), unk_token=roles["unk"]),
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.raw("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
    files = str(directory / "vocab.json"), str(directory / "merges.txt")
    if style.kind == "bytes":
        spaced = settings.get("add_prefix_space", False)
        return byte_level(models.BPE.from_file(*files), add_prefix_space=spaced)
    made = library.Tokenizer(models.BPE.from_file(*files, unk_token=roles["unk"], end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(library.Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = splits.Split(library.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = splits.Sequence([words, splits.ByteLevel(add_prefix_space=False)])
    decoders = library.decoders
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)])
    return made


def _add_special(
    library: Any,
    tokenizer: Any,
    directory: Path,
    settings: Fields,
    roles: Mapping[str, str],
    mask_eats_space: bool = False,
) -> None:
    """Make the tokens that are never split known to the tokenizer, each with the id that the files give it.

    mask_eats_space: the mask token takes the space before it, as in RoBERTa, unless the files say how it is.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    wanted: dict[str, tuple[int | None, dict[str, Any]]] = {}
    for role, content in roles.items():
        if tokenizer.token_to_id(content) is not None:
            said = settings.raw(f"{role}_token")
            said = said if isinstance(said, dict) else {"lstrip": role == "mask" and mask_eats_space}
            wanted.setdefault(content, (None, {**said, "special": True, "normalized": False}))
    if (directory / "added_tokens.json").exists():
        added = read_json(directory / "added_tokens.json")
        wanted |= {content: (int(i), wanted.get(content, (None, {}))[1]) for content, i in added.items()}
    for i, said in (settings.raw("added_tokens_decoder") or {}).items():
        wanted[_content(said)] = (int(i), said)
    for content, (i, said) in sorted(wanted.items(), key=lambda item: -1 if item[1][0] is None else item[1][0]):
        if content not in known:
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            tokenizer.add_tokens([library.AddedToken(content, **{key: said[key] for key in flags if key in said})])
        if i is not None and tokenizer.token_to_id(content) != i:
            raise UsageError(
                f"{directory}: token {content!r} should have the id {i}, not {tokenizer.token_to_id(content)}"
            )


def _content(said: Any) -> str:
    """A special token is a string, or an object whose "content" is one."""
    return str(said["content"]) if isinstance(said, dict) else str(said)


def _put_around(
    library: Any,
    tokenizer: Any,
    around: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
    second_type: int,
    roles: Mapping[str, str],
) -> None:
    """Have the tokenizer put the tokens of these roles before, between and after texts."""
    before, between, after = ([roles[role] for role in part] for part in around)
    # Of the tokens between two texts the first still belongs to the first text, if it would end it when alone.
    own = between[: len(after)]
    rest = between[len(after) :]
    one = [*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)]
    two = [f"{token}:0" for token in before] + ["$A:0"] + [f"{token}:0" for token in own]
    two += [f"{token}:{second_type}" for token in rest] + [f"$B:{second_type}"]
    two += [f"{token}:{second_type}" for token in after]
    ids = {token: tokenizer.token_to_id(token) for token in {*before, *between, *after}}
    if lost := [token for token, i in ids.items() if i is None]:
        raise UsageError(f"the vocabulary lacks {lost[0]!r}, which goes around every text")
    template = library.processors.TemplateProcessing(single=one, pair=two, special_tokens=list(ids.items()))
    tokenizer.post_processor = template
