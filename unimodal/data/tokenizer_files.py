"""The files of a tokenizer, read as the checkpoint that they come from reads them: for training and preprocessing alike.

| files | what |
|---|---|
| `tokenizer.json` | anything that the `tokenizers` library can say |
| `vocab.txt` | WordPiece of the BERT family |
| `vocab.json` + `merges.txt`, `encoder.json` + `vocab.bpe` | byte-level BPE of GPT-2, RoBERTa or CLIP |

`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and the `model_type` of `config.json` beside them
say what they leave open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimodal.data.subwords import byte_level, import_tokenizers, read_pieces, word_piece
from unimodal.errors import UsageError

MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}


class NoTokenizer(UsageError):
    """There is none, or none that can be read here: no error until somebody gives text."""


@dataclass(frozen=True)
class Style:
    """The conventions that a vocabulary without tokenizer.json leaves unsaid."""

    # "pieces" (WordPiece), "bytes" (byte-level BPE) or "words" (byte-level BPE within words that end in </w>)
    kind: str
    tokens: Mapping[str, str]  # the special ones by role
    # roles before a text, between two and after
    around: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())
    second_type: int = 0  # sentence type of the second text


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
_MAKE = "make its tokenizer.json: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Where CLIP cuts a text before its letters become bytes: its special tokens, English endings, words, digits, the rest.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# tokenizer_config.json's name of what tokenizer.json calls otherwise.
_BERT_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


# Classes whose add_prefix_space stands in tokenizer_config.json, whatever tokenizer.json says.
_SPACED = ("gpt2", "roberta", "bart", "longformer", "qwen2", "gptneox", "codegen", "whisper")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its files have it."""

    tokenizer: Any  # a `tokenizers.Tokenizer`
    roles: Mapping[str, str]  # its special tokens by role
    settings: Mapping[str, Any]  # tokenizer_config.json over special_tokens_map.json
    name: str  # of its class, without "Tokenizer" and "Fast"; "": nothing says


def read_tokenizer(path: Path) -> TokenizerFiles:
    """The tokenizer of a directory, or of one file and what stands beside it.

    Raises NoTokenizer if there is none or `tokenizers` is not installed, UsageError if the files are damaged.
    """
    directory = path if path.is_dir() else path.parent
    settings = read_settings(directory)
    model = directory / "config.json"
    family = str(_read_object(model).get("model_type") or "") if model.exists() else ""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    style = STYLES.get(name.lower()) or STYLES.get(family)
    file = _find(directory, style) if path.is_dir() else path
    if file.suffix == ".txt":
        style = style if style is not None and style.kind == "pieces" else _BERT
    elif file.name in MERGES:
        style = _style_of_words(file, style, named=bool(name or family))
    try:
        library = import_tokenizers()
    except UsageError as error:
        raise NoTokenizer(f"{directory}: {error}") from None
    roles = (dict(style.tokens) if style else {}) | special_roles(settings)
    try:
        if file.suffix == ".txt" or file.name in MERGES:
            assert style is not None
            named = bool(name or family)
            tokenizer = _build(library, file, settings, style, roles, lowercase=True if named else None)
            _add_special(library, tokenizer, directory, settings, roles, mask_eats_space=style.kind == "bytes")
            if named or all(tokenizer.token_to_id(token) is not None for token in roles.values()):
                _put_around(library, tokenizer, *_around(style, settings, roles), roles)
        else:
            whole = _with_settings(file.read_text(encoding="utf-8"), settings, name or family.replace("_", ""))
            tokenizer = library.Tokenizer.from_str(whole)
            _add_special(library, tokenizer, directory, settings, roles)
    except UsageError:
        raise
    except Exception as error:  # the library raises bare Exceptions, some without a text
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: its tokenizer cannot be read: {why:.160}") from error
    return TokenizerFiles(tokenizer, roles, settings, name)


def read_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, and beneath it special_tokens_map.json; null is as good as missing."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).exists():
            values |= {key: value for key, value in _read_object(directory / name).items() if value is not None}
    return values


