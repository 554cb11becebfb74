"""The checkpoint of another run as what a run starts from (`init_from=WORKDIR`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from unimodal.errors import UsageError
from unimodal.sharding import path_name
from unimodal.training import layouts
from unimodal.training.checkpoint import Checkpoints, spelt
from unimodal.training.parameters import described
from unimodal.training.schedule_free import averages_in, read_averages


def report_of(start: Any, where: str) -> str:
    """Say what a start fills: counts, each parameter by name, then the lines on what the weights are fed with.

    start: has names `loaded`, `fresh`, `unused` and `averaged`, and the lines `inputs`.
    """
    average = f" ({len(start.averaged)} of them its average)" if start.averaged else ""
    counts = f"{len(start.loaded)} parameters loaded{average}, {len(start.fresh)} fresh; {len(start.unused)} unused"
    kinds = (("loaded", start.loaded), ("fresh", start.fresh), ("unused", start.unused))
    lines = [f"  {kind:<7} {name}" for kind, names in kinds for name in names]
    return "\n".join([f"starting from {where}: {counts}", *lines, *start.inputs])


@dataclass(frozen=True)
class WorkdirStart:
    """Parameters of a model that the checkpoint of another run fills, all by name."""

    workdir: epath.PathLike  # of that run
    step: int  # of its checkpoint
    loaded: tuple[str, ...]  # those that it fills
    fresh: tuple[str, ...]  # those that stay as initialised
    unused: tuple[str, ...]  # those of the checkpoint that the model lacks
    averaged: tuple[str, ...] = ()  # those of which its average is taken
    schedule_free: bool = False  # it is the average of a schedule-free optimizer
    inputs: tuple[str, ...] = ()  # lines on what the weights are fed with, and on copies

    def report(self) -> str:
        """Each parameter by name, then `inputs`."""
        return report_of(self, f"{self.workdir} after step {self.step}")

    def fill(self, parameters: Any) -> Any:
        """`parameters` with what is loaded in the place of what was initialised: same shapes, dtypes and shards."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
        ours = {path_name(path): leaf for path, leaf in leaves}
        checkpoints = Checkpoints(self.workdir, create=False)
        ema, other = ((), self.averaged) if self.schedule_free else (self.averaged, ())
        # Read under the names of a TrainState, in which the parameters are one part.
        where = {n: f"ema.values.{n}" if n in ema else f"parameters.{n}" for n in self.loaded if n not in other}
        dtype = lambda name: jnp.float32 if name in ema else ours[name].dtype  # noqa: E731
        place = lambda n: jax.ShapeDtypeStruct(ours[n].shape, dtype(n), sharding=ours[n].sharding)  # noqa: E731
        read = partial(checkpoints.read, self.step)
        found = read({there: place(name) for name, there in where.items()}) if where else {}
        values = {name: found[there].astype(ours[name].dtype) for name, there in where.items()}
        values |= read_averages(read, [p for p in described(parameters) if p.name in other])
        checkpoints.close()
        return structure.unflatten(values.get(name, leaf) for name, leaf in ours.items())


def is_workdir(path: epath.PathLike) -> bool:
    """True if a run of ours left its config and checkpoints there."""
    path = epath.Path(path)
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def start_from_workdir(
    workdir: epath.PathLike, parameters: Any, *, skip: str | None = None, ema: bool = False
) -> WorkdirStart:
    """Match the latest checkpoint of a workdir with parameters (or their shapes) by name.

    skip: a regular expression; parameters in whose name it is found start afresh. ema: take the average that the run kept.
    That of a schedule-free optimizer is always taken, as it is what the run was scored by.
    Reads no arrays. Raises UsageError if there is no checkpoint or no average, nothing in it fits, or a parameter has
    another shape there.
    """
    if not is_workdir(workdir):
        raise UsageError(f"{workdir} is not a workdir with checkpoints")
    checkpoints = Checkpoints(workdir, create=False)
    step = checkpoints.latest_step()
    if step is None:
        raise UsageError(f"no checkpoint in {workdir}; train there first")
    shapes = checkpoints.shapes(step)
    checkpoints.close()
    ours = spelt({path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]})
    there = {n.removeprefix("parameters."): s for n, s in shapes.items() if n.startswith("parameters.")}
    there = layouts.shapes_as(there, ours)
    mixed = averages_in(shapes, described(parameters))
    if ema and not mixed and "ema.count" not in shapes:
        raise UsageError(f"{workdir} kept no average of its parameters (ema=0 there); leave out init_ema")
    wanted = {name: shape for name, shape in ours.items() if skip is None or not re.search(skip, name)}
    if skip is not None and len(wanted) == len(ours):
        raise UsageError(f"init_skip={skip!r} is found in no parameter's name, such as {next(iter(ours))}")
    loaded = tuple(name for name in wanted if name in there)
    for name in loaded:
        if wanted[name] != there[name]:
            raise UsageError(
                f"{name} is {wanted[name]} in the model, {there[name]} in {workdir}; configure it alike, or leave it out "
                f"with init_skip"
            )
    if not loaded:
        raise UsageError(f"no parameter of {workdir}, such as {next(iter(there))}, is one of this model")
    fresh, unused = tuple(n for n in ours if n not in loaded), tuple(n for n in there if n not in loaded)
    kept = layouts.shapes_as(shapes, [f"ema.values.{name}" for name in ours]) if ema else {}
    averaged = tuple(n for n in loaded if n in mixed or f"ema.values.{n}" in kept)  # the rest were frozen
    return WorkdirStart(workdir, step, loaded, fresh, unused, averaged, schedule_free=bool(mixed))
