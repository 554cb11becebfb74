"""What a run took from its data and a model needs without it: names of classes, an alphabet. They lie in the workdir."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import write_whole

FILE = "from_data.json"


def learned(tasks: Sequence[Any]) -> dict[str, Any]:
    """Dotted field → value, of every block of data that has a method `learned`."""
    found: dict[str, Any] = {}
    for task in tasks:
        segments = getattr(getattr(task, "sounds", None), "segments", "")
        for slot, block in vars(task).items():
            take: Any = getattr(block, "learned", None)
            if take is not None:
                values = take(task.source, segments)
                found |= {f"tasks.{task.name}.{slot}.{name}": value for name, value in values.items()}
    return found


def keep_learned(workdir: epath.PathLike, tasks: Sequence[Any]) -> None:
    """Write what the tasks took from their data into the workdir."""
    text = json.dumps(learned(tasks), indent=2, sort_keys=True, ensure_ascii=False)
    write_whole(epath.Path(workdir) / FILE, text)


def with_learned(workdir: epath.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the workdir says of the data. A run from before this was kept reads its data instead."""
    made = copy.deepcopy(dict(config))
    path = workdir / FILE
    if not path.exists():
        return made
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it should be an object")
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); remove it, and the names are read from the data") from error
    for place, value in found.items():
        *groups, last = place.split(".")
        group = made
        for name in groups:
            group[name] = dict(group.get(name) or {})
            group = group[name]
        group[last] = value
    return made
