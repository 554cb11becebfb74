"""benchmarks/train_step.py: what it measures is the recipe's own step, and its flags reach it."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "benchmarks"))

import paper_models
import train_step
import waiting

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
    options, _ = train_step.arguments(["--seconds=2", "--length=64", "--width=64", "--depth=1"])
    (task,) = paper_models.make("ctc", options).tasks
    assert (task.sounds.seconds, task.transcripts.characters) == (2.0, 50)
    (task,) = paper_models.make("bert", options).tasks
    assert task.texts.length == 64


def test_a_field_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    paper_models.check(["gpt2", "vit_b"], [("config", "tasks.gpt.chunk", 1), ("gpt2", "backbones.*.depth", 1)])
    with pytest.raises(UsageError, match="--vit_b.tasks.gpt.chunk: there is no such field in the recipe"):
        paper_models.check(["gpt2", "vit_b"], [("vit_b", "tasks.gpt.chunk", 1)])
    for wrong in ("--models=gpt3", "--vit_b.seed=1", "--config.seed"):
        with pytest.raises(SystemExit):
            train_step.arguments(["--models=gpt2", wrong])
    assert "no model gpt3" in capsys.readouterr().err


def test_what_waits_for_an_accelerator_fits_into_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts are there, what fails is written down and does not stop the others."""
    assert sum(one.seconds for one in waiting.WAITING) <= 600
    assert all((waiting.ROOT / line[0]).is_file() for one in waiting.WAITING for line in (one.command, one.dry))
    toys = {
        "good": "print('said'); print('| 1 | 2 |')",
        "bad": "raise SystemExit('no such chip')",
        "slow": "import time; time.sleep(60)",
    }
    toys["absent"] = "print('never')"
    made = []
    for name, program in toys.items():
        needs = ("no_such_package",) if name == "absent" else ()
        made.append(
            waiting.Waiting(name, "a toy", ("-c", program), ("-c", program), 2 if name == "slow" else 20, needs)
        )
    monkeypatch.setattr(waiting, "WAITING", tuple(made))
    out = tmp_path / "waiting.md"
    monkeypatch.setattr(sys, "argv", ["waiting.py", f"--out={out}", "--dry"])
    assert waiting.main() == 1
    text = out.read_text()
    assert "| 1 | 2 |" in text and "no such chip" in text and "stopped after 2 s" in text
    assert "absent: left out, no_such_package not installed" in capsys.readouterr().out
