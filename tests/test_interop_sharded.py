"""Checkpoints read straight into shards: no device holds a whole large parameter, and the numbers are those of one."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unimodal.interop as interop
from unimodal.interop import load
from unimodal.interop.files import SINGLE, Tensor, open_source, write_file
from unimodal.interop.match import named_leaves
from unimodal.sharding import make_mesh

REFERENCES = Path(__file__).parent / "reference" / "interop"
MESHES = {"fsdp=8": dict(fsdp=8), "tensor=2,fsdp=4": dict(tensor=2, fsdp=4), "data=4,fsdp=2": dict(data=4, fsdp=2)}
LARGE = 16 * 2**10  # bytes; what is smaller may be on every device


def mesh(**sizes: int) -> Any:
    return make_mesh(**{"data": 1, **sizes})


def inputs_of(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCES / name / "reference.npz") as file:
        return {key.removeprefix("in/"): file[key] for key in file.files if key.startswith("in/")}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 1.3 MB of random numbers, wide enough that what cannot be split does not matter."""
    directory = tmp_path_factory.mktemp("wide")
    width, depth, mlp, vocabulary = 64, 4, 128, 512
    config = dict(
        model_type="llama",
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=8,
        intermediate_size=mlp,
        vocab_size=vocabulary,
    )
    (directory / "config.json").write_text(json.dumps(config))
    layer = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    layer |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(depth) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes |= {"lm_head.weight": (vocabulary, width)}
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in shapes.values())
    write_file(directory / SINGLE, {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}, values)
    return directory


def test_each_device_holds_an_eighth(wide: Path) -> None:
    model = interop.load_huggingface(wide, mesh=mesh(fsdp=8))
    held: Counter[Any] = Counter()
    total = 0
    for name, leaf in named_leaves(model).items():
        total += leaf.nbytes
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
            assert leaf.nbytes < LARGE or shard.data.nbytes == leaf.nbytes // 8, name
    assert total == sum(math.prod(t.shape) * 4 for t in open_source(wide).tensors.values())
    assert len(held) == 8
    assert max(held.values()) < 1.03 * total / 8
    one = interop.load_huggingface(wide)
    assert {device for leaf in jax.tree.leaves(one) for device in leaf.devices()} == {jax.devices()[0]}


def test_no_host_buffer_is_larger_than_one_parameter(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # And each tensor of the file is mapped once, however many shards it goes to.
    opened: list[str] = []
    read, empty = Tensor.read, np.empty
    sizes: list[int] = []

    def counted(tensor: Tensor) -> np.ndarray:
        opened.append(tensor.name)
        return read(tensor)

    def measured(shape: Any, *rest: Any) -> np.ndarray:
        made = empty(shape, *rest)
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(Tensor, "read", counted)
    monkeypatch.setattr(load.np, "empty", measured)
    model = interop.load_huggingface(wide, mesh=mesh(fsdp=8))
    assert sorted(opened) == sorted(open_source(wide).tensors)
    assert max(sizes) <= max(leaf.nbytes for leaf in jax.tree.leaves(model)) // 8 + 64  # to be aligned


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("name", ["llama", "clip", "wav2vec2_pretraining", "siglip", "gpt2"])
def test_every_mesh_reads_the_same_numbers(name: str, sizes: str) -> None:
    whole, parts = (interop.load_huggingface(REFERENCES / name, mesh=m) for m in (None, mesh(**MESHES[sizes])))
    split = 0
    for path, leaf in named_leaves(parts).items():
        np.testing.assert_array_equal(leaf, named_leaves(whole)[path], err_msg=path)
        split += not leaf.is_fully_replicated
    assert split > len(named_leaves(parts)) // 3


@pytest.mark.parametrize("name", ["llama", "clip", "wav2vec2_base"])
def test_the_outputs_are_those_of_one_device(name: str, tmp_path: Path) -> None:
    # Fully sharded: weights are gathered for each product, so only the order of sums may differ.
    inputs, devices = inputs_of(name), mesh(fsdp=8)
    run = jax.jit(lambda model, inputs: model(**inputs))
    wanted = run(interop.load_huggingface(REFERENCES / name), inputs)
    model = interop.load_huggingface(REFERENCES / name, mesh=devices)
    with jax.set_mesh(devices):
        found = run(model, inputs)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    interop.save_huggingface(model, tmp_path)
    assert (tmp_path / SINGLE).read_bytes() == (REFERENCES / name / SINGLE).read_bytes()


def test_another_dtype_is_cast_while_reading() -> None:
    half = interop.load_huggingface(REFERENCES / "llama", dtype=jnp.bfloat16, mesh=mesh(fsdp=8))
    full = named_leaves(interop.load_huggingface(REFERENCES / "llama"))
    for path, leaf in named_leaves(half).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, full[path].astype(jnp.bfloat16), err_msg=path)
    assert half(text=inputs_of("llama")["text"])["logits"].dtype == jnp.bfloat16
