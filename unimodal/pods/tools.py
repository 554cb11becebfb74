"""Running other people's command-line tools, and saying in one line why they refused."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unimodal.errors import UsageError

INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install, then gcloud auth login",
    "kubectl": "https://kubernetes.io/docs/tasks/tools, then a context of your cluster",
    "sbatch": "run this on a login node of the cluster",
    "squeue": "run this on a login node of the cluster",
    "scancel": "run this on a login node of the cluster",
    "sky": "pip install 'skypilot[gcp]' (or another cloud), then sky check",
    "tar": "it packs the code",
}


@dataclass(frozen=True)
class Step:
    """A command to run."""

    words: tuple[str, ...]  # of the command line
    stdin: str | None = None  # what it reads from standard input
    files: tuple[tuple[str, str], ...] = ()  # path → text, written before it runs
    note: str = ""  # a word on it


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int  # exit code
    output: str  # standard output
    errors: str = ""  # standard error: gcloud writes notes of its own version there, say


def spell(step: Step) -> str:
    """Spell the step as one would type it."""
    lines = [f"# {step.note}"] if step.note else []
    for path, text in step.files:
        lines.append(_here(f"cat > {shlex.quote(path)}", text))
    line = shlex.join(step.words)
    lines.append(line if step.stdin is None else _here(line, step.stdin))
    return "\n".join(lines)


def _here(line: str, text: str) -> str:
    """A command that reads `text`, between marks that the text does not hold."""
    mark = "END"
    while mark in text.splitlines():
        mark += "_"
    return "\n".join([f"{line} <<'{mark}'", text.rstrip("\n"), mark])


def run(step: Step, *, show: bool = False) -> Outcome:
    """Exit code and what it wrote; with `show` its output goes to the user instead. Raises UsageError if there is
    no such tool."""
    for path, text in step.files:
        Path(path).write_text(text, encoding="utf-8")
    into = None if show else subprocess.PIPE
    try:
        done = subprocess.run(
            step.words,
            input=step.stdin,
            stdout=into,
            stderr=into,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(step) from error
    return Outcome(done.returncode, done.stdout or "", done.stderr or "")


def spawn(step: Step) -> subprocess.Popen[str]:
    """Started, with its output and errors to be read. Raises UsageError if there is no such tool."""
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            step.words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        raise _missing(step) from error


def _missing(step: Step) -> UsageError:
    tool = step.words[0]
    return UsageError(f"{tool} is not installed, or not on PATH: {INSTALL.get(tool, 'install it')}")


def must(step: Step, reasons: Sequence[tuple[str, str]]) -> str:
    """Run a step and return what it wrote. Raises UsageError, in the words of `reasons` (pattern → what it means), if it failed."""
    outcome = run(step)
    if outcome.code:
        raise UsageError(explain(step, outcome, reasons))
    return outcome.output


def explain(step: Step, outcome: Outcome, reasons: Sequence[tuple[str, str]]) -> str:
    """One line: what we know the failure to mean, and what the tool said."""
    said = " ".join(f"{outcome.output} {outcome.errors}".split())
    short = said if len(said) <= 300 else f"…{said[-300:]}"
    for pattern, meaning in reasons:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{meaning} ({step.words[0]}: {short})"
    return f"{shlex.join(step.words)[:200]} failed with exit code {outcome.code}: {short or 'it said nothing'}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as blocks, which can be read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def to_yaml(value: Any) -> str:
    """Write YAML in the order in which the value was put together."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10_000)
