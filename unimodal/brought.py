"""Fields that come with the weights a run starts from (`data.blocks.brought`): filled in where a config leaves them unset."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from etils import epath

from unimodal.backbone import BackboneConfig
from unimodal.configuration import is_brought
from unimodal.errors import UsageError
from unimodal.evaluation.attached import attach
from unimodal.interop.preparation import Preparation
from unimodal.interop.start import preparation_of
from unimodal.kept import with_encoders
from unimodal.ledger.start import SCHEME, commit_of
from unimodal.moved import renewed
from unimodal.settings import read_settings
from unimodal.training.workdir_start import is_workdir

Readers = Mapping[str, Any]  # dotted place in the config ("tasks.vit") → the task or evaluation that stands there


def brought_fields(reader: Any) -> Iterator[tuple[str, Any]]:
    """The dotted fields of a task or an evaluation that come with weights ("images.mean"), and their values."""
    for slot in fields(reader) if is_dataclass(reader) else ():
        value = getattr(reader, slot.name)
        if is_brought(slot):
            yield slot.name, value
        elif is_dataclass(value):
            yield from ((f"{slot.name}.{name}", inner) for name, inner in brought_fields(value))


def readers_of(tasks: Sequence[Any], attached: Mapping[str, Any]) -> Readers:
    """Whatever reads data: tasks, and evaluations that the config attaches."""
    found = {f"tasks.{task.name}": task for task in tasks}
    return found | {f"evaluations.{name}": evaluation for name, evaluation in attached.items()}


def with_brought(
    config: Mapping[str, Any], task_class: Callable[[str], type[Any]], there: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config with every brought field set, so that nothing needs `init_from` to know them.

    there: the config of the run that goes on, whose values those that are unset keep (or their defaults: a run from before
    there were such fields was trained with them). Without it they are as `init_from` has them, else as by default. An
    evaluation reads as the task does whose tokenizer it shares.
    """
    made = copy.deepcopy(renewed(config))
    found = read_settings(made, task_class)
    readers = readers_of(found.tasks, attach(found.evaluations, found.tasks, found.tokenizers, found.backbones))
    if all(_at(made, f"{where}.{name}") is not None for where, r in readers.items() for name, _ in brought_fields(r)):
        return made
    preparation = Preparation("")
    general = found.general
    if there is None:
        # What is wrong with a checkpoint is said when it is matched with the model; shapes are known without it.
        with contextlib.suppress(UsageError):
            preparation = preparation_of_init(general.init_from, general.init_skip, found.tokenizers, found.backbones)
    return _filled(made, readers, None if there is None else renewed(there), preparation)


def _filled(
    made: dict[str, Any], readers: Readers, there: Mapping[str, Any] | None, preparation: Preparation
) -> dict[str, Any]:
    tasks = [where for where in readers if where.startswith("tasks.")]
    for where in sorted(readers, key=lambda where: where not in tasks):
        reader = readers[where]
        theirs = preparation.of(vars(reader))
        if where not in tasks:
            theirs = {**theirs, **_of_tasks(made, reader, {task: readers[task] for task in tasks})}
        for name, default in brought_fields(reader):
            place = f"{where}.{name}"
            if _at(made, place) is None:
                stored = None if there is None else _at(there, place)
                _put(made, place, theirs.get(name, default) if stored is None else stored)
    return made


def _of_tasks(config: Mapping[str, Any], reader: Any, tasks: Readers) -> dict[str, Any]:
    """Collect what the tasks of a config say of the tokenizer that an evaluation reads."""
    found: dict[str, Any] = {}
    for where, task in tasks.items():
        if set(_tokenizers(reader)) & set(_tokenizers(task)):
            found = {**{name: _at(config, f"{where}.{name}") for name, _ in brought_fields(task)}, **found}
    return found


def config_of_run(init_from: str) -> dict[str, Any] | None:
    """The config of the run of ours that `init_from` names, a workdir or a commit of a ledger; None for other weights."""
    if init_from.startswith(SCHEME):
        return commit_of(init_from).json("config.json") or {}
    if is_workdir(init_from):
        return json.loads((epath.Path(init_from) / "config.json").read_text(encoding="utf-8"))
    return None


