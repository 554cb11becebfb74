"""What is wrong with a checkpoint is said in one line that names file and tensor, before a weight is read."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import unimodal.interop as interop
from unimodal.errors import UsageError
from unimodal.interop.files import INDEX, SINGLE, Tensor, open_source, write_file

REFERENCES = Path(__file__).parent / "reference" / "interop"
KEY = "encoder.layer.1.attention.self.key.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a good one, to be spoilt."""
    return Path(shutil.copytree(REFERENCES / "bert_base", tmp_path / "bert"))


def write(directory: Path, tensors: dict[str, np.ndarray], file: str = SINGLE) -> None:
    described = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    write_file(directory / file, described, tensors.values())


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.read()) for name, tensor in open_source(directory).tensors.items()}


def configure(**fields: object) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / "config.json"
        values = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def cut(end: int) -> Callable[[Path], None]:
    """Keep so many bytes of the weights (or, if negative, lose so many)."""

    def spoil(directory: Path) -> None:
        path = directory / SINGLE
        path.write_bytes(path.read_bytes()[:end])

    return spoil


def without(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        tensors = tensors_of(directory)
        del tensors[name]
        write(directory, tensors)

    return spoil


def reshaped(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        write(directory, {**tensors_of(directory), name: np.zeros(shape, np.float32)})

    return spoil


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """The header after `change`, the bytes behind it as they were."""

    def spoil(directory: Path) -> None:
        path = directory / SINGLE
        data = path.read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8:end])
        changed = change(entries)
        text = json.dumps(entries if changed is None else changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return spoil


def sharded(directory: Path) -> dict[str, str]:
    """The weights as two files and their index."""
    tensors = tensors_of(directory)
    names, half = list(tensors), len(tensors) // 2
    files = {"one.safetensors": names[:half], "two.safetensors": names[half:]}
    for file, group in files.items():
        write(directory, {name: tensors[name] for name in group}, file)
    where = {name: file for file, group in files.items() for name in group}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / SINGLE).unlink()
    return where


def lose_shard(directory: Path) -> None:
    sharded(directory)
    (directory / "two.safetensors").unlink()


def cut_shard(directory: Path) -> None:
    sharded(directory)
    path = directory / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_index(directory: Path) -> None:
    sharded(directory)
    (directory / INDEX).write_text('{"weight_map": ["one.safetensors"]}')


