"""Commits, changes and effects as lines of text."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from unimodal.history.effects import Effect
from unimodal.ledger import Commit
from unimodal.ledger.changes import Conflict
from unimodal.ledger.compare import Change


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns that line up."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def effect_lines(effects: Sequence[Effect]) -> list[str]:
    """A line for each task: before, after, the change with its interval, and the verdict."""
    if not effects:
        return ["no evaluation is shared by the two"]
    rows = [("task", "metric", "before", "after", "change", "95 % interval", "verdict")]
    for e in effects:
        way = " (higher is better)" if e.higher_is_better else " (lower is better)"
        said = f"{e.verdict}{way if e.comparable else ''}"
        rows.append((e.name, e.metric, short(e.before), short(e.after), signed(e.change), interval(e), said))
    return table(rows)


def summary(effects: Sequence[Effect]) -> str:
    """What came back and what was lost, in one line."""
    said = []
    for word in ("gained", "lost", "unclear", "same", "incomparable"):
        names = [f"{e.name} {signed(e.change)}".strip() for e in effects if e.verdict == word]
        if names:
            said.append(f"{word}: {', '.join(names)}")
    return "; ".join(said) or "nothing was measured"


def search_lines(scale: float, told: Sequence[str], whole: Sequence[str]) -> list[str]:
    """Which examples a scale was chosen on, for the effects that are told; those of `whole` were looked at entirely."""
    apart, seen = ([name for name in told if (name in whole) == are] for are in (False, True))
    lines = [f"{', '.join(apart)}: scale {scale:g} was chosen on every second example, and this is of the others"]
    more = [f"{', '.join(seen)}: scale {scale:g} was chosen by these very values, so they are no independent test"]
    return [*(lines if apart else []), *(more if seen else [])]


def change_lines(changes: Sequence[Change], most: int) -> list[str]:
    """A line for each tensor, the largest change first."""
    if not changes:
        return ["no tensor differs"]
    rows = [("tensor", "", "norm", "of its own", "cosine", "rank")]
    for c in changes[:most]:
        kind = "" if c.kind == "changed" else c.kind
        rank = "" if c.rank is None else f"{c.rank:.1f}"
        rows.append((c.name, kind or c.spelt, short(c.norm), percent(c.relative), short(c.cosine, 5), rank))
    more = [f"… and {len(changes) - most} more"] if len(changes) > most else []
    return [*table(rows), *more]


def conflict_lines(conflicts: Sequence[Conflict], most: int = 8) -> list[str]:
    """The tensors in which branches pull in opposite directions, by how much of them."""
    lines = [f"{c.name}: {c.opposite:,} of {c.both:,} entries that both changed have opposite signs" for c in conflicts]
    more = [f"… and {len(lines) - most} more tensors"] if len(lines) > most else []
    return [*lines[:most], *more]


def log_lines(commits: Sequence[Commit], names: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each commit. names: branches and tags by commit."""
    rows = []
    for c in commits:
        refs = f"({', '.join(names[c.id])}) " if names.get(c.id) else ""
        merge = f" [merges {', '.join(p[:10] for p in c.parents[1:])}]" if len(c.parents) > 1 else ""
        rows.append((c.short, day(c.when), c.author, f"{refs}{c.subject}{merge}"))
    return table(rows)


def day(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def short(number: float, digits: int = 4) -> str:
    return "" if math.isnan(number) else f"{number:.{digits}g}"


def signed(number: float) -> str:
    return "" if math.isnan(number) else f"{number:+.3g}"


def percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.3g} %"


def interval(effect: Effect) -> str:
    if not effect.comparable:
        return "none: two metrics"
    of_all = f" of {effect.asked:,}" if effect.examples < effect.asked else ""
    if math.isnan(effect.low):
        if effect.examples < 2 <= effect.asked:
            return f"none: {effect.examples}{of_all} examples are shared"
        return "none: a value is NaN" if math.isnan(effect.change) else "none: no numbers of single examples"
    return f"{signed(effect.low)} … {signed(effect.high)} ({effect.examples:,}{of_all} examples)"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"
