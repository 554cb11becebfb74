"""The words behind `ledger`: its commands, their flags and help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unimodal.configuration import nearest
from unimodal.errors import UsageError

HELP = {
    "init": ("LEDGER [--tensors=FOLDER|gs://…|s3://…]", "make a ledger; tensors may lie elsewhere"),
    "commit": (
        "LEDGER WORKDIR|CHECKPOINT -m MESSAGE [--branch=main] [--step=N] [--evaluate=true]",
        "commit the weights of a run, or of a Hugging Face directory; --evaluate scores them first",
    ),
    "branch": ("LEDGER [NAME [REF]]", "begin a branch at a ref (default: main), or list the branches"),
    "show": ("LEDGER REF", "tell what is in a commit"),
    "log": (
        "LEDGER [REF…] [--limit=N] [--page=FILE] [--evaluate=false]",
        "list commits; --page writes the graph and the matrix of commits and tasks",
    ),
    "diff": (
        "LEDGER A B [--tensors=20] [--evaluate=false] [--page=FILE]",
        "compare two commits: what changed in each tensor, and what that did to each task",
    ),
    "checkout": ("LEDGER REF FOLDER", "write a commit as a workdir, or as a Hugging Face directory"),
    "revert": (
        "LEDGER REF [-m MESSAGE] [--branch=main] [--evaluate=false]",
        "subtract the update of a commit from the weights of now, and tell what came back and what was lost",
    ),
    "cherry-pick": (
        "LEDGER REF [--scale=1] [-m MESSAGE] [--branch=main] [--evaluate=false]",
        "add the update of a commit to the weights of now",
    ),
    "merge": (
        "LEDGER REF… [--method=mean|task_arithmetic|ties|fisher] [--scale=X] [--keep=0.2] [--search=0.3,0.5,…] [--base=REF] "
        "[--batches=16] [-m MESSAGE] [--branch=main] [--evaluate=false]",
        "merge refs into a branch; --search takes the scale that is best on half of validation, and tells what it does to the other",
    ),
    "bisect": ("LEDGER --task=NAME --good=REF [--bad=main] [--limit=X]", "find the commit that broke a task"),
    "verify": ("LEDGER", "read and check every object and tensor"),
    "gc": ("LEDGER", "remove tensors that no commit names, and what killed processes left"),
    "push": (
        "LEDGER TO [BRANCH…] [--git=ADDRESS]",
        "send to another ledger; with --git, tensors to a folder or bucket and the history to any git host",
    ),
    "pull": ("LEDGER FROM [BRANCH…] [--git=ADDRESS]", "fetch from there"),
}


def help_text(program: str) -> str:
    """All commands."""
    lines = [f"usage: {program} ledger COMMAND LEDGER …", ""]
    for name, (flags, text) in HELP.items():
        lines += [f"  {program} ledger {name} {flags}", f"      {text}", ""]
    return "\n".join(lines).rstrip()


def read(arguments: Sequence[str], program: str) -> tuple[str, list[str], dict[str, str]]:
    """A command, its words, and its flags by name ("m" for -m). Raises UsageError."""
    if not arguments:
        raise UsageError(f"usage: {program} ledger {'|'.join(HELP)}; {program} ledger --help says more")
    command, *waiting = arguments
    if command not in HELP:
        raise UsageError(f"unknown command ledger {command!r}; {nearest(command, list(HELP))}")
    usage = f"usage: {program} ledger {command} {HELP[command][0]}"
    known = [part.split("=")[0] for part in HELP[command][0].replace("[", " ").split() if part.startswith("--")]
    words: list[str] = []
    flags: dict[str, str] = {}
    while waiting:
        word = waiting.pop(0)
        if word == "-m" and "-m MESSAGE" in HELP[command][0]:
            if not waiting:
                raise UsageError("-m needs a message")
            flags["m"] = waiting.pop(0)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name not in known:
                raise UsageError(f"ledger {command} has no flag {name}; {nearest(name, known) if known else usage}")
            if not equals or not value:
                raise UsageError(f"{name} needs a value; {usage}")
            flags[name.removeprefix("--")] = value
        elif word.startswith("-"):
            raise UsageError(f"unexpected argument {word!r}; {usage}")
        else:
            words.append(word)
    if not words:
        raise UsageError(usage)
    return command, words, flags


def exactly(words: Sequence[str], least: int, most: int | None, command: str, program: str) -> None:
    """Raises UsageError for too few words, or too many (None: any number)."""
    if len(words) < least or (most is not None and len(words) > most):
        raise UsageError(f"usage: {program} ledger {command} {HELP[command][0]}")


def switch(flags: dict[str, str], name: str, default: bool) -> bool:
    value = flags.get(name, str(default)).lower()
    if value not in ("true", "false"):
        raise UsageError(f"--{name} is true or false, but is {flags[name]!r}")
    return value == "true"


def number(flags: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(flags.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):  # a scale of nan would leave no weight of the branch a number
        raise UsageError(f"--{name} must be a number, but is {flags[name]!r}")
    return value


def whole(flags: dict[str, str], name: str, default: int | None) -> int | None:
    if name not in flags:
        return default
    if not flags[name].isdecimal() or len(flags[name]) > 12:
        raise UsageError(f"--{name} must be a whole number, but is {flags[name]!r}")
    return int(flags[name])
