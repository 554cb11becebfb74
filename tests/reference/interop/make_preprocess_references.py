"""Write small preprocessing directories with what `transformers` makes of them, for tests/test_interop_preprocess.py.

    python tests/reference/interop/make_preprocess_references.py [NAME …]

Needs torch, transformers, pillow, soundfile, array_record and msgpack (the tests do not need the first two). Each NAME
becomes preprocess/NAME with its configuration and reference.npz. The inputs are in preprocess/texts.json and
preprocess/inputs.npz: pictures and speech of the embedded sets. Pictures are processed by the processors that use
Pillow. Vocabularies are trained on a chapter of the embedded book; pieces that are equally
frequent come out in another order each time, so a new run changes some of them, and their references with them.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import soundfile
import transformers as t
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent / "preprocess"
EMBEDDED = Path(__file__).parents[3] / "unimodal" / "data" / "embedded"
Arrays = dict[str, np.ndarray]
Maker = Callable[[Path], Arrays]

TEXTS = [
    "Call me Ishmael.",
    "  It is   not down in any map; true places never are.\n",
    "Ünïcode, naïve Ahab's café — déjà-vu… 42,000 fathoms (1851)!",
    "The 白鯨 swims; 鯨が泳ぐ. Моби Дик \U0001f40b",
    "don't we'll THE WHALE Thequeequegs",
]
SPECIAL_TEXTS = ["a [MASK] whale", "a <mask> whale", "end<|endoftext|>begin", "<s>x</s>", ""]
PAIRS = [("Call me Ishmael.", "Who is Ahab?"), ("The whale", "a very white whale indeed")]


def records(name: str) -> list[dict[str, Any]]:
    reader = ArrayRecordReader(str(EMBEDDED / name / "validation.array_record"))
    return [msgpack.unpackb(raw) for raw in reader.read_all()]


@functools.cache
def chapter() -> str:
    return next(r["text"] for r in records("book") if r["id"] == "chapter-40") + " ".join(TEXTS)


def make_inputs() -> None:
    """Two pictures of odd sizes, and a second of speech."""
    found = [np.array(Image.open(io.BytesIO(r["image"])).convert("RGB")) for r in records("emoji")[3:5]]
    sound, rate = soundfile.read(io.BytesIO(records("speech")[0]["audio"]), dtype="int16")
    assert rate == 16000
    np.savez_compressed(HERE / "inputs.npz", wide=found[0][4:27, :31], tall=found[1][:, 5:24], speech=sound[8000:25500])
    texts = {"texts": TEXTS, "special": SPECIAL_TEXTS, "pairs": PAIRS}
    (HERE / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1))


# ---- text ----------------------------------------------------------------------------------------------------------


def write(directory: Path, **files: Any) -> None:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False))


def encode(directory: Path, kind: Any = t.AutoTokenizer, **choices: Any) -> Arrays:
    """What the directory's tokenizer makes of the texts."""
    tokenizer = kind.from_pretrained(directory)
    if tokenizer.pad_token is None:  # as the preprocessor does
        tokenizer.pad_token = tokenizer.eos_token
    found = {}
    ours = {"input_ids": "text", "attention_mask": "text_mask", "token_type_ids": "text_types"}
    for group, texts in (("texts", TEXTS), ("special", SPECIAL_TEXTS), ("pairs", PAIRS)):
        out = tokenizer(texts, return_tensors="np", **{"padding": True, **choices})
        found |= {f"{group}/{ours[key]}": value.astype(np.int32) for key, value in out.items()}
    cut = tokenizer(TEXTS, return_tensors="np", **{"padding": True, "truncation": True, "max_length": 7, **choices})
    return found | {f"cut/{ours[key]}": value.astype(np.int32) for key, value in cut.items()}


def pieces(directory: Path, *, cased: bool, count: int = 240) -> None:
    """vocab.txt alone: WordPiece."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator([chapter()], trainers.WordPieceTrainer(vocab_size=count, special_tokens=special))
    words = [word for word, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def bert(directory: Path) -> Arrays:
    pieces(directory, cased=False)
    write(directory, config={"model_type": "bert", "type_vocab_size": 2})
    return encode(directory)


def bert_cased(directory: Path) -> Arrays:
    pieces(directory, cased=True)
    settings = {
        "do_lower_case": False,
        "strip_accents": False,
        "tokenizer_class": "BertTokenizer",
        "padding_side": "left",
    }
    write(directory, config={"model_type": "bert", "type_vocab_size": 2}, tokenizer_config=settings)
    return encode(directory)


def distilbert(directory: Path) -> Arrays:
    """tokenizer.json with padding and truncation of its own, and lower case that tokenizer_config.json overrules."""
    pieces(directory, cased=True)
    tokenizer = t.BertTokenizer.from_pretrained(directory, do_lower_case=True).backend_tokenizer
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(24)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").unlink()
    settings = {"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"}
    write(directory, config={"model_type": "distilbert"}, tokenizer_config=settings)
    return {k: v for k, v in encode(directory, t.DistilBertTokenizer).items() if not k.endswith("types")}


def byte_pairs(directory: Path, first: list[str], last: list[str], **choices: Any) -> Tokenizer:
    """vocab.json and merges.txt: byte-level BPE, `first` and `last` at the ends of the vocabulary."""
    made = Tokenizer(models.BPE(**choices))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [chapter()], trainers.BpeTrainer(vocab_size=380, special_tokens=first, initial_alphabet=alphabet)
    )
    made.model.save(str(directory))
    vocabulary = json.loads((directory / "vocab.json").read_text())
    for token in last:
        vocabulary.setdefault(token, len(vocabulary))
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    return made


def gpt2(directory: Path) -> Arrays:
    byte_pairs(directory, [], ["<|endoftext|>"])
    write(directory, config={"model_type": "gpt2"})
    return encode(directory)


def roberta(directory: Path) -> Arrays:
    byte_pairs(directory, ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    write(directory, config={"model_type": "roberta", "type_vocab_size": 1}, special_tokens_map={"mask_token": mask})
    return encode(directory)


def clip(directory: Path) -> Arrays:
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, end_of_word_suffix="</w>", initial_alphabet=alphabet)
    made.train_from_iterator([chapter()], trainer)
    made.model.save(str(directory))
    merges = (directory / "merges.txt").read_text()
    vocabulary = json.loads((directory / "vocab.json").read_text())
    for token in [*(letter + "</w>" for letter in sorted(alphabet)), "<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (directory / "merges.txt").write_text(merges)
    write(directory, config={"model_type": "clip"}, tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    return encode(directory)


def llama(directory: Path) -> Arrays:
    """tokenizer.json of words with their spaces; padding at the left; beginnings as tokenizer.json says, whatever
    tokenizer_config.json would have."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, max_token_length=6)
    made.train_from_iterator(chapter().replace("\n", " ").split("."), trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {"add_bos_token": False, "add_eos_token": True, "added_tokens_decoder": {}}
    write(directory, config={"model_type": "llama"}, tokenizer_config=settings)
    return encode(directory)


def siglip(directory: Path) -> Arrays:
    """tokenizer.json of a unigram model; no mask, all texts at full length."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,!?;:]"), "")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator(chapter().split("."), trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    made.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids"],
        "model_max_length": 90,
    }
    settings |= {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write(directory, config={"model_type": "siglip"}, tokenizer_config=settings)
    return {k: v for k, v in encode(directory, padding="max_length", max_length=90).items() if not k.startswith("cut")}


def added(directory: Path) -> Arrays:
    """byte-level BPE with tokens that were added later, by both of the files that say so."""
    byte_pairs(directory, [], ["<|endoftext|>"])
    count = len(json.loads((directory / "vocab.json").read_text()))
    settings = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|pad|>", "add_prefix_space": True}
    flags = dict(lstrip=False, normalized=False, rstrip=True, single_word=False, special=True)
    settings["added_tokens_decoder"] = {
        str(count): {"content": "<|pad|>", **flags},
        str(count + 1): {"content": "Ahab", **flags},
    }
    settings["add_bos_token"] = settings["add_eos_token"] = True
    write(directory, config={"model_type": "gpt2"}, tokenizer_config=settings)
    return encode(directory)


# ---- pictures ------------------------------------------------------------------------------------------------------


def inputs() -> Arrays:
    with np.load(HERE / "inputs.npz") as file:
        return dict(file)


def picture(kind: str, *, single: bool = False, **settings: Any) -> Maker:
    """A preprocessor_config.json and what its processor makes of the two pictures (`single`: each apart)."""

    def make(directory: Path) -> Arrays:
        write(directory, preprocessor_config=settings)
        processor = getattr(t, f"{kind}ImageProcessorPil").from_pretrained(directory)
        found = inputs()
        calls = (
            {"wide": [found["wide"]], "tall": [found["tall"]]} if single else {"both": [found["wide"], found["tall"]]}
        )
        made = {}
        for name, pictures in calls.items():
            out = processor([Image.fromarray(p) for p in pictures], return_tensors="np")
            if "input_ids" in out:
                made[f"image/{name}"] = out["input_ids"].astype(np.int32)
            else:
                made[f"image/{name}"] = out["pixel_values"].transpose(0, 2, 3, 1)
        return made

    return make


COLORS = np.random.default_rng(0).uniform(-1, 1, (24, 3)).round(4).tolist()
MEAN, STD = dict(image_mean=[0.485, 0.456, 0.406]), dict(image_std=[0.229, 0.224, 0.225])


# ---- sound ---------------------------------------------------------------------------------------------------------


def sounds(kind: str, *lengths: int, names: dict[str, str], **settings: Any) -> Maker:
    """A preprocessor_config.json and what its extractor makes of pieces of the speech."""

    def make(directory: Path) -> Arrays:
        write(directory, preprocessor_config={"feature_extractor_type": f"{kind}FeatureExtractor", **settings})
        extractor = getattr(t, f"{kind}FeatureExtractor").from_pretrained(directory)
        speech = inputs()["speech"].astype(np.float32) / 32768
        choices = {"padding": True} if kind == "Wav2Vec2" else {}
        parts = [speech[100 : 100 + length] for length in lengths]
        out = extractor(parts, sampling_rate=16000, return_tensors="np", **choices)
        made = {"lengths": np.array(lengths)}
        for theirs, ours in names.items():
            value = np.asarray(out[theirs])
            made[f"audio/{ours}"] = value.transpose(0, 2, 1) if theirs == "input_features" else value
        return made

    return make


CASES: dict[str, Maker] = {
    "bert": bert,
    "bert_cased": bert_cased,
    "distilbert": distilbert,
    "gpt2": gpt2,
    "roberta": roberta,
    "clip": clip,
    "llama": llama,
    "siglip": siglip,
    "added": added,
    "vit": picture("ViT", image_processor_type="ViTImageProcessor", size={"height": 20, "width": 26}, resample=2, do_resize=True),
    "vit_old": picture("ViT", feature_extractor_type="ViTFeatureExtractor", size=18, **MEAN, **STD),
    "vit_raw": picture("ViT", image_processor_type="ViTImageProcessorFast", size={"height": 9, "width": 9}, do_normalize=False, resample=0),
    "deit": picture("DeiT", image_processor_type="DeiTImageProcessor", size={"height": 27, "width": 27}, crop_size={"height": 22, "width": 20}, **MEAN, **STD),
    "clip_image": picture("CLIP", image_processor_type="CLIPImageProcessor", size={"shortest_edge": 21}, crop_size={"height": 18, "width": 18}, resample=3),
    "clip_old": picture("CLIP", feature_extractor_type="CLIPFeatureExtractor", size=16, crop_size=25),
    "dinov2": picture("Bit", single=True, image_processor_type="BitImageProcessor", size={"shortest_edge": 29}, crop_size={"height": 24, "width": 24}, **MEAN, **STD),
    "dinov2_whole": picture("Bit", single=True, image_processor_type="BitImageProcessor", size={"shortest_edge": 15}, do_center_crop=False, **MEAN, **STD),
    "siglip_image": picture("Siglip", image_processor_type="SiglipImageProcessor", size={"height": 24, "width": 24}, resample=3, rescale_factor=0.00392156862745098),
    "imagegpt": picture("ImageGPT", feature_extractor_type="ImageGPTFeatureExtractor", size=14, clusters=COLORS, do_normalize=True),
    "wav2vec2": sounds("Wav2Vec2", 2400, 1700, names={"input_values": "audio"}, do_normalize=True, return_attention_mask=False),
    "wav2vec2_large": sounds(
        "Wav2Vec2", 2400, 1700, names={"input_values": "audio", "attention_mask": "audio_mask"}, do_normalize=True,
        return_attention_mask=True, sampling_rate=16000, feature_size=1, padding_side="right", padding_value=0.0,
    ),
    "whisper": sounds("Whisper", 17300, 6001, names={"input_features": "audio"}, chunk_length=1, feature_size=80, n_fft=400, hop_length=160),
    "ast": sounds("AST", 17300, 6001, names={"input_values": "audio"}, num_mel_bins=64, max_length=80),
}  # fmt: skip


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    HERE.mkdir(exist_ok=True)
    make_inputs()
    for chosen in sys.argv[1:] or CASES:
        place = HERE / chosen
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        arrays = CASES[chosen](place)
        np.savez_compressed(place / "reference.npz", **arrays)
        size = sum(f.stat().st_size for f in place.iterdir())
        print(f"{chosen:<16} {size / 1024:5.0f} KB   {', '.join(f'{n} {v.shape}' for n, v in arrays.items())}")
