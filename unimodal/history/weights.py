"""The arrays of a run as a ledger holds them: parameters, variables, what tasks keep, and the average; no moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from unimodal.errors import UsageError
from unimodal.experiment import Experiment
from unimodal.ledger.ledger import Arrays
from unimodal.ledger.manifest import Entry
from unimodal.ledger.start import placed
from unimodal.ledger.store import Store
from unimodal.model import Model
from unimodal.sharding import parameter_table
from unimodal.training.checkpoint import Checkpoints, named
from unimodal.training.ema import with_ema
from unimodal.training.optimizer import averaged
from unimodal.training.step import TrainState

PARTS = ("parameters.", "variables.", "kept.", "ema.")


def of_state(state: TrainState) -> dict[str, jax.Array]:
    """Arrays by name. Of an optimizer that keeps an average of its own, the average is the parameters."""
    parameters = averaged(state.optimizer, state.parameters)
    found = named(dataclasses.replace(state, parameters=parameters))
    return {name: array for name, array in found.items() if name.startswith(PARTS)}


def of_checkpoint(experiment: Experiment, workdir: epath.PathLike, step: int) -> dict[str, jax.Array]:
    """The same from a checkpoint; moments are read only where the parameters are made of them."""
    abstract = experiment.program.abstract_state()
    with Checkpoints(workdir, create=False) as checkpoints:
        wanted = {name: leaf for name, leaf in named(abstract).items() if name.startswith(PARTS)}
        there = checkpoints.shapes(step)
        if experiment.optimizer.name == "schedule_free" or not wanted.keys() <= there.keys():
            return of_state(checkpoints.restore(abstract, step)[0])
        return checkpoints.read(step, wanted)


def axes_of(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Logical axes of parameters, and of their averages, by name."""
    table = parameter_table(experiment.model, experiment.mesh)
    return {f"{part}{row['name']}": tuple(row["axes"]) for row in table for part in ("parameters.", "ema.values.")}


def to_host(arrays: Mapping[str, jax.Array], axes: Mapping[str, tuple[str, ...]]) -> Arrays:
    """Arrays one by one on the host. Every process takes part, as each holds some of the shards."""
    for name, array in arrays.items():
        whole = multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array
        yield name, np.asarray(whole), axes.get(name, ())


def filled(tree: Any, part: str, tensors: Mapping[str, Entry], store: Store, what: str) -> Any:
    """A tree of shapes with shardings → arrays of a commit. Raises UsageError for one that is not there, or of another shape."""
    values = []
    for name, leaf in named(tree).items():
        entry = tensors.get(full := f"{part}{name}")
        spelt = f"{leaf.dtype}{list(leaf.shape)}"
        if entry is None or entry.spelt != spelt:
            there = "not there" if entry is None else entry.spelt
            raise UsageError(f"{what} does not fit its config.json: {full} is {there}, not {spelt}")
        values.append(placed(store.get(entry, f"{full} of {what}"), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def state_of(experiment: Experiment, tensors: Mapping[str, Entry], store: Store, what: str) -> TrainState:
    """The state of a commit without moments or an average: what a loss reads."""
    abstract = experiment.program.abstract_state()
    parts = {
        part: filled(getattr(abstract, part), f"{part}.", tensors, store, what)
        for part in ("parameters", "variables", "kept")
    }
    return TrainState(step=jnp.zeros((), jnp.int32), optimizer=(), **parts)


def model_of(experiment: Experiment, tensors: Mapping[str, Entry], store: Store, what: str) -> Model:
    """The model that evaluations see, of the tensors of a commit."""
    program, state = experiment.program, state_of(experiment, tensors, store, what)
    parameters, abstract = state.parameters, program.abstract_state().ema
    if abstract is not None and program.evaluate_ema:
        parameters = with_ema(filled(abstract, "ema.", tensors, store, what), parameters)
    return nnx.merge(program.structure(), parameters, state.variables, state.kept)
