"""Vocabularies of pieces: against slow readings of the two algorithms, their specials, words, and what users get wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimodal.data import ByteEncoder, encoder_for, ids_spec, mask_tokens, open_encoder, open_source, pad_id
from unimodal.data.train_encoder import SPECIALS, main, train_encoder
from unimodal.errors import UsageError

pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "wh", "##ale", "##a", "##le", "white", ",", "un", "##s"]
PAIRS = ["t h", "th e", "Ġ w", "Ġw h", "a l", "al e", "Ġwh ale", "Ġ the"]


@pytest.fixture
def wordpiece(tmp_path: Path) -> Any:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return open_encoder(str(tmp_path))


@pytest.fixture
def bpe(tmp_path: Path) -> Any:
    base = [chr(b) if 33 <= b <= 126 else None for b in range(256)]
    alphabet = [c for c in base if c] + ["Ġ", "Ã", "©"]
    merged = [pair.replace(" ", "") for pair in PAIRS]
    pieces = [*alphabet, *merged, "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(PAIRS) + "\n", encoding="utf-8")
    return open_encoder(str(tmp_path / "vocab.json"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user makes it: one command."""
    out = tmp_path_factory.mktemp("run") / "deep" / "tokenizer.json"
    arguments = ["--source=embedded:emoji", "--fields=name,keywords", "--size=400", f"--out={out}"]
    assert main(arguments) == 0
    return out


def longest_first(word: str) -> list[str]:
    """WordPiece as the paper says it: the longest piece that fits, again and again; or unknown."""
    pieces: list[str] = []
    while word:
        prefix = "##" if pieces else ""
        fits = [word[:n] for n in range(len(word), 0, -1) if prefix + word[:n] in WORDS]
        if not fits:
            return ["[UNK]"]
        pieces.append(prefix + fits[0])
        word = word[len(fits[0]) :]
    return pieces


@pytest.mark.parametrize("text", ["The whale", "white, whales the", "unwhale thes", "the  WHALE,the zebra"])
def test_wordpiece_is_longest_match_first(wordpiece: Any, text: str) -> None:
    words = text.lower().replace(",", " , ").split()
    wanted = [piece for word in words for piece in longest_first(word)]
    assert [WORDS[i] for i in wordpiece.encode(text)] == wanted


def test_wordpiece_specials_words_and_bytes(wordpiece: Any) -> None:
    ids = wordpiece.encode("the whales, uns")
    assert (wordpiece.CLS, wordpiece.SEP, wordpiece.MASK, wordpiece.BOS) == (2, 3, 4, -1)
    assert wordpiece.words(ids).tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert wordpiece.byte_lengths[ids].sum() == len(" the whales, uns")
    assert wordpiece.first_ordinary_id == 5 and not wordpiece.ordinary(np.array([0, 1, 2, 3, 4, -1])).any()
    assert wordpiece.decode([2, *ids[:4], 3, -1]) == "the whales"
    with pytest.raises(UsageError, match="id 14 is not in the vocabulary"):
        wordpiece.decode([14])


def merged(word: str) -> list[str]:
    """BPE as the paper says it: the earliest of the known pairs, wherever it is, until there is none."""
    pieces = list(word)
    while True:
        ranks = [
            PAIRS.index(f"{a} {b}") if f"{a} {b}" in PAIRS else 99 for a, b in zip(pieces, pieces[1:], strict=False)
        ]
        if min(ranks, default=99) == 99:
            return pieces
        i = ranks.index(min(ranks))
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_byte_level_bpe_merges_in_order(bpe: Any) -> None:
    text = "the whale the"
    wanted = [piece for word in ("the", "Ġwhale", "Ġthe") for piece in merged(word)]
    assert [bpe.pieces[i] for i in bpe.encode(text)] == wanted
    ids = bpe.encode("the cafés' whale")
    assert bpe.decode(ids) == "the cafés' whale" and bpe.byte_lengths[ids].sum() == len("the cafés' whale".encode())
    words = bpe.words(ids)
    assert [bpe.decode(ids[words == w]) for w in range(words[-1] + 1)] == ["the", " cafés", "'", " whale"]
    assert bpe.EOS == bpe.BOS == bpe.vocab_size - 1 and bpe.MASK == bpe.PAD == -1 and bpe.first_ordinary_id == 0


