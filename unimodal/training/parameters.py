"""Facts about each parameter that the optimizer needs, and which parameters an entry of its config names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.sharding import path_name

KINDS = ("matrix", "table", "vector")
# Matrices that read the input or write the output. Muon leaves them, like tables and vectors, to AdamW (Jordan 2024).
_OUTER = ("vocabulary", "classes", "codes", "patch")


@dataclass(frozen=True)
class Parameter:
    """One parameter by its dotted name, with the metadata of its `nnx.Variable` (see `layers`)."""

    name: str  # dotted, as in backbones.shared.layers.mlp.up.kernel
    leaf: Any  # an nnx.Variable, or a plain array, which has no metadata

    @cached_property
    def value(self) -> Any:
        return self.leaf.get_value() if isinstance(self.leaf, nnx.Variable) else self.leaf

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return self.leaf.get_metadata() if isinstance(self.leaf, nnx.Variable) else {}

    @property
    def dimensions(self) -> int:
        """The number of its dimensions in one layer."""
        return len(self.metadata["axes"]) if "axes" in self.metadata else self.value.ndim

    @property
    def half(self) -> bool:
        """True if it is stored with fewer than 32 bits."""
        return self.value.dtype.itemsize < 4

    @property
    def stacked(self) -> bool:
        """True if it holds the parameters of several layers, stacked along its first dimension."""
        return self.value.ndim > self.dimensions

    @property
    def kind(self) -> str:
        """One of KINDS. A parameter that does not say is a vector up to one dimension, and a matrix above."""
        kind = self.metadata.get("kind", "matrix" if self.dimensions >= 2 else "vector")
        if kind not in KINDS:
            raise UsageError(f"parameter {self.name} is of kind {kind!r}; {nearest(str(kind), KINDS)}")
        return kind

    @property
    def decays(self) -> bool:
        """True if weight decay applies: to matrices and tables, but not to biases, scales and other vectors."""
        return self.kind != "vector"

    @property
    def hidden_matrix(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The dimensions that a matrix between hidden states contracts, and those that it makes. None for the rest."""
        contracted = self.metadata.get("contracted")
        if self.kind != "matrix" or contracted is None or set(self.metadata["axes"]) & set(_OUTER):
            return None
        return tuple(range(contracted)), tuple(range(contracted, self.dimensions))

    @property
    def bounds(self) -> tuple[float | None, float | None] | None:
        """The lowest and the highest value that an update may lead to."""
        return self.metadata.get("bounds")

    @property
    def written(self) -> bool:
        """True if a task's state sets it after each step, see `unimodal.state`. An optimizer leaves it alone."""
        return self.metadata.get("written", False)

    def like(self, value: Any) -> Any:
        """`value` with this parameter's metadata, by which it finds its shards, if it has the parameter's shape."""
        same = isinstance(self.leaf, nnx.Variable) and value.shape == self.value.shape
        return self.leaf.replace(value) if same else value


def described(tree: Any) -> list[Parameter]:
    """Every parameter of a pytree, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return [Parameter(path_name(path), leaf) for path, leaf in leaves]


def frozen_part(entry: str) -> tuple[str, float]:
    """An entry of `OptimizerConfig.freeze` → the part's name and the number of steps."""
    part, equals, steps = entry.partition("=")
    if not part or (equals and not (steps.isascii() and steps.isdigit() and int(steps))):
        raise UsageError(
            f"optimizer.freeze={entry!r} must be a part of the model, or PART=STEPS with a positive number"
        )
    return part, int(steps) if equals else math.inf


def thawing(names: Sequence[str], entries: Sequence[str]) -> dict[str, float]:
    """The step at which each parameter thaws: 0 never froze, infinity never thaws. UsageError for a part without any."""
    parts = dict(frozen_part(entry) for entry in entries)
    for part in parts:
        if not any(f"{name}.".startswith(f"{part}.") for name in names):
            known = sorted({".".join(name.split(".")[: part.count(".") + 1]) for name in names})
            raise UsageError(f"optimizer.freeze={part!r} is no part of the model; there is {', '.join(known)}")
    within = lambda name: (steps for part, steps in parts.items() if f"{name}.".startswith(f"{part}."))  # noqa: E731
    return {name: max(within(name), default=0) for name in names}


def rate_factor(entry: str) -> tuple[re.Pattern[str], float]:
    """An entry of `OptimizerConfig.learning_rate_factors` → what the start of a name must match, and the factor."""
    pattern, _, factor = entry.rpartition("=")
    try:
        number = float(factor)
        if pattern and 0 < number < math.inf:
            return re.compile(rf"(?:{pattern})(?:\.|$)"), number
    except (ValueError, re.error):
        pass
    raise UsageError(
        f"optimizer.learning_rate_factors={entry!r} must be PATTERN=FACTOR, a regular expression and a positive number"
    )


def rate_factors(parameters: Sequence[Parameter], entries: Sequence[str], layer_decay: float) -> dict[str, np.ndarray]:
    """Factors that multiply each parameter's learning rate: a number, or one for each layer of a stacked parameter.

    The first of the `entries` that matches counts. Raises UsageError for one that matches nothing.
    """
    groups = [rate_factor(entry) for entry in entries]
    for (pattern, _), entry in zip(groups, entries, strict=True):
        if not any(pattern.match(p.name) for p in parameters):
            raise UsageError(
                f"optimizer.learning_rate_factors={entry!r} matches no parameter's name, such as {parameters[0].name}"
            )
    by_depth = _by_depth(parameters, layer_decay)
    group = lambda name: next((factor for pattern, factor in groups if pattern.match(name)), 1.0)  # noqa: E731
    return {p.name: np.asarray(group(p.name) * by_depth[p.name], np.float32) for p in parameters}


_LAYER = re.compile(r"backbones\.([^.]+)\.layers\.(?:(\d+)\.)?")


def _by_depth(parameters: Sequence[Parameter], decay: float) -> dict[str, Any]:
    """Layer-wise decay (Bao 2022, BEiT): a backbone's layer i of n has the factor decay^(n-i), counted from 0, its
    tokenizers decay^(n+1), and what comes after the layers 1."""
    if decay == 1.0:
        return {p.name: 1.0 for p in parameters}
    depths: dict[str, int] = {}
    for p in parameters:
        if found := _LAYER.match(p.name):
            depth = p.value.shape[0] if found[2] is None else int(found[2]) + 1
            depths[found[1]] = max(depth, depths.get(found[1], 0))
    if not depths:
        raise UsageError("optimizer.layer_decay needs a model with backbones")

    def of(p: Parameter) -> Any:
        part, _, rest = p.name.partition(".")
        if part == "tokenizers":
            # The tokenizer of a backbone bears its name. One that several share is as far down as it is anywhere.
            return decay ** (depths.get(rest.split(".")[0], max(depths.values())) + 1)
        found = _LAYER.match(p.name)
        if found is None:
            return 1.0
        layer = np.arange(p.value.shape[0]) if found[2] is None else int(found[2])
        return decay ** (depths[found[1]] - layer)

    return {p.name: of(p) for p in parameters}
