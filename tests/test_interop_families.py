"""Every family against its reference: outputs, gradients and the round trip (tests/reference/interop)."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unimodal.interop as interop
from unimodal.errors import UsageError
from unimodal.interop.families._refused import REFUSED
from unimodal.interop.files import SINGLE, open_source, write_file
from unimodal.interop.load import describe, families

REFERENCES = Path(__file__).parent / "reference" / "interop"
NAMES = sorted(path.parent.name for path in REFERENCES.glob("*/reference.npz"))


Arrays = dict[str, np.ndarray]


def reference(name: str) -> tuple[Arrays, Arrays, Arrays, np.ndarray | None]:
    """Inputs, outputs, gradients, and which tokens are real."""
    with np.load(REFERENCES / name / "reference.npz") as file:
        groups = {
            group: {key.removeprefix(f"{group}/"): file[key] for key in file.files if key.startswith(f"{group}/")}
            for group in ("in", "out", "grad")
        }
        return groups["in"], groups["out"], groups["grad"], file.get("valid")


def test_every_family_has_a_reference() -> None:
    """Outputs, and a digest of every gradient: `test_outputs_gradients_and_round_trip` then asks for them."""
    there = {json.loads((REFERENCES / name / "config.json").read_text())["model_type"] for name in NAMES}
    assert {kind.replace("-", "_") for kind in there} >= {kind.replace("-", "_") for kind in families()}
    assert len(families()) >= 36
    for name in NAMES:
        with np.load(REFERENCES / name / "reference.npz") as file:
            assert len(file["digested"]) == len(file["digests"]) > 0, name
    assert sum(path.stat().st_size for path in REFERENCES.rglob("*") if path.is_file()) < 8_000_000


def at_real_tokens(value: Any, valid: np.ndarray | None) -> Any:
    return value if valid is None or value.shape[:2] != valid.shape else value * valid[:, :, None].astype(value.dtype)


def scalar_loss(outputs: dict[str, jax.Array], valid: np.ndarray | None) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for _, value in sorted(outputs.items()):
        weights = np.cos(0.37 * np.arange(value.size)).astype(np.float32)
        total = total + (at_real_tokens(value, valid).reshape(-1) * weights).sum() / value.size**0.5
    return total


def digest(value: np.ndarray) -> np.ndarray:
    """A norm and four sums with fixed weights, which other gradients would not have (make_references.py)."""
    x, i = value.astype(np.float64).ravel(), np.arange(value.size)
    phase = np.sqrt([[2.0], [3.0], [5.0], [7.0]]) * (i * i + i) % 1.0
    return np.array([np.linalg.norm(x), *(np.cos(2 * np.pi * phase) @ x)])


def check_all_gradients(name: str, ours: Arrays, unread: tuple[str, ...]) -> None:
    """Every tensor's gradient against torch's, by its digest. Some are zero but for rounding (a bias of the keys)."""
    with np.load(REFERENCES / name / "reference.npz") as file:
        wanted = dict(zip(file["digested"].tolist(), file["digests"], strict=True))
    assert set(ours) == set(wanted) - set(unread)
    largest = max(wanted[key][0] for key in ours)
    for key, value in ours.items():
        error = np.abs(digest(value) - wanted[key]).max()
        assert error <= 1e-4 * wanted[key][0] + 1e-6 * largest, (key, error, wanted[key][0])


@pytest.mark.parametrize("name", NAMES)
def test_outputs_gradients_and_round_trip(name: str, tmp_path: Path) -> None:
    inputs, outputs, gradients, valid = reference(name)
    model = interop.load_huggingface(REFERENCES / name)

    def loss(model: interop.Pretrained, inputs: dict[str, jax.Array]) -> Any:
        found = model(**inputs)
        return scalar_loss({key: found[key] for key in outputs}, valid), found

    (_, found), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, inputs)
    for key, wanted in outputs.items():
        error = np.abs(at_real_tokens(np.asarray(found[key]), valid) - at_real_tokens(wanted, valid)).max()
        scale = np.abs(at_real_tokens(wanted, valid)).max()
        print(f"{name} {key}: {error:.1e} of {scale:.1e}")
        assert found[key].shape == wanted.shape
        assert error <= min(1e-4, 1e-5 * scale), (key, error)

    ours = interop.to_tensors(ours)
    for key, wanted in gradients.items():
        error = np.abs(ours[key] - wanted).max() / np.abs(wanted).max()
        print(f"{name} gradient of {key}: {error:.1e}")
        assert error <= 1e-3, key
    check_all_gradients(name, ours, model.origin.unused)

    interop.save_huggingface(model, tmp_path)
    before, after = open_source(REFERENCES / name), open_source(tmp_path)
    assert set(before.tensors) == set(after.tensors)
    for key, tensor in before.tensors.items():
        assert tensor.dtype == after.tensors[key].dtype
        assert tensor.read().tobytes() == after.tensors[key].read().tobytes(), key
    assert filecmp.cmp(REFERENCES / name / "config.json", tmp_path / "config.json", shallow=False)


# Published files are of all ages, and torch and transformers have renamed things: reference, name now → name then.
OLDER = {
    "bert_masked_lm": {r"LayerNorm\.weight": "LayerNorm.gamma", r"LayerNorm\.bias": "LayerNorm.beta"},
    "wav2vec2_ctc": {
        r"parametrizations\.weight\.original0": "weight_g",
        r"parametrizations\.weight\.original1": "weight_v",
    },
    "vit_mae": {r"decoder\.decoder_encoder\.layer": "decoder.decoder_layers"},
    "gpt2": {r"^transformer\.": ""},
}


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_window_is_read_if_all_layers_have_it(name: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(REFERENCES / name, tmp_path / name))
    config = json.loads((directory / "config.json").read_text()) | dict(use_sliding_window=True, sliding_window=4)
    for said, found in (
        (dict(layer_types=["sliding_attention"] * 2), 4),
        (dict(layer_types=None, max_window_layers=0), 4),
        (dict(layer_types=None, max_window_layers=2), None),
        (dict(layer_types=["sliding_attention"] * 2, use_sliding_window=False), None),
    ):
        (directory / "config.json").write_text(json.dumps(config | said))
        assert interop.load_huggingface(directory).backbones["text"].config.window == found
    (directory / "config.json").write_text(json.dumps(config | dict(layer_types=None, max_window_layers=1)))
    with pytest.raises(UsageError, match="config.json: a sliding window in some layers and not in others"):
        interop.load_huggingface(directory)


def test_a_model_that_sees_otherwise_than_its_config_is_not_saved(tmp_path: Path) -> None:
    model = interop.load_huggingface(REFERENCES / "mistral")
    assert model.backbones["text"].config.window == 4
    model.backbones["text"].config = replace(model.backbones["text"].config, window=3)
    with pytest.raises(UsageError, match="has window=3, global_tokens=0, but its config.json says window=4"):
        interop.save_huggingface(model, tmp_path)


@pytest.mark.parametrize("name", OLDER)
def test_names_of_older_files(name: str, tmp_path: Path) -> None:
    tensors = {key: tensor.read() for key, tensor in open_source(REFERENCES / name).tensors.items()}
    for now, then in OLDER[name].items():
        assert any(re.search(now, key) for key in tensors)
        tensors = {re.sub(now, then, key): value for key, value in tensors.items()}
    tensors["embeddings.position_ids"] = np.arange(20)[None]
    shutil.copyfile(REFERENCES / name / "config.json", tmp_path / "config.json")
    write_file(tmp_path / SINGLE, {key: (v.shape, v.dtype) for key, v in tensors.items()}, tensors.values())
    model, wanted = interop.load_huggingface(tmp_path), interop.load_huggingface(REFERENCES / name)
    assert model.origin.fresh == ()
    assert set(model.origin.unused) == {*wanted.origin.unused, "embeddings.position_ids"}
    assert [output.name for output in model.description.outputs] == [o.name for o in wanted.description.outputs]
    for ours, other in zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, other)
    interop.save_huggingface(model, tmp_path / "again")
    assert (tmp_path / "again" / SINGLE).read_bytes() == (tmp_path / SINGLE).read_bytes()


# How config.json of the published files reads: reference, fields, fields of today's form that are not in it, and what
# transformers 5.24 makes of it.
PUBLISHED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "gemma3_text",
        dict(
            num_hidden_layers=7,
            rope_theta=1000000,
            rope_local_base_freq=10000,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
            sliding_window=512,
            sliding_window_pattern=6,
        ),
        dict(
            window=512,
            window_layers=(0, 1, 2, 3, 4, 6),
            rope_theta=1e6,
            rope_scaling=(8.0,),
            window_rope_theta=1e4,
        ),
    ),
    (
        "gemma3_text",
        dict(
            num_hidden_layers=6, rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None, sliding_window=512
        ),
        dict(window=512, window_layers=(0, 1, 2, 3, 4), rope_theta=1e6, rope_scaling=None, window_rope_theta=1e4),
    ),
    (
        "gemma2",
        dict(num_hidden_layers=3, rope_theta=10000.0, sliding_window=4096, attn_logit_softcapping=50.0),
        dict(window=4096, window_layers=(0, 2), rope_theta=1e4, window_rope_theta=None, attention_soft_cap=50.0),
    ),
    (
        "gemma2",
        dict(num_hidden_layers=1, sliding_window=4096, attn_logit_softcapping=None),
        dict(window=4096, window_layers=None, attention_soft_cap=None),
    ),
    (
        "modernbert_masked_lm",
        dict(
            num_hidden_layers=7,
            global_rope_theta=160000.0,
            local_rope_theta=20000.0,
            global_attn_every_n_layers=3,
            local_attention=128,
        ),
        dict(window=65, window_layers=(1, 2, 4, 5), rope_theta=160000.0, window_rope_theta=20000.0),
    ),
    (
        "smollm3",
        dict(
            num_hidden_layers=5, rope_theta=5000000.0, rope_scaling=None, no_rope_layer_interval=4, no_rope_layers=None
        ),
        dict(rope_theta=5e6, rope_layers=(0, 1, 2, 4), window=None, window_layers=None),
    ),
    (
        "smollm3",
        dict(num_hidden_layers=3, no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=8),
        dict(rope_layers=(1, 2), window=8, window_layers=(0,)),
    ),
    ("mpnet_masked_lm", dict(pad_token_id=0), dict(relative_buckets=32, relative_distance=128)),
]


@pytest.mark.parametrize(("name", "published", "wanted"), PUBLISHED)
def test_config_as_published(name: str, published: dict[str, Any], wanted: dict[str, Any]) -> None:
    source = open_source(REFERENCES / name)
    today = ("layer_types", "rope_parameters", "_sliding_window_pattern")
    config = {key: value for key, value in source.config.items() if key not in today} | published
    (tower,) = describe(replace(source, config_text=json.dumps(config))).towers
    assert {field: getattr(tower.backbone, field) for field in wanted} == wanted
    assert tower.pad_id in (None, 1)


def test_layer_types_are_checked() -> None:
    source = open_source(REFERENCES / "gemma2")
    for kinds, line in (
        (["full_attention"], "layer_types are 1, but num_hidden_layers is 2"),
        (["full_attention", "chunked_attention"], "layer_types has 'chunked_attention', but only full_attention and"),
    ):
        with pytest.raises(UsageError, match=line):
            describe(replace(source, config_text=json.dumps(dict(source.config, layer_types=kinds))))


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_near_families_are_refused_with_their_reason(kind: str) -> None:
    source = open_source(REFERENCES / "bert_base")
    with pytest.raises(UsageError, match=rf"model_type '{kind}' does not load: \w+"):
        describe(replace(source, config_text=json.dumps(dict(source.config, model_type=kind))))
    assert kind not in families()


@pytest.mark.parametrize(
    ("pooling", "modules", "line"),
    [
        ({"pooling_mode_max_tokens": True}, [], "pooling_mode_max_tokens=True is not supported, only False"),
        ({"pooling_mode_mean_tokens": False}, [], "should turn on one of pooling_mode_mean_tokens, .*but turns on 0"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "turns on 2"),
        (
            {"pooling_mode_mean_tokens": True},
            ["models.Dense"],
            "modules.json: Dense after the pooling is not supported",
        ),
    ],
)
def test_other_sentence_embeddings_are_refused(
    pooling: dict[str, bool], modules: list[str], line: str, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(REFERENCES / "minilm_sentence", tmp_path / "sentence"))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = [f"sentence_transformers.{kind}" for kind in ("models.Transformer", "models.Pooling", *modules)]
    (directory / "modules.json").write_text(json.dumps([{"idx": i, "type": kind} for i, kind in enumerate(kinds)]))
    with pytest.raises(UsageError, match=line):
        interop.load_huggingface(directory)


def test_any_encoder_of_text_may_be_a_sentence_transformer(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(REFERENCES / "distilbert_masked_lm", tmp_path / "sentence"))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    inputs, outputs, _, _ = reference("distilbert_masked_lm")
    found = interop.load_huggingface(directory)(**inputs)
    last = inputs["text_mask"].sum(axis=1) - 1
    np.testing.assert_allclose(found["pooled"], outputs["hidden"][np.arange(2), last], rtol=1e-5, atol=1e-5)
