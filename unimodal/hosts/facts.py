"""Facts that must be the same in every process of a run, and the sentence that names a difference."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimodal.hosts.lifeline import Facts
from unimodal.hosts.peer import listed

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def code_hash(root: Path, own: Sequence[Path] = ()) -> str:
    """Hash launch.py, unimodal/ and tasks/ below `root`, and tasks/ below `own`, to 12 hexadecimal digits."""
    digest = hashlib.sha256()
    paths = [root / "launch.py", *(p for folder in ("unimodal", "tasks") for p in (root / folder).rglob("*.py"))]
    found = [(path, root) for path in sorted(path for path in paths if path.is_file())]
    found += [(path, home) for home in own for path in sorted((home / "tasks").glob("*.py"))]
    for path, home in found:
        digest.update(f"{path.relative_to(home)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """List the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def run_facts(root: Path, config: Mapping[str, Any], workdir: str, own: Sequence[Path] = ()) -> dict[str, str]:
    """Collect the facts of a run in a flat mapping, by names that a user knows."""
    said = {f"config.{name}": value for name, value in _flat(config).items()}
    return {"code": code_hash(root, own), **versions(), "workdir": workdir, **said}


def device_facts() -> dict[str, str]:
    """Collect the facts of this process's devices. Starts JAX's backend."""
    import jax

    kinds = Counter(device.device_kind for device in jax.local_devices())
    return {
        "devices": ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())),
        "number of processes": str(jax.process_count()),
    }


def difference(everyone: Sequence[Facts], names: Sequence[str], *, most: int = 3) -> str | None:
    """Say in one sentence which processes differ from most others, and in what. None: all are alike."""
    found = []
    for key in sorted({key for facts in everyone for key in facts}, key=lambda key: ("." in key, key)):
        values = [str(facts.get(key, "nothing")) for facts in everyone]
        if len(set(values)) == 1:
            continue
        usual = Counter(values).most_common(1)[0][0]  # the first of the most frequent: process 0 of two
        for value in dict.fromkeys(v for v in values if v != usual):
            who = [name for name, v in zip(names, values, strict=True) if v == value]
            rest = len(values) - values.count(usual) == len(who)
            others = "the others" if rest and len(values) > 2 else names[values.index(usual)]
            have = "has" if len(who) == 1 else "have"
            found.append(f"{listed(who)} {have} {key} {value}, {others} {usual}")
    if not found:
        return None
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, Mapping):
        return {prefix: json.dumps(tree, sort_keys=True, default=str)}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}" if prefix else name).items()}
