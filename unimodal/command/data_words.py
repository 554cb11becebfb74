"""The words behind `data`: its commands, their flags and help."""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.configuration import nearest
from unimodal.errors import UsageError

HELP = {
    "inspect": (
        "--config=NAME [--split=train] [--limit=N] [--page=FILE] [--config.FIELD=VALUE]",
        "count, measure and look at the data of a recipe as its model will see them; writes a page",
    ),
    "convert": (
        "SOURCE arrayrecord:DIR [--splits=train,validation] [--shard_megabytes=256]",
        "write any source as ArrayRecord files; goes on where it was stopped",
    ),
}


def help_text(program: str) -> str:
    """Both commands."""
    lines = [f"usage: {program} data {'|'.join(HELP)}", ""]
    for name, (flags, text) in HELP.items():
        lines += [f"  {program} data {name} {flags}", f"      {text}", ""]
    return "\n".join(lines).rstrip()


def flags_of(arguments: Sequence[str], known: Sequence[str], usage: str) -> tuple[list[str], dict[str, str]]:
    """Words without dashes, and --name=value by name. Raises UsageError for a flag that there is not."""
    words, flags = [], {}
    for argument in arguments:
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in known:
            raise UsageError(f"no flag --{name}; {nearest(name, list(known))}")
        # Refuse --name value: a source may follow a flag, and would be taken for its value.
        if not equals or not value:
            raise UsageError(f"--{name} needs a value; {usage}")
        flags[name] = value
    return words, flags
