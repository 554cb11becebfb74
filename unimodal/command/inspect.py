"""`unimodal data inspect`: the data of a recipe in numbers, and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimodal.command.data_words import HELP, flags_of
from unimodal.command.recipe import as_plain, change, load_recipe
from unimodal.data.skipped import LEDGER
from unimodal.errors import UsageError
from unimodal.experiment import build
from unimodal.inspection import look, write_page
from unimodal.places import find_recipe, places_of

FLAGS = ("config", "split", "limit", "page")


def run_inspect(arguments: Sequence[str], program: str) -> int:
    """Look at the data of every task of a recipe. Nothing is trained, and no array of the model is made."""
    usage = f"usage: {program} data inspect {HELP['inspect'][0]}"
    # Set fields of the config aside: they are none of this command's flags.
    mine = [argument for argument in arguments if not argument.startswith("--config.")]
    words, flags = flags_of(mine, FLAGS, usage)
    if words or "config" not in flags:
        raise UsageError(usage)
    limit = flags.get("limit", "1000")
    if not limit.isdecimal() or not int(limit):
        raise UsageError(f"--limit={limit} should be a whole number of at least 1")
    recipe, argument = find_recipe(flags["config"])
    places = places_of(recipe)
    places.open()
    config = load_recipe(recipe, argument)
    for text in arguments:
        if text.startswith("--config."):
            field, _, value = text.removeprefix("--config.").partition("=")
            change(config, field, value)
    # Forget what an earlier command in this process left out.
    LEDGER.clear()
    LEDGER.least = 0.5  # see what is wrong with data that no run would go on with
    try:
        experiment, looked = build(as_plain(config), places.task_class), []
        options: dict[str, Any] = dict(split=flags.get("split", "train"), limit=int(limit), seed=experiment.seed)
        for task in experiment.tasks:
            looked.append(look(task, experiment.model, **options))
            print("\n".join(looked[-1].lines()), flush=True)
    finally:
        LEDGER.least = 0.0
    page = Path(flags.get("page", "inspect.html"))
    write_page(page, looked, f"Data of {flags['config']}")
    print(f"wrote {page}")
    return 0
