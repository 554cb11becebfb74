"""What a run keeps and says where it goes on in a workdir whose config was another."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import jax
import jax.numpy as jnp
from etils import epath

from unimodal.errors import UsageError
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


def check_order(experiment: Experiment, step: int, before: int) -> None:
    """Raises UsageError where tasks train one after the other, and other steps change when those ended that have ended.

    before: the steps of the run that is gone on with, which has a checkpoint of `step`.
    """
    now, names = experiment.sequence, [task.name for task in experiment.tasks]
    then = replace(experiment.loop, steps=before).in_sequence(names)
    if now is None or then is None:
        return
    # The last task has no end that other steps could move: it goes on.
    there, here = (list(zip(accumulate(run.steps[:-1]), run.names, strict=False)) for run in (then, now))
    if [each for each in there if each[0] <= step] != [each for each in here if each[0] <= step]:
        told = ", ".join(f"{name} at step {end}" for end, name in there if end <= step) or "none"
        raise UsageError(
            f"steps={experiment.loop.steps}: until step {step} these tasks have ended: {told}; with other steps they would end "
            f"elsewhere (schedule='sequence'): keep steps={before}, or choose another workdir"
        )


def rescheduled(experiment: Experiment, step: int, before: int, now: int) -> str:
    """One line on what other steps mean for the learning rate."""
    then, here = (jnp.asarray(experiment.optimizer.schedule(steps)(step)).item() for steps in (before, now))
    return (
        f"steps: {before} there, {now} now; from step {step} on the learning rate is that of {now} steps: "
        f"{here:.3g} here, where it was {then:.3g}"
    )
