"""A workdir as a run leaves it, without training: what tests of using a model share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny
from PIL import Image


def workdir(folder: Path, config: Mapping[str, Any], *, learned: bool = True, noise: float = 0.0) -> Any:
    """Write the checkpoint of an untrained model into `folder`; returns the experiment and the state.

    noise: standard deviation of what is added to every parameter, so that none stays the zero that it begins as.
    """
    from unimodal.kept import keep_encoders, keep_learned
    from unimodal.training.checkpoint import Checkpoints

    experiment = tiny.build(config)
    state = experiment.program.init()
    if noise:
        rng = np.random.default_rng(0)
        added = lambda x: x + noise * rng.standard_normal(x.shape).astype(x.dtype)  # noqa: E731
        state = replace(state, parameters=jax.tree.map(added, state.parameters))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {})
    if learned:
        keep_encoders(folder, config)
        keep_learned(folder, experiment.tasks)
    return experiment, state


def pictures(folder: Path, count: int) -> Path:
    """Write `count` pictures of noise, 0.png and so on, and broken.png, which is none; returns the folder."""
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder
