"""Every kind of encoder × every kind of text: bytes are counted once, specials come by id only, checkpoints are read alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimodal.data import ByteEncoder, open_encoder, open_source, pair_row
from unimodal.data.sentencepieces import as_controls
from unimodal.data.tokenizer_files import read_tokenizer
from unimodal.data.train_encoder import train_encoder
from unimodal.errors import UsageError
from unimodal.interop import load_preprocessor

tokenizers = pytest.importorskip("tokenizers")

CHECKPOINTS = Path(__file__).parent / "reference" / "interop" / "preprocess"
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/reference.npz") if "texts/text" in np.load(path))
TEXTS = json.loads((CHECKPOINTS / "texts.json").read_text(encoding="utf-8"))


def byte_fallback() -> Any:
    """Unigram with Llama's marks of words and its way with unknown characters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁helowrd", "▁hello", "▁w"]
    model = tokenizers.models.Unigram([(p, -1.0) for p in pieces], unk_id=0, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def whole_words() -> Any:
    """WordLevel, in which a special that stands between spaces would be a word like any other."""
    words = ["[UNK]", "[MASK]", "[EOS]", "</s>", "<mask>", "hello", "world", "a", "b", "x", "y"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    emoji = open_source("embedded:emoji", "validation")
    made = {
        "fallback": byte_fallback(),
        "words": whole_words(),
        "bpe": train_encoder(emoji, size=280, fields=("name",)),
    }
    for lowercase in (False, True):
        made[f"wordpiece {lowercase}"] = train_encoder(
            emoji, kind="wordpiece", size=150, fields=("name",), lowercase=lowercase
        )
    folder = tmp_path_factory.mktemp("kinds")
    for name, tokenizer in made.items():
        tokenizer.save(str(folder / f"{name}.json"))
    files = {name: str(folder / f"{name}.json") for name in made} | {name: str(CHECKPOINTS / name) for name in NAMES}
    return {"bytes": ByteEncoder()} | {name: open_encoder(path) for name, path in files.items()}


KINDS = ("bytes", "fallback", "words", "bpe", "wordpiece False", "wordpiece True", *NAMES)
STRANGE = (
    "hello 😀 world",
    "  two  spaces, and\ttabs\r\n\n at the end  ",
    "e\u0301 é naïve Ünïcode — déjà-vu…",
    "हिन्दी العَرَبِيَّة İstanbul ﬁ Å ①",
    "👩‍👩‍👧🏽‍♀️🇨🇿",
    "The 白鯨 swims; 鯨が泳ぐ",
    "\x00\x07\u200b\ufeff\u2028 control",
    "▁▁a ▁ <0x41> Ġ ## ##ing",
    "half \ud83d pair",
    "x" * 300,
    " ",
    "",
    "🐋",
)
SPELT = ("a [MASK] b", "x [EOS] y", "[CLS] [SEP][PAD] [BOS]", "<s>x</s> <mask> <pad>", "end<|endoftext|>begin")
SPELT += ("<|startoftext|> <|begin_of_text|><|pad|>", "[UNK] <unk>", "Ahab <|pad|> Ahab")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_all_ids_are_the_bytes_of_the_text(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    for text in (*STRANGE, *SPELT, *TEXTS["texts"]):
        ids, counts = encoder.encode(text), encoder.byte_counts(text)
        for one, other in zip(encoder.counted(text), (ids, counts), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        assert counts.shape == ids.shape and counts.dtype == np.int32 and (counts >= 0).all()
        whole = len(text.encode("utf-8", errors="replace"))
        if encoder.ordinary(ids).all() and ids.size:
            assert counts.sum() == whole, (text, counts)
        else:
            assert counts.sum() < whole or not ids.size
            assert (counts[~encoder.ordinary(ids)] == 0).all()


def test_what_becomes_unknown_is_not_counted(encoders: dict[str, Any]) -> None:
    encoder = encoders["words"]
    assert encoder.byte_counts("hello  wörld a ").tolist() == [5, 0, 3]  # and not the 8 bytes of "  wörld"
    assert encoder.byte_counts("wörld").tolist() == [0]


def test_bytes_by_hand(encoders: dict[str, Any]) -> None:
    fallback = encoders["fallback"]
    pieces = [fallback.pieces[i] for i in fallback.encode("hello 😀w")]
    assert pieces == ["▁hello", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "w"]
    assert fallback.byte_counts("hello 😀w").tolist() == [5, 1, 1, 1, 1, 1, 1]
    assert fallback.byte_lengths[fallback.encode("hello 😀w")].tolist() == [6, 1, 1, 1, 1, 1, 1]
    llama = encoders["llama"]
    assert len("hello 😀 world".encode()) == 16
    assert llama.byte_counts("hello 😀 world").sum() == 16
    assert llama.byte_lengths[llama.encode("hello 😀 world")].sum() == 17  # the mark of the first word
    assert llama.byte_counts("é").tolist() == [0, 2]
    bert = encoders["bert"]
    text = "The  WHALE, "
    assert [bert.pieces[i] for i in bert.encode(text)] == ["the", "wh", "##al", "##e", ","]
    assert bert.byte_counts(text).tolist() == [3, 4, 2, 1, 2]
    clip = encoders["clip"]
    assert clip.byte_counts("THE sea").sum() == 7 and clip.byte_lengths[clip.encode("the")].sum() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_specials_spelt_out_are_text(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    unknown = {i for i in range(encoder.vocab_size) if encoder.surface(i) in ("[UNK]", "<unk>")}
    for text in SPELT:
        ids = encoder.encode(text)
        special = set(ids[~encoder.ordinary(ids)].tolist())
        # No special but the unknown, which is where the characters lead that the vocabulary lacks.
        assert special <= unknown, (text, special)
    named = {getattr(encoder, name) for name in ("MASK", "BOS", "EOS", "SEP", "CLS")} - {-1}
    assert not encoder.ordinary(np.array(sorted(named))).any()


@pytest.mark.parametrize("kind", ["bytes", "fallback", "bpe", "llama"])
def test_specials_spelt_out_come_back_as_they_were(encoders: dict[str, Any], kind: str) -> None:
    for text in SPELT:
        assert encoders[kind].decode(encoders[kind].encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_training_and_preprocessing_read_a_checkpoint_as_published(encoders: dict[str, Any], name: str) -> None:
    """Rows for training are those of `load_preprocessor`, and both those of the published tokenizer."""
    encoder, preprocessor = encoders[name], load_preprocessor(CHECKPOINTS / name)
    with np.load(CHECKPOINTS / name / "reference.npz") as file:
        published = dict(file)
    for part, rows in (("texts", [[text] for text in TEXTS["texts"]]), ("pairs", TEXTS["pairs"])):
        if f"{part}/text" not in published:
            continue  # transformers' class of SigLIP takes no pairs
        for i, texts in enumerate(rows):
            if name == "added" and "Ahab" in "".join(texts):
                continue  # a special of this checkpoint, and so text here and an id there
            wanted = {key: value[i] for key, value in published.items() if key.startswith(f"{part}/")}
            real = wanted.get(f"{part}/text_mask", np.ones(90)) > 0
            ids, types = pair_row(encoder, 200, *(encoder.encode(text) for text in texts))
            length = int((ids != encoder.PAD).sum())
            found = preprocessor(text=[texts[0] if len(texts) == 1 else tuple(texts)])
            assert (
                ids[:length].tolist()
                == found["text"][0][found.get("text_mask", np.ones((1, 90)))[0] > 0][:length].tolist()
            )
            assert ids[:length].tolist() == wanted[f"{part}/text"][real][:length].tolist()
            # SigLIP's rows have no mask, and are padded with its </s>.
            assert length == real.sum() or set(wanted[f"{part}/text"][length:]) == {encoder.EOS}
            if f"{part}/text_types" in wanted:
                assert types[:length].tolist() == wanted[f"{part}/text_types"][real].tolist()


def pieces_of(directory: Path, *texts: str) -> list[str]:
    """The row of a text or two, as pieces, which must be those of preprocessing."""
    encoder: Any = open_encoder(str(directory))
    ids, _ = pair_row(encoder, 64, *(encoder.encode(text) for text in texts))
    ids = ids[ids != encoder.PAD]
    given = texts[0] if len(texts) == 1 else texts
    assert load_preprocessor(directory)(text=[given])["text"][0].tolist() == ids.tolist()  # type: ignore[list-item]
    return [encoder.pieces[i] for i in ids]


# What transformers 5.24 makes of the same files; "Ġ" is the space before the text.
GPT2 = ["H", "ell", "o", "ĠW", "OR", "L", "D"]
SETTINGS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("gpt2", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, ["ĠH", *GPT2[1:]]),
    ("gpt2", {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}, ["ĠH", *GPT2[1:]]),
    ("gpt2", {"add_prefix_space": False}, GPT2),
    ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}, GPT2),
    ("roberta", {"add_prefix_space": True}, ["<s>", "ĠH", *GPT2[1:], "</s>"]),
    ("bert", {"do_lower_case": False}, ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]),
    ("clip", {}, ["<|startoftext|>", "he", "l", "l", "o</w>", "wor", "l", "d</w>", "<|endoftext|>"]),
]


# These classes have tokenizer.json only.
WHOLE_ONLY = ("Qwen2Tokenizer", "PreTrainedTokenizerFast")


@pytest.mark.parametrize(
    ("name", "settings", "wanted", "whole"),
    [(*case, w) for case in SETTINGS for w in (True, False) if w or case[1].get("tokenizer_class") not in WHOLE_ONLY],
)
def test_settings_beside_a_vocabulary_hold(
    tmp_path: Path, name: str, settings: dict[str, Any], wanted: list[str], whole: bool
) -> None:
    shutil.copytree(CHECKPOINTS / name, tmp_path, dirs_exist_ok=True)
    if whole:
        read_tokenizer(CHECKPOINTS / name).tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert pieces_of(tmp_path, "Hello WORLD") == wanted


def test_two_ends_stand_between_the_texts_of_roberta() -> None:
    wanted = ["<s>", "H", "ell", "o", "</s>", "</s>", "W", "OR", "L", "D", "</s>"]
    assert pieces_of(CHECKPOINTS / "roberta", "Hello", "WORLD") == wanted


@pytest.mark.parametrize(("name", "text"), [("clip", "The sea"), ("roberta", "The sea"), ("bert_cased", "The Sea")])
def test_a_vocabulary_alone_is_read_as_its_pieces_look(tmp_path: Path, name: str, text: str) -> None:
    for file in ("vocab.json", "merges.txt", "vocab.txt"):
        if (CHECKPOINTS / name / file).exists():
            shutil.copy(CHECKPOINTS / name / file, tmp_path)
    assert (
        open_encoder(str(tmp_path)).encode(text).tolist() == open_encoder(str(CHECKPOINTS / name)).encode(text).tolist()
    )
    assert pieces_of(tmp_path, text, text)


def test_a_vocabulary_without_an_unknown_says_what_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    encoder = open_encoder(str(tmp_path))
    assert encoder.encode("a b").tolist() == [0, 1]
    with pytest.raises(UsageError, match="^the vocabulary cannot encode 'a c': .*UNK"):
        encoder.encode("a c")


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("bert", {"tokenizer_config.json": "[]"}, "tokenizer_config.json should hold a JSON object, but holds a list"),
        ("bert", {"tokenizer_config.json": '{"do_lower_case": "no"}'}, "do_lower_case='no' should be a bool"),
        ("bert", {"tokenizer_config.json": '{"mask_token": {"x": 3}}'}, 'an object with its "content", but is {'),
        ("bert", {"vocab.txt": ""}, "the vocabulary lacks"),
        ("gpt2", {"vocab.json": '{"a": 4000000000, "b": 0}', "merges.txt": ""}, "numbers its pieces up to 4000000000"),
        ("gpt2", {"config.json": '{"model_type": "qwen2"}'}, "do not say how a text is cut"),
        ("llama", {"tokenizer.json": "[" * 100_000}, "tokenizer.json: its tokenizer cannot be read: "),
        ("llama", {"tokenizer.json": '{"normalizer": 3}'}, "tokenizer.json: its tokenizer cannot be read: "),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, files: dict[str, str], says: str) -> None:
    shutil.copytree(CHECKPOINTS / name, tmp_path, dirs_exist_ok=True)
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(UsageError) as error:
        open_encoder(str(tmp_path))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_sentencepiece_reads_no_special_in_a_text() -> None:
    def piece(content: str, kind: int) -> bytes:
        inner = b"\x0a" + bytes([len(content)]) + content.encode() + b"\x15" + bytes(4) + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(inner)]) + inner

    trainer = b"\x12\x03\x18\x04\x00"  # another field of the model, with the same bytes in it
    model = piece("<s>", 3) + piece("<mask>", 4) + piece("<turn>", 4) + piece("a", 1) + trainer
    wanted = piece("<s>", 3) + piece("<mask>", 3) + piece("<turn>", 4) + piece("a", 1) + trainer
    assert as_controls(model, {"<s>", "<mask>", "a"}) == wanted
    assert as_controls(wanted, {"<s>"}) == wanted and as_controls(b"", {"<s>"}) == b""
    with pytest.raises(ValueError, match="ends in the midst"):
        as_controls(model[:40], {"<mask>"})