def check_codebooks(workdir: str, config: Mapping[str, Any], tokenizers: Mapping[str, tuple[str, Any]]) -> None:
    """Raises UsageError, naming the field, for a codebook that is otherwise in the run that its weights come from.

    Some of its fields change no shape, and a codebook of which a part started afresh would give codes without a meaning.
    """
    for name, (kind, ours) in tokenizers.items():
        theirs = config.get("tokenizers", {}).get(name, {})
        if kind != "codebook" or theirs.get("kind", name) != kind:
            continue
        for slot in fields(ours):
            value, there = getattr(ours, slot.name), theirs.get(slot.name, slot.default)
            there = tuple(there) if isinstance(there, list) else there
            if slot.name not in ("dropout", "dtype") and value != there:
                raise UsageError(
                    f"tokenizers.{name}.{slot.name} is {value!r}, but {there!r} in {workdir}, whose codebook this is to be"
                )


def preparation_of_init(
    init_from: str | None,
    skip: str | None,
    tokenizers: Mapping[str, tuple[str, Any]],
    backbones: Mapping[str, BackboneConfig],
) -> Preparation:
    """Find what comes with the weights of `init_from`: a published checkpoint, or a workdir of ours."""
    if init_from is None:
        return Preparation("")
    if (config := config_of_run(init_from)) is not None:
        config = renewed(config)
        if init_from.startswith(SCHEME):
            return Preparation(init_from, _of_config(config))
        return Preparation(init_from, _of_config(with_encoders(init_from, config, missing=True)))
    return preparation_of(init_from, tokenizers, backbones, skip=skip)


def _of_config(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tokenizer → dotted field → value, of the tasks in a run's config.json."""
    found: dict[str, dict[str, Any]] = {}
    for task in config.get("tasks", {}).values():
        said = {
            name: tuple(value) if isinstance(value, list) else value
            for block, group in task.items()
            for name, value in (
                [(f"{block}.{n}", v) for n, v in group.items()] if isinstance(group, dict) else [(block, group)]
            )
            if value is not None
        }
        for slot, name in task.items():
            if slot.endswith("tokenizer"):
                found[name] = {**said, **found.get(name, {})}
    return found


def compared(preparation: Preparation, readers: Readers) -> tuple[str, ...]:
    """One line for each field that comes with the weights: as there, or otherwise. And what no field can say."""
    lines = []
    for where, reader in readers.items():
        theirs = preparation.of(vars(reader))
        for name, value in brought_fields(reader):
            if name not in theirs:
                continue
            same = _same(value, theirs[name])
            said = "as there" if same else f"but {_short(theirs[name])} there, which the weights were trained with"
            lines.append(f"  input   {where}.{name} is {_short(value)}, {said}")
    return (*lines, *(f"  input   {note}" for note in preparation.notes))


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours == theirs or Path(ours).expanduser().absolute() == Path(theirs).expanduser().absolute()
    if isinstance(ours, float) or (isinstance(ours, tuple) and isinstance(theirs, tuple)):
        a, b = (list(v) if isinstance(v, tuple) else [v] for v in (ours, theirs))
        a, b = (v * 3 if len(v) == 1 else v for v in (a, b))  # one value for all channels
        return len(a) == len(b) and all(abs(x - y) <= 1e-6 * max(1.0, abs(y)) for x, y in zip(a, b, strict=True))
    return ours == theirs


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    shown, more = (value[:6], f", … {len(value)} numbers") if len(value) > 12 else (value, "")
    return f"({', '.join(f'{v:g}' for v in shown)}{more})"


def _tokenizers(reader: Any) -> list[str]:
    return [name for slot, name in vars(reader).items() if slot.endswith("tokenizer") and name]


def _at(config: Mapping[str, Any], place: str) -> Any:
    value: Any = config
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _put(config: dict[str, Any], place: str, value: Any) -> None:
    *path, last = place.split(".")
    group: Any = config
    for name in path:
        group[name] = dict(group.get(name) or {})
        group = group[name]
    group[last] = list(value) if isinstance(value, tuple) else value
