"""Arrows between modules point down only, there are no circles, and what is general knows no task by name."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import io
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny

ROOT = tiny.ROOT

# Who may import whom, from the bottom up. A room that is a folder means all its modules, and may import within itself.
# Its tests aside, a change of this table is a change of the design.
ALLOWED: dict[str, str] = {
    # room: what it may import of ours
    "unimodal.errors": "",
    "unimodal.tokens": "",
    "unimodal.objectives": "",
    "unimodal.remat": "",
    "unimodal.quantization": "",
    "unimodal.layers": "quantization remat errors",
    "unimodal.sharding": "errors",
    "unimodal.state": "sharding errors",
    "unimodal.configuration": "errors",
    "unimodal.storage": "errors",
    "unimodal.hosts": "storage errors",
    "unimodal.chips": "",
    "unimodal.pods": "hosts.peer plan.topology chips configuration errors",
    "unimodal.worker": "",
    "unimodal.data": "worker errors",
    "unimodal.visibility": "tokens errors",
    "unimodal.kernels": "remat visibility tokens sharding errors",
    "unimodal.attention": "remat kernels visibility tokens errors",
    "unimodal.backbone": "quantization remat attention kernels visibility tokens layers sharding errors",
    "unimodal.convolutions": "layers",
    "unimodal.tokenizers": "convolutions tokens layers sharding errors",
    "unimodal.lora": "layers sharding errors",
    "unimodal.heads": "backbone kernels tokens layers sharding errors",
    "unimodal.decoding": "backbone visibility tokens errors",
    "unimodal.generate": "decoding backbone tokens errors",
    "unimodal.model": "tokenizers heads backbone tokens errors",
    "unimodal.packed": "model heads tokenizers objectives data errors",
    "unimodal.joint_embedding": "evaluation model heads layers data errors",
    "unimodal.evaluation": "generate model heads tokenizers tokens objectives data sharding configuration errors",
    "unimodal.text_to_picture": "decoding model heads tokenizers layers tokens data errors",
    "unimodal.answers": "evaluation generate heads data errors",
    "unimodal.dual_encoder": "answers evaluation model heads tokens objectives data errors",
    "unimodal.task": "answers model objectives data.blocks evaluation.evaluation",
    "unimodal.training": "task state objectives sharding tokens data.batches configuration storage errors",
    "unimodal.continual": "training task state objectives sharding data.batches data.dataset data.order data.spec errors",
    "unimodal.report": "evaluation.samples training.metrics storage",
    "unimodal.interop": "generate model heads backbone tokenizers tokens layers sharding configuration data errors",
    "unimodal.ledger": "training.workdir_start sharding configuration storage errors",
    "unimodal.moved": "data.sources",
    "unimodal.settings": "moved continual training.loop training.meters training.optimizer task model backbone configuration errors",
    "unimodal.kept": "data storage errors",
    "unimodal.brought": "kept ledger.start settings interop training.workdir_start evaluation.attached moved backbone configuration errors",
    "unimodal.experiment": "brought ledger.start continual settings interop training task objectives evaluation data model backbone configuration sharding storage errors",
    "unimodal.scores": "evaluation errors",
    "unimodal.results": "answers scores continual experiment report evaluation training data sharding storage errors",
    "unimodal.places": "evaluation.kinds configuration errors",
    "unimodal.use": "scores experiment kept places settings interop training answers evaluation generate model heads quantization data sharding configuration storage errors",
    "unimodal.history": "scores ledger kept use experiment places interop training evaluation model sharding data configuration storage errors",
    "unimodal.inspection": "task data report errors",
    "unimodal.plan": "chips experiment settings training.loop model objectives backbone tokens visibility task sharding configuration errors",
    "unimodal": "use interop model backbone visibility tokens errors",  # unimodal/__init__.py, the short names
    "tasks": "task answers state packed joint_embedding dual_encoder text_to_picture generate decoding model heads tokenizers backbone layers tokens objectives data errors evaluation",
    "configs": "tasks settings interop backbone tokenizers data configuration continual training.loop training.meters training.optimizer",  # the dataclasses whose fields a recipe fills in
    "unimodal.command": "unimodal history ledger use answers sharding places inspection data.skipped data.schemes data.convert brought kept settings plan results evaluation.kinds experiment hosts pods chips training configuration storage errors",
    "unimodal.__main__": "command",
    "launch": "command places",
}
# Third parties that a room must do without.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "unimodal.data": ("jax", "flax", "optax", "orbax"),
    "unimodal.objectives": ("flax", "grain"),
    "unimodal.tokens": ("flax",),
    "unimodal.training": ("ml_collections", "absl"),
    "unimodal": ("ml_collections", "absl", "torch", "transformers", "tensorflow"),
    "tasks": ("ml_collections", "absl", "grain"),
}
# But the program reads recipes, and quiets what absl logs.
EXCEPTIONS: dict[str, tuple[str, ...]] = {"unimodal.command": ("ml_collections", "absl")}


def sources() -> dict[str, str]:
    """Every module of ours: dotted name → text."""
    paths = [p for folder in ("unimodal", "tasks", "configs") for p in (ROOT / folder).rglob("*.py")]
    return {module_name(path): path.read_text(encoding="utf-8") for path in [*paths, ROOT / "launch.py"]}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(text: str, modules: Mapping[str, str]) -> set[str]:
    """The modules that a source imports, wherever in it: ours in full, others by the name that is written.

    `from unimodal import data` imports unimodal.data, but `from unimodal import Model` imports unimodal itself.
    """
    found = set()
    for module, name in written(text):
        inner = f"{module}.{name}" if name else module
        found.add(inner if inner in modules else module)
    return found


@functools.cache
def written(text: str) -> list[tuple[str, str]]:
    """The imports of a source as (module, name taken from it); without a name for `import module`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def room(module: str, rooms: Mapping[str, object]) -> str | None:
    """The entry of a table that a module belongs to: the longest that is the module or a folder above it."""
    # unimodal/__init__.py is a room of its own, so that a new module there must be put into the table.
    fits = [r for r in rooms if module == r or (module.startswith(f"{r}.") and r != "unimodal")]
    return max(fits, key=len, default=None)


