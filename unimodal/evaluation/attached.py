"""Evaluations that a config attaches to a run, by kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import unimodal.evaluation.kinds
from unimodal.configuration import changed, group, nearest, typed
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation


def kinds() -> list[str]:
    """The names of the modules in `evaluation/kinds/`, and "task"."""
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
            found[name] = changed(task, rest, where).evaluations()[task.name]
            continue
        if kind not in kinds():
            raise UsageError(f"{where}: there is no evaluation of kind {kind!r}; {nearest(str(kind), kinds())}")
        module = importlib.import_module(f"unimodal.evaluation.kinds.{kind}")
        made = typed(getattr(module, "".join(w.capitalize() for w in kind.split("_"))), {"name": name, **rest}, where)
        if hasattr(made, "of_tasks"):  # it asks a task, and so needs no tokenizer or backbone of its own
            found[name] = made.of_tasks(by_name)
            continue
        for field, there in (("tokenizer", tokenizers), ("backbone", backbones)):
            if getattr(made, field) not in there:
                raise UsageError(f"{where}.{field}={getattr(made, field)!r} is not among {', '.join(there)}")
        found[name] = made
    return found
