"""A run that starts from weights without experts: each begins as the MLP that all modalities shared there (Bao 2022, §3)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.sharding import path_name


def copies(names: Iterable[str], loaded: Collection[str], skip: str | None = None) -> dict[str, str]:
    """Parameters of experts that nothing fills → the parameter of the shared MLP or norm that is filled.

    skip: a regular expression; parameters in whose name it is found start afresh (`init_skip`).
    """
    shared = {name: re.sub(r"\.experts\.[^.]+", "", name) for name in names if name not in loaded}
    return {
        name: other
        for name, other in shared.items()
        if other != name and other in loaded and not (skip and re.search(skip, name))
    }


def copied(parameters: Any, loaded: Collection[str], skip: str | None = None) -> Any:
    """`parameters` with copies of others in their places, as `copies` says."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
    ours = {path_name(path): leaf for path, leaf in leaves}
    found = copies(ours, loaded, skip)
    # A copy of its own for each, since the train step gives its arrays away.
    return structure.unflatten(jnp.copy(ours[found[name]]) if name in found else leaf for name, leaf in ours.items())