def complaints(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of modules given as name → source: one line for each arrow, one for a circle."""
    found, arrows = [], {}
    for module, text in sorted(modules.items()):
        here = room(module, ALLOWED)
        if here is None:
            found.append(f"{module} is in no room of the table in {Path(__file__).name}")
            continue
        named = imports(text, modules)
        ours = {name for name in named if name.split(".")[0] in ("unimodal", "tasks", "configs", "launch")} - {module}
        arrows[module] = ours & modules.keys()
        below = [name if name in ALLOWED else f"unimodal.{name}" for name in ALLOWED[here].split()] + (
            [here] if here != "unimodal" else []
        )
        for other in sorted(ours):
            if not any(other == b or (b != "unimodal" and other.startswith(f"{b}.")) for b in below):
                found.append(f"{module} imports {other}; {here} may import {ALLOWED[here] or 'nothing of ours'}")
        for above, banned in FORBIDDEN.items():
            if module == above or module.startswith(f"{above}."):
                bad = sorted(n for n in named if n.split(".")[0] in set(banned) - set(EXCEPTIONS.get(here, ())))
                found += [f"{module} imports {name}; {above} does without it" for name in bad]
    if circle := find_circle(arrows):
        found.append(f"imports go round: {' → '.join(circle)}")
    return found


def find_circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """A path along the arrows that comes back to where it began, or nothing."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(arrows.get(module, ())):
            if circle := walk(other, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(arrows) if (circle := walk(module, []))), [])


def test_arrows_point_down() -> None:
    assert complaints(sources()) == []


def test_the_table_itself_has_no_circle() -> None:
    # Were two rooms allowed to import each other, a circle could grow that no single arrow shows.
    arrows = {
        here: {str(room(f"unimodal.{name}", ALLOWED)) for name in below.split()} - {here}
        for here, below in ALLOWED.items()
    }
    assert find_circle(arrows) == []


