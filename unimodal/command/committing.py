"""A run that commits its own weights: its ledger opened, or made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from unimodal.experiment import Experiment
from unimodal.ledger import Ledger
from unimodal.ledger.ledger import branch_ref


def committer(
    experiment: Experiment, workdir: str, config: Mapping[str, Any], say: Callable[[str], None]
) -> Callable[..., Any] | None:
    """What puts the weights of a run into its ledger; None where the config names none. A ledger that is not there is made.

    Raises UsageError for a folder that holds something else, and for a name that is none of a branch.
    """
    if experiment.ledger is None:
        return None
    from unimodal.history.runs import Committer  # only here: other runs need not wait for it

    path = Path(experiment.ledger)
    if jax.process_index() == 0 and not (path.exists() and any(path.iterdir())):
        Ledger.create(path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("ledger")
    ledger = Ledger(path)
    branch_ref(ledger.git, experiment.ledger_branch)
    return Committer(ledger, experiment.ledger_branch, workdir, experiment, config, say)
