"""The words of a command line: commands, flags and their help, without anything that takes long to import."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import unimodal
from unimodal.configuration import nearest
from unimodal.errors import UsageError

COMMANDS = {
    "train": "train a recipe in a workdir, or go on with it; then evaluate and write results.json and report.html",
    "eval": "evaluate a checkpoint of a workdir; --workdir alone takes the config from there",
    "plan": "compile for chips that are not here: does it fit, what does a step take?",
    "doctor": "ask every host whether it is fit for a run",
    "data": "look at the data of a recipe, or write a source as ArrayRecord files",
    "pod": "start a run on several processes, TPU VMs, GKE, Slurm or SkyPilot",
}


@dataclass(frozen=True)
class Flag:
    """name; value: what stands after the "=" ("": a switch); help; commands: which take it."""

    name: str
    value: str
    help: str
    commands: tuple[str, ...]


EVERY = ("train", "eval", "plan", "doctor")
FLAGS = (
    Flag("config", "NAME[:ARGUMENT]", "a recipe: demo, vit:size=tiny, or a file of yours, configs/mine.py", EVERY),
    Flag("workdir", "DIR", "where checkpoints, metrics and results go: a folder, or gs://BUCKET/runs/NAME", EVERY),
    Flag("fake_data", "", "train on random batches of the right shapes; evaluate nothing", ("train",)),
    Flag("dry_run", "", "print what would run, and stop", ("train",)),
    Flag(
        "step",
        "N",
        "the checkpoint to take, by its step (default: the latest); later ones are set aside",
        ("train", "eval"),
    ),
    Flag(
        "adapt", "", "go on in a workdir of another config with what fits of its checkpoint, and say what", ("train",)
    ),
    Flag("topology", "KIND:SHAPE", "what to compile for, as v5p:8x8x8, cpu:8 or gpu", ("plan",)),
    Flag("mesh", "auto", "try the meshes that divide the topology and the model", ("plan",)),
    Flag("json", "FILE", "where to write the figures", ("plan",)),
)


@dataclass(frozen=True)
class Words:
    """A command line. changes: dotted config fields with the text they are set to, in order."""

    command: str
    config: str | None = None
    workdir: str | None = None
    fake_data: bool = False
    dry_run: bool = False
    step: int | None = None
    adapt: bool = False
    topology: str | None = None
    mesh: str | None = None
    json: str | None = None
    changes: tuple[tuple[str, str], ...] = field(default=())


def answer(arguments: Sequence[str], program: str) -> str | None:
    """What to print for --help and --version; None for a command line that asks for neither."""
    if "--version" in arguments:
        return f"unimodal {unimodal.__version__}"
    if list(arguments[:1]) != ["help"] and not {"-h", "--help"} & set(arguments):
        return None
    command = next((word for word in arguments if word in COMMANDS), None)
    return help_of(command, program) if command else overview(program)


def usage(program: str) -> str:
    """One line."""
    return f"usage: {program} {'|'.join(COMMANDS)} --config=NAME --workdir=DIR; {program} --help says more"


def overview(program: str) -> str:
    """All commands."""
    lines = [f"usage: {program} COMMAND --config=NAME --workdir=DIR [--config.any.field=value]", ""]
    lines += [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", f"{program} COMMAND --help shows the flags of a command."])


def help_of(command: str, program: str) -> str:
    """The flags of a command."""
    if command == "pod":
        return _pod_help(program)
    if command == "data":
        from unimodal.command.data_words import help_text

        return help_text(program)
    rows = [(f"--{f.name}={f.value}" if f.value else f"--{f.name}", f.help) for f in FLAGS if command in f.commands]
    rows.append(("--config.FIELD=VALUE", "change a field of the recipe, as --config.optimizer.learning_rate=1e-4"))
    width = max(len(name) for name, _ in rows)
    lines = [f"usage: {program} {command} [flags]", "", COMMANDS[command], ""]
    return "\n".join([*lines, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _pod_help(program: str) -> str:
    from dataclasses import fields

    from unimodal.pods.description import ACTIONS, PLATFORMS, Pod

    lines = [f"usage: {program} pod --platform={'|'.join(PLATFORMS)} [flags] [flags of the run]", "", COMMANDS["pod"]]
    known = {"platform": "|".join(PLATFORMS), "action": "|".join(ACTIONS), "command": "train|eval|doctor"}
    for one in fields(Pod):
        switch = one.default is False
        default = "" if switch or one.default in (None, "") else f"  (default: {one.default})"
        lines.append(f"  --{one.name}{'' if switch else '=' + known.get(one.name, one.name.upper())}{default}")
    return "\n".join([*lines[:3], "", *lines[3:], "", "docs/pods describes each platform and its flags."])


def parse(arguments: Sequence[str], program: str) -> Words:
    """A command and its flags, without the program's name. Raises UsageError.

    Flags are --name=value or --name value; switches --name, --name=true or --name=false.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(usage(program))
    command, *waiting = arguments
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}; {nearest(command, list(COMMANDS))}")
    known = {flag.name: flag for flag in FLAGS if command in flag.commands}
    given: dict[str, Any] = {}
    changes: list[tuple[str, str]] = []
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            hint = f"did you mean --config.{word}?" if re.match(r"[\w.]+=", word) else usage(program)
            raise UsageError(f"unexpected argument {word!r}; {hint}")
        name, equals, value = word.removeprefix("--").partition("=")
        change = name.startswith("config.")
        if not change and name not in known:
            raise UsageError(f"{command} has no flag --{name}; {nearest(name, list(known))}")
        switch = not change and not known[name].value
        if not equals and not switch:
            if waiting and not waiting[0].startswith("--"):
                value = waiting.pop(0)
            elif change:
                value = "true"  # --config.backbones.shared.scan
            else:
                raise UsageError(f"--{name} needs a value: --{name}={known[name].value}")
        if change:
            changes.append((name.removeprefix("config."), value))
        else:
            given[name] = _switch(name, value) if switch else value
    if "step" in given:
        given["step"] = _whole("step", given["step"])
    return Words(command, **given, changes=tuple(changes))


def _switch(name: str, value: str) -> bool:
    if value.lower() not in ("", "true", "false"):
        raise UsageError(f"--{name} is true or false, but is {value!r}")
    return value.lower() != "false"


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,18}", value):
        raise UsageError(f"--{name} must be a whole number, but is {value!r}")
    return int(value)
