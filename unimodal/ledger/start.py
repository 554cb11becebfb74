"""A run that starts from the weights of a commit: `init_from=ledger:PATH@REF`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.errors import UsageError
from unimodal.ledger.ledger import Commit, Ledger, parse_address
from unimodal.sharding import path_name
from unimodal.training.workdir_start import report_of

SCHEME = "ledger:"


@dataclass(frozen=True)
class LedgerStart:
    """Which parameters of a model a commit fills. loaded, fresh and unused are names, as are those `averaged`."""

    address: str
    commit: Commit
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    averaged: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()  # lines on what the weights are fed with, and on copies

    def report(self) -> str:
        """Each parameter by name, then `inputs`."""
        return report_of(self, f"{self.address}, commit {self.commit.short} ({self.commit.subject})")

    def fill(self, parameters: Any) -> Any:
        """`parameters` with what is loaded in the place of what was initialised: same shapes, dtypes and shards."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
        values = []
        for path, leaf in leaves:
            name = path_name(path)
            if name in self.loaded:
                there = f"ema.values.{name}" if name in self.averaged else f"parameters.{name}"
                leaf = placed(self.commit.read(there).astype(leaf.dtype), leaf.sharding)
            values.append(leaf)
        return structure.unflatten(values)


def placed(array: np.ndarray, sharding: Any) -> jax.Array:
    """An array of the host in its shards; each process gives those of its devices."""
    array = array.copy()  # a device may keep what it is given, and this is a view of a file's bytes
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def start_from_ledger(address: str, parameters: Any, *, skip: str | None = None, ema: bool = False) -> LedgerStart:
    """Match the weights of a commit with parameters (or their shapes) by name. Reads none of them.

    skip: a regular expression; parameters in whose name it is found start afresh. ema: take the average that the run kept.
    Raises UsageError if nothing fits, or a parameter has another shape there.
    """
    commit = commit_of(address)
    tensors = commit.manifest.tensors
    if commit.manifest.source != "run":
        raise UsageError(
            f"{address} is a published checkpoint: `ledger checkout` it into a folder, and start from that"
        )
    if ema and "ema.count" not in tensors:
        raise UsageError(f"{address} has no average of its parameters (ema=0 there); leave out init_ema")
    there = {n.removeprefix("parameters."): e for n, e in tensors.items() if n.startswith("parameters.")}
    ours = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]}
    loaded = tuple(n for n in ours if n in there and (skip is None or not re.search(skip, n)))
    for name in loaded:
        wanted = f"{jnp.dtype(ours[name].dtype)}{list(ours[name].shape)}"
        if list(ours[name].shape) != list(there[name].shape):
            raise UsageError(
                f"{name} is {wanted} in the model, {there[name].spelt} in {address}; configure it alike, or leave it out "
                f"with init_skip"
            )
    if not loaded:
        raise UsageError(f"no parameter of {address}, such as {next(iter(there), 'none')}, is one of this model")
    averaged = tuple(n for n in loaded if ema and f"ema.values.{n}" in tensors)
    fresh, unused = tuple(n for n in ours if n not in loaded), tuple(n for n in there if n not in loaded)
    return LedgerStart(address, commit, loaded, fresh, unused, averaged)


def commit_of(address: str) -> Commit:
    """The commit of ledger:PATH@REF. Raises UsageError for an address, a ledger or a ref that is none."""
    path, ref, pinned = parse_address(address)
    return Ledger(path).commit(pinned or ref)


def pinned(config: Mapping[str, Any], there: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config with the commit that `init_from` names at this moment; a run that goes on keeps the one it began with.

    A branch moves on, while what a run is compared with at its end is the weights that it started from.
    """
    config, address = dict(config), config.get("init_from")
    if not isinstance(address, str) or not address.startswith(SCHEME):
        return config
    if parse_address(address)[2] is not None:
        return config
    before = None if there is None else there.get("init_from")
    if isinstance(before, str) and re.fullmatch(re.escape(address) + "=[0-9a-f]{40}", before):
        return {**config, "init_from": before}
    return {**config, "init_from": f"{address}={commit_of(address).id}"}
