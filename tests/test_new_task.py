"""A task is two new files and no edit anywhere: the mean colour of an emoji, by regression, in a copy of the project."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import tiny

TASK = '''
"""Toy: the mean colour of a picture."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from unimodal import data
from unimodal.evaluation.samples import ImageSample
from unimodal.layers import Linear


@dataclass(frozen=True)
class Toy:
    """Regression of three numbers, a channel each."""

    name: str = "toy"
    batch_size: int = 16
    weight: float = 1.0
    tokenizer: str = "image"
    backbone: str = "shared"
    metric = "mean squared error"
    higher_is_better = False

    def spec(self, model):
        c = model.tokenizers[self.tokenizer].config
        picture = data.ArraySpec((*c.image_size, 3), np.float32, -1, 1)
        return {"image": picture, "colour": data.ArraySpec((3,), np.float32, -1, 1)}

    def tokens(self, model):
        return model.tokenizers[self.tokenizer].config.tokens

    def dataset(self, model, split):
        size = model.tokenizers[self.tokenizer].config.image_size

        def example(record, rng):
            image = data.to_float(data.resize(data.decode_image(record["image"]), *size))
            return {"image": image, "colour": image.mean(axis=(0, 1))}

        return data.Dataset(data.open_source("embedded:emoji", split), example)

    def heads(self, model, rngs):
        width = model.backbones[self.backbone].config.width
        return {"colour": Linear((width,), (3,), ("embed", "classes"), rngs=rngs)}

    def guess(self, model, image):
        hidden, _ = model.backbones[self.backbone](model.tokenizers[self.tokenizer](image))
        return model.heads[self.name]["colour"](hidden.mean(axis=1))

    def loss(self, model, batch, *, key, step):
        return jnp.square(self.guess(model, batch["image"]) - batch["colour"]).mean(), {}

    def predict(self, model, batch):
        return {"guess": self.guess(model, batch["image"]), "colour": batch["colour"]}

    def score(self, predictions):
        return {"value": np.square(predictions["guess"] - predictions["colour"]).mean()}

    def baseline(self, untrained):
        return untrained["value"], "untrained"

    def samples(self, model, batch, predictions):
        best = (("red", float(predictions["guess"][0, 0])),)
        return [ImageSample(data.to_uint8(batch["image"][0]), best, f"red {predictions['colour'][0, 0]:.2f}")]
'''

CONFIG = '''
"""The toy alone."""

from configs import common


def get_config():
    config = common.base()
    config.steps = 30
    config.mesh.data = 1
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 3
    config.backbones.shared = dict(width=32, depth=2, heads=4)
    config.tokenizers.image = dict(image_size=(16, 16), patch=8)
    config.tasks.toy = dict(batch_size=16)
    return config
'''


def test_a_new_task_is_two_files(tmp_path: Path) -> None:
    project, workdir = tmp_path / "project", tmp_path / "run"
    project.mkdir()
    shutil.copy(tiny.ROOT / "launch.py", project)
    for folder in ("tasks", "configs"):
        shutil.copytree(tiny.ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "tasks" / "toy.py").write_text(TASK, encoding="utf-8")
    (project / "configs" / "toy.py").write_text(CONFIG, encoding="utf-8")

    line = tiny.command("train", "--config=configs/toy.py", f"--workdir={workdir}", launch=project / "launch.py")
    # The package is found where it lies; launch.py, tasks/ and configs/ are those of the copy, which come first.
    done = subprocess.run(line, cwd=project, env=tiny.environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    toy = results["tasks"]["toy"]
    assert results["step"] == 30
    assert toy["metric"] == "mean squared error"
    assert math.isfinite(toy["value"])
    assert toy["value"] < 0.5 * toy["baseline"]
    assert set(tiny.logged(workdir)) == {"toy"}
    assert "toy" in (workdir / "report.html").read_text(encoding="utf-8")
