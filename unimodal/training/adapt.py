"""Goes on from a checkpoint of another config: what fits is taken by name, the rest begins as at step 0, and both are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
from etils import epath
from flax import nnx

from unimodal.errors import UsageError
from unimodal.sharding import path_name
from unimodal.training import layouts
from unimodal.training.checkpoint import Checkpoints, named, spelt
from unimodal.training.parameters import described
from unimodal.training.schedule_free import averages_in, read_averages
from unimodal.training.step import Program, TrainState

_SHOWN = 6  # names in a line
_MOMENTS = "optimizer.inner."  # then the parameter, then what the rule keeps of it


@dataclasses.dataclass(frozen=True)
class Fit:
    """Arrays by name, as a checkpoint of another config fits them."""

    step: int  # of the checkpoint
    taken: tuple[str, ...]  # those that it fills
    fresh: tuple[str, ...]  # those that begin anew
    left: tuple[str, ...]  # those that it has besides
    averaged: tuple[str, ...] = ()  # parameters whose average is taken, as a schedule-free optimizer kept it

    def report(self) -> str:
        """One line for each of the three."""
        lines = [f"going on from step {self.step} with what fits:"]
        for kind, names in (("taken", self.taken), ("afresh", self.fresh), ("left behind", self.left)):
            told = [name for name in names if name.startswith(("parameters.", "kept.", "variables."))]
            moments = sum(name.startswith("optimizer.") for name in names)
            shown = ", ".join(told[:_SHOWN]) if kind != "taken" else ""
            more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN and shown else ""
            parts = f"{len(told)} arrays, {moments} of the optimizer"
            if kind == "taken" and self.averaged:
                parts += f" (of {len(self.averaged)} parameters the average that was evaluated)"
            lines.append(f"  {kind}: {parts}{': ' if shown else ''}{shown}{more}")
        return "\n".join(lines)


def fit(step: int, abstract: TrainState, shapes: Mapping[str, str]) -> Fit:
    """Match the arrays of a checkpoint, as `Checkpoints.shapes` gives them, with those of a state by name and shape.

    What only means something together is taken together: the optimizer's numbers about one parameter (moments of a rule
    with the count of another would be wrong), what one task keeps, and the average of all parameters. Raises UsageError
    if no parameter fits.
    """
    wanted, there = spelt(named(abstract)), shapes
    shapes = layouts.shapes_as(there, wanted)
    groups: dict[str, list[str]] = {}
    parameters = [name.removeprefix("parameters.") for name in wanted if name.startswith("parameters.")]
    for name in {**wanted, **shapes}:
        groups.setdefault(_together(name, parameters), []).append(name)
    good = {group for group, names in groups.items() if all(wanted.get(n) == shapes.get(n) for n in names)}
    taken = {name for group in good for name in groups[group]}
    for group in good:  # moments belong to the values that they were made with
        if group.startswith(_MOMENTS) and f"parameters.{group.removeprefix(_MOMENTS)}" not in taken:
            taken -= set(groups[group])
    if not any(name.startswith("parameters.") for name in taken):
        raise UsageError(f"nothing of checkpoint {step} fits this config: train in another workdir")
    fresh, left = (tuple(name for name in names if name not in taken) for names in (wanted, shapes))
    # Without the rest of a schedule-free optimizer's state, what it trained is no longer what was evaluated.
    kept = averages_in(there, described(abstract.parameters))
    averaged = tuple(
        n for n in parameters if n in kept and f"parameters.{n}" in taken and f"{_MOMENTS}{n}.z" not in taken
    )
    return Fit(step, tuple(name for name in wanted if name in taken), fresh, left, averaged)


def adapted(program: Program, workdir: epath.PathLike, step: int) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on with, and the checkpoint's iterators' states. What is made of parameters is made of those taken."""
    abstract = program.abstract_state()
    places = named(abstract)
    with Checkpoints(workdir, create=False) as checkpoints:  # one for itself: the store reads some arrays, or all
        fits = fit(step, abstract, checkpoints.shapes(step))
        found = checkpoints.read(step, {name: places[name] for name in fits.taken})
        own = [p for p in described(abstract.parameters) if p.name in fits.averaged]
        averages = read_averages(partial(checkpoints.read, step), own)
        found |= {f"parameters.{name}": value for name, value in averages.items()}
        iterators = checkpoints.iterators(step)

    def fill(parameters: nnx.State) -> nnx.State:
        leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
        return structure.unflatten(found.get(f"parameters.{path_name(path)}", leaf) for path, leaf in leaves)

    state = dataclasses.replace(program, start=fill).init()
    values = named(state)
    return jax.tree.structure(state).unflatten(found.get(n, x) for n, x in values.items()), iterators


def _together(name: str, parameters: Iterable[str]) -> str:
    """The group that an array is taken with."""
    if name.startswith("ema."):
        return "ema"
    if name.startswith("kept."):
        return ".".join(name.split(".")[:3])  # kept.state.TASK
    if name.startswith(_MOMENTS):
        inner = name.removeprefix(_MOMENTS)
        owners = [p for p in parameters if inner.startswith(f"{p}.")]
        return f"{_MOMENTS}{max(owners, key=len)}" if owners else name
    return name
