"""Spoils a published checkpoint's directory, a little, in one of the ways that files go wrong."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    *(-1, 0, 1, 2, 3, 10**20, 1e20, 2**31, 2**63, 2**64, -(2**63), 1.5, -0.5, 1e-9, float("nan"), float("inf")),
    *("", "x", "12", "é\n", True, False, None, [], [1], [1, 2], [1, 2, 3], [[]], {}, {"a": 1}),
]


def spoil(source: Path, target: Path, chance: random.Random) -> str:
    """Copy the directory and change one thing in the copy; returns what."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    way = chance.random()
    if way < 0.55:
        path = chance.choice([target / "config.json", *sorted(target.rglob("*.json"))])
        value = json.loads(path.read_text(encoding="utf-8"))
        what = _change(value, chance)
        path.write_text(json.dumps(value), encoding="utf-8")
    elif way < 0.8:
        path = target / "model.safetensors"
        content = path.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        value = json.loads(content[8:end])
        what = _change(value, chance)
        header = json.dumps(value).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[end:])
    else:
        path = chance.choice([each for each in sorted(target.rglob("*")) if each.is_file()])
        content = bytearray(path.read_bytes())
        if way < 0.93 and content:
            place = chance.randrange(min(len(content), 3000))
            content[place] ^= 1 << chance.randrange(8)
            what = f"byte {place}"
        else:
            content = content[: chance.randrange(len(content) + 1)]
            what = f"cut to {len(content)}"
        path.write_bytes(content)
    return f"{source.name}/{path.relative_to(target)}: {what}"


def _change(value: Any, chance: random.Random) -> str:
    places = list(_places(value))
    if not places:
        return "nothing"
    group, key = chance.choice(places)
    if chance.random() < 1 / len(ODD):
        del group[key]
        return f"{key} dropped"
    group[key] = chance.choice(ODD)
    return f"{key}={group[key]!r}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every field of every object and list: what it is in, and under which key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
