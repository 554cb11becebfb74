"""Changes recipes at random, one to three fields at a time, and counts what comes of it.

    python -m benchmarks.fuzz_configs [--count=5000] [--seed=0] [--recipes=demo,gpt:tiny]

Each changed recipe is built and described as `launch.py train --dry_run` does: nothing is made on a device. What is refused must be
a UsageError of one line. Anything else that is raised, and what is not through after a minute, is printed with the changes that led
to it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ml_collections import ConfigDict  # noqa: E402

from unimodal.brought import with_brought  # noqa: E402
from unimodal.command.recipe import as_plain, change, load_recipe  # noqa: E402
from unimodal.errors import UsageError  # noqa: E402
from unimodal.experiment import build, describe  # noqa: E402
from unimodal.places import find_recipe, places_of  # noqa: E402

LONGEST = 60  # seconds for one recipe
LARGEST = 2_000_000  # of numbers: beyond it a model that fits nowhere is what was asked for
VALUES = (
    "0", "1", "-1", "2", "3", "7", "1.5", "-0.5", "1e-30", "1e30", "nan", "inf", "-inf", "99999999999999999999",
    "9223372036854775808", "None", "True", "False", "''", "x", "wörd", "float16", "bfloat16", "float64", "int8", "mean",
    "()", "(1,)", "(0, 0)", "(1, 2, 3)", "(-1, 4)", "1,2", "a,b", "[]", "[[1]]", "{}", "{'a': 1}", "embedded:emoji",
    "embedded:speech", "embedded:book", "folder:/nowhere", "nowhere:x", "jsonl:", "../..", "a\nb", "\x00", "None,None",
)  # fmt: skip


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not through after {LONGEST} s")


def leaves(config: ConfigDict, path: str = "") -> list[str]:
    found: list[str] = []
    for name, value in config.items():
        where = f"{path}.{name}" if path else name
        found += leaves(value, where) if isinstance(value, ConfigDict) else [where]
    return found


def value(now: Any, chance: random.Random) -> str:
    """Something for a field: often near to what is there, else anything."""
    if now is None or chance.random() < 0.3:
        return chance.choice(VALUES)
    if isinstance(now, bool):
        return str(not now)
    if isinstance(now, int):
        return str(min(LARGEST, int(now * chance.choice((0, -1, 2, 3, 10))) + chance.choice((-1, 0, 1))))
    if isinstance(now, float):
        return repr(now * chance.choice((0.0, -1.0, 0.5, 2.0, 1e6)))
    return str(now)[: chance.randrange(1 + len(str(now)))]


def outcome(config: ConfigDict, changes: dict[str, str], task_class: Any) -> str:
    try:
        for where, text in changes.items():
            change(config, where, text)
        plain = with_brought(as_plain(config), task_class, None)
        describe(build(plain, task_class))
        return "built"
    except UsageError as error:
        return "refused" if "\n" not in str(error) else "more than a line"
    except MemoryError:
        return "refused"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="changed recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", help="separated by commas (default: the demo and every tiny recipe)")
    given = parser.parse_args()
    names = given.recipes.split(",") if given.recipes else ["demo", *tiny_recipes()]
    chance, counts, began = random.Random(given.seed), Counter(), time.monotonic()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    for number in range(given.count):
        recipe, argument = find_recipe(chance.choice(names))
        config = load_recipe(recipe, argument)
        fields = leaves(config)
        changes = {
            where: value(config_value(config, where), chance)
            for where in chance.sample(fields, chance.choice((1, 1, 2, 3)))
        }
        signal.alarm(LONGEST)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                came = outcome(config, changes, places_of(recipe).task_class)
        except Exception as error:
            came = "traceback"
            print(
                f"{recipe.stem}: {json.dumps(changes, ensure_ascii=False)}: {type(error).__name__}: {str(error)[:160]}"
            )
            print("   ", traceback.format_tb(error.__traceback__)[-1].strip().replace("\n", " "), flush=True)
        finally:
            signal.alarm(0)
        counts[came] += 1
        if (number + 1) % 500 == 0:
            jax.clear_caches()  # traces of thousands of models would fill the memory
            print(f"{number + 1}: {dict(counts)} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{given.count} changed recipes: {dict(counts)}")
    return int(counts["traceback"] + counts["more than a line"] > 0)


def config_value(config: ConfigDict, where: str) -> Any:
    for name in where.split("."):
        config = config[name]
    return config


def tiny_recipes() -> list[str]:
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "def tiny" in text and "def get_config" in text:
            found.append(f"{path.stem}:size=tiny")
    return found


if __name__ == "__main__":
    sys.exit(main())
