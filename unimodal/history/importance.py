"""The diagonal of the Fisher information of each branch, for a merge that keeps what each branch is sure of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimodal.history.measure import Measuring
from unimodal.history.weights import state_of
from unimodal.ledger import Commit
from unimodal.training.checkpoint import named
from unimodal.training.importance import squared_gradients


def fishers(measuring: Measuring, commits: Sequence[Commit], batches: int) -> list[dict[str, np.ndarray]]:
    """Importance of each parameter of each commit, over so many training batches of every task of its config."""
    found = []
    for commit in commits:
        what = f"commit {commit.short}"
        experiment = measuring.experiment(commit.draft, what)
        state = state_of(experiment, commit.manifest.tensors, commit.ledger.store, what)
        streams = {task.name: experiment.train_batches(task) for task in experiment.tasks}
        squares = squared_gradients(experiment.program, experiment.tasks, state, streams, batches)
        found.append({f"parameters.{name}": np.asarray(value) for name, value in named(squares).items()})
    return found
