"""Heads of published checkpoints are heads that tasks train: at step 0, the task computes what the published model does.

The references are transformers' own outputs (tests/reference/interop).
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick
from test_init_from import REFERENCES, started

from configs import clip, finetune
from tasks.clip import Clip
from unimodal import interop
from unimodal.command.recipe import as_plain
from unimodal.errors import UsageError
from unimodal.heads import Embed, LogitScale, pool
from unimodal.interop.describe import Fields, Names
from unimodal.interop.families import clip as family
from unimodal.interop.recipes import check_backbone, check_tokenizer
from unimodal.interop.stages import Embedded


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCES / name / "reference.npz") as file:
        return dict(file)


def tuned(name: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """The experiment of configs/finetune.py for a reference with a vocabulary, and its first model."""
    weights = Path(shutil.copytree(REFERENCES / name, folder / name))
    (weights / "vocab.json").touch()  # a vocabulary is named, but nothing here reads it
    config = as_plain(finetune.get_config(str(weights)))
    (task,) = config["tasks"].values()
    task |= {"batch_size": 2, **changes}
    return started({**config, "mesh": dict(data=1)})


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_pairs_are_compared_as_published(name: str, tmp_path: Path) -> None:
    experiment, model = tuned(name, tmp_path)
    (task,), known = experiment.tasks, reference(name)
    assert experiment.start.fresh == () and experiment.start.unused == ()
    hidden = known.get("in/text_mask", np.ones_like(known["in/text"])) == 0
    ids = np.where(hidden, task.texts.pad, known["in/text"]).astype(np.int32)
    batch = {"image": jnp.asarray(known["in/image"]), "ids": jnp.asarray(ids)}

    def compare(model: Any, batch: Any) -> Any:
        image, text = task.embed(model, batch)
        return image, text, model.heads["clip"]["temperature"](image @ text.T)

    found = quick(compare)(model, batch)
    for key, value in zip(("image_embedding", "text_embedding", "logits"), found, strict=True):
        wanted = known[f"out/{key}"]
        np.testing.assert_allclose(value, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())), err_msg=key)
    np.testing.assert_allclose(model.heads["clip"]["temperature"].scale, known["out/logit_scale"], rtol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_first_loss_is_that_of_the_published_logits(name: str, tmp_path: Path) -> None:
    """InfoNCE, or the sigmoid of every pair, by hand from transformers' logits."""
    experiment, model = tuned(name, tmp_path)
    (task,), known = experiment.tasks, reference(name)
    hidden = known.get("in/text_mask", np.ones_like(known["in/text"])) == 0
    ids = np.where(hidden, task.texts.pad, known["in/text"]).astype(np.int32)[:2]
    batch = {"image": jnp.asarray(known["in/image"]), "ids": jnp.asarray(ids)}
    logits = known["out/logits"].astype(np.float64)[:, :2]
    if name == "clip":
        rows = [x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (logits, logits.T)]
        wanted = -0.5 * sum(np.diag(x).mean() for x in rows)
    else:
        signs = 2 * np.eye(2) - 1
        wanted = np.log1p(np.exp(-signs * logits)).sum(axis=1).mean()
    from unimodal.objectives.terms import as_scalars

    loss = quick(lambda m, b: as_scalars(*task.loss(m, b, key=jax.random.key(0), step=jnp.int32(0)))[0])
    assert experiment.backbones["text"].dropout == 0.0
    np.testing.assert_allclose(loss(model, batch), wanted, rtol=1e-4)


def test_speech_is_compared_as_published(tmp_path: Path) -> None:
    experiment, model = tuned("wav2vec2_pretraining", tmp_path)
    (task,), known = experiment.tasks, reference("wav2vec2_pretraining")
    assert not [name for name in experiment.start.fresh if name.startswith("heads.")]
    assert experiment.start.unused == ()
    lengths = known["in/audio_mask"].sum(axis=1).astype(np.int32)
    frames = known["out/projected"].shape[1]
    batch = {
        "audio": jnp.asarray(known["in/audio"]),
        "length": jnp.asarray(lengths),
        "masked": jnp.zeros((2, frames), bool),
    }
    found = quick(lambda m, b: task.forward(m, b, jax.random.key(0)))(model, batch)
    valid = known["valid"] if "valid" in known else np.ones((2, frames))
    for ours, theirs in (("context", "projected"), ("target", "quantised")):
        np.testing.assert_allclose(
            np.asarray(found[ours]) * valid[:, :, None],
            known[f"out/{theirs}"] * valid[:, :, None],
            atol=2e-5,
            err_msg=theirs,
        )