def special_roles(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the settings name, by role."""
    return {role: _content(settings[f"{role}_token"]) for role in ROLES if settings.get(f"{role}_token")}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} should hold a JSON object, but holds a {type(value).__name__}")
    return value


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"tokenizer_config.json: {key}={value!r} should be a bool")
    return value


def _find(directory: Path, style: Style | None) -> Path:
    """The file of a directory that the rest goes with. Raises NoTokenizer if what is there does not make a tokenizer."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (directory / name).exists():
            return directory / name
    for name, merges in MERGES.items():
        if (directory / name).exists() and (directory / merges).exists():
            return directory / name
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (directory / name).exists():
            raise NoTokenizer(f"{directory} has a tokenizer only as {name}; {_MAKE}")
    if (directory / "vocab.json").exists():
        raise NoTokenizer(f"{directory} has no tokenizer: its vocab.json without merges.txt names outputs, not inputs")
    raise NoTokenizer(f"{directory} has no tokenizer: no tokenizer.json, vocab.txt, or vocab.json with merges.txt")


def _style_of_words(file: Path, style: Style | None, *, named: bool) -> Style:
    """Choose how vocab.json cuts a text into words: as its family does, or as its pieces look where nothing names a family."""
    if not file.with_name(MERGES[file.name]).is_file():
        raise UsageError(f"{file} needs {MERGES[file.name]} beside it")
    if style is not None and style.kind != "pieces":
        return style
    if named:
        raise NoTokenizer(f"{file.parent}: {file.name} and {MERGES[file.name]} do not say how a text is cut; {_MAKE}")
    pieces = _read_object(file)
    if any(piece.endswith("</w>") for piece in pieces):
        return _CLIP
    return _ROBERTA if {"<s>", "</s>"} <= pieces.keys() else STYLES["gpt2"]


def _with_settings(text: str, settings: Mapping[str, Any], name: str) -> str:
    """tokenizer.json with what tokenizer_config.json says otherwise of lower case, accents, Chinese characters, and of a
    space before the text."""
    whole = json.loads(text)
    normalizer = whole.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        normalizer |= {ours: settings[theirs] for theirs, ours in _BERT_NORMALIZER.items() if theirs in settings}
    if name.lower() in _SPACED:
        splits = whole.get("pre_tokenizer") or {}
        for split in splits.get("pretokenizers", [splits]):
            if split.get("type") == "ByteLevel":
                split["add_prefix_space"] = _flag(settings, "add_prefix_space", False)
    return json.dumps(whole)


def _build(
    library: Any,
    file: Path,
    settings: Mapping[str, Any],
    style: Style,
    roles: Mapping[str, str],
    *,
    lowercase: bool | None,
) -> Any:
    """Build a tokenizer from vocab.txt, or from vocab.json and merges.txt. lowercase: unless the settings say; None: as the pieces look."""
    models, normalizers, splits = library.models, library.normalizers, library.pre_tokenizers
    if style.kind == "pieces":
        pieces = read_pieces(file)
        if lowercase is None:
            lowercase = not _has_capitals(pieces)
        return word_piece(
            models.WordPiece(pieces, unk_token=roles["unk"]),
            lowercase=_flag(settings, "do_lower_case", lowercase),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
        )
    files = str(file), str(file.with_name(MERGES[file.name]))
    if style.kind == "bytes":
        return byte_level(models.BPE.from_file(*files), add_prefix_space=_flag(settings, "add_prefix_space", False))
    made = library.Tokenizer(models.BPE.from_file(*files, unk_token=roles["unk"], end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(library.Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = splits.Split(library.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = splits.Sequence([words, splits.ByteLevel(add_prefix_space=False)])
    decoders = library.decoders
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)])
    return made


def _has_capitals(pieces: Iterable[str]) -> bool:
    return any(piece.isalpha() and piece != piece.lower() for piece in pieces)


def _around(
    style: Style, settings: Mapping[str, Any], roles: Mapping[str, str]
) -> tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], int]:
    """The roles before, between and after texts, and the sentence type of the second text."""
    if settings.get("add_bos_token") is None and settings.get("add_eos_token") is None:
        return style.around, style.second_type
    begin = ("bos",) if _flag(settings, "add_bos_token", False) and "bos" in roles else ()
    end = ("eos",) if _flag(settings, "add_eos_token", False) and "eos" in roles else ()
    return (begin, (*end, *begin), end), 1


def _add_special(
    library: Any,
    tokenizer: Any,
    directory: Path,
    settings: Mapping[str, Any],
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
            said = settings.get(f"{role}_token")
            said = said if isinstance(said, dict) else {"lstrip": role == "mask" and mask_eats_space}
            wanted.setdefault(content, (None, {**said, "special": True, "normalized": False}))
    if (directory / "added_tokens.json").exists():
        added = _read_object(directory / "added_tokens.json")
        wanted |= {content: (int(i), wanted.get(content, (None, {}))[1]) for content, i in added.items()}
    for i, said in (settings.get("added_tokens_decoder") or {}).items():
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
    content = said.get("content") if isinstance(said, dict) else said
    if not isinstance(content, str):
        raise UsageError(f'a special token should be a string, or an object with its "content", but is {said!r:.60}')
    return content


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
