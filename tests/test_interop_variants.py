"""Variants of published checkpoints: what config.json says is done, or refused in one line; nothing goes unread in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unimodal.interop as interop
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields
from unimodal.interop.families.llama import rope_scaling, rope_theta
from unimodal.interop.files import SINGLE, open_source, write_file
from unimodal.interop.start import start_from

REFERENCES = Path(__file__).parent / "reference" / "interop"
Tensors = dict[str, np.ndarray]
EXTRA = np.zeros((4, 4), np.float32)


def changed(
    name: str, directory: Path, tensors: Tensors | None = None, config: dict[str, object] | None = None
) -> Path:
    """A copy of a reference with other fields and more tensors."""
    target = Path(shutil.copytree(REFERENCES / name, directory / name))
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    found = {key: np.array(tensor.read()) for key, tensor in open_source(target).tensors.items()}
    found |= tensors or {}
    write_file(target / SINGLE, {key: (v.shape, v.dtype) for key, v in found.items()}, found.values())
    return target


# The spellings of Llama 3's rotary positions that are about, and what transformers reads in them: an older `rope_scaling`
# wins, base and all; a length that stands outside wins; without any length, that of today is meant.
STRETCH = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPES: dict[str, tuple[dict[str, object], float, tuple[float, ...] | None]] = {
    "inside": (dict(rope_scaling=STRETCH | dict(original_max_position_embeddings=16)), 1e4, (8, 1, 4, 16)),
    "missing": (dict(rope_scaling=STRETCH, rope_theta=500.0), 500.0, (8, 1, 4, 64)),
    "outside": (dict(rope_scaling=STRETCH, original_max_position_embeddings=12), 1e4, (8, 1, 4, 12)),
    "both": (
        dict(rope_scaling=STRETCH | dict(original_max_position_embeddings=16), original_max_position_embeddings=12),
        1e4,
        (8, 1, 4, 12),
    ),
    "beside": (
        dict(rope_scaling=STRETCH, rope_parameters=dict(rope_type="default", rope_theta=77.0), rope_theta=500.0),
        500.0,
        (8, 1, 4, 64),
    ),
    "newer": (dict(rope_parameters=STRETCH | dict(rope_theta=77.0), rope_theta=500.0), 77.0, (8, 1, 4, 64)),
    "old name": (dict(rope_scaling=dict(type="linear", factor=3.0)), 1e4, (3,)),
    "empty": (dict(rope_scaling={}, rope_parameters=dict(rope_theta=77.0)), 77.0, None),
    "none": (dict(rope_scaling=None, rope_theta=77), 77.0, None),
}


@pytest.mark.parametrize("name", ROPES)
def test_spellings_of_rotary_positions(name: str) -> None:
    values, theta, scaling = ROPES[name]
    config = Fields(values | dict(max_position_embeddings=64), "config.json")
    assert rope_theta(config) == theta
    assert rope_scaling(config) == scaling


@pytest.mark.parametrize(
    ("rope", "line"),
    [
        (dict(rope_type="yarn", factor=2.0), "rope_type='yarn' is not supported, only default, linear or llama3"),
        (dict(rope_type="linear"), "rope_parameters: factor should be a number, but is None"),
        (dict(STRETCH, high_freq_factor="4"), "rope_parameters: high_freq_factor should be a number, but is '4'"),
        (dict(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not supported"),
        (dict(full_attention=dict(rope_type="default")), "rotary positions that differ between layers"),
    ],
)
def test_other_rotary_positions_are_refused(rope: dict[str, object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=line):
        interop.load_huggingface(changed("llama_both_ways", tmp_path, config=dict(rope_parameters=rope)))


REFUSED: dict[str, tuple[str, dict[str, object], dict[str, np.ndarray], str]] = {
    # reference, further fields, further tensors → what the line says
    "adapters of MMS": (
        "hubert_epsilon",
        {},
        {"hubert.encoder.layers.0.adapter_layer.linear_1.weight": EXTRA},
        r"holds hubert.encoder.layers.0.adapter_layer.linear_1.weight, which nothing here reads",
    ),
    "several": ("bert_base", {}, {"a": EXTRA, "b": EXTRA, "c": EXTRA}, r"model.safetensors holds a and 2 more, which"),
    "cross-attention": ("gpt2_base", {}, {"h.0.crossattention.c_attn.weight": EXTRA}, "holds h.0.crossattention"),
    "two heads of GPT-2": (
        "gpt2",
        dict(architectures=["GPT2DoubleHeadsModel"]),
        {"multiple_choice_head.summary.weight": EXTRA},
        "holds multiple_choice_head.summary.weight, which nothing",
    ),
    "a head of predicted pixels": ("vit_unbiased", {}, {"decoder.0.weight": EXTRA}, "holds decoder.0.weight, which"),
    "weights of layers": ("wav2vec2_classifier", {}, {"layer_weights": np.ones(2, np.float32)}, "holds layer_weights"),
    "speaker vectors": ("wav2vec2_classifier", {}, {"tdnn.0.kernel.weight": EXTRA}, r"speaker vectors \(tdnn\) is not"),
    "Gemma both ways": (
        "gemma_biased",
        dict(use_bidirectional_attention=True),
        {},
        "use_bidirectional_attention=True is",
    ),
    "a window both ways": ("mistral", dict(is_causal=False), {}, "is_causal=False with a sliding window is not"),
    "speech that sees the past": ("hubert_epsilon", dict(is_causal=True), {}, "is_causal=True is not supported"),
    "an encoder that sees the past": (
        "modernbert_masked_lm",
        dict(is_causal=True),
        {},
        "is_causal=True is not supported",
    ),
    "patches that are not square": ("vit_unbiased", dict(patch_size=[8, 4]), {}, r"patch_size=\[8, 4\] is not"),
    "a copy that differs": (
        "bert_masked_lm",
        {},
        {"cls.predictions.decoder.weight": np.ones((61, 32), np.float32)},
        "decoder.weight differs from bert.embeddings.word_embeddings.weight, of which it should be a copy; set tie_word",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    reference, config, tensors, line = REFUSED[name]
    with pytest.raises(UsageError, match=line) as error:
        interop.load_huggingface(changed(reference, tmp_path, tensors, config))
    assert "\n" not in str(error.value)


def test_the_same_tensors_answer_questions(tmp_path: Path) -> None:
    """ModernBERT's answers have a label classifier's tensors; what the model is for says which they are."""
    ids = np.arange(5, 14, dtype=np.int32)[None]
    labels = interop.load_huggingface(REFERENCES / "modernbert_token_classifier")(text=ids)
    made_for = dict(architectures=["ModernBertForQuestionAnswering"])
    found = interop.load_huggingface(changed("modernbert_token_classifier", tmp_path, config=made_for))(text=ids)
    assert "logits" not in found
    np.testing.assert_array_equal(found["answer_logits"], labels["logits"])


def test_mpnet_sees_both_ways_whatever_is_said(tmp_path: Path) -> None:
    """As in transformers, whose MPNet does not read is_causal."""
    ids = np.arange(5, 14, dtype=np.int32)[None]
    plain = interop.load_huggingface(REFERENCES / "mpnet_masked_lm")(text=ids)
    found = interop.load_huggingface(changed("mpnet_masked_lm", tmp_path, config=dict(is_causal=True)))(text=ids)
    np.testing.assert_array_equal(found["hidden"], plain["hidden"])


def test_smollm3_has_the_base_that_stands_beside_an_older_field(tmp_path: Path) -> None:
    """transformers takes `rope_scaling` in place of `rope_parameters`, whose base then counts no more."""
    older = dict(rope_scaling=STRETCH | dict(original_max_position_embeddings=16), rope_theta=77.0)
    config = interop.load_huggingface(changed("smollm3", tmp_path, config=older)).backbones["text"].config
    assert config.rope_theta == 77.0 and config.rope_scaling == (8, 1, 4, 16)


def test_what_is_to_be_ignored_is(tmp_path: Path) -> None:
    directory = changed("bert_base", tmp_path, {"extra.one": EXTRA, "extra.two": EXTRA})
    with pytest.raises(UsageError, match="holds extra.two, which"):
        interop.load_huggingface(directory, ignore="one")
    assert interop.load_huggingface(directory, ignore=r"^extra\.").origin.unused == ("extra.one", "extra.two")
    with pytest.raises(UsageError, match=r"ignore='\(' is no regular expression"):
        interop.load_huggingface(directory, ignore="(")


def test_training_starts_without_a_strange_head_but_not_without_a_part_of_a_layer(tmp_path: Path) -> None:
    model = interop.load_huggingface(REFERENCES / "gpt2_base")
    tower = model.description.towers[0]
    parts = model, {"text": ("text", tower.tokenizer)}, {"text": tower.backbone}
    found = start_from(changed("gpt2_base", tmp_path / "head", {"strange": EXTRA}), *parts)
    assert found.unused == ("strange",)
    directory = changed("gpt2_base", tmp_path / "layer", {"h.0.strange": EXTRA})
    with pytest.raises(UsageError, match="holds h.0.strange, which nothing here reads"):
        start_from(directory, *parts)


def test_a_mask_is_refused_where_padding_is_pooled() -> None:
    model = interop.load_huggingface(REFERENCES / "siglip")
    ids = jnp.ones((1, 5), jnp.int32)
    with pytest.raises(UsageError, match="trained without a mask: leave out text_mask, and pad to the 12 places"):
        model(text=ids, text_mask=ids)


def test_an_idle_pooler_of_a_classifier_of_tokens(tmp_path: Path) -> None:
    """Files of older releases carry one, and nothing stands on it."""
    pooler = {
        "bert.pooler.dense.weight": np.eye(32, dtype=np.float32),
        "bert.pooler.dense.bias": np.ones(32, np.float32),
    }
    older = interop.load_huggingface(changed("bert_token_classifier", tmp_path, pooler))
    ids = jnp.arange(3, 10)[None]
    wanted = interop.load_huggingface(REFERENCES / "bert_token_classifier")(text=ids)["logits"]
    assert wanted.shape == (1, 7, 5)
    np.testing.assert_array_equal(older(text=ids)["logits"], wanted)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_the_left_moves_nothing(name: str) -> None:
    model = interop.load_huggingface(REFERENCES / name)
    ids = np.arange(3, 10)[None]
    padded, mask = np.pad(ids, ((0, 0), (4, 0))), np.pad(np.ones_like(ids), ((0, 0), (4, 0)))
    call: Callable[..., dict[str, jax.Array]] = jax.jit(lambda model, inputs: model(**inputs))
    wanted = call(model, {"text": ids})["logits"]
    found = call(model, {"text": padded, "text_mask": mask})["logits"][:, 4:]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2_classifier", "llama_classifier", "qwen2_classifier"])
def test_a_decoder_with_another_head_has_no_language_model(name: str) -> None:
    model = interop.load_huggingface(REFERENCES / name)
    assert [output.name for output in model.description.outputs] == ["logits"]
    assert model.origin.unused == model.origin.fresh == ()


def test_masks_that_older_files_of_gpt2_hold(tmp_path: Path) -> None:
    triangle = np.tril(np.ones((1, 1, 8, 8), np.bool_))
    kept = {"h.0.attn.bias": triangle, "h.0.attn.masked_bias": np.array([-1e4], np.float32)}
    assert interop.load_huggingface(changed("gpt2_base", tmp_path, kept)).origin.unused == tuple(kept)
