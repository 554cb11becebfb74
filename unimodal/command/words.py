"""The words of a command line: commands, flags and their help, without anything that takes long to import."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    "ledger": "weights with a history: commit, diff, revert, merge, bisect",
    "data": "look at the data of a recipe, or write a source as ArrayRecord files",
    "pod": "start a run on several processes, TPU VMs, GKE, Slurm or SkyPilot",
    "predict": "ask a trained model: classes, transcripts, continuations, masked words of files, folders, texts, sources",
    "embed": "embeddings of pictures, texts and sounds, to JSON lines, Parquet or numpy",
    "index": "embed, and add to a searchable index in a folder",
    "search": "find what is nearest in an index: to a picture, words, a sound, or several of them together",
    "serve": "answer over HTTP, with a page to try it",
    "export": "write a trained model for other programs: a Hugging Face directory, or StableHLO",
}

# Commands that use a model name it, and what they are given, without any "--".
USE = {
    "predict": "WORKDIR_OR_CHECKPOINT INPUT…",
    "embed": "WORKDIR_OR_CHECKPOINT INPUT…",
    "index": "WORKDIR_OR_CHECKPOINT INPUT…",
    "search": "INDEX",
    "serve": "WORKDIR_OR_CHECKPOINT",
    "export": "WORKDIR huggingface:DIR|stablehlo:DIR",
}


@dataclass(frozen=True)
class Flag:
    """One flag of the command line."""

    name: str  # without the dashes
    value: str  # what stands after the "="; "": nothing, for a switch
    help: str  # one line, for --help
    commands: tuple[str, ...]  # those that take it


EVERY = ("train", "eval", "plan", "doctor")
ASK = ("predict", "embed", "index")  # commands that are given inputs
LOAD = (*ASK, "search", "serve", "export")
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
    Flag(
        "huge_pages",
        "",
        "on a CPU, take memory in pages of 2 MB, where the kernel has them (default); false: do not",
        ("train", "eval"),
    ),
    Flag("topology", "KIND:SHAPE", "what to compile for, as v5p:8x8x8, cpu:8 or gpu", ("plan",)),
    Flag("mesh", "auto", "try the meshes that divide the topology and the model", ("plan",)),
    Flag("json", "FILE", "where to write the figures", ("plan",)),
    Flag("task", "NAME", "which task of the model to ask (default: the only one that reads the input)", LOAD),
    Flag(
        "out", "FILE.jsonl|FILE.parquet", "where to write; the same command goes on where it was stopped", ("predict",)
    ),
    Flag(
        "out",
        "FILE.jsonl|FILE.parquet|FILE.npy",
        "where to write embeddings; .npy has FILE.jsonl beside it",
        ("embed",),
    ),
    Flag("to", "FOLDER", "the index, which is made if it is not there", ("index",)),
    Flag("image", "FILE", "a picture that is looked for", ("search",)),
    Flag("text", "WORDS", "words that are looked for; with a picture, both together", ("search",)),
    Flag("sound", "FILE", "a sound that is looked for", ("search",)),
    Flag("exact", "", "compare with all vectors, however many", ("search",)),
    Flag("model", "WORKDIR_OR_CHECKPOINT", "the model (default: the one that made the index)", ("search",)),
    Flag("host", "NAME", "where to listen (default: localhost); elsewhere callers need a token", ("serve",)),
    Flag("port", "N", "(default: 8000)", ("serve",)),
    Flag("token", "WORD", "what callers must know (default: none at localhost, else one that is made)", ("serve",)),
    Flag("index", "FOLDER", "an index that can be searched", ("serve",)),
    Flag("most", "BYTES", "of a request (default: 16777216)", ("serve",)),
    Flag("timeout", "SECONDS", "that an answer may take (default: 60)", ("serve",)),
    Flag("classes", "A,B,C", "names to choose among, for a model that compares pictures with words", ("predict",)),
    Flag("template", "TEXT", "the sentence a class is put into: 'a photo of a {}'", ("predict",)),
    Flag("top", "N", "how many of the likeliest, or nearest, are told (default: 5)", ("predict", "search")),
    Flag("steps", "N", "ids that a continuation has at most (default: 64)", ("predict",)),
    Flag("temperature", "X", "of sampling (default: 0, the likeliest; of pictures: the task's)", ("predict",)),
    Flag("top_p", "P", "sample among the likeliest that have this probability together", ("predict",)),
    Flag("beam", "N", "width of a transcript's beam search (default: 0, none)", ("predict",)),
    Flag("seed", "N", "of sampling, and of what is hidden from the model (default: 0)", ("predict",)),
    Flag("pictures", "FOLDER", "write pictures that are answers there; else they stand in their rows", ("predict",)),
    Flag("split", "NAME", "of a source that is given as an input (default: validation)", ASK),
    Flag("batch", "N", "inputs at a time (default: 32)", ASK),
    Flag("checkpoint", "N", "the checkpoint of a workdir, by its step (default: the latest)", LOAD),
    Flag("ema", "", "take the average of the parameters that the run kept; false: the last ones", LOAD),
    Flag(
        "gives",
        "WHAT",
        "which answer of the task: class, picture, embedding, … (default: its first)",
        ("predict", "export"),
    ),
    Flag("int8", "", "keep matrices in eight bits (StableHLO), and say what that costs in score", ("export",)),
    Flag("dtype", "NAME", "compute in float32, bfloat16 or float16", ASK),
    Flag("mesh", "data=N,tensor=N,…", "lay the model out over several devices", ASK),
)


@dataclass(frozen=True)
class Words:
    """A command line, parsed."""

    command: str  # the first word
    config: str | None = None  # a recipe, by name or path; None: not given
    workdir: str | None = None  # a folder or a bucket; None: not given
    fake_data: bool = False  # train on random batches
    dry_run: bool = False  # only describe what would run
    step: int | None = None  # of the checkpoint; None: the latest
    adapt: bool = False  # take what fits of a checkpoint of another config
    huge_pages: bool = True  # see FLAGS
    topology: str | None = None  # of chips that a plan is for
    mesh: str | None = None  # axes that a plan compares
    json: str | None = None  # file that a plan is written to
    # dotted config fields with the text they are set to, in order
    changes: tuple[tuple[str, str], ...] = field(default=())
    inputs: tuple[str, ...] = ()  # of a command that uses a model: its path, and what it is given
    more: Mapping[str, Any] = field(default_factory=dict)  # the flags of such a command


def answer(arguments: Sequence[str], program: str) -> str | None:
    """The text to print for --help or --version, or None where neither is asked for."""
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
    if command in ("data", "ledger"):
        from unimodal.command import data_words, ledger_words

        return (data_words if command == "data" else ledger_words).help_text(program)
    rows = [(f"--{f.name}={f.value}" if f.value else f"--{f.name}", f.help) for f in FLAGS if command in f.commands]
    if command not in USE:
        rows.append(("--config.FIELD=VALUE", "change a field of the recipe, as --config.optimizer.learning_rate=1e-4"))
    width = max(len(name) for name, _ in rows)
    lines = [f"usage: {program} {command} {USE.get(command, '')}".rstrip() + " [flags]", "", COMMANDS[command], ""]
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
    inputs: list[str] = []
    given: dict[str, Any] = {}
    changes: list[tuple[str, str]] = []
    while waiting:
        word = waiting.pop(0)
        # Take anything without dashes as an input, which may be a text of several words.
        if command in USE and (word == "--" or not word.startswith("--")):
            inputs += waiting if word == "--" else [word]  # behind a "--", whatever it looks like
            waiting = [] if word == "--" else waiting
            continue
        if not word.startswith("--"):
            hint = f"did you mean --config.{word}?" if re.match(r"[\w.]+=", word) else usage(program)
            raise UsageError(f"unexpected argument {word!r}; {hint}")
        name, equals, value = word.removeprefix("--").partition("=")
        # Leave fields to commands that build a config; a trained model has its own.
        change = name.startswith("config.") and command not in USE
        if not change and name not in known:
            raise UsageError(f"{command} has no flag --{name}; {nearest(name, list(known))}")
        switch = not change and not known[name].value
        # Accept --name value, too, but not before an input, which would be taken for the value.
        if not equals and not switch:
            if waiting and not waiting[0].startswith("--") and command not in USE:
                value = waiting.pop(0)
            elif change:
                value = "true"  # --config.backbones.shared.scan
            else:
                raise UsageError(f"--{name} needs a value: --{name}={known[name].value}")
        if change:
            changes.append((name.removeprefix("config."), value))
        else:
            given[name] = _switch(name, value) if switch else value
    if command in USE:
        return Words(command, inputs=tuple(inputs), more=given)
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
