"""What a run keeps and says where it goes on in a workdir whose config was another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from etils import epath

from unimodal.experiment import Experiment
from unimodal.storage import write_whole
from unimodal.training.adapt import fit
from unimodal.training.checkpoint import Checkpoints


def prepare_to_adapt(experiment: Experiment, workdir: epath.Path, step: int) -> str:
    """Keep the config that a checkpoint was made with. Returns what fits of it; raises UsageError if nothing does."""
    with Checkpoints(workdir, create=False) as checkpoints:
        found = fit(step, experiment.program.abstract_state(), checkpoints.shapes(step))
    kept = workdir / f"config.until_{step}.json"
    if jax.process_index() == 0 and not kept.exists():
        write_whole(kept, (workdir / "config.json").read_text(encoding="utf-8"))
    return found.report()


def rescheduled(experiment: Experiment, step: int, before: int, now: int) -> str:
    """One line on what other steps mean for the learning rate."""
    then, here = (jnp.asarray(experiment.optimizer.schedule(steps)(step)).item() for steps in (before, now))
    return (
        f"steps: {before} there, {now} now; from step {step} on the learning rate is that of {now} steps: "
        f"{here:.3g} here, where it was {then:.3g}"
    )
