"""Every field that a config may set says beside itself what it is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from pathlib import Path

import pytest
import tiny

import tasks
import unimodal.evaluation.kinds
import unimodal.tokenizers
from unimodal.decoding.sampling import Sampling
from unimodal.pods.description import Pod
from unimodal.settings import Settings


def dataclasses_of(package: typing.Any) -> list[type]:
    """The dataclasses that the modules of a package define."""
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        members = vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
        found += [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
    return [cls for cls in found if cls.__module__.startswith(package.__name__)]


def reachable() -> list[type]:
    """Dataclasses that a config fills in, with those that they inherit from, or hold in a field."""
    packages = (tasks, unimodal.tokenizers, unimodal.evaluation.kinds)
    waiting: list[type] = [Settings, Pod, Sampling, *(cls for package in packages for cls in dataclasses_of(package))]
    found: list[type] = []
    while waiting:
        cls = waiting.pop()
        if cls not in found and dataclasses.is_dataclass(cls):
            found.append(cls)
            held = [part for hint in typing.get_type_hints(cls).values() for part in (hint, *typing.get_args(hint))]
            waiting += [part for part in (*inspect.getmro(cls), *held) if isinstance(part, type)]
    return found


def undocumented(source: str, name: str) -> list[str]:
    """Fields of the class `name` without a comment on their own line or on the line above."""
    lines = source.splitlines()
    cls = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == name)
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return [
        f"{name}.{node.target.id}"
        for node in fields
        if isinstance(node.target, ast.Name)
        and not lines[(node.end_lineno or node.lineno) - 1]
        .encode()[node.end_col_offset :]
        .decode()
        .strip()
        .startswith("#")
        and not lines[node.lineno - 2].strip().startswith("#")
    ]


def test_it_reaches_what_configs_hold() -> None:
    names = {cls.__name__ for cls in reachable()}
    expected = {
        "Bert",
        "Images",
        "Features",
        "LinearProbe",
        "BackboneConfig",
        "LoopConfig",
        "ProfileConfig",
        "MeshConfig",
    }
    assert expected | {"GeneralConfig", "OptimizerConfig", "Config", "Pod", "Sampling"} <= names


@pytest.mark.parametrize("cls", reachable(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_is_documented_where_it_stands(cls: type) -> None:
    path = Path(inspect.getsourcefile(cls) or "")
    missing = undocumented(path.read_text(encoding="utf-8"), cls.__name__)
    assert not missing, f"{path.relative_to(tiny.ROOT)}: no comment beside {', '.join(missing)}"


def test_an_undocumented_field_is_named() -> None:
    source = (
        "class Made:\n    '''Words.'''\n\n    a: int = 1  # one\n    b: str = '#'\n"
        "    # above\n    c: int = 3\n    d: tuple = (\n        '#',\n    )  # after\n    e: float\n"
    )
    assert undocumented(source, "Made") == ["Made.b", "Made.e"]