def test_training_is_one_command_and_always_the_same(trained: Path) -> None:
    encoder = open_encoder(str(trained))
    assert open_encoder(str(trained)) is encoder  # read once
    assert open_encoder(str(trained.parent)) is encoder
    assert encoder.vocab_size == 400
    bytes_encoder = ByteEncoder()
    for name in ("PAD", "MASK", "BOS", "EOS", "SEP", "CLS"):
        assert SPECIALS[getattr(bytes_encoder, name)] == f"[{name}]"
        assert getattr(encoder, name) == (-1 if name == "PAD" else getattr(bytes_encoder, name))
    source = open_source("embedded:emoji", "validation")
    for text in [*(source[i]["name"] for i in range(0, 152, 10)), "Съешь 🙂 \n\t ''"]:
        ids = encoder.encode(text)
        assert encoder.decode(ids) == text
        assert encoder.byte_lengths[ids].sum() == len(text.encode())
        assert len(ids) <= len(text.encode())
    again = train_encoder(open_source("embedded:emoji", "train"), size=400, fields=("name", "keywords"))
    assert json.loads(again.to_str()) == json.loads(trained.read_text(encoding="utf-8"))


def test_a_trained_wordpiece() -> None:
    made = train_encoder(open_source("embedded:emoji", "train"), kind="wordpiece", size=300, fields=("name",))
    assert made.get_vocab_size() == 300 and made.encode("smiling face").ids


def test_whole_words_are_hidden_whole() -> None:
    encoder, rng = ByteEncoder(), np.random.default_rng(0)
    ids = encoder.encode("Call me Ishmael. Some years ago, never mind how long, café précisely")
    words, hidden = encoder.words(ids), []
    assert [encoder.decode(ids[words == w]) for w in range(4)] == ["Call", " me", " Ishmael", "."]
    for _ in range(200):
        _, _, weights = mask_tokens(
            ids, rng, vocab_size=264, mask_id=1, first_ordinary_id=8, maskable=encoder.ordinary(ids), words=words
        )
        share = np.array([weights[words == w].mean() for w in range(words[-1] + 1)])
        assert set(share) <= {0.0, 1.0} and 1 <= weights.sum() <= int(0.15 * len(ids) + 0.5)
        hidden.append(share)
    assert (np.mean(hidden, axis=0) > 0).all()  # every word has its turn, the long ones too


def test_specs_and_padding_need_no_file() -> None:
    assert (pad_id("bytes"), pad_id("runs/no/where")) == (0, -1)
    assert ids_spec("bytes", 4, 999).high == 264 and ids_spec("runs/no/where", 4, 999).high == 999


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "^no encoder '.*': expected 'bytes' or the path of a vocabulary; python -m unimodal.data.train_encoder"),
        ("{}", "tokenizer.json: its tokenizer cannot be read: Model missing"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=says) as error:
        open_encoder(str(path))
    assert "\n" not in str(error.value)


def test_bad_folders_tables_and_specials(tmp_path: Path, bpe: Any, trained: Path) -> None:
    with pytest.raises(UsageError, match="no vocabulary in .*: expected one of tokenizer.json"):
        open_encoder(str(trained.parent.parent))
    with pytest.raises(UsageError, match="has 400 ids, but its tokenizer's table has vocabulary=264 rows; set"):
        encoder_for(str(trained), 264)
    with pytest.raises(UsageError, match=r"has no MASK token, as \[MASK\] or <mask>"):
        encoder_for(str(tmp_path / "vocab.json"), 1000, "MASK")
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(UsageError, match="encoder.json needs vocab.bpe beside it"):
        open_encoder(str(tmp_path / "encoder.json"))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(UsageError, match="need the package tokenizers: pip install tokenizers"):
        open_encoder(str(tmp_path / "vocab.txt"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(UsageError, match="spiece.model needs the package sentencepiece: pip install sentencepiece"):
        open_encoder(str(tmp_path / "spiece.model"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(kind="unigram"), "encoder kind 'unigram' is not one of bpe, wordpiece"),
        (dict(size=100), "a bpe vocabulary needs at least 263 ids, found size=100"),
        (dict(kind="wordpiece", size=20), "does not hold this corpus' "),
        (dict(fields=("nothing",)), "has no field 'nothing'; it has"),
    ],
)
def test_bad_training(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train_encoder(open_source("embedded:emoji", "validation"), **{"fields": ("name",), **options})


def test_nothing_to_train_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty: Any = [{"id": "a", "text": "  "}]
    with pytest.raises(UsageError, match="^no text to train on: every document is empty"):
        train_encoder(empty)
    assert main(["--source=embedded:bok", f"--out={tmp_path / 'x.json'}"]) == 2
    assert capsys.readouterr().err == "error: no embedded data 'bok': there is emoji, speech, book\n"
