"""The facts of a checkpoint: everything in it that is not an array, under a digest of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from unimodal.training.fingerprint import fingerprint

_NEEDED = {"hashes", "shapes", "fingerprint", "iterators"}
_KNOWN = _NEEDED | {"score", "digest"}


def facts_of(
    hashes: Mapping[str, int], shapes: Mapping[str, str], iterators: Mapping[str, Any], score: float | None
) -> dict[str, Any]:
    """hashes and shapes of arrays by name; score: what `keep_best` compares checkpoints by, if anything."""
    facts = {
        "hashes": dict(hashes),
        "shapes": dict(shapes),
        "fingerprint": fingerprint(hashes),
        "iterators": dict(iterators),
        "score": score,
    }
    return {**facts, "digest": _digest(facts)}


def fault(facts: Any) -> str | None:
    """Say what is wrong with facts as they were read, or None. Facts of earlier versions have no digest."""
    if not isinstance(facts, dict) or not facts.keys() >= _NEEDED or not facts.keys() <= _KNOWN:
        return "they are not the facts of a checkpoint"
    hashes, shapes = facts["hashes"], facts["shapes"]
    if not all(isinstance(facts[name], dict) for name in ("hashes", "shapes", "iterators")):
        return "they are not the facts of a checkpoint"
    if hashes.keys() != shapes.keys():
        odd = sorted(hashes.keys() ^ shapes.keys())[0]
        return f"hashes and shapes differ in what arrays there are ({odd!r})"
    if not all(type(value) is int for value in hashes.values()):
        return "a hash is no whole number"
    if facts["fingerprint"] != fingerprint(hashes):
        return "the fingerprint is not that of the hashes"
    if "digest" in facts and facts["digest"] != _digest(facts):
        return "they do not match their digest"
    return None


def _digest(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of all facts but the digest, as JSON gives them back."""
    rest = json.loads(json.dumps({name: value for name, value in facts.items() if name != "digest"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
