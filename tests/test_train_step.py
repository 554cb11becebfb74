"""benchmarks/train_step.py: what it measures is the recipe's own step, and its flags reach it."""

from __future__ import annotations

import sys

import jax
import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "benchmarks"))

import paper_models
import train_step

from unimodal.errors import UsageError
from unimodal.plan.compile import abstract_arguments

SMALL = ["--width=64", "--depth=2", "--length=16", "--batch=4", "--config.tokenizers.text.vocabulary=300"]


def test_a_shrunken_model_lowers_and_its_batch_is_the_tasks() -> None:
    flags = ["--chunk=8", "--dp", "--dtype=bfloat16", "--gpt2.backbones.*.remat=full", "--vit_b.backbones.*.remat=none"]
    options, overrides = train_step.arguments(["--models=gpt2,vit_b", *SMALL, *flags])
    found = paper_models.make("gpt2", options, overrides)
    (task,), backbone = found.tasks, found.backbones["shared"]
    assert (backbone.width, backbone.depth, backbone.heads, backbone.dropout) == (64, 2, 1, 0.0)
    assert (backbone.remat, backbone.dtype, backbone.param_dtype, task.chunk) == ("full", "bfloat16", "float32", 8)
    assert found.mesh.shape["fsdp"] == 8 and task.batch_size == 4 * 8  # rows are those of a chip

    batch = train_step.synthetic(found)
    state, shapes = abstract_arguments(found, ["gpt"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), shapes
    )
    ids = batch["gpt"]["ids"]
    assert 0 <= int(ids.min()) < int(ids.max()) < 300
    with jax.set_mesh(found.mesh):
        lowered = found.program.step({"gpt": (task.loss, task.weight)}).lower(state, batch)
    assert lowered.out_info[1]["gpt"]["loss"].shape == ()


def test_transcripts_shrink_with_their_sound() -> None:
    config = dict(seconds=16.0, characters=400, length=32)
    options, _ = train_step.arguments(["--seconds=2", "--length=64"])
    paper_models.shorten(config, options)
    assert config == dict(seconds=2.0, characters=50, length=32)


def test_a_field_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    paper_models.check(["gpt2", "vit_b"], [("config", "tasks.gpt.chunk", 1), ("gpt2", "backbones.*.depth", 1)])
    with pytest.raises(UsageError, match="--vit_b.tasks.gpt.chunk: there is no such field in the recipe"):
        paper_models.check(["gpt2", "vit_b"], [("vit_b", "tasks.gpt.chunk", 1)])
    for wrong in ("--models=gpt3", "--vit_b.seed=1", "--config.seed"):
        with pytest.raises(SystemExit):
            train_step.arguments(["--models=gpt2", wrong])
    assert "no model gpt3" in capsys.readouterr().err
