"""One `Backbone`, eight published architectures: hidden states and every gradient against Hugging Face's own modules.

The files in `reference/model/` hold tiny randomly initialised models (see `make_references.py` there). A family is a
config of ours and a table of names; its gradients pass through the same table as its weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import named, quick

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.heads import pool
from unimodal.sharding import path_name
from unimodal.tokenizers import audio, image, text

Arrays = dict[str, np.ndarray]
REFERENCES = Path(__file__).parent / "reference/model"
SIZES = dict(width=12, depth=2, heads=3, mlp_width=20, scan=False)
IMAGE = dict(image_size=(8, 8), patch=4)
AUDIO = dict(channels=12, kernels=(10, 3, 2), strides=(5, 2, 2), position_groups=4)


def linear(w: Arrays, ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Arrays:
    """torch.nn.Linear keeps [outputs, inputs]."""
    found = {f"{ours}.kernel": w[f"{theirs}.weight"].T.reshape(*inputs, *outputs)}
    if f"{theirs}.bias" in w:
        found[f"{ours}.bias"] = w[f"{theirs}.bias"].reshape(outputs)
    return found


def norm(w: Arrays, ours: str, theirs: str) -> Arrays:
    found = {f"{ours}.scale": w[f"{theirs}.weight"]}
    if f"{theirs}.bias" in w:
        found[f"{ours}.bias"] = w[f"{theirs}.bias"]
    return found


def blocks(w: Arrays, config: BackboneConfig, prefix: str, names: Mapping[str, str]) -> Arrays:
    """All layers, given their name of each of our parts."""
    D, H, G, K, M = config.width, config.heads, config.G, config.K, config.M
    shapes = {
        "attention.query": ((D,), (H, K)),
        "attention.key": ((D,), (G, K)),
        "attention.value": ((D,), (G, K)),
        "attention.output": ((H, K), (D,)),
        "mlp.gate": ((D,), (M,)),
        "mlp.up": ((D,), (M,)),
        "mlp.down": ((M,), (D,)),
    }
    found: Arrays = {}
    for i in range(config.depth):
        for ours, theirs in names.items():
            place = f"backbone.layers.{i}.{ours}", f"{prefix}.{i}.{theirs}"
            found |= linear(w, *place, *shapes[ours]) if ours in shapes else norm(w, *place)
    return found


def bert(w: Arrays, config: BackboneConfig) -> Arrays:
    names = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    return {
        "tokenizer.table.table": w["embeddings.word_embeddings.weight"],
        "tokenizer.position_table.table": w["embeddings.position_embeddings.weight"],
        "tokenizer.type_table.table": w["embeddings.token_type_embeddings.weight"],
        **norm(w, "tokenizer.norm", "embeddings.LayerNorm"),
        **blocks(w, config, "encoder.layer", names),
    }


def gpt2(w: Arrays, config: BackboneConfig) -> Arrays:
    """GPT-2 keeps [inputs, outputs], and query, key and value in one."""
    split: Arrays = {}
    for name, value in w.items():
        value = value.T if value.ndim == 2 and name.startswith("h.") else value
        if "c_attn" in name:
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                split[name.replace("c_attn", part)] = piece
        else:
            split[name] = value
    names = {
        "attention_norm": "ln_1",
        "attention.query": "attn.q",
        "attention.key": "attn.k",
        "attention.value": "attn.v",
        "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    return {
        "tokenizer.table.table": w["wte.weight"],
        "tokenizer.position_table.table": w["wpe.weight"],
        **norm(w, "backbone.final_norm", "ln_f"),
        **blocks(split, config, "h", names),
    }


def attention_names(module: str, output: str) -> dict[str, str]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": output}
    return {f"attention.{ours}": f"{module}.{theirs}" for ours, theirs in parts.items()}


def llama(w: Arrays, config: BackboneConfig) -> Arrays:
    names = attention_names("self_attn", "o_proj") | {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    return {
        "tokenizer.table.table": w["embed_tokens.weight"],
        **norm(w, "backbone.final_norm", "norm"),
        **blocks(w, config, "layers", names),
    }


def patches(w: Arrays, theirs: str) -> Arrays:
    """Conv2d keeps [D, channel, row, column]; our patches are row, column, channel."""
    kernel = w[f"{theirs}.weight"].transpose(2, 3, 1, 0)
    found = {"tokenizer.projection.kernel": kernel.reshape(-1, kernel.shape[-1])}
    return found | ({"tokenizer.projection.bias": w[f"{theirs}.bias"]} if f"{theirs}.bias" in w else {})


def vit(w: Arrays, config: BackboneConfig) -> Arrays:
    names = attention_names("attention", "o_proj") | {
        "attention_norm": "layernorm_before",
        "mlp_norm": "layernorm_after",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
    }
    return {
        "tokenizer.registers.table": w["embeddings.cls_token"][0],
        "tokenizer.position_table.table": w["embeddings.position_embeddings"][0],
        **patches(w, "embeddings.patch_embeddings.projection"),
        **norm(w, "backbone.final_norm", "layernorm"),
        **blocks(w, config, "layers", names),
    }


CLIP_BLOCK = attention_names("self_attn", "out_proj") | {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def clip_vision(w: Arrays, config: BackboneConfig) -> Arrays:
    return {
        "tokenizer.registers.table": w["embeddings.class_embedding"][None],
        "tokenizer.position_table.table": w["embeddings.position_embedding.weight"],
        **patches(w, "embeddings.patch_embedding"),
        **norm(w, "tokenizer.norm", "pre_layrnorm"),
        **norm(w, "backbone.final_norm", "post_layernorm"),
        **blocks(w, config, "encoder.layers", CLIP_BLOCK),
    }


def clip_text(w: Arrays, config: BackboneConfig) -> Arrays:
    return {
        "tokenizer.table.table": w["embeddings.token_embedding.weight"],
        "tokenizer.position_table.table": w["embeddings.position_embedding.weight"],
        **norm(w, "backbone.final_norm", "final_layer_norm"),
        **blocks(w, config, "encoder.layers", CLIP_BLOCK),
    }


def wav2vec2(w: Arrays, config: BackboneConfig) -> Arrays:
    names = attention_names("attention", "out_proj") | {
        "attention_norm": "layer_norm",
        "mlp_norm": "final_layer_norm",
        "mlp.up": "feed_forward.intermediate_dense",
        "mlp.down": "feed_forward.output_dense",
    }
    found: Arrays = {}
    for i in range(len(AUDIO["kernels"])):
        ours, theirs = f"tokenizer.convolutions.{i}", f"feature_extractor.conv_layers.{i}"
        found[f"{ours}.kernel"] = w[f"{theirs}.conv.weight"].transpose(2, 1, 0)
        if f"{theirs}.conv.bias" in w:
            found[f"{ours}.bias"] = w[f"{theirs}.conv.bias"]
        if f"{theirs}.layer_norm.weight" in w:
            found |= norm(w, f"{ours}.norm", f"{theirs}.layer_norm")
    position, D = "encoder.pos_conv_embed.conv", config.width
    return {
        **found,
        **norm(w, "tokenizer.feature_norm", "feature_projection.layer_norm"),
        **linear(w, "tokenizer.projection", "feature_projection.projection", (12,), (D,)),
        "tokenizer.mask_embedding": np.zeros(D, np.float32),  # unused, and so is its gradient
        "tokenizer.position.magnitude": w[f"{position}.parametrizations.weight.original0"][0, 0],
        "tokenizer.position.direction": w[f"{position}.parametrizations.weight.original1"].transpose(2, 1, 0),
        "tokenizer.position.bias": w[f"{position}.bias"],
        **norm(w, "backbone.final_norm" if config.final_norm else "tokenizer.norm", "encoder.layer_norm"),
        **blocks(w, config, "encoder.layers", names),
    }


def from_text(parts: nnx.Dict, given: dict[str, jax.Array], **options: Any) -> jax.Array:
    made = parts["tokenizer"](given["input_ids"], segment=given.get("attention_mask"), **options)
    return parts["backbone"](made)[0]


def from_audio(parts: nnx.Dict, given: dict[str, jax.Array]) -> jax.Array:
    lengths = given["attention_mask"].sum(axis=1, dtype=jnp.int32)
    return parts["backbone"](parts["tokenizer"](given["input_values"], lengths=lengths))[0]


def from_pixels(parts: nnx.Dict, given: dict[str, jax.Array]) -> jax.Array:
    return parts["backbone"](parts["tokenizer"](given["pixel_values"].transpose(0, 2, 3, 1)))[0]


@dataclass(frozen=True)
class Family:
    tokenizer: Any
    backbone: BackboneConfig
    names: Callable[[Arrays, BackboneConfig], Arrays]
    forward: Callable[[nnx.Dict, dict[str, jax.Array]], jax.Array]


FAMILIES = {
    "bert": Family(
        text.Config(20, max_length=12, types=2, norm=True, norm_epsilon=1e-12),
        BackboneConfig(**SIZES, norm_position="post", norm_epsilon=1e-12, final_norm=False),
        bert,
        lambda parts, given: from_text(parts, given, types=given["token_type_ids"]),
    ),
    "gpt2": Family(
        text.Config(20, max_length=12),
        BackboneConfig(**SIZES, norm_epsilon=1e-5, activation="gelu_tanh"),
        gpt2,
        lambda parts, given: from_text(parts, given, causal=True),
    ),
    "llama": Family(
        text.Config(20),
        BackboneConfig(
            **SIZES | dict(width=16, heads=4, kv_heads=2),
            norm="rms",
            activation="swiglu",
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
            rope_theta=10_000.0,
        ),
        llama,
        lambda parts, given: from_text(parts, given, causal=True),
    ),
    "vit": Family(image.Config(**IMAGE), BackboneConfig(**SIZES, norm_epsilon=1e-12), vit, from_pixels),
    "clip_vision": Family(
        image.Config(**IMAGE, bias=False, norm=True, norm_epsilon=1e-5),
        BackboneConfig(**SIZES, norm_epsilon=1e-5, activation="quick_gelu"),
        clip_vision,
        lambda parts, given: pool(from_pixels(parts, given), "first"),
    ),
    "clip_text": Family(
        text.Config(20, max_length=12),
        BackboneConfig(**SIZES, norm_epsilon=1e-5, activation="quick_gelu"),
        clip_text,
        lambda parts, given: from_text(parts, given, causal=True),
    ),
    "wav2vec2": Family(
        audio.Config(**AUDIO, position_kernel=6),
        BackboneConfig(**SIZES, norm_position="post", norm_epsilon=1e-5, final_norm=False),
        wav2vec2,
        from_audio,
    ),
    "wav2vec2_stable": Family(
        audio.Config(**AUDIO, position_kernel=5, conv_norm="layer", conv_bias=True, norm=False),
        BackboneConfig(**SIZES, norm_epsilon=1e-5),
        wav2vec2,
        from_audio,
    ),
}


def build(family: Family, weights: Arrays) -> nnx.Dict:
    """The family's parts holding exactly these weights: none missing, none left over."""
    kind = {text.Config: text, image.Config: image, audio.Config: audio}[type(family.tokenizer)]

    def make() -> nnx.Dict:
        tokenizer = kind.Tokenizer(family.tokenizer, family.backbone.width, rngs=nnx.Rngs(0))
        return nnx.Dict(tokenizer=tokenizer, backbone=Backbone(family.backbone, rngs=nnx.Rngs(0)))

    left = dict(weights)

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = left.pop(path_name(path))
        assert value.shape == leaf.shape, path_name(path)
        return jnp.asarray(value)

    filled = jax.tree_util.tree_map_with_path(place, jax.eval_shape(make))
    assert not left
    return filled


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_gradients_equal_hugging_face(name):
    family, file = FAMILIES[name], dict(np.load(REFERENCES / f"{name}.npz", allow_pickle=False))

    def part(group: str) -> Arrays:
        return {key.removeprefix(f"{group}/"): file[key] for key in file if key.startswith(f"{group}/")}

    parts = build(family, family.names(part("weight"), family.backbone))
    given = {k: jnp.asarray(v if v.dtype.kind == "f" else v.astype(np.int32)) for k, v in part("in").items()}
    probe = jnp.asarray(file["probe"])

    def loss(parts: nnx.Dict) -> tuple[jax.Array, jax.Array]:
        hidden = family.forward(parts, given)
        return (hidden * probe).sum(), hidden

    (_, hidden), grads = quick(jax.value_and_grad(loss, has_aux=True))(parts)
    real = file["probe"] != 0  # padding may say what it likes
    assert real.mean() > 0.5
    want = file["hidden"][real]
    np.testing.assert_allclose(np.asarray(hidden)[real], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())

    expected = family.names(part("grad"), family.backbone)
    got = named(grads)
    assert got.keys() == expected.keys()
    for key, gradient in got.items():
        # A key's bias shifts all of a query's scores alike: its gradient is rounding errors, of the size of its kernel's.
        beside = np.abs(expected[key.replace("key.bias", "key.kernel")]).max()
        largest = max(np.abs(expected[key]).max(), 1e-2 * beside if key.endswith("key.bias") else 1e-2)
        np.testing.assert_allclose(gradient, expected[key], rtol=1e-4, atol=1e-4 * largest, err_msg=key)
