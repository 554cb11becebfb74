"""`unimodal data inspect` and `unimodal data convert`: data looked at, and data written."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unimodal.command.data_words import HELP, flags_of
from unimodal.command.inspect import run_inspect
from unimodal.configuration import nearest
from unimodal.data.convert import begun, convert
from unimodal.data.schemes import ALIASES
from unimodal.data.skipped import FILE, LEDGER
from unimodal.errors import UsageError


def run_data(arguments: Sequence[str], program: str) -> int:
    """Run what stands behind `data`; returns the exit code. Raises UsageError."""
    if not arguments:
        raise UsageError(f"usage: {program} data {'|'.join(HELP)}; {program} data --help says more")
    name, *rest = arguments
    if name == "convert":
        return run_convert(rest, program)
    if name == "inspect":
        return run_inspect(rest, program)
    raise UsageError(f"unknown command data {name!r}; {nearest(name, list(HELP))}")


def run_convert(arguments: Sequence[str], program: str) -> int:
    """Convert a source, with a bar of progress where someone looks and a line for each split where nobody does."""
    usage = f"usage: {program} data convert {HELP['convert'][0]}"
    words, flags = flags_of(arguments, ("splits", "shard_megabytes"), usage)
    if len(words) != 2:
        raise UsageError(usage)
    source, (scheme, _, folder) = words[0], words[1].partition(":")
    if ALIASES.get(scheme, scheme) != "array_record" or not folder:
        hint = "" if folder else f"; did you mean arrayrecord:{words[1]}?"
        raise UsageError(f"{words[1]!r} cannot be written: expected arrayrecord:DIR{hint}")
    size = flags.get("shard_megabytes", "256")
    if not size.isdecimal() or not int(size):
        raise UsageError(f"--shard_megabytes={size} should be a whole number of at least 1")
    target, splits = Path(folder).expanduser(), tuple(filter(None, flags.get("splits", "").split(",")))
    # Look before converting: the plan is there from the first record on.
    if begun(source, target):
        print(f"going on in {target}", flush=True)
    LEDGER.clear()
    LEDGER.list_in(target / FILE)
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bars = {}

        def show(split: str, done: int, total: int) -> None:
            # Add a bar when its split begins: until then nobody knows how long it is.
            if split not in bars:
                bars[split] = progress.add_task(split, total=total)
            progress.update(bars[split], completed=done)

        counts = convert(source, target, splits=splits, shard_bytes=int(size) << 20, show=show)
    for split, count in counts.items():
        files = sorted(target.glob(f"{split}*.array_record"))
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        print(f"{split}: {count:,} records, {len(files)} files, {megabytes:,.1f} MB")
    if line := LEDGER.report():
        print(line)
    print(f"array_record:{target} in {time.monotonic() - began:.0f} s; counts and checksums agree")
    return 0
