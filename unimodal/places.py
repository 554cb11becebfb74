"""Places where recipes and tasks are looked up: beside the user first, then among those that come along."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimodal.configuration import nearest
from unimodal.errors import UsageError, broken
from unimodal.evaluation import kinds

ROOMS = ("tasks", "configs")
EVALUATIONS = "evaluations"  # a folder of the user's own kinds


def _along() -> Path:
    """The folder whose tasks/ and configs/ come along: inside an installed package, or the repository around it."""
    package = Path(__file__).resolve().parent
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parent


ALONG = _along()
KINDS = Path(str(kinds.__file__)).parent  # those that come along


@dataclass(frozen=True)
class Places:
    """Folders that recipes and tasks are looked up in, before those that come along."""

    own: tuple[Path, ...] = ()  # folders of the user's, first come first served, with tasks/, configs/ and evaluations/

    @property
    def homes(self) -> tuple[Path, ...]:
        return (*self.own, ALONG)

    def open(self) -> None:
        """Let `import tasks.x` and `import configs.x` find what is there, whatever else the path calls by these names."""
        for room in ROOMS:
            _gather(room, [home / room for home in self.homes])
        # Kinds of the user's own become modules beside those that come along, where evaluations are looked up.
        _gather(kinds.__name__, [*(home / EVALUATIONS for home in self.own), KINDS])
        for home in self.own:  # modules of the user's own, beside tasks/; last, so that they hide nothing
            if str(home) not in sys.path:
                sys.path.append(str(home))

    def task_class(self, kind: str) -> type[Any]:
        """The class of a task kind: tasks/x_y.py holds XY. Raises UsageError for what is not there, or does not load."""
        found = {path.stem: path for home in reversed(self.homes) for path in (home / "tasks").glob("*.py")}
        known = sorted(found.keys() - {"__init__"})
        if kind not in known:
            looked = "".join(f" nor in {home / 'tasks'}" for home in self.own if (home / "tasks").is_dir())
            raise UsageError(f"there is no task {kind!r} in tasks/{looked}; {nearest(kind, known)}")
        self.open()
        path, name = found[kind], "".join(part.capitalize() for part in kind.split("_"))
        try:
            module = importlib.import_module(f"tasks.{kind}")
        except Exception as error:  # whatever a file may raise
            raise broken(path, error) from error
        note_clash(path, ALONG / "tasks" / path.name)
        if not hasattr(module, name):
            raise UsageError(f"{path} has no class {name}: tasks/x_y.py holds the class XY")
        return getattr(module, name)


def places_of(recipe: Path | None) -> Places:
    """The recipe's own folder (the one around configs/, if it lies in that), then the current one."""
    folders = [] if recipe is None else [recipe.parent.parent if recipe.parent.name == "configs" else recipe.parent]
    own = dict.fromkeys(folder.resolve() for folder in [*folders, Path.cwd()])
    return Places(
        tuple(folder for folder in own if folder != ALONG and any((folder / r).is_dir() for r in (*ROOMS, EVALUATIONS)))
    )


def find_recipe(word: str) -> tuple[Path, str | None]:
    """NAME, configs/NAME.py or a path, each with or without :ARGUMENT → the file, and the argument. Raises UsageError."""
    head, colon, argument = word.partition(":")
    file = Path(head)
    if not (file.suffix == ".py" and file.is_file()):
        name = file.name.removesuffix(".py")
        found = [path for path in (home / "configs" / f"{name}.py" for home in (Path.cwd(), ALONG)) if path.is_file()]
        if file.parent not in (Path("."), Path("configs")) or not found:
            raise UsageError(f"there is no recipe {head or word!r}; {nearest(name, recipes())}")
        file = found[0]
        note_clash(file, found[-1])
    return file.resolve(), argument if colon else None


def recipes() -> list[str]:
    """The names of those beside the user and of those that come along."""
    paths = [path for home in (Path.cwd(), ALONG) for path in (home / "configs").glob("*.py")]
    return sorted({path.stem for path in paths} - {"common", "__init__"})


def note_clash(taken: Path, other: Path) -> None:
    """Say, once, that a file of the user's stands before one of the same name that comes along."""
    taken, other = taken.resolve(), other.resolve()
    if taken != other and other.is_file() and taken not in _NOTED:
        _NOTED.add(taken)
        print(f"note: {taken} is used, not the {other.parent.name}/{other.name} that comes along", file=sys.stderr)


_NOTED: set[Path] = set()


def _gather(room: str, folders: Sequence[Path]) -> None:
    """Make the package `room` of these folders. A module that was loaded from elsewhere is forgotten."""
    package: Any = sys.modules.get(room)
    if package is None:
        package = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(room, None, is_package=True))
        sys.modules[room] = package
    package.__path__ = [str(folder) for folder in folders if folder.is_dir()]
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{room}.") and (file := getattr(module, "__file__", None)):
            wanted = next((p for folder in folders if (p := folder / Path(file).name).is_file()), None)
            if wanted is None or wanted.resolve() != Path(file).resolve():
                del sys.modules[name]
