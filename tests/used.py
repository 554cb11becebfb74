"""A workdir as a run leaves it, without training: what tests of using a model share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny


def workdir(folder: Path, config: Mapping[str, Any], *, learned: bool = True) -> Any:
    """Write the checkpoint of an untrained model into `folder`; returns the experiment and the state."""
    from unimodal.kept import keep_encoders, keep_learned
    from unimodal.training.checkpoint import Checkpoints

    experiment = tiny.build(config)
    state = experiment.program.init()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {})
    if learned:
        keep_encoders(folder, config)
        keep_learned(folder, experiment.tasks)
    return experiment, state