def test_every_row_of_the_table_is_used() -> None:
    assert {room(module, ALLOWED) for module in sources()} == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("unimodal.backbone", "from unimodal.model import Model"),
        ("unimodal.backbone", "import unimodal.tokenizers.text"),
        ("unimodal.tokens", "from unimodal.attention import attention"),
        ("unimodal.objectives.causal", "from unimodal.errors import UsageError"),
        ("unimodal.data.text", "import jax"),
        ("unimodal.data.text", "from jax import numpy"),
        ("unimodal.data.text", "from unimodal.tokens import Tokens"),
        ("unimodal.training.loop", "from tasks import gpt"),
        ("unimodal.places", "from tasks import gpt"),
        ("unimodal.training.loop", "from unimodal.model import Model"),
        ("unimodal.training.step", "def f():\n    from unimodal.tokenizers import text"),
        ("unimodal.experiment", "import launch"),
        ("unimodal.experiment", "from unimodal.command import recipe"),
        ("unimodal.command.words", "from unimodal.backbone import Backbone"),
        ("unimodal.command.runs", "import torch"),
        ("unimodal.experiment", "from ml_collections import ConfigDict"),
        ("unimodal.model", "from unimodal import interop"),
        ("tasks.vit", "from unimodal.training.loop import train"),
        ("tasks.vit", "from configs import demo"),
        ("unimodal.novelty", "import math"),
    ],
)
def test_an_arrow_turned_round_is_found(module: str, line: str) -> None:
    modules = sources()
    found = set(complaints({**modules, module: f"{modules.get(module, '')}\n{line}\n"})) - set(complaints(modules))
    assert any(complaint.startswith(module) for complaint in found)


def test_a_circle_inside_a_room_is_found() -> None:
    modules = sources()
    text = modules["unimodal.objectives.reduction"] + "\nfrom unimodal.objectives.causal import causal_lm\n"
    found = complaints({**modules, "unimodal.objectives.reduction": text})
    assert [line for line in found if "unimodal.objectives.reduction" in line and line.startswith("imports go round: ")]


# What is general must not know for whom it works. Words of code only: comments and docstrings may cite.
GENERAL = ("unimodal/backbone/*.py", "unimodal/attention.py", "unimodal/visibility.py", "unimodal/kernels/*.py")
GENERAL += ("unimodal/sharding.py", "unimodal/training/*.py")
FAMILIES = ("*bert*", "gpt*", "vit", "vit_*", "clip", "wav2vec*", "hubert*", "whisper*", "dall*", "llama*", "gemma*")
FAMILIES += ("qwen*", "t5", "mae", "dino*", "siglip*", "deit*", "bart", "imagegpt*", "data2vec*", "flamingo*", "llava*")
FAMILIES += tuple(tiny.KINDS)
# `clip` is also what one does to a gradient or a number.
INNOCENT = r"clip_by_global_norm|\bconfig\.clip\b|^\s*clip: float = |\bjnp\.clip\b"


def family_names(text: str) -> list[str]:
    """Lines of code with the name of a task or a model family in them, as "number: line"."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):  # docstrings, and other strings that stand alone
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            number, column = token.start
            lines[number - 1] = lines[number - 1][:column]
    found = []
    for number, line in enumerate(lines, start=1):
        words = re.findall(r"\w+", re.sub(INNOCENT, "", line).lower())
        if any(fnmatch.fnmatchcase(word, family) for word in words for family in FAMILIES):
            found.append(f"{number}: {line.strip()}")
    return found


def test_general_rooms_name_no_task() -> None:
    paths = [path for pattern in GENERAL for path in ROOT.glob(pattern)]
    assert len(paths) > 8
    found = [f"{path.relative_to(ROOT)}:{line}" for path in paths for line in family_names(path.read_text("utf-8"))]
    assert found == []


def test_a_family_name_in_code_is_found() -> None:
    text = '"""As in BERT."""\nx = 1  # GPT does so\nif name == "gpt":\n    clip = jnp.clip(x, 0, 1)\n'
    assert family_names(text) == ['3: if name == "gpt":', "4: clip = jnp.clip(x, 0, 1)"]


def test_no_export_hides_a_module() -> None:
    """`unimodal.tokens` is the module: a function of that name at the door would hide it."""
    modules = sources()
    for package in {name.rpartition(".")[0] for name in modules} - {"", "tasks", "configs"}:
        exported = set(getattr(importlib.import_module(package), "__all__", ()))
        hidden = {name for name in exported if f"{package}.{name}" in modules}
        assert not hidden, f"{package} exports {sorted(hidden)}, which are modules of it"


def test_folders_have_no_circle() -> None:
    """Rooms one level below the package point down, too: a folder above another imports it and is not imported by it."""
    modules = sources()
    top = lambda name: ".".join(name.split(".")[:2])  # noqa: E731
    arrows: dict[str, set[str]] = {}
    for module, text in modules.items():
        if module == "unimodal":  # the short names at the door
            continue
        ours = {name for name in imports(text, modules) if name in modules and name != "unimodal"}
        arrows.setdefault(top(module), set()).update({top(name) for name in ours} - {top(module)})
    assert find_circle(arrows) == []
