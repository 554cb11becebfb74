"""A published checkpoint that is spoilt loads or is refused in one line: no traceback, and no hang."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spoil import spoil

from unimodal.errors import UsageError
from unimodal.interop.files import INDEX, open_source
from unimodal.interop.load import describe, prepare

REFERENCES = Path(__file__).parents[1] / "reference" / "interop"


def configured(**fields: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def entry(**fields: Any) -> Callable[[Path], None]:
    """The first tensor's entry in the header, changed."""

    def change(directory: Path) -> None:
        path = directory / "model.safetensors"
        content = path.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        header[next(name for name in header if name != "__metadata__")].update(fields)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])

    return change


def index(directory: Path) -> None:
    names = open_source(directory).tensors
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))


CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a dict for a dtype": ("bert_base", entry(dtype={"a": 1}), "does not say dtype, shape and data_offsets"),
    "a word for a size": ("bert_base", entry(shape=["32"]), "does not say dtype, shape and data_offsets"),
    "a negative size": ("bert_base", entry(shape=[-1, -64]), "does not take the"),
    "a vocabulary of -1": ("bert_base", configured(vocab_size=-1), "vocab_size should be a whole number above 0"),
    "a word for a count": (
        "bert_base",
        configured(num_hidden_layers="2"),
        "num_hidden_layers should be a whole number",
    ),
    "1e20 layers": ("bert_base", configured(num_hidden_layers=1e20), "num_hidden_layers should be a whole number"),
    "10**20 layers": ("llama", configured(num_hidden_layers=10**20), "num_hidden_layers should be a whole number"),
    "9,999 layers": (
        "llama",
        configured(num_hidden_layers=9_999),
        "the model has 9999 layers, but the files hold only",
    ),
    "2**40 positions": ("bert_base", configured(max_position_embeddings=2**40), "is too large a number"),
    "NaN": ("bert_base", configured(layer_norm_eps=float("nan")), "layer_norm_eps=nan should be a finite number"),
    "true for a count": ("bert_base", configured(type_vocab_size=True), "type_vocab_size=True should be a int"),
    "a number of classes": ("bert_untied", configured(architectures=2), "architectures=2 should be a list"),
    "no groups": (
        "wav2vec2_base",
        configured(num_conv_pos_embedding_groups=0),
        "groups should be a whole number above 0",
    ),
    "no strides": ("wav2vec2_base", configured(conv_stride=[0] * 7), "should be a list of whole numbers above 0"),
    "a shard elsewhere": ("bert_base", index, "names '../elsewhere.safetensors', which is no file of"),
    "a number of 5,000 digits": (
        "bert_base",
        lambda d: (d / "config.json").write_text('{"model_type": "bert", "vocab_size": ' + "9" * 5000 + "}") and None,
        "config.json is not JSON",
    ),
    "brackets without end": (
        "bert_base",
        lambda d: (d / "config.json").write_text("[" * 100_000) and None,
        "config.json is not JSON",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    family, change, line = CASES[name]
    directory = Path(shutil.copytree(REFERENCES / family, tmp_path / family))
    change(directory)
    with pytest.raises(UsageError) as caught:
        describe(open_source(directory))
    assert line in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_some_spoilt_directories(tmp_path: Path) -> None:
    sources = sorted(path.parent for path in REFERENCES.glob("*/model.safetensors"))
    assert len(sources) > 50
    refused = 0
    for number in range(12):  # thousands in `python -m benchmarks.chaos`
        what = spoil(random.Random(number).choice(sources), tmp_path / "spoilt", random.Random(number))
        try:
            prepare(tmp_path / "spoilt")
        except UsageError as error:
            refused += 1
            assert "\n" not in str(error), what
    assert 0 < refused < 12