def test_the_encoder_of_a_masked_autoencoder_comes_along() -> None:
    """A classifier has no use for its decoder: the report names its tensors as unused."""
    config = as_plain(finetune.get_config(str(REFERENCES / "vit_mae")))
    experiment, model = started({**config, "mesh": dict(data=1)})
    known = reference("vit_mae")
    hidden = quick(lambda m, x: m.backbones.image(m.tokenizers.image(x))[0])(model, jnp.asarray(known["in/image"]))
    np.testing.assert_allclose(hidden, known["out/hidden"], atol=1e-5)
    assert {name.split(".")[0] for name in experiment.start.unused} == {"decoder"}


def test_heads_that_compute_something_else_are_not_filled(tmp_path: Path) -> None:
    for head, changes in (("image", dict(image_head=dict(norm=0.0))), ("text", dict(text_head=dict(pooling="mean")))):
        config = as_plain(finetune.get_config(str(REFERENCES / "clip")))
        task = config["tasks"]["clip"]
        for field, inner in changes.items():
            task[field] = {**task[field], **inner}
        fresh = tiny.build({**config, "mesh": dict(data=1)}).start.fresh
        assert [name for name in fresh if name.startswith("heads.")] == [f"heads.clip.{head}.linear.kernel"]


def test_without_a_vocabulary_bytes_end_where_they_end() -> None:
    """And the table of embeddings starts afresh, as bytes are not the checkpoint's words."""
    experiment = tiny.build({**as_plain(finetune.get_config(str(REFERENCES / "clip"))), "mesh": dict(data=1)})
    (task,) = experiment.tasks
    assert (task.text_head.pooling, task.causal, task.texts.encoder) == ("last", True, "bytes")
    assert "tokenizers.text.table.table" in experiment.start.fresh
    assert not [name for name in experiment.start.fresh if name.startswith("heads.")]


def test_every_head_of_a_pair_has_its_place() -> None:
    """What families name as heads of CLIP and SigLIP is what the task makes, by the same names."""
    for name in ("clip", "siglip"):
        assert set(interop.recipe(REFERENCES / name).heads) == {"image", "text", "temperature"}


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("paper", dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, patch_size=16)),
        ("paper_large", dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14)),
    ],
)
def test_the_recipe_of_the_paper_takes_the_published_weights(size: str, shape: dict[str, int]) -> None:
    """config.json of openai/clip-vit-base-patch16 and of clip-vit-large-patch14, where they are not the defaults."""
    words = (
        dict(hidden_size=512, num_attention_heads=8)
        if size == "paper"
        else dict(hidden_size=768, num_attention_heads=12)
    )
    fields = dict(text_config=words, vision_config=shape, projection_dim=words["hidden_size"])
    theirs = family.describe(Fields(fields, "config.json"), Names({}), Path())
    ours = tiny.build({**as_plain(clip.get_config(size)), "mesh": dict(data=1)})
    for tower in theirs.towers:
        check_backbone(tower.name, ours.backbones[tower.name], tower.backbone, Path())
        check_tokenizer(tower.name, ours.tokenizers[tower.name][1], tower.tokenizer, Path(), None)
    heads = {s.name: s for output in theirs.outputs for s in output.stages if isinstance(s, Embedded)}
    (task,) = ours.tasks
    assert (task.size, task.image_head, task.causal) == (heads["text"].size, heads["image"].config, True)
    assert (task.text_head.pooling, heads["text"].config.pooling) == ("last", "end")


def test_the_end_of_a_text_and_the_final_place() -> None:
    hidden = jnp.arange(24, dtype=jnp.float32).reshape(2, 4, 3)
    ids = jnp.asarray([[5, 9, 9, 1], [7, 8, 5, 9]])
    np.testing.assert_array_equal(pool(hidden, "end", ids=ids, end=9), [hidden[0, 1], hidden[1, 3]])
    np.testing.assert_array_equal(pool(hidden, "end", ids=ids, end=5), [hidden[0, 0], hidden[1, 2]])
    np.testing.assert_array_equal(pool(hidden, "end", ids=ids), [hidden[0, 1], hidden[1, 3]])  # the largest
    np.testing.assert_array_equal(pool(hidden, "final", jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]])), hidden[:, -1])
    with pytest.raises(UsageError, match="pool 'end' is not one of first, first_two, mean, last, final$"):
        pool(hidden, "end")


def test_scale_and_bias() -> None:
    scale = LogitScale(10.0, bias=-10.0)
    np.testing.assert_allclose(scale(jnp.asarray([1.0, 0.5])), [0.0, -5.0], atol=1e-5)
    assert len(scale.shared) == 2 and len(LogitScale(most=100.0).shared) == 1
    assert LogitScale(most=100.0).log_scale.get_metadata()["bounds"] == (None, math.log(100.0))


def test_slips_are_one_line() -> None:
    with pytest.raises(UsageError, match="clip.objective must be softmax or sigmoid, but is 'siglip'"):
        Clip(objective="siglip")
    with pytest.raises(
        UsageError, match="pooling 'max' is not one of first, first_two, mean, last, final, end, attention"
    ):
        Embed("max")
