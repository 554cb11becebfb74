"""Evaluations that a config attaches to a run, by kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import unimodal.evaluation.kinds
from unimodal.configuration import changed, group, nearest, typed
from unimodal.errors import UsageError, broken
from unimodal.evaluation.evaluation import Evaluation


def kinds() -> list[str]:
    """The names of the modules in `evaluation/kinds/` and in the user's own `evaluations/`, and "task"."""
    return sorted(module.name for module in pkgutil.iter_modules(unimodal.evaluation.kinds.__path__)) + ["task"]


def attach(
    config: Mapping[str, Any], tasks: Sequence[Any], tokenizers: Mapping[str, Any], backbones: Mapping[str, Any]
) -> dict[str, Evaluation]:
    """name → Evaluation, for `config.evaluations`.

    `kind="task"` is the main evaluation of the task that `task` names, with any of the task's fields changed, such as
    its source. Raises UsageError for an unknown kind, field, task, tokenizer or backbone.
    """
    by_name = {task.name: task for task in tasks}
    found: dict[str, Evaluation] = {}
    for name, fields in config.items():
        where = f"evaluations.{name}"
        rest = dict(group(fields, where))
        kind = rest.pop("kind", name)
        if kind == "task":
            task = by_name.get(wanted := rest.pop("task", name))
            if task is None:
                raise UsageError(f"{where}.task={wanted!r} is none of the tasks; {nearest(str(wanted), list(by_name))}")
            # Make the task again with the fields that differ, and take its own evaluation: no metric is written twice.
            found[name] = changed(task, rest, where).evaluations()[task.name]
            continue
        made = typed(kind_class(str(kind), where), {"name": name, **rest}, where)
        if hasattr(made, "of_tasks"):  # it asks a task, and so needs no tokenizer or backbone of its own
            found[name] = made.of_tasks(by_name)
            continue
        for field, there in (("tokenizer", tokenizers), ("backbone", backbones), ("task", by_name)):
            if (named := getattr(made, field, None)) is not None and named not in there:
                raise UsageError(f"{where}.{field}={named!r} is not among {', '.join(there)}")
        found[name] = made
    return found


def kind_class(kind: str, where: str) -> type[Any]:
    """The class of a kind: x_y.py holds XY. Raises UsageError for what is not there, or does not load."""
    # Compare with the files: a new kind is one more file, and no list names it.
    if kind not in kinds():
        raise UsageError(f"{where}: there is no evaluation of kind {kind!r}; {nearest(kind, kinds())}")
    folders = [Path(folder) for folder in unimodal.evaluation.kinds.__path__]
    path = next(file for folder in folders if (file := folder / f"{kind}.py").is_file())
    try:
        module = importlib.import_module(f"unimodal.evaluation.kinds.{kind}")
    except Exception as error:  # whatever a file may raise
        raise broken(path, error) from error
    name = "".join(word.capitalize() for word in kind.split("_"))
    if not hasattr(module, name):
        raise UsageError(f"{path} has no class {name}: evaluations/x_y.py holds the class XY")
    return getattr(module, name)