def replaced_by(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / SINGLE).rename(directory / name)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def fill(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    # what is done to the checkpoint → what the line must say
    "no config": (remove("config.json"), ("bert has no config.json",)),
    "config is not JSON": (fill("config.json", b'{"hidden_size": 32,'), ("config.json is not JSON",)),
    "config is binary": (fill("config.json", b"\xff\xfe\x00"), ("config.json is not JSON",)),
    "config is a list": (fill("config.json", b"[1]"), ("config.json should hold a JSON object",)),
    "no model_type": (configure(model_type=None), ("config.json has no model_type",)),
    "unknown model_type": (configure(model_type="robertta"), ("config.json", "'robertta'", "did you mean roberta?")),
    "far model_type": (configure(model_type="xyz"), ("config.json", "'xyz' is not supported; there is albert, audio_", "whisper")),
    "unknown activation": (configure(hidden_act="gelu_nwe"), ("config.json", "hidden_act='gelu_nwe'", "gelu_new?")),
    "missing field": (configure(hidden_size=None), ("config.json", "hidden_size should be a whole number")),
    "field of a wrong type": (configure(layer_norm_eps="small"), ("config.json", "layer_norm_eps='small'", "float")),
    "unsupported positions": (
        configure(position_embedding_type="relative_key"),
        ("config.json", "position_embedding_type='relative_key' is not supported, only 'absolute'"),
    ),
    "heads do not divide": (configure(num_attention_heads=5), ("width=32 is not divisible by heads=5",)),
    "no weights": (remove(SINGLE), (f"has no {SINGLE} and no {INDEX}",)),
    "empty file": (cut(0), (SINGLE, "0 bytes", "fetch it again")),
    "cut in the header": (cut(100), (SINGLE, "truncated", "100 bytes")),
    "cut in a tensor": (cut(-100), (SINGLE, "is truncated", "but tensor pooler.dense.weight ends at byte")),
    "not safetensors": (fill(SINGLE, struct.pack("<Q", 4) + b"\x80abc" + b"0" * 9), (SINGLE, "is not a safetensors file")),
    "a page instead": (fill(SINGLE, b"<!DOCTYPE html><html>404</html>"), (SINGLE, "no safetensors file")),
    "header without fields": (header(lambda entries: entries[KEY].pop("shape") and None), (SINGLE, KEY, "does not say")),
    "header is a list": (header(lambda entries: [1, 2]), (SINGLE, "no JSON object")),
    "unknown type": (header(lambda entries: entries[KEY].update(dtype="F4")), (SINGLE, KEY, "the type F4", "BF16")),
    "size and shape differ": (header(lambda entries: entries[KEY].update(shape=[32, 31])), (SINGLE, KEY, "(32, 31)")),
    "missing tensor": (without(KEY), (f"bert/{SINGLE} lacks the tensor {KEY}", "attention.key.kernel")),
    "more layers than there are": (
        configure(num_hidden_layers=3),
        (f"bert/{SINGLE} lacks the tensor encoder.layer.2.attention.self.query.weight",),
    ),
    "unexpected shape": (reshaped(KEY, (32, 30)), (f"bert/{SINGLE}: tensor {KEY} has the shape (32, 30)", "(32, 4, 8)")),
    "transposed": (
        reshaped("encoder.layer.0.intermediate.dense.weight", (32, 48)),
        ("encoder.layer.0.intermediate.dense.weight has the shape (32, 48)", "(32, 48) that config.json asks for"),
    ),
    "another vocabulary": (configure(vocab_size=62), ("embeddings.word_embeddings.weight", "(61, 32)", "(62, 32)")),
    "only a pickle": (
        replaced_by("pytorch_model.bin"),
        ("holds pytorch_model.bin", "can run any code", "python -c", "torch.load('pytorch_model.bin', map_location='cpu', weights_only=True)"),
    ),
    "only a .pt": (replaced_by("weights.pt"), ("holds weights.pt", "can run any code", "python -c", "model.safetensors")),
    "missing shard": (lose_shard, ("two.safetensors is missing", INDEX, "names it for encoder.layer.")),
    "truncated shard": (cut_shard, ("two.safetensors is truncated", "tensor pooler.dense.weight")),
    "index without a map": (empty_index, (INDEX, "has no weight_map")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_before_any_weight_is_read(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, wanted = CASES[name]
    spoil(checkpoint)
    monkeypatch.setattr(Tensor, "read", lambda tensor: pytest.fail(f"{tensor.name} was read"))
    with pytest.raises(UsageError) as error:
        interop.load_huggingface(checkpoint)
    line = str(error.value)
    assert "\n" not in line
    assert all(part in line for part in wanted), line


@pytest.mark.parametrize("path", ["nowhere", "./no/where", "/nowhere/at/all", "~/nowhere/at/all"])
def test_wrong_directory(path: str) -> None:
    with pytest.raises(UsageError, match="is not a directory; give one with config.json and model.safetensors"):
        interop.load_huggingface(path)


def test_a_file_is_no_directory(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="model.safetensors is not a directory; give one with"):
        interop.load_huggingface(checkpoint / SINGLE)


def test_tied_tensors_that_differ(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(REFERENCES / "smollm", tmp_path / "smollm"))
    tensors = tensors_of(directory)
    table = tensors["model.embed_tokens.weight"]
    write(directory, {**tensors, "lm_head.weight": table})
    interop.load_huggingface(directory)
    write(directory, {**tensors, "lm_head.weight": table + 1})
    with pytest.raises(UsageError, match=r"model.safetensors: tensor lm_head.weight differs from model.embed_tokens"):
        interop.load_huggingface(directory)


def test_unread_and_fresh_tensors_are_named(checkpoint: Path) -> None:
    write(checkpoint, {**tensors_of(checkpoint), "embeddings.position_ids": np.arange(20)[None]})
    assert interop.load_huggingface(checkpoint).origin.unused == ("embeddings.position_ids",)
    speech = interop.load_huggingface(REFERENCES / "hubert_ctc")
    assert speech.origin.unused == speech.origin.fresh == ()


def test_several_files_load_and_save_as_they_were(checkpoint: Path, tmp_path: Path) -> None:
    whole = interop.load_huggingface(checkpoint)
    where = sharded(checkpoint)
    parts = interop.load_huggingface(checkpoint)
    ids = jnp.arange(3, 10)[None]
    np.testing.assert_array_equal(whole(text=ids)["hidden"], parts(text=ids)["hidden"])
    interop.save_huggingface(parts, tmp_path / "again")
    assert json.loads((tmp_path / "again" / INDEX).read_text())["weight_map"] == where
    for file in ("one.safetensors", "two.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (checkpoint / file).read_bytes()
    assert not (tmp_path / "again" / SINGLE).exists()
    interop.save_huggingface(parts, tmp_path / "again")  # of the same files, which it replaces
    interop.save_huggingface(parts, checkpoint)  # and over itself
    # The index of the parts would have their weights read in the place of these.
    with pytest.raises(UsageError, match=f"holds {INDEX} of another checkpoint"):
        interop.save_huggingface(whole, tmp_path / "again")
    interop.save_huggingface(whole, tmp_path / "whole")
    with pytest.raises(UsageError, match=f"holds {SINGLE} of another checkpoint"):
        interop.save_huggingface(parts, tmp_path / "whole")


def test_a_model_is_called_with_what_it_takes() -> None:
    model = interop.load_huggingface(REFERENCES / "bert_base")
    ids = jnp.ones((1, 5), jnp.int32)
    for arguments, line in (
        ({}, "give the model its input: text="),
        ({"image": jnp.zeros((1, 8, 8, 3))}, "this checkpoint takes text, not image"),
        ({"text": ids[0]}, r"text should be ids \[B,T\] of whole numbers, but is int32\[5\]"),
        ({"text": jnp.ones((1, 5))}, r"text should be ids \[B,T\] of whole numbers, but is float32\[1, 5\]"),
        ({"text": jnp.ones((1, 21), jnp.int32)}, "text of 21 tokens is longer than the 20 places"),
    ):
        with pytest.raises(UsageError, match=line):
            model(**arguments)
