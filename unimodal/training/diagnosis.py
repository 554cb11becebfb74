"""Where numbers stop being finite: a batch is run once more, module by module, with a look at what each gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.training.step import LossFunction, Program, TrainState


def diagnosis(
    program: Program, state: TrainState, losses: Mapping[str, LossFunction], batches: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """One clause on the first thing in the forward pass that is not finite; None if all is, or nothing can be said.

    Layers run one by one and operation by operation, so this takes as long as some steps. What only the gradient shows is not
    looked for: the guard names the parameter.
    """
    with contextlib.suppress(Exception):  # it is said beside an error, and must not take its place
        model = nnx.merge(program.structure(), state.parameters, state.variables, state.kept)
        for name, backbone in list(model.backbones.items()) if hasattr(model, "backbones") else []:
            apart = backbone.unstacked()
            apart.config = replace(apart.config, remat="none")
            model.backbones[name] = apart
        for name, batch in batches.items():
            for i in range(program.accumulate):
                part = batch if program.accumulate == 1 else {key: value[i] for key, value in batch.items()}
                if found := _first(model, name, losses[name], part, state.step):
                    return found
    return None


def _first(model: Any, name: str, loss: LossFunction, batch: Mapping[str, Any], step: jax.Array) -> str | None:
    if sick := [key for key, value in batch.items() if not _finite(value)]:
        return f"what {name} is fed with as {sick[0]!r} is not finite"
    found: list[str] = []
    with jax.disable_jit(), _watched(model, found.append):
        value, _ = loss(model, batch, key=jax.random.key(0), step=step)
    if found:
        return f"in {name} the first that is not finite is what {found[0]} gives"
    return None if _finite(value) else f"all that the modules give {name} is finite, and its objective is not"


@contextlib.contextmanager
def _watched(model: nnx.Module, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell the path of each module, from the inside out, whose output is not finite."""
    modules = {id(node): (path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)}
    before = {kind: kind.__dict__["__call__"] for kind in _callable(type(node) for _, node in modules.values())}

    def watching(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            given = original(self, *arguments, **options)
            if id(self) in modules and not _finite(given):
                tell(".".join(map(str, modules[id(self)][0])) or "the model")
            return given

        return call

    try:
        for kind, original in before.items():
            kind.__call__ = watching(original)
        yield
    finally:
        for kind, original in before.items():
            kind.__call__ = original


def _callable(kinds: Iterator[type]) -> set[Any]:
    """The classes, bases among them, that say themselves what a call does."""
    return {base for kind in kinds for base in kind.__mro__ if base is not type and "__call__" in base.__dict__}


def _finite(tree: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
